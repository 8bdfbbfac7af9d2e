"""Logging of commands whose output people, or other programs, read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from personas.logs import keep_output_clean


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.mark.parametrize(("level", "shown"), [("", ["late"]), ("info", ["loaded", "late"]), ("error", [])])
def test_log_lines_leave_standard_output_alone(
    level: str, shown: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    keep_output_clean(level)
    log = structlog.get_logger("anyone")
    log.info("loaded")
    log.warning("late")
    written = capsys.readouterr()
    assert written.out == ""
    assert [word for word in ("loaded", "late") if word in written.err] == shown
