"""What a run keeps on disk: `train.toml`, `env.json`, `log.jsonl`, `last/`, `best/` and `checkpoint/`.

Whatever it writes is there whole or not at all. Knows nothing of how the weights come about.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import tomli_w
import torch

from personas.checkpoint import DESCRIPTION_FILE, WEIGHT_FILES
from personas.layout import Layout
from trainer.card import record
from trainer.config import ConfigError, Source, TrainConfig, load_config
from trainer.formats import data_files

STATE_FILE = "state.pt"
OLD = ".old-"  # begins the name of what a new folder is replacing
CONFIG_FILE = "train.toml"
# What may be another when a run goes on: its length, and what has no part in the weights.
MAY_CHANGE = frozenset(
    {
        *("train_tokens", "epochs", "warmup", "decay", "name", "notes", "generation", "track", "save_minutes"),
        *("valid_minutes", "valid_steps", "valid_first", "valid_dialogues", "valid_micro_tokens", "patience"),
        *("device", "gpu_share", "gradient_checkpointing"),
    }
)


def claim(path: Path, config: TrainConfig) -> None:
    """Make sure that what lies at `path` is a whole run by `config`; raise `ConfigError` where it is another.

    Of one that came to nothing only the tokenizer goes. A folder with a model of its own is refused.
    """
    if any((path / name).is_file() for name in (DESCRIPTION_FILE, *(files[0] for files in WEIGHT_FILES.values()))):
        raise ConfigError(f"out: a model lies in {path}, not a run. Choose another --out.")
    _mend(path)
    if not (path / CONFIG_FILE).is_file():
        if [each.name for each in path.glob("*")] == ["tokenizer.json"]:  # whose it was, nothing says
            (path / "tokenizer.json").unlink()
        return
    keys = differences(load_config(path / CONFIG_FILE, {}), config)
    if not keys:
        return
    if any((path / name).exists() for name in ("last", "best", "checkpoint")):
        raise ConfigError(
            f"{path}: another run lies there, with other {', '.join(keys)}. Choose another --out, or remove {path}."
        )
    (path / "tokenizer.json").unlink(missing_ok=True)


def differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """Return the keys by which `new` is another run than `old`; what it leaves open is as `old` has it."""
    before, now = (config.model_dump(mode="json", exclude_none=True) for config in (old, completed(new, old)))
    fixed = [name for name in TrainConfig.model_fields if name not in MAY_CHANGE]
    return [name for name in fixed if before.get(name) != now.get(name)]


def going_on(config: TrainConfig, path: Path) -> TrainConfig:
    """Return `config`, completed by the run at `path` where that one goes on."""
    if not ((path / "last").is_dir() and (path / CONFIG_FILE).is_file()):
        return config
    return completed(config, load_config(path / CONFIG_FILE, {}))


def completed(new: TrainConfig, old: TrainConfig) -> TrainConfig:
    """Return `new` with the learning rate and the sides of its data as `old` has them, where it gives none itself."""
    return new.model_copy(
        update={
            "learning_rate": new.learning_rate or old.learning_rate,
            "data": _with_sides(new.data, old.data),
            "valid": _with_sides(new.valid, old.valid),
        }
    )


def _with_sides(new: tuple[Source, ...], old: tuple[Source, ...]) -> tuple[Source, ...]:
    if len(new) != len(old):
        return new
    return tuple(
        source if source.both_sides is not None else source.model_copy(update={"both_sides": before.both_sides})
        for source, before in zip(new, old, strict=True)
    )


class RunFolder:
    """The folder of one run. A process that is not the first of a run only reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"out: {path} can't be the run's folder: {error}. Name another with --out.") from error

    def keep_tokenizer(self, layout: Layout) -> None:
        """Write `tokenizer.json`, with which the run goes on."""
        self._write("tokenizer.json", layout.tokenizer_json())

    def log(self, entry: dict[str, Any]) -> None:
        """Add a line to `log.jsonl`."""
        with (self.path / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def cut_log(self, step: int) -> None:
        """Drop what `log.jsonl` has of steps after `step`: a run that was killed there takes them again."""
        path = self.path / "log.jsonl"
        if not path.is_file():
            return
        kept = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):  # the last line may be half written
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
        self._write(path.name, "".join(kept))

    def record(self, config: TrainConfig) -> None:
        """Write the resolved configuration, and what a figure depends on besides it."""
        self._write(CONFIG_FILE, tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))
        self._write("env.json", json.dumps(environment(config), indent=2) + "\n")

    def save(self, state: dict[str, Any]) -> None:
        """Write `last/`."""
        scratch = self._scratch("last")
        torch.save(state, scratch / STATE_FILE)
        self._put(scratch, "last")

    def load(self) -> dict[str, Any] | None:
        """Read what `save` wrote last; None at the beginning of a run."""
        path = self.path / "last" / STATE_FILE
        if not path.exists():
            return None
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        return state

    def write_checkpoint(self, name: str, save: Callable[[Path], None], figures: dict[str, Any]) -> Path:
        """Write a checkpoint folder called `name`: what `save` puts there, the configuration, figures and card."""
        scratch = self._scratch(name)
        save(scratch)
        shutil.copy(self.path / CONFIG_FILE, scratch / CONFIG_FILE)
        environment_of_run = json.loads((self.path / "env.json").read_text(encoding="utf-8"))
        record(scratch, "training", {**figures, "environment": environment_of_run})
        return self._put(scratch, name)

    def copy_checkpoint(self, source: str, name: str, figures: dict[str, Any]) -> Path:
        """Make the checkpoint called `name` a copy of `source`, with the figures of the whole run."""
        scratch = self._scratch(name)
        shutil.copytree(self.path / source, scratch, dirs_exist_ok=True)
        record(scratch, "training", figures)
        return self._put(scratch, name)

    def _write(self, name: str, text: str) -> None:
        """Make `text` the whole of the file called `name`, at once."""
        scratch = self.path / f".{name}"
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(self.path / name)

    def _scratch(self, name: str) -> Path:
        scratch = self.path / f".{name}"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        return scratch

    def _put(self, scratch: Path, name: str) -> Path:
        """Make the whole of `scratch` the folder called `name`; the one before it goes when the new one is there."""
        final, old = self.path / name, self.path / f"{OLD}{name}"
        for path in (*scratch.rglob("*"), scratch):
            _sync(path)
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            final.rename(old)
        scratch.rename(final)
        _sync(self.path)
        shutil.rmtree(old, ignore_errors=True)
        return final


