"""`personabot inspect`: counts, lengths, and what is shown as trained."""

from __future__ import annotations

import gzip
import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personas.errors import PersonabotError
from personas.layout import Layout
from tests.helpers.cli import home, personabot, tiny_model
from tests.helpers.layouts import chat_layout, persona_layout
from trainer.formats import PARSERS, read_dialogues
from trainer.inspect_cli import inspect
from trainer.inspection import count, measure, samples

__all__ = ["home", "tiny_model"]
DATA = Path(__file__).parent / "data"


def test_counts_are_of_dialogues_turns_words_personas_and_duplicates(tmp_path: Path) -> None:
    line = json.dumps({"p1": ["a b"], "p2": ["c"], "turns": ["one two", "three"], "licence": "CC BY 4.0"})
    path = tmp_path / "data.jsonl"
    path.write_text(f"{line}\n{line}\n{line.replace('three', 'four five')}\n")
    found = count(path, None, list(read_dialogues(path)))
    assert (found.num_dialogues, found.num_turns, found.num_words) == (3, 6, 10)
    assert (found.num_personas, found.num_duplicates) == (1, 1)
    assert (found.format, found.licence) == ("personachat", "CC BY 4.0")


@pytest.mark.parametrize("layout", [persona_layout(), chat_layout()], ids=["persona", "chat"])
def test_lengths_are_those_of_the_sequences_that_would_be_trained(layout: Layout) -> None:
    dialogues = list(read_dialogues(DATA / "parlai.txt"))
    lengths = sorted(len(layout.examples_of(d.facts, d.turns, max_tokens=9999)[0].ids) for d in dialogues)
    found = measure(dialogues, layout, max_tokens=lengths[-1] - 1)
    assert found.percentiles[100] == lengths[-1]
    assert found.share_truncated == 1 / len(dialogues)
    assert 0.2 < found.share_trained < 0.8


def test_samples_show_the_bots_words_and_their_end_as_trained() -> None:
    layout = persona_layout()
    [dialogue, *_] = dialogues = list(read_dialogues(DATA / "parlai.txt"))
    shown = samples(dialogues, layout, max_tokens=2000)[0]
    assert [text for is_trained, text in shown if is_trained] == [
        f"{turn.text}<eos>" for turn in dialogue.turns if turn.role == "bot"
    ]


def test_inspect_shows_counts_and_samples(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect(DATA / "parlai.txt", model_path=str(tiny_model))
    shown = capsys.readouterr().out
    assert "dialogues" in shown
    assert "Sample 2" in shown
    assert "<speaker1>" in shown


def test_inspect_prints_one_json_object(home: Path, tiny_model: Path) -> None:
    told = personabot("inspect", DATA / "parlai.txt", "--model-path", tiny_model, "--json", home=home)
    data = json.loads(told.stdout)
    assert data["num_dialogues"] == 2
    assert data["tokens"]["p100"] >= data["tokens"]["p50"] > 0
    assert data["layout"] == "persona"


BYTES = {
    "empty": b"",
    "blank": b" \n\n",
    "latin-1": "caf\u00e9: hello\nbob: hi\n".encode("latin-1"),
    "mixed": "caf\u00e9: hello\n".encode() + "caf\u00e9: hi\n".encode("utf-16-le"),
    "cut-off": gzip.compress(b'{"p1": [], "p2": [], "turns": ["a", "b"]}\n' * 2000)[:-50],
    "not-json": b'{"messages": [{"role": "user", "content": "hi"\n',
    "binary": bytes(range(256)) * 10,
    "long-line": b"x" * 50_000_000,
    "deep": b'{"turns": ' + b"[" * 100_000,
}


@pytest.mark.parametrize("name", BYTES)
def test_a_broken_file_ends_in_one_message_with_its_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / ("data.jsonl.gz" if name == "cut-off" else "data.txt")
    path.write_bytes(BYTES[name])
    with pytest.raises(PersonabotError, match="data"):
        list(read_dialogues(path))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(PARSERS)), st.data())
def test_no_damage_to_a_file_gives_anything_but_dialogues_or_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, format: str, data: st.DataObject
) -> None:
    source = data.draw(st.sampled_from(sorted(path for path in DATA.iterdir() if path.suffix != ".md")))
    raw = source.read_bytes()[:3000]
    start, stop = sorted(data.draw(st.tuples(st.integers(0, len(raw)), st.integers(0, len(raw)))))
    damaged = raw[:start] + data.draw(st.binary(max_size=20)) + raw[stop:]
    path = tmp_path_factory.getbasetemp() / "damaged.txt"
    path.write_bytes(damaged)
    for chosen in (format, None):
        with suppress(PersonabotError):
            dialogues = list(read_dialogues(path, chosen, speaker="Ann"))
            assert all(turn.text.strip() for dialogue in dialogues for turn in dialogue.turns)


@pytest.mark.parametrize("command", ["inspect", "train"])
def test_the_command_line_shows_a_message_and_no_traceback(home: Path, command: str) -> None:
    path = home / "data.jsonl"
    path.write_bytes(BYTES["not-json"])
    done = personabot(command, path, *(["--out", home / "run"] if command == "train" else []), home=home)
    assert done.returncode == 1
    assert "data.jsonl: line 1: expected one JSON object a line" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert not list(home.glob("run/*"))
