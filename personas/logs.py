"""One way of logging for every process: structlog in front, standard logging (libraries included) behind.

No message text and no secrets go into a log line; whoever logs says who, what, where and how long.
"""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import Final

import structlog
from structlog.types import EventDict, Processor, WrappedLogger

from personas.settings import Settings

MAX_LOG_BYTES: Final = 10_000_000
# A URL with credentials (redis://:password@host) and the token in a Bot API URL (/bot123:AA…/getMe).
_SECRETS = (
    (re.compile(r"//[^/@\s]*:[^/@\s]*@"), "//***@"),
    (re.compile(r"/bot\d+:[\w-]+"), "/bot***"),
)
# These describe every request, with its URL, at INFO.
_CHATTY = ("httpx", "httpcore", "urllib3", "filelock", "huggingface_hub", "telegram.ext.Updater")


def configure_logging(settings: Settings, process: str = "", file: Path | None = None) -> None:
    """Send all logging of this process to `file`, or to stderr, each line with the process's name."""
    chain: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _with_process(process),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *chain,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.FileHandler(file, encoding="utf-8") if file else logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=chain,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _without_secrets,
                structlog.processors.JSONRenderer()
                if settings.log_json
                else structlog.dev.ConsoleRenderer(colors=file is None and sys.stderr.isatty()),
            ],
        )
    )
    root = logging.getLogger()
    for old in root.handlers:
        if isinstance(old, logging.FileHandler):
            old.close()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    structlog.get_logger(__name__).info("settings", **settings.shown())


def keep_output_clean(level: str = "") -> None:
    """Log to standard error, warnings only unless `level` says otherwise: for commands whose output people read."""
    structlog.reset_defaults()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper(), logging.WARNING)),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),  # whatever it is by then
    )


def log_path(settings: Settings, name: str) -> Path:
    """Return where `name` logs, in a folder that exists; an old file that has grown large is set aside."""
    path = settings.data_dir / "logs" / f"{name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
        path.replace(path.with_suffix(".old.log"))
    return path


def redacted(text: str) -> str:
    """Return `text` without credentials in URLs."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def _with_process(process: str) -> Processor:
    def add(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        if process:
            event.setdefault("process", process)
        return event

    return add


def _without_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {key: redacted(value) if isinstance(value, str) else value for key, value in event.items()}
