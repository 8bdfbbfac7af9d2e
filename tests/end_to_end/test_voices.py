"""A voice of its own for one persona, with real workers: a text becomes what it says next, and nobody else does."""

from __future__ import annotations

from pathlib import Path

from personabot.console import AdminConsole
from personabot.queue_partner import QueuePartner
from personas.catalogue import load_catalogue
from personas.registry import Registry
from personas.settings import Settings
from personas.voices import given_voices
from tests.helpers.retraining import LENIENT, training_worker
from tests.helpers.tiny_model import TEXT
from tests.helpers.worker_process import wait_until, worker_process
from worker.queue.connection import connect
from worker.queue.job import State
from worker.queue.jobs import Jobs

PATIENCE_S = 240.0  # as in `test_retraining`


def write_prose(path: Path) -> Path:
    """Write a text of 30 short paragraphs, no dialogue anywhere."""
    paragraphs = [f"{TEXT[number % len(TEXT)].replace('?', '.')} that was day {number}." for number in range(30)]
    path.write_text("\n\n".join(paragraphs), encoding="utf-8")
    return path


def test_prose_becomes_the_voice_of_one_persona_and_a_rollback_takes_it_away(
    redis_server: str, home: Path, tiny_model: Path
) -> None:
    registry, catalogue, jobs = Registry(home / "checkpoints"), load_catalogue(None), Jobs(connect(redis_server))
    default = registry.promote(registry.add(tiny_model, "tiny").reference)
    registry.choose("tiny")
    rusty, other = catalogue.get("Rusty"), catalogue.get("Fennick")
    settings = Settings(data_dir=home, redis_url=redis_server, default_persona="Rusty")
    surroundings = {**LENIENT, "PERSONABOT_DATA_DIR": str(home)}
    told: list[str] = []
    with (
        worker_process(redis_server, tiny_model, **{**surroundings, "PERSONABOT_MODEL": ""}),
        training_worker(redis_server, home, **surroundings),
        QueuePartner(redis_server, catalogue, default_persona=rusty, deadline_s=PATIENCE_S) as partner,
        AdminConsole(settings, redis_server, told.append) as console,
    ):

        def speaker() -> str:
            return partner.say("hello").model

        prose = write_prose(home / "diary.txt")
        assert "reading the data" in console(f"retrain start rusty-voice file={prose} recipe=quick persona=rusty")
        [job] = jobs.open()
        wait_until(lambda: any("Start it?" in text for text in told), "the dry run is told", patience_s=PATIENCE_S)
        assert "each passage of it becomes a turn of the bot's" in told[-1]
        assert speaker() == f"tiny@{default.digest}"
        console(f"retrain confirm {job.id}")
        wait_until(lambda: not jobs.open(), "the job is over", patience_s=PATIENCE_S)
        ended = jobs.get(job.id)
        assert ended is not None
        assert (ended.state, ended.reason) == (State.PROMOTED, "")

        voice = registry.version("rusty-voice")
        wait_until(lambda: speaker() == f"rusty-voice@{voice.digest}", "Rusty has his voice", patience_s=PATIENCE_S)
        partner.become(other)
        assert speaker() == f"tiny@{default.digest}"
        assert (registry.chosen(), registry.version("tiny").reference) == ("tiny", default.reference)
        assert f"{voice.reference} ({voice.digest}) for Rusty" in console("status")

        # A name that others hear is refused before anything is trained, and named.
        console(f"retrain start rusty-voice file={prose} persona=fennick")
        refusal = "Rusty would speak with rusty-voice too"
        wait_until(lambda: any(refusal in text for text in told), "the name is refused", patience_s=PATIENCE_S)

        assert "Rusty will speak with the default again" in console("model rollback rusty-voice")
        partner.become(rusty)
        wait_until(lambda: speaker() == f"tiny@{default.digest}", "the default speaks", patience_s=PATIENCE_S)
    assert given_voices(registry) == {}
