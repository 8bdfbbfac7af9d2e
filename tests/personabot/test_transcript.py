"""Prompt files and output files."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from personabot.transcript import Transcript, TranscriptError, read_prompts
from personas.persona import Persona

ADA = Persona(name="Ada", facts=("My name is Ada.",), greeting="Good day.")


@dataclass
class Said:
    text: str
    seed: int | None = 7
    model: str = "tiny"


def test_prompts_are_lines_without_empty_ones(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffhello\r\n\n  grüße\u2028dich \n".encode())
    assert read_prompts(file) == ["hello", "grüße\u2028dich"]


def test_a_missing_prompt_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TranscriptError, match=r"nowhere\.txt: No such file"):
        read_prompts(tmp_path / "nowhere.txt")


def test_a_prompt_file_in_another_encoding_names_the_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"fine\n\xff\n")
    with pytest.raises(TranscriptError, match="line 2: not UTF-8"):
        read_prompts(file)


def test_jsonl_has_one_object_a_reply(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Transcript(path) as transcript:
        transcript.begin(ADA)
        transcript.add(ADA, "hi", Said("Grüß Gott"))
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [
        {"persona": "Ada", "prompt": "hi", "reply": "Grüß Gott", "model": "tiny", "seed": 7}
    ]


def test_a_text_transcript_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    with Transcript(path) as transcript:
        for _ in range(2):
            transcript.begin(ADA)
            transcript.add(ADA, "hi", Said("hello"))
    conversation = "# Ada\nAda: Good day.\nYou: hi\nAda: hello\n"
    assert path.read_text(encoding="utf-8") == f"{conversation}\n{conversation}"


def test_an_interrupted_transcript_does_not_replace_the_file(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text("before")

    def fail() -> None:
        with Transcript(path) as transcript:
            transcript.add(ADA, "hi", Said("hello"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "before"
    assert "hello" in path.with_name("out.txt.partial").read_text()


def test_an_output_file_in_a_missing_folder_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(TranscriptError, match="cannot be written"):
        Transcript(tmp_path / "missing" / "out.txt")
