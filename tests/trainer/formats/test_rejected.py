"""Lines that cannot be read are counted, described and left out where that is wanted, and else refuse the file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from trainer.formats import DataError, Rejected, read_dialogues, sniff

SPC = json.dumps({"p1": [], "p2": ["I bake."], "turns": [{"s": 1, "t": "hi"}, {"s": 2, "t": "hello"}]})
MUTE = json.dumps({"p1": [], "p2": ["I bake."], "turns": [{"s": 1, "t": " "}, {"s": 2, "t": ""}]})
CHAT = json.dumps({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]})
HALF = CHAT.replace("hello", "\\ud83d")
STAMP = "31/12/2023, 21:4"


def read(path: Path, speaker: str = "") -> tuple[int, Rejected]:
    rejected = Rejected()
    return len(list(read_dialogues(path, speaker=speaker, rejected=rejected))), rejected


@pytest.mark.parametrize(
    ("format", "data", "num_read", "num_lines", "first"),
    [
        ("spc", f"{SPC}\n{SPC[:30]}\n{SPC}\n", 2, 3, "line 2: expected one JSON object a line"),
        ("spc", f"{SPC}\n[1]\n", 1, 2, "line 2: expected a JSON object, got list"),
        ("spc", f"{SPC}\n{MUTE}\n\n{SPC}\n", 2, 3, "line 2: expected turns with text in them, found none"),
        ("spc", f'{SPC}\n{{"turns": []}}\n', 1, 2, 'line 2: expected {"p1": [facts], "p2"'),
        ("spc", f"oh no\n{SPC}\n", 1, 2, "line 1: expected one JSON object a line"),
        ("spc", SPC.encode() + b"\n\xff\xfe\n" + SPC.encode(), 2, 3, "line 2: expected UTF-8 text, got the byte 0xff"),
        ("messages", f"{CHAT}\n{HALF}\n", 1, 2, "expected characters, got half a surrogate pair"),
        ("messages", f'[{CHAT}, 7, {{"messages": 1}}]', 1, 3, "item 2: expected a JSON object, got int"),
        (
            "parlai",
            "1 your persona: I bake.\n2 hi\thello\nso\n3 bread\n3 and?\tno\n",
            1,
            5,
            "line 3: expected a line nu",
        ),
        ("csv", b"context,response\nhi,hello\nhey\ncaf\xe9,x\n", 1, 3, "line 3: expected 2 fields"),
        ("script", b"name,line\nAnn,hi\nBob,hello\nAnn,\xe9\n", 1, 3, "line 4: expected UTF-8 text"),
        ("dialogpt", "0.0 hey\t1.0 hi\n0.0 hey EOS hi\t1.0 x\n", 1, 2, "line 2: expected '0.0 first turn"),
        ("dialogue", "Ann: hi\nBob: hello\n\nlost\nAnn: hi\n", 1, 4, "line 4: expected 'Name: text'"),
        (
            "whatsapp",
            f"\u200e{STAMP}0 - Ann: hi\n{STAMP}1 - Bob: hello\n{STAMP}2 - Ann: \udcff\n",
            1,
            3,
            "line 3: expe",
        ),
        (
            "corpus",
            "My dear,\nit is late,\n\udce9\nand I write.\n",
            1,
            4,
            "line 3: expected UTF-8 text, got the byte 0xe9",
        ),
        ("documents", '{"text": "I dreamt."}\n{"text": 7}\n', 1, 2, 'line 2: expected {"text": text}'),
    ],
)
def test_a_line_that_cannot_be_read_is_left_out_and_counted_or_refuses_the_file(
    tmp_path: Path, format: str, data: str | bytes, num_read: int, num_lines: int, first: str
) -> None:
    path = tmp_path / "data.txt"
    path.write_bytes(data if isinstance(data, bytes) else data.encode(errors="surrogateescape"))
    assert sniff(path) == format
    speaker = "Bob" if format in ("whatsapp", "script", "dialogue") else ""
    found, rejected = read(path, speaker)
    assert (found, rejected.num_lines) == (num_read, num_lines)
    assert rejected.first[0].startswith(first)
    assert str(path) not in rejected.first[0]
    assert rejected.num >= 1
    if "found none" not in first:  # in which nobody says anything is no reason to refuse a file
        with pytest.raises(DataError, match=r"data\.txt"):
            list(read_dialogues(path, speaker=speaker))


def test_the_first_three_are_described_and_all_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join([SPC, *["{"] * 9]))
    _, rejected = read(path)
    assert [said[:6] for said in rejected.first] == ["line 2", "line 3", "line 4"]
    assert (rejected.num, rejected.share) == (9, 0.9)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.json", f"[{CHAT}, {CHAT[:40]}".encode()),
        ("a.jsonl.gz", gzip.compress(f"{SPC}\n".encode() * 2000)[:-50]),
        ("a.csv", b"context,answer\nhi,hello\n"),
    ],
)
def test_a_file_that_is_broken_as_a_whole_is_refused_in_any_case(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError):
        read(path)
