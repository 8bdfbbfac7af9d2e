"""The commands about training and checkpoints without any platform: who may, with what, and what is recorded."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bots.command import Attachment, Caller, Permission, Response
from bots.commands import COMMANDS, UNKNOWN, find, pressed, run
from bots.services import Services
from bots.typed import read_command
from bots.workshop import is_data_file, safe_name
from personas.conversation import Conversation
from tests.helpers.bare_checkpoint import bare_checkpoint
from worker.queue.job import Job, State
from worker.queue.jobs import Jobs

HERE = Conversation("discord", "42")
ADMIN = Caller(HERE, "7", "Ann", is_group=True)
STRANGERS = [
    Caller(HERE, "8", "who manages this server", is_moderator=True, is_group=True),
    Caller(Conversation("discord", "99"), "9", "who manages another server", is_moderator=True, is_group=True),
    Caller(Conversation("telegram", "42"), "7", "an administrator's id on another platform", is_moderator=True),
    Caller(Conversation("discord", "1"), "77", "who writes privately", is_moderator=True),
]


@pytest.fixture
def shop(services: Services) -> Services:
    (services.workshop.data_dir / "datasets").mkdir()
    (services.workshop.data_dir / "datasets" / "ada.jsonl").write_text("{}", encoding="utf-8")
    return replace(services, admins=frozenset({"discord:7"}))


async def say(services: Services, line: str, caller: Caller = ADMIN) -> Response:
    name, _, rest = line.partition(" ")
    command, arguments = read_command(name, rest)
    assert command is not None
    return await run(services, command, caller, arguments)


def attached(name: str, data: bytes, num_bytes: int | None = None) -> Caller:
    async def save(path: Path, _max_bytes: int) -> None:
        await asyncio.to_thread(path.write_bytes, data)

    return replace(ADMIN, attachment=Attachment(name, len(data) if num_bytes is None else num_bytes, save))


def only_job(services: Services) -> Job:
    [job] = services.workshop.jobs.newest()
    return job


@pytest.mark.parametrize("command", [c.name for c in COMMANDS if c.permission is Permission.ADMIN])
async def test_strangers_are_told_nothing_change_nothing_and_are_logged(shop: Services, command: str) -> None:
    found = find(command)
    assert found is not None
    given = {option.name: "ada" for option in found.options}
    for caller in STRANGERS:
        with capture_logs() as logged:
            refused = await run(shop, found, caller, given)
        assert (refused.text, refused.is_private, refused.buttons) == (UNKNOWN, True, ())
        [line] = logged
        where = str(caller.conversation)
        assert line == {
            "event": "command refused", "log_level": "warning", "command": command, "by": caller.user,
            "conversation": where,
        }  # fmt: skip
    assert shop.workshop.jobs.newest() == []


async def test_a_forged_button_with_the_id_of_a_real_job_does_and_tells_nothing(shop: Services) -> None:
    await say(shop, "retrain start ada data=ada.jsonl")
    job = only_job(shop)
    checked = shop.workshop.jobs.claim("check")
    assert checked is not None
    shop.workshop.jobs.move(checked, State.PROPOSED, report={"dialogues": 40})
    for data in (f"retrain confirm|{job.id}", f"retrain cancel|{job.id}", f"retrain status|{job.id}"):
        for caller in STRANGERS:
            found = pressed(data)
            assert found is not None
            with capture_logs() as logged:
                refused = await run(shop, found[0], caller, found[1])
            assert (refused.text, refused.replaces) == (UNKNOWN, False)
            assert [(line["event"], line["by"]) for line in logged] == [("command refused", caller.user)]
    assert only_job(shop).state is State.PROPOSED
    for data in ("retrain confirm", "retrain|x", "no such|x", f"status{job.id}|"):
        assert pressed(data) is None


async def test_help_lists_administrators_commands_to_administrators_alone(shop: Services) -> None:
    assert "/retrain start" in (await say(shop, "help")).text
    assert "/retrain" not in (await say(shop, "help", STRANGERS[0])).text


async def test_an_order_is_recorded_with_who_and_where(shop: Services) -> None:
    answer = await say(shop, "retrain start ada data=ada.jsonl recipe=voice persona=bob force=yes")
    job = only_job(shop)
    assert job.id in answer.text
    assert job.state is State.CHECKING
    order = job.order
    assert (order.name, order.data, order.recipe, order.persona) == ("ada", "datasets/ada.jsonl", "voice", "Bob")
    assert (order.by, order.where, order.is_forced) == ("discord:7", HERE, True)
    assert shop.workshop.jobs.shown("discord") == {job.id}


@pytest.mark.parametrize("typed", ['speaker="Bo Li"', "speaker=“Bo Li”"])
async def test_a_speaker_whose_name_has_spaces_stands_in_quotes(shop: Services, typed: str) -> None:
    await say(shop, f"retrain start ada data=ada.jsonl {typed} force=yes")
    order = only_job(shop).order
    assert (order.speaker, order.data, order.is_forced) == ("Bo Li", "datasets/ada.jsonl", True)


async def test_options_may_be_typed_in_their_order(shop: Services) -> None:
    await say(shop, "retrain start ada ada.jsonl quick")
    order = only_job(shop).order
    assert (order.name, order.data, order.recipe) == ("ada", "datasets/ada.jsonl", "quick")


async def test_an_attached_file_is_brought_under_a_name_that_means_nothing_to_a_file_system(shop: Services) -> None:
    await say(shop, "retrain start ada", attached("../../a b.jsonl", b"data"))
    path = shop.workshop.data_dir / only_job(shop).order.data
    assert path.read_bytes() == b"data"
    assert path.parent == shop.workshop.data_dir / "uploads"
    assert path.name.endswith("-a_b.jsonl")


@pytest.mark.parametrize(
    ("line", "caller", "said"),
    [
        ("retrain start ../ada data=ada.jsonl", ADMIN, "letters, digits"),
        ("retrain start ada data=../secrets.jsonl", ADMIN, "no data set '../secrets.jsonl'"),
        ("retrain start ada", ADMIN, "Attach a data file"),
        ("retrain start ada data=ada.jsonl recipe=magic", ADMIN, "quick, standard, voice"),
        ("retrain start ada data=ada.jsonl persona=Nobody", ADMIN, "no persona called"),
        ("retrain start ada data=ada.jsonl base=none", ADMIN, "no checkpoint 'none'"),
        ("retrain start ada", attached("a.exe", b""), "no data file"),
        ("retrain start ada", attached("a.jsonl", b"", num_bytes=10**9), "1000.0 MB; at most 100 MB"),
        ("retrain confirm 12345678", ADMIN, "no confirmation"),
        ("retrain cancel 12345678", ADMIN, "no such job"),
        ("model show none", ADMIN, "no checkpoint called"),
        ("model rollback none", ADMIN, "no checkpoint called"),
    ],
)
async def test_what_cannot_be_is_explained(shop: Services, line: str, caller: Caller, said: str) -> None:
    answer = await say(shop, line, caller)
    assert said in answer.text
    assert answer.is_private
    assert shop.workshop.jobs.newest() == []


async def test_a_job_is_shown_listed_and_cancelled(shop: Services) -> None:
    await say(shop, "retrain start ada data=ada.jsonl")
    job = only_job(shop)
    shown = await say(shop, "retrain status")
    assert "Reading the data" in shown.text
    assert [button.data for row in shown.buttons for button in row] == [f"retrain cancel|{job.id}"]
    assert f"{job.id}  ada: checking" in (await say(shop, "retrain list")).text
    assert "Cancelled by Ann." in (await say(shop, f"retrain cancel {job.id}")).text
    assert "ada: cancelled (by Ann)" in (await say(shop, "retrain list")).text


async def test_who_confirms_a_proposal_too_late_hears_why_nothing_starts(shop: Services) -> None:
    await say(shop, "retrain start ada data=ada.jsonl")
    jobs = shop.workshop.jobs
    checked = jobs.claim("check")
    assert checked is not None
    jobs.move(checked, State.PROPOSED, report={"dialogues": 40})
    Jobs(jobs.redis, proposal_s=0).lapse()
    answer = await say(shop, f"retrain confirm {checked.id}")
    assert "waits for no confirmation" in answer.text
    assert f"{checked.id}  ada: cancelled (after a day without a confirmation)" in answer.text
    assert answer.is_private


async def test_help_says_what_training_data_are_not(shop: Services) -> None:
    text = (await say(shop, "retrain help")).text
    assert "nothing that was said to me becomes training data" in text
    assert (await say(shop, "retrain nonsense")).text == text


async def test_checkpoints_are_promoted_chosen_and_rolled_back(shop: Services, tmp_path: Path) -> None:
    registry = shop.workshop.registry
    first, second = (registry.add(bare_checkpoint(tmp_path / name, name), "ada") for name in ("one", "two"))
    assert f"{first.reference} is current now" in (await say(shop, "model promote ada@1")).text
    assert f"{second.reference} is current now" in (await say(shop, "model promote ada@2")).text
    assert "is served from now on" in (await say(shop, "model use ada")).text
    assert f"▸ ada: {second.version} (2 versions)" in (await say(shop, "model list")).text
    assert f"▸ {second.version}" in (await say(shop, "model show ada")).text
    assert f"{first.reference} is current again" in (await say(shop, "model rollback ada")).text
    assert "no earlier version" in (await say(shop, "model rollback ada")).text
    assert registry.pointer("ada").promotions[-1].by == "discord:7"


async def test_a_comparison_is_a_job_without_training(shop: Services, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shop.workshop.registry.promote(shop.workshop.registry.add(bare_checkpoint(tmp_path / name), name).reference)
    await say(shop, "model compare one two")
    job = only_job(shop)
    assert job.order.base.startswith("one@0001")
    assert job.order.other.startswith("two@0001")


async def test_status_counts_what_waits(shop: Services) -> None:
    await say(shop, "retrain start ada data=ada.jsonl")
    text = (await say(shop, "status")).text
    assert "Workers: 0" in text
    assert "Training: 0 running, 0 queued, 1 not confirmed" in text


def test_names_of_files_are_made_safe() -> None:
    assert safe_name("..\\..\\x.jsonl") == "x.jsonl"
    assert safe_name("...") == "data"
    assert len(safe_name("a" * 500 + ".jsonl.gz")) == 80
    assert is_data_file("a.JSONL.gz")
    assert not is_data_file("a.gz")
