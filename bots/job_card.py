"""A job as people see it: one message that changes as the job goes on, and what is told at its end. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from bots.command import Button
from worker.queue.job import Job, Progress, State

BAR_LENGTH: Final = 16
MAX_REPLY_LENGTH: Final = 160
Rows = tuple[tuple[Button, ...], ...]


def card(job: Job, num_ahead: int = 0) -> tuple[str, Rows]:
    """Return the job's message and its buttons."""
    cancel = Button("Cancel", "retrain cancel", job.id)
    match job.state:
        case State.CHECKING:
            what = "Asking both models." if job.order.other else "Reading the data; nothing is trained yet."
            return f"{_title(job)}\n{what}", ((cancel,),)
        case State.PROPOSED:
            return f"{_title(job)}\n{_dry_run(job)}", ((Button("Start", "retrain confirm", job.id), cancel),)
        case State.QUEUED:
            ahead = f"{num_ahead} before it" if num_ahead else "it is next"
            return f"{_title(job)}\nQueued: {ahead}.", ((cancel,),)
        case State.TRAINING:
            said = "Cancelling: it ends within a step." if job.wants_cancel else _training(job.progress)
            return f"{_title(job)}\n{said}{_curves(job)}", () if job.wants_cancel else ((cancel,),)
        case State.JUDGING:
            said = f"Trained ({job.progress.step} steps). Judging it against the present model."
            return f"{_title(job)}\n{said}{_curves(job)}", ()
    return f"{_title(job)}\n{_end(job)}{_curves(job)}", ()


def final_report(job: Job) -> str:
    """Return the figures and the sample replies before and after; empty for a job that came to no model."""
    result = job.result
    if not result.get("prompts"):
        return ""
    before, after = result["before"], result["after"]
    names = result.get("names") or ["before", "after"]
    sides = names if job.order.other else [result.get("present", ""), result.get("version", "")]
    lines = [" → ".join(sides)] if all(sides) else []
    lines += [line for name in _FIGURES if (line := _figure(name, before, after))]
    for prompt, old, new in zip(result["prompts"], before["replies"], after["replies"], strict=True):
        lines += ["", f"“{prompt}”", f"{names[0]}: {_shortened(old)}", f"{names[1]}: {_shortened(new)}"]
    return "\n".join(lines).strip()


def line_of(job: Job) -> str:
    """Return the job in one line, for a list."""
    return f"{job.id}  {job.order.name}: {job.state}{f' ({job.reason})' if job.reason else ''}"


def progress_line(progress: Progress) -> str:
    """Return how far a training is, in one line."""
    return f"{progress.share:.0%}, {_pace(progress)}"


def bar(share: float) -> str:
    """Return a bar of blocks.

    >>> bar(0.5)
    '████████░░░░░░░░'
    """
    num_full = round(max(0.0, min(share, 1.0)) * BAR_LENGTH)
    return "█" * num_full + "░" * (BAR_LENGTH - num_full)


def duration(seconds: float) -> str:
    """Return a time as people say it.

    >>> duration(5400), duration(150), duration(9)
    ('1.5 h', '2 min', '9 s')
    """
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


_FIGURES: Final = {
    "bpb_new": "held-out data, bits per byte",
    "bpb_general": "general set, bits per byte",
    "probe": "probe, share in character",
    "repetition": "repetition",
    "empty": "empty replies",
}


def _title(job: Job) -> str:
    order = job.order
    if order.other:
        return f"Comparing {order.base} and {order.other} (job {job.id})"
    voice = f", a voice for {order.persona}" if order.persona else ""
    return f"Retraining “{order.name}” (job {job.id}, {order.recipe}{voice})"


def _dry_run(job: Job) -> str:
    report = job.report
    seconds = report.get("seconds")
    time = f"about {duration(seconds)}" if seconds else "not known yet: nothing like it was trained here before"
    lines = [
        f"Data: {report['data']}, licence: {report['licence']}",
        f"{report['dialogues']:,} dialogues, {report['turns']:,} turns, {report['tokens']:,} tokens",
        *_rejected(report, "cannot be read and are left out"),
        *_prose(report),
        f"{report['held_out']:,} dialogues are kept to judge by, {report['left_out']:,} left out (nobody answers)",
        f"From: {report['base']}; {report['train_tokens']:,} tokens to train",
        f"Time: {time}",
        "Start it?",
    ]
    return "\n".join(lines)


def _rejected(report: Mapping[str, Any], how: str) -> list[str]:
    """Return how many lines could not be read, and what is wrong with the first of them."""
    if not report.get("rejected"):
        return []
    first = [f"· {_shortened(said)}" for said in report["first_rejected"]]
    return [f"{report['rejected']:,} of {report['lines']:,} lines {how}:", *first]


def _prose(report: Mapping[str, Any]) -> list[str]:
    """Return what becomes of a text that is no dialogue, and what it will not do."""
    said = ["Prose: each passage of it becomes a turn of the bot's."] if report.get("passages") else []
    return [*said, *filter(None, [report.get("caution")])]


def _training(progress: Progress) -> str:
    if not progress.step:
        return f"{bar(0)} 0 %\nLoading."
    return f"{bar(progress.share)} {progress.share:.0%}\n{_pace(progress)}"


def _pace(progress: Progress) -> str:
    left = f", {duration(progress.seconds_left)} left" if progress.seconds_left is not None else ""
    return f"step {progress.step:,}, loss {progress.loss:.3f}, {progress.tokens_per_s:,.0f} tokens/s{left}"


def _curves(job: Job) -> str:
    """Return where the trackers show the run's curves: an address, or a place in the data folder."""
    places = [url or f"training/jobs/{job.id}/run/{name}" for name, url in job.progress.experiments.items()]
    return "".join(f"\nCurves: {place}" for place in places)


def _end(job: Job) -> str:
    result = job.result
    match job.state:
        case State.PROMOTED:
            forced = f"\nBy force: {job.reason}" if result.get("is_forced") else ""
            return f"Promoted: {result['version']} {_use(job)}.{forced}"
        case State.REFUSED if result:
            return f"Refused: {job.reason}.\n{result['version']} is kept for a look, and never served."
        case State.REFUSED:
            return "\n".join([f"Refused: {job.reason}.", *_rejected(job.report, "cannot be read")])
        case State.CANCELLED:
            return f"Cancelled {job.reason}".rstrip() + "."
        case State.COMPARED:
            return "Compared."
    return f"Failed: {job.reason}"


def _use(job: Job) -> str:
    if job.order.persona:
        return f"speaks as {job.order.persona} from the next message on, and as nobody else"
    return "serves the next message"


def _figure(name: str, before: dict[str, Any], after: dict[str, Any]) -> str:
    if name not in before or name not in after:
        return ""
    return f"{_FIGURES[name]}: {before[name]:.3f} → {after[name]:.3f}"


def _shortened(reply: str) -> str:
    line = " ".join(reply.split())
    return line if len(line) <= MAX_REPLY_LENGTH else line[: MAX_REPLY_LENGTH - 1] + "…"