def _sync(path: Path) -> None:
    """Bring a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mend(path: Path) -> None:
    """Finish what a kill left between the two renames of `RunFolder._put`."""
    for old in path.glob(f"{OLD}*"):
        final = path / old.name.removeprefix(OLD)
        if final.exists():
            shutil.rmtree(old)
        else:
            old.rename(final)


def names(paths: Iterable[Path]) -> dict[Path, str]:
    """Call each file by its last part; where several are called so, by its last two; by all of it where that fails.

    >>> [*names([Path("a/valid.txt"), Path("b/valid.txt"), Path("b/train.txt")]).values()]
    ['a/valid.txt', 'b/valid.txt', 'train.txt']
    """
    every = dict.fromkeys(paths)
    short = [{path: "/".join(path.parts[-length:]) for path in every} for length in (1, 2)]
    counts = [Counter(each.values()) for each in short]
    return {
        path: next((each[path] for each, count in zip(short, counts, strict=True) if count[each[path]] == 1), str(path))
        for path in every
    }


def environment(config: TrainConfig) -> dict[str, Any]:
    """What a figure depends on besides the configuration: versions, hardware, the data's hashes."""
    import transformers

    paths = [source.path for source in (*config.data, *config.valid)]
    files = [part for path in paths for part in (data_files(path) if path.is_dir() else [path])]
    data = {}
    for path, name in names(files).items():
        with path.open("rb") as file:
            data[name] = hashlib.file_digest(file, "sha256").hexdigest()
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "git": git.stdout.strip() or None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores",
        "data_sha256": data,
    }
