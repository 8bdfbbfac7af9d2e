"""Where a run's figures go besides `log.jsonl`: TensorBoard, Comet, Weights & Biases, imported only when asked for.

A tracker is an adapter of a few lines. Its experiment's key and address are kept in the run's folder, so that a resumed
run goes on in the same experiment, and `personabot report` and a retraining's message can name it. Comet and W&B record
offline where no API key is set.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from personas.errors import PersonabotError

TRACKERS_FILE = "trackers.json"
PROJECT = "personabot"


class TrackerError(PersonabotError):
    """A tracker is unknown, not installed, or did not start."""


class Tracker(Protocol):
    """Takes figures by name and step. `key` names the experiment; `url` is where it can be seen, "" for one on disk."""

    key: str
    url: str

    def log(self, figures: Mapping[str, float], step: int) -> None: ...

    def end(self) -> None: ...


class TensorBoard:
    """Event files in the run's `tensorboard/`; figures of steps that a resumed run repeats are superseded."""

    def __init__(self, folder: Path, key: str, name: str, config: Mapping[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.key, self.url = "tensorboard", ""
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=step or None)
        if not key:
            self._writer.add_text("config", f"    {json.dumps(config, indent=2)}".replace("\n", "\n    "))

    def log(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def end(self) -> None:
        self._writer.close()


class Comet:
    """A Comet experiment, without its logging of code, git, environment and output."""

    def __init__(self, folder: Path, key: str, name: str, config: Mapping[str, Any], step: int) -> None:
        import comet_ml

        is_online = bool(os.environ.get("COMET_API_KEY"))
        (folder / "comet").mkdir(exist_ok=True)
        self._experiment: Any = comet_ml.start(
            online=is_online,
            project_name=os.environ.get("COMET_PROJECT_NAME", PROJECT),
            experiment_key=key or None,
            mode="get_or_create" if key else "create",
            experiment_config=comet_ml.ExperimentConfig(
                name=name,
                offline_directory=str(folder / "comet"),
                log_code=False,
                log_graph=False,
                log_git_metadata=False,
                log_git_patch=False,
                log_env_details=False,
                parse_args=False,
                auto_output_logging=False,  # type: ignore[arg-type]  # documented so
                display_summary_level=0,
            ),
        )
        self.key = str(self._experiment.get_key())
        self.url = str(self._experiment.url or "") if is_online else ""
        self._experiment.log_parameters(dict(config))

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self._experiment.log_metrics(dict(figures), step=step)

    def end(self) -> None:
        self._experiment.end()


class WandB:
    """A Weights & Biases run, without its statistics of the machine, its code and its output."""

    def __init__(self, folder: Path, key: str, name: str, config: Mapping[str, Any], step: int) -> None:
        import wandb

        is_online = bool(os.environ.get("WANDB_API_KEY"))
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=str(folder),
            name=name,
            id=key or None,
            resume="allow",
            config=dict(config),
            mode="online" if is_online else "offline",
            settings=wandb.Settings(
                silent=True, console="off", disable_git=True, x_disable_stats=True, save_code=False
            ),
        )
        self.key = str(self._run.id)
        self.url = str(self._run.url or "") if is_online else ""

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log(dict(figures), step=step)

    def end(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[Path, str, str, Mapping[str, Any], int], Tracker]] = {
    "tensorboard": TensorBoard,
    "comet": Comet,
    "wandb": WandB,
}
PACKAGES = {"tensorboard": "tensorboard", "comet": "comet_ml", "wandb": "wandb"}


def check_trackers(names: Sequence[str]) -> None:
    """Raise `TrackerError` where one is unknown or not installed."""
    for name in names:
        if name not in TRACKERS:
            raise TrackerError(f"track: there is no tracker {name!r}. Known: {', '.join(TRACKERS)}.")
        if find_spec(PACKAGES[name]) is None:
            raise TrackerError(f"track: {name} is not installed. Install it: pip install 'personabot[{name}]'")


class Tracking:
    """All trackers of a run; with none, a thing that does nothing."""

    def __init__(self, trackers: Mapping[str, Tracker]) -> None:
        self._trackers = trackers

    @classmethod
    def start(
        cls, names: Sequence[str], folder: Path, *, name: str, config: Mapping[str, Any], step: int = 0
    ) -> Tracking:
        """Start the trackers of `names`, or go on with the experiments that `folder` remembers, from `step`.

        Raises `TrackerError` where one is unknown or not installed, before any of them has begun.
        """
        check_trackers(names)
        keys = read_keys(folder)
        started: dict[str, Tracker] = {}
        for tracker in names:
            try:
                started[tracker] = TRACKERS[tracker](folder, keys.get(tracker, ""), name, config, step)
            except Exception as error:  # a refused key, no network: each package has an error class of its own
                raise TrackerError(f"track: {tracker} did not start: {error}") from error
        if started:
            known = _read(folder) | {tracker: {"key": one.key, "url": one.url} for tracker, one in started.items()}
            (folder / TRACKERS_FILE).write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
        return cls(started)

    def log(self, entry: Mapping[str, Any]) -> None:
        """Pass on one line of `log.jsonl`: figures of a step, or with "valid" those of a look at held-out data."""
        group = f"valid/{entry['valid']}" if "valid" in entry else "train"
        figures = {
            f"{group}/{name}": float(value)
            for name, value in entry.items()
            if name != "step" and isinstance(value, int | float)
        }
        for tracker in self._trackers.values():
            tracker.log(figures, int(entry["step"]))

    def end(self) -> None:
        """Write out what the trackers still hold."""
        for tracker in self._trackers.values():
            tracker.end()


def read_keys(folder: Path) -> dict[str, str]:
    """Return the experiment keys that a run's folder remembers, by tracker."""
    return {tracker: experiment["key"] for tracker, experiment in _read(folder).items()}


def read_addresses(folder: Path) -> dict[str, str]:
    """Return where a run's experiments can be seen, by tracker; "" for one that is only in the run's folder."""
    return {tracker: experiment["url"] for tracker, experiment in _read(folder).items()}


def _read(folder: Path) -> dict[str, dict[str, str]]:
    path = folder / TRACKERS_FILE
    known: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return known
