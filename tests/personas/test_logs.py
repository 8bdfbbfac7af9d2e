"""Log lines: where they go, what they carry, and what they never show."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from personas import logs
from personas.logs import configure_logging, log_path, redacted
from personas.settings import load_settings


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    before, level, config = list(root.handlers), root.level, structlog.get_config()
    yield
    structlog.configure(**config)
    for handler in root.handlers:
        if handler not in before:
            handler.close()
    root.handlers[:] = before
    root.setLevel(level)


def lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_lines_of_ours_and_of_libraries_look_the_same(tmp_path: Path) -> None:
    file = tmp_path / "log"
    configure_logging(load_settings(log_json=True), "worker", file)
    structlog.get_logger("ours").info("replied", took_s=0.5)
    logging.getLogger("theirs").warning("gone %s", "wrong")
    ours, theirs = lines(file)[-2:]
    assert (ours["event"], ours["took_s"], ours["process"], ours["level"]) == ("replied", 0.5, "worker", "info")
    assert (theirs["event"], theirs["process"], theirs["logger"]) == ("gone wrong", "worker", "theirs")


def test_the_settings_are_logged_without_their_secrets(tmp_path: Path) -> None:
    file = tmp_path / "log"
    url = "redis://user:s3cret@host/0"
    configure_logging(load_settings(log_json=True, telegram_token="s3cret", redis_url=url), "worker", file)
    (first,) = lines(file)
    assert first["telegram_token"] == "(set)"
    assert "s3cret" not in file.read_text(encoding="utf-8")


def test_credentials_in_urls_are_dropped_even_from_tracebacks(tmp_path: Path) -> None:
    file = tmp_path / "log"
    configure_logging(load_settings(), "telegram", file)
    try:
        raise OSError("no answer from https://api.telegram.org/bot123:AA-s3cret/getMe")
    except OSError:
        logging.getLogger("theirs").exception("call failed: redis://:s3cret@host:6379/0")
    assert "Traceback" in file.read_text(encoding="utf-8")
    assert "s3cret" not in file.read_text(encoding="utf-8")


def test_text_without_credentials_stays() -> None:
    assert redacted("redis://host:6379/0 and a@b.c") == "redis://host:6379/0 and a@b.c"


def test_a_log_that_has_grown_large_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_LOG_BYTES", 3)
    settings = load_settings(data_dir=tmp_path)
    path = log_path(settings, "worker")
    path.write_text("four")
    assert log_path(settings, "worker") == path
    assert not path.exists()
    assert (tmp_path / "logs" / "worker.old.log").read_text() == "four"
