"""The end of a retraining: into the registry, before the gate, and into service if it passes. Owns the order of that.

Every step may be repeated: a judgement that was interrupted comes to the same end.
"""

from __future__ import annotations

import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from personas.checkpoint import is_checkpoint, read_checkpoint
from personas.lineage import Lineage
from personas.registry import Registry, Version
from personas.settings import Settings
from personas.voices import give, obstacle
from trainer.card import read_metrics
from trainer.formats import read_dialogues
from trainer.retraining.estimates import remember
from trainer.retraining.gate import Measured, decide, measure
from trainer.retraining.job_log import RunLog, draw_curve
from trainer.retraining.recipes import Base
from trainer.retraining.samples import PROMPTS, replies, speaker
from trainer.retraining.starting_point import find_base, folder_of, on_original_base, present_model
from worker.loading import Found, find_model, load_model
from worker.queue.job import CURVE_FILE, Order


def judge(folder: Path, order: Order, report: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Register what was trained in the job's `folder`, judge it, promote it if it passes; return what to tell."""
    registry = Registry.of(settings)
    base, _ = find_base(settings, report["base"])
    _keep_curve_and_cost(folder, order, base, settings)
    version = _registered(registry, folder, order, report, base)
    held_out = list(read_dialogues(folder / "data" / "valid.jsonl"))
    present, place = _present(version, folder, order, base, settings)
    models = {"before": place, "after": str(version.folder)}
    measured = {
        side: measure(load_model(model, device=settings.device, dtype=settings.dtype), held_out)
        for side, model in models.items()
    }
    verdict = decide(measured["after"], measured["before"], settings.gate).model_copy(update={"against": present})
    registry.record(version.reference, verdict=verdict)
    persona = speaker(settings, order.persona)
    sides = {
        side: {**figures(measured[side]), "replies": replies(model, persona, settings)}
        for side, model in models.items()
    }
    # Asked again, since others may have begun to speak with that name meanwhile; no force overrules it.
    why_not = obstacle(settings, order.name, order.persona)
    is_promoted = (verdict.is_accepted or order.is_forced) and not why_not
    if is_promoted:  # last of all, so that what comes of it is told soon after it
        _serve(registry, version, order)
    return {
        "present": present,
        "version": version.reference,
        "digest": version.digest,
        "is_promoted": is_promoted,
        "is_forced": is_promoted and not verdict.is_accepted,
        "reason": "; ".join(filter(None, (*verdict.reasons, why_not))),
        "prompts": list(PROMPTS),
        **sides,
    }


def figures(measured: Measured) -> dict[str, float]:
    """Return what the gate measured, without what was said."""
    return {name: value for name, value in asdict(measured).items() if name != "smoke"}


def _present(version: Version, folder: Path, order: Order, base: Base, settings: Settings) -> tuple[str, str]:
    """Return the model that `version` has to be no worse than, as a reference and as what can be loaded.

    It is what is served when this is asked, others having been promoted since the training began; the base where
    nothing is served yet. A judgement that is repeated goes by the first one, which may have ended in a promotion.
    """
    before = version.lineage.verdict if version.lineage.job == folder.name else None
    if before and before.against:
        found: Found | None = find_model(before.against, Registry.of(settings))
    else:
        found = present_model(order, settings)
    return (found.reference or str(found.place), str(found.place)) if found else (base.reference, base.path)


def _serve(registry: Registry, version: Version, order: Order) -> None:
    """Let the version speak: for its persona alone where it is a voice, else for everybody without one."""
    registry.promote(version.reference, by=order.by, is_forced=order.is_forced)
    if order.persona:
        give(registry, order.persona, version.name, by=order.by)
    else:
        registry.choose(version.name, by=order.by)


def _registered(registry: Registry, folder: Path, order: Order, report: dict[str, Any], base: Base) -> Version:
    """Add the checkpoint, on the base that it can be served on; the same one again is there already."""
    trained, start = folder / "run" / "checkpoint", folder_of(registry, report["base"])
    if start and is_checkpoint(start) and read_checkpoint(trained).base == base.path != str(start):
        on_original_base(trained, start)
    lineage = Lineage(
        base=report["base"],
        data={report["data"]: report["sha256"]},
        recipe=tomllib.loads((trained / "train.toml").read_text(encoding="utf-8")),
        by=order.by,
        job=folder.name,
        metrics=read_metrics(trained),
    )
    return registry.add(trained, order.name, lineage)


def _keep_curve_and_cost(folder: Path, order: Order, base: Base, settings: Settings) -> None:
    """Draw the loss, and remember what training a base of this size takes on this device, for the next dry run."""
    log = RunLog(folder / "run" / "log.jsonl")
    log.read()
    (folder / CURVE_FILE).write_bytes(draw_curve(log, f"{order.name}, recipe {order.recipe}"))
    peak_mib = int(read_metrics(folder / "run" / "checkpoint").get("training", {}).get("peak_memory_mib", 0))
    remember(settings, base, tokens_per_s=log.speed(), peak_mib=peak_mib)
