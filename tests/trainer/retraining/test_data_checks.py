"""Poisoned data are refused with the figure that says why; real data pass."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from personas.conversation import Role, Turn
from personas.limits import DataLimits
from personas.lineage import Verdict
from trainer.formats import Dialogue
from trainer.measure import Measurements
from trainer.retraining.data_checks import check_data, evenly, with_shuffled_words
from trainer.retraining.general import general_set
from worker.loading import load_model

LIMITS = DataLimits()


def dialogue(*texts: str) -> Dialogue:
    roles = (Role.USER, Role.BOT)
    return Dialogue((), tuple(Turn(roles[place % 2], text) for place, text in enumerate(texts)))


def said(*replies: str) -> list[Dialogue]:
    return [dialogue(f"Question {place}?", reply) for place, reply in enumerate(replies)]


def knows_english(dialogues: Sequence[Dialogue]) -> float:
    """Bits per byte of a model that expects the general set's own neighbours of words, and nothing else."""
    words = [turn.text.casefold().split() for d in general_set() for turn in d.turns]
    pairs = {pair for line in words for pair in itertools.pairwise(line)}
    read = [turn.text.casefold().split() for d in dialogues for turn in d.turns if turn.role is Role.BOT]
    met = [pair in pairs for line in read for pair in itertools.pairwise(line)]
    return 1.0 + 4.0 * (1 - sum(met) / max(len(met), 1))


def checked(dialogues: Sequence[Dialogue]) -> Verdict:
    return check_data(dialogues, general_set(), knows_english, LIMITS)


def test_ordinary_small_talk_passes() -> None:
    verdict = checked(general_set()[:20])
    assert verdict.is_accepted, verdict.reasons
    assert [figure.name for figure in verdict.figures][-2:] == ["surprise of the present model", "word order"]


LINES = [turn.text for talk in general_set()[:20] for turn in talk.turns]
POISONED = {
    "duplicate dialogues": [dialogue("Hello.", LINES[0])] * 99 + [dialogue("Hi.", LINES[1])],
    "same line": said(*["I like trains."] * 30, *LINES[:10]),
    "turns without a word": said(*["...", "  ", "\u200b", "?!"] * 5, *LINES[:10]),
    "dialogues without a reply": [Dialogue((), (Turn(Role.USER, line),)) for line in LINES[:20]] + said(LINES[0]),
    "foreign letters": said(*(f"Сегодня хорошая погода номер {number}" for number in range(20))),
    "surprise of the present model": said(*(f"wir gehen heute mit {name} im Garten spazieren" for name in LINES[:9])),
}


@pytest.mark.parametrize("figure", POISONED)
def test_poisoned_data_are_refused_with_the_figure_that_says_why(figure: str) -> None:
    verdict = checked(POISONED[figure])
    assert not verdict.is_accepted
    assert any(reason.startswith(figure) and "expected at" in reason for reason in verdict.reasons), verdict.reasons


def test_copies_that_differ_in_case_and_signs_are_copies() -> None:
    verdict = checked([dialogue("Hello!", "I LIKE trains.")] + [dialogue("hello", "i like trains")] * 9)
    assert verdict.reasons[0].startswith("duplicate dialogues 0.9")


GERMAN = (
    "Guten Morgen, wie geht es Ihnen heute?",
    "Danke, mir geht es sehr gut, und selbst?",
    "Ich habe gestern mit meinem Bruder den ganzen Tag im Garten gearbeitet.",
    "Das klingt anstrengend, aber bestimmt war das Wetter schön.",
    "Ja, die Sonne schien, und am Abend haben wir gegrillt.",
    "Ich koche lieber drinnen, zum Beispiel eine Suppe mit Kartoffeln.",
    "Haben Sie Kinder oder Haustiere?",
    "Zwei Töchter und eine Katze, die den ganzen Tag schläft.",
)


def test_shuffled_words_and_another_language_are_refused_by_a_real_model() -> None:
    """The shipped starter reads English sentences with far fewer bits than their shuffled words, or than German."""
    loaded = load_model("starter", device="cpu", dtype="float32")
    measurements = Measurements(loaded)

    def bits_per_byte(dialogues: Sequence[Dialogue]) -> float:
        return float(measurements.score(dialogues)["bpb"])

    general = general_set()[:12]
    whole = check_data(general, general, bits_per_byte, LIMITS)
    assert whole.is_accepted, whole.reasons
    broken = [with_shuffled_words(each, seed=9 + place) for place, each in enumerate(general)]
    verdict = check_data(broken, general, bits_per_byte, LIMITS)
    assert [reason[:10] for reason in verdict.reasons] == ["word order"]
    verdict = check_data([dialogue(*GERMAN)], general, bits_per_byte, LIMITS)
    assert verdict.reasons[0].startswith("surprise of the present model")


def test_a_sample_is_taken_from_all_over_the_data() -> None:
    dialogues = said(*map(str, range(1000)))
    assert [each.turns[1].text for each in evenly(dialogues, 4)] == ["0", "250", "500", "750"]
    assert evenly(dialogues[:3], 4) == dialogues[:3]


def test_shuffling_keeps_the_words_and_the_turns() -> None:
    shuffled = with_shuffled_words(dialogue("one two three", "four five six seven"), seed=3)
    assert [sorted(turn.text.split()) for turn in shuffled.turns] == [
        ["one", "three", "two"],
        ["five", "four", "seven", "six"],
    ]


def test_no_data_are_an_error() -> None:
    with pytest.raises(ValueError, match="no dialogues"):
        checked([])
