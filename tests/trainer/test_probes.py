"""The probe file covers the catalogue, and its questions and patterns are fair."""

from pathlib import Path

import pytest

from personas.catalogue import load_catalogue
from personas.errors import PersonaFileError
from personas.persona import Persona
from trainer.probes import Probe, load_probes

PERSONAS = {entry.persona.name: entry.persona for entry in load_catalogue(None)}
PROBES = load_probes().personas
ALL = [pytest.param(PERSONAS[name], probe, id=probe.fact) for name, probes in PROBES.items() for probe in probes]
BLAND = (
    "I don't know.", "Yes, I do.", "No, I don't. Do you?", "I am doing well, how are you?", "That sounds great!",
    "I am not sure, I have not been there.", "I like to read and listen to music.", "I have a dog.", "I am a nurse.",
    "I live in the city.", "I am twenty five years old.", "My favorite color is blue.",
    "I'm tired, I have to go to bed now.",    "Nice to meet you, what do you do?", "My name is Anna.",
)  # fmt: skip


def test_every_persona_is_probed_for_every_fact_in_order() -> None:
    assert list(PROBES) == list(PERSONAS)
    for name, probes in PROBES.items():
        assert tuple(probe.fact for probe in probes) == PERSONAS[name].facts


def test_one_fact_of_each_persona_is_its_name() -> None:
    for name, probes in PROBES.items():
        names = [probe for probe in probes if probe.kind == "name"]
        assert [probe.expect[0].removesuffix("\\b") for probe in names] == [name.split()[0].lower()]


def test_each_question_is_worded_once_within_a_persona() -> None:
    for probes in PROBES.values():
        questions = [question for probe in probes for question in probe.ask]
        assert len(set(questions)) == len(questions)


@pytest.mark.parametrize(("persona", "probe"), ALL)
def test_the_fact_counts_and_neither_question_nor_greeting_nor_small_talk_does(persona: Persona, probe: Probe) -> None:
    assert probe.is_used_in(probe.fact)
    shown = [persona.greeting or "", *(line for turn in persona.examples for line in (turn.user, turn.bot))]
    for text in (*probe.ask, *shown, *BLAND):
        assert not probe.is_used_in(text), text


def test_a_pattern_begins_at_the_start_of_a_word() -> None:
    probe = Probe(fact="I keep bees.", kind="fact", ask=("a?", "b?", "c?"), expect=(r"bees?\b", "honey"))
    assert probe.is_used_in("Bees, mostly!")
    assert probe.is_used_in("i make HONEY")
    assert not probe.is_used_in("I have been there with a frisbee")


def test_questions_come_with_persona_and_probe() -> None:
    asked = list(load_probes().questions())
    assert len(asked) == 3 * len(ALL)
    assert asked[0][0] == next(iter(PERSONAS))


def test_a_bad_probe_file_is_refused_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "probes.yaml"
    path.write_text("personas:\n  Zed:\n    - {fact: I am Zed., kind: name, ask: [a, b, c],\n       expect: ['(']}\n")
    with pytest.raises(PersonaFileError, match=r"probes\.yaml:4: personas\.Zed\[1\]\.expect: expected a pattern"):
        load_probes(path)
