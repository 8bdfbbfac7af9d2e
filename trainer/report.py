"""`personabot report`: runs and checkpoints side by side as tables, curves and one HTML page that stands alone.

Owns what is shown of `log.jsonl` and `metrics.json`; measures nothing.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from personas.checkpoint import is_checkpoint, read_checkpoint
from personas.errors import PersonabotError
from trainer.card import METRICS_FILE, read_metrics
from trainer.track import read_keys

_TEMPLATE = Path(__file__).with_name("report.html.jinja")
PAGE, TABLE = "report.html", "report.md"
# The columns of a table that hold no figures.
NAMES = frozenset({"model", "checkpoint", "data", "settings", "experiment"})


class ReportError(PersonabotError):
    """There is nothing to report on where the person pointed."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A run or a checkpoint, as far as its folder tells."""

    name: str
    digest: str
    metrics: dict[str, Any]
    log: list[dict[str, Any]] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)
    settings: str = ""

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The log's lines of optimizer steps."""
        return [entry for entry in self.log if "loss" in entry]

    def looks(self) -> dict[str, list[tuple[int, float]]]:
        """Return (processed tokens, bits per byte) of every look at held-out data, by the data's name."""
        tokens = {entry["step"]: entry["tokens"] for entry in self.steps}
        found: dict[str, list[tuple[int, float]]] = {}
        for entry in self.log:
            if "valid" in entry and "bpb" in entry and entry["step"] in tokens:
                found.setdefault(entry["valid"], []).append((tokens[entry["step"]], entry["bpb"]))
        return found


def read_subject(folder: Path) -> Subject:
    """Read a run's folder or a checkpoint's; raises `ReportError` where it is neither."""
    log, checkpoint = folder / "log.jsonl", folder if is_checkpoint(folder) else folder / "checkpoint"
    if not log.is_file() and not is_checkpoint(checkpoint) and not (folder / METRICS_FILE).is_file():
        raise ReportError(
            f"{folder}: neither a run (log.jsonl) nor a checkpoint (checkpoint.json) nor figures ({METRICS_FILE}). "
            "Point to a folder made by `personabot train`, or by `personabot evaluate --out`."
        )
    if not is_checkpoint(checkpoint):
        checkpoint = folder
    settings = next((path for path in (checkpoint / "train.toml", folder / "train.toml") if path.is_file()), None)
    metrics = read_metrics(checkpoint)
    if "data" in metrics:  # `evaluate --out` writes one measurement, a checkpoint keeps them by the data's name
        metrics["evaluation"] = {metrics["data"]: {k: v for k, v in metrics.items() if k != "evaluation"}}
    return Subject(
        name=folder.parent.name if folder.name == "checkpoint" else folder.resolve().name,
        digest=read_checkpoint(checkpoint).digest if is_checkpoint(checkpoint) else metrics.get("digest", ""),
        metrics=metrics,
        log=_lines(log) if log.is_file() else [],
        keys=read_keys(folder),
        settings=settings.read_text(encoding="utf-8") if settings else "",
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    entries = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            entries.append(json.loads(line))
        except ValueError as error:
            raise ReportError(f"{path}: line {number}: expected one JSON object a line ({error})") from error
    return entries


# Column title, how a figure is found in an evaluation or among the metrics, and how it is written.
_Find = Callable[[dict[str, Any], dict[str, Any]], Any]
COLUMNS: tuple[tuple[str, _Find, str], ...] = (
    ("word ppl", lambda one, _: one.get("ppl_word"), "{:.2f}"),
    ("bits per byte", lambda one, _: one.get("bpb"), "{:.3f}"),
    ("token ppl", lambda one, _: one.get("ppl_token"), "{:.2f}"),
    ("hits@1 of 20", lambda one, _: one.get("rank", {}).get("hits_at_1"), "{:.1%}"),
    ("hits@1, PMI", lambda one, _: one.get("rank", {}).get("pmi_hits_at_1"), "{:.1%}"),
    ("hits@1, head", lambda one, _: one.get("rank", {}).get("head_hits_at_1"), "{:.1%}"),
    ("F1 greedy", lambda one, _: one.get("replies", {}).get("greedy", {}).get("f1"), "{:.1%}"),
    ("F1 sampled", lambda one, _: one.get("replies", {}).get("sampled", {}).get("f1"), "{:.1%}"),
    ("persona lowers ppl", lambda one, _: one.get("swap", {}).get("persona_lowers_ppl"), "{:.1%}"),
    ("names", lambda _, metrics: metrics.get("probe", {}).get("names"), "{:.1%}"),
    ("facts", lambda _, metrics: metrics.get("probe", {}).get("facts"), "{:.1%}"),
)


def table(subjects: Sequence[Subject]) -> list[list[str]]:
    """Return the header and a row for every model and data set; columns that nobody has a figure for are left out."""
    found = []
    for subject in subjects:
        for data, one in (subject.metrics.get("evaluation") or {"–": {}}).items():
            experiment = ", ".join(f"{tracker} {key}" for tracker, key in subject.keys.items())
            values = [find(one, subject.metrics) for _, find, _ in COLUMNS]
            found.append(([subject.name, subject.digest, data], values, experiment))
    kept = [place for place in range(len(COLUMNS)) if any(values[place] is not None for _, values, _ in found)]
    has_keys = any(experiment for _, _, experiment in found)
    header = ["model", "checkpoint", "data", *(COLUMNS[place][0] for place in kept), *(["experiment"] * has_keys)]
    rows = [
        [
            *names,
            *("–" if values[place] is None else COLUMNS[place][2].format(values[place]) for place in kept),
            *([experiment] * has_keys),
        ]
        for names, values, experiment in found
    ]
    return [header, *rows]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a table ready for a README; figures stand on the right."""
    header, *body = rows
    line = ["---" if name in NAMES else "---:" for name in header]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, line, *body))


def write_report(folders: Sequence[Path], out: Path) -> str:
    """Write report.html, report.md and the curves as PNG into `out`; return the Markdown table."""
    from trainer.figures import draw

    subjects = [read_subject(folder) for folder in folders]
    out.mkdir(parents=True, exist_ok=True)
    pictures = draw(subjects, out)
    rows = table(subjects)
    environment = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, autoescape=True)
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        title=" · ".join(subject.name for subject in subjects),
        rows=rows,
        subjects=subjects,
        pictures=[(title, base64.b64encode(path.read_bytes()).decode()) for title, path in pictures],
    )
    (out / PAGE).write_text(page, encoding="utf-8")
    (out / TABLE).write_text(markdown(rows), encoding="utf-8")
    return markdown(rows)
