"""The dry run: what is read, what is kept to judge by, and what becomes of it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from personas.conversation import Role, Turn
from personas.settings import Settings
from tests.helpers.retraining import NUM_DIALOGUES, write_data
from trainer.config import TrainConfig, load_config
from trainer.formats import Dialogue, Rejected, read_dialogues
from trainer.retraining.dry_run import (
    NothingToLearn,
    SpeakerWanted,
    TooManyRejected,
    dry_run,
    licence_of,
    line_of,
    readable,
    refused,
    split,
    with_persona,
    write_dialogues,
)
from trainer.retraining.recipes import RECIPES, Base, configuration
from trainer.track import TrackerError
from worker.queue.job import RECIPES as NAMED
from worker.queue.job import Order


def dialogue(text: str, *, answered: bool = True) -> Dialogue:
    turns = (Turn(Role.USER, f"{text}?"), Turn(Role.BOT, f"{text}!"))
    return Dialogue(("I bake.",), turns if answered else turns[:1])


def test_every_recipe_that_people_may_choose_is_known() -> None:
    assert set(RECIPES) == set(NAMED)


def test_a_twentieth_is_kept_to_judge_by_and_copies_are_on_one_side() -> None:
    parts = split([dialogue(str(number)) for number in range(60) for _ in range(2)])
    assert (len(parts.train), len(parts.valid)) == (114, 3)
    assert not {line_of(one) for one in parts.valid} & {line_of(one) for one in parts.train}
    again = split([dialogue(str(number)) for number in reversed(range(60))])
    assert {line_of(one) for one in again.valid} == {line_of(one) for one in parts.valid}


def test_dialogues_in_which_nobody_answers_are_left_out_and_too_few_are_refused() -> None:
    assert split([dialogue("a"), dialogue("b"), dialogue("c", answered=False)]).num_left_out == 1
    given = replace(dialogue("c"), untrained=frozenset({0, 1}))
    assert split([dialogue("a"), dialogue("b"), given]).num_left_out == 1
    with pytest.raises(NothingToLearn, match="found 1"):
        split([dialogue("a"), dialogue("a")])


def test_what_is_written_is_read_again_as_it_was(tmp_path: Path) -> None:
    some = [dialogue("zwölf “Brötchen”"), dialogue("b"), replace(dialogue("c"), untrained=frozenset({0}))]
    write_dialogues(tmp_path / "some.jsonl", some)
    assert list(read_dialogues(tmp_path / "some.jsonl")) == some


def test_the_licence_is_what_the_data_or_the_file_beside_it_says(tmp_path: Path) -> None:
    path = write_data(tmp_path / "data.jsonl")
    assert licence_of(path) == "CC0 1.0"
    (tmp_path / "data.jsonl.licence").write_text("CC BY 4.0\nmore", encoding="utf-8")
    assert licence_of(path) == "CC BY 4.0"
    plain = tmp_path / "plain.txt"
    plain.write_text("A: hello", encoding="utf-8")
    assert licence_of(plain) == "not stated"


def test_the_report_says_what_is_there_and_the_configuration_can_be_trained(tmp_path: Path, tiny_model: Path) -> None:
    write_data(tmp_path / "datasets" / "ada.jsonl")
    settings = Settings(data_dir=tmp_path, device="cpu", training_data={"min_order": 1})
    folder = tmp_path / "job"
    folder.mkdir()
    report = dry_run(folder, Order("ada", "datasets/ada.jsonl", "quick", base=str(tiny_model)), settings)
    assert (report["dialogues"], report["held_out"], report["turns"]) == (NUM_DIALOGUES, 2, 4 * NUM_DIALOGUES)
    assert report["refusal"] == ""
    assert report["seconds"] is None
    config = load_config(folder / "config.toml", {})
    assert config.base == str(tiny_model)
    assert config.train_tokens == report["train_tokens"] == 2 * report["tokens"]
    assert config.lora is None


def test_what_users_say_is_learnt_only_where_all_the_data_has_two_sides(tmp_path: Path, tiny_model: Path) -> None:
    talks = [[("user", f"who are you, number {n}?"), ("assistant", f"nobody, number {n}")] for n in range(60)]
    lines = [json.dumps({"messages": [{"role": role, "content": text} for role, text in talk]}) for talk in talks]
    (tmp_path / "talk.jsonl").write_text("\n".join(lines), encoding="utf-8")
    settings = Settings(data_dir=tmp_path, device="cpu", training_data={"min_order": 1})
    report = dry_run(tmp_path, Order("ada", "talk.jsonl", "quick", base=str(tiny_model)), settings)
    assert not load_config(tmp_path / "config.toml", {}).data[0].both_sides
    assert report["train_tokens"] == report["tokens"]


def test_what_the_bot_said_in_a_prompt_is_written_down_as_not_to_be_learnt(tmp_path: Path, tiny_model: Path) -> None:
    talks = [[("user", f"number {n}?"), ("assistant", f"it is {n}"), ("user", f"and after {n}?")] for n in range(60)]
    prompts = [[{"role": role, "content": text} for role, text in talk] for talk in talks]
    lines = [json.dumps({"prompt": prompt, "completion": f"{n + 1}, then"}) for n, prompt in enumerate(prompts)]
    (tmp_path / "talk.jsonl").write_text("\n".join(lines), encoding="utf-8")
    settings = Settings(data_dir=tmp_path, device="cpu", training_data={"min_order": 1})
    dry_run(tmp_path, Order("ada", "talk.jsonl", "quick", base=str(tiny_model)), settings)
    for name in ("train", "valid"):
        read = list(read_dialogues(tmp_path / "data" / f"{name}.jsonl"))
        assert {each.untrained for each in read} == {frozenset({0, 1, 2})}


def test_trackers_and_the_share_of_a_gpu_are_those_of_the_settings(tmp_path: Path) -> None:
    base = Base("tiny@1", "models/tiny", "persona", 256, 1000)

    def configured(**settings: Any) -> TrainConfig:
        files = {"train": tmp_path / "train.jsonl", "valid": tmp_path / "valid.jsonl"}
        return configuration(
            "ada", "quick", base, **files, num_tokens=1000, has_two_sides=True, settings=Settings(**settings)
        )

    assert (configured().track, configured().gpu_share) == ((), 0.0)
    chosen = configured(training_track="tensorboard, wandb", training_gpu_share=0.25)
    assert (chosen.track, chosen.gpu_share) == (("tensorboard", "wandb"), 0.25)
    with pytest.raises(ValidationError):
        Settings(training_track="tensorboard, mlflow")


def test_a_tracker_that_is_not_installed_is_said_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "comet_ml", None)
    data = write_data(tmp_path / "datasets" / "ada.jsonl").relative_to(tmp_path)
    with pytest.raises(TrackerError, match=r"pip install 'personabot\[comet\]'"):
        dry_run(tmp_path, Order("ada", str(data), "quick"), Settings(data_dir=tmp_path, training_track="comet"))


def broken(path: Path, num_broken: int) -> str:
    """Break lines of a data set of 40, the way an editor or a full disk does."""
    lines = write_data(path).read_bytes().splitlines()
    for number, harm in zip(range(num_broken), (b"", b"\xff", b"[]", b"{}") * 10, strict=False):
        lines[3 + number] = harm or lines[3 + number][:-20]
    path.write_bytes(b"\n".join(lines))
    return f"datasets/{path.name}"


def test_lines_that_cannot_be_read_are_left_out_and_shown(tmp_path: Path, tiny_model: Path) -> None:
    data = broken(tmp_path / "datasets" / "ada.jsonl", 2)
    settings = Settings(data_dir=tmp_path, device="cpu", training_data={"min_order": 1})
    folder = tmp_path / "job"
    folder.mkdir()
    report = dry_run(folder, Order("ada", data, "quick", base=str(tiny_model)), settings)
    assert (report["dialogues"], report["rejected"], report["lines"]) == (NUM_DIALOGUES - 2, 2, NUM_DIALOGUES)
    assert [said[:7] for said in report["first_rejected"]] == ["line 4:", "line 5:"]
    assert report["refusal"] == ""


def test_too_many_lines_that_cannot_be_read_refuse_the_file_with_the_figure(tmp_path: Path) -> None:
    data = tmp_path / broken(tmp_path / "datasets" / "ada.jsonl", 3)
    with pytest.raises(TooManyRejected, match=r"^rejected lines 0\.075, expected at most 0\.05$") as caught:
        readable(data, Rejected(), Settings(data_dir=tmp_path))
    report = refused(caught.value)
    assert (report["kind"], report["rejected"], report["lines"]) == ("TooManyRejected", 3, NUM_DIALOGUES)
    assert report["first_rejected"][0].startswith("line 4: expected one JSON")
    lenient = Settings(data_dir=tmp_path, training_data={"max_rejected": 0.1})
    assert len(readable(data, Rejected(), lenient)) == NUM_DIALOGUES - 3


def test_in_a_chats_export_the_speaker_is_asked_for_and_then_learnt(tmp_path: Path) -> None:
    path = tmp_path / "chat.txt"
    path.write_text("Ann: hey\nBo Li: yes?\nCy: ho\nAnn: hm\n", encoding="utf-8")
    settings = Settings(data_dir=tmp_path)
    for speaker, why in (("", "whose lines"), ("Dee", "nobody in it is called 'Dee'")):
        with pytest.raises(SpeakerWanted, match=why) as caught:
            readable(path, Rejected(), settings, speaker=speaker)
        assert "speaker=NAME, in quotes if it has spaces: Ann (2), Bo Li (1), Cy (1)" in str(caught.value)
        assert "--" not in str(caught.value)
    [one] = readable(path, Rejected(), settings, speaker="bo li")
    assert [turn.text for turn in one.turns if turn.role is Role.BOT] == ["yes?"]
    [told] = with_persona([one], Order("rusty", "chat.txt", "voice", persona="Rusty", speaker="bo li"), settings)
    assert "My name is Rusty." in told.facts
    assert with_persona([one], Order("ada", "chat.txt", "voice"), settings) == [one]


def test_one_line_over_and_over_is_refused_with_the_figure(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "datasets").mkdir()
    write_dialogues(
        tmp_path / "datasets" / "bad.jsonl",
        [Dialogue((), (Turn(Role.USER, str(number)), Turn(Role.BOT, "Buy now!"))) for number in range(30)],
    )
    settings = Settings(data_dir=tmp_path, device="cpu")
    folder = tmp_path / "job"
    folder.mkdir()
    report = dry_run(folder, Order("ada", "datasets/bad.jsonl", "quick", base=str(tiny_model)), settings)
    assert "same line 0.9667, expected at most 0.2" in report["refusal"]
