"""Puts a checkpoint on the Hugging Face hub, with its model card. Owns what goes there; the client does the rest."""

from __future__ import annotations

import json
import shutil
import tempfile
import tomllib
from pathlib import Path

from personas.checkpoint import Checkpoint, read_checkpoint
from personas.errors import PersonabotError
from trainer.card import METRICS_FILE
from worker.bases import HUB_IDS

ADAPTER_CONFIG = "adapter_config.json"


class HubError(PersonabotError):
    """A checkpoint could not be put on the hub."""


def push(folder: Path, repository: str, *, is_private: bool = True, licence: str = "") -> str:
    """Create `repository` ("name" or "owner/name") where it is missing, and upload the checkpoint.

    Returns the address. The card gets the hub's metadata, and an adapter the hub's name of its base, so that peft
    finds it. Raises `HubError` without a network, without a token, or where the hub refuses.
    """
    checkpoint = read_checkpoint(folder)
    from huggingface_hub import HfApi

    api = HfApi()
    with tempfile.TemporaryDirectory() as scratch:
        staged = staged_copy(checkpoint, Path(scratch, "checkpoint"), licence=licence)
        try:
            address = api.create_repo(repository, private=is_private, exist_ok=True)
            api.upload_folder(
                repo_id=address.repo_id, folder_path=staged, commit_message=f"Upload checkpoint {checkpoint.digest}"
            )
        except Exception as error:  # network, access, names: the hub's client has an error class for each
            reason = (str(error).strip().splitlines() or [repr(error)])[0].rstrip(".")
            raise HubError(
                f"{repository}: not uploaded to the Hugging Face hub ({reason}). The checkpoint is safe in {folder}. "
                f"Check the network, log in with `hf auth login` or set HF_TOKEN, and then: "
                f"personabot publish {folder} {repository}"
            ) from error
    return str(address)


def staged_copy(checkpoint: Checkpoint, target: Path, *, licence: str = "") -> Path:
    """Copy what belongs to a checkpoint to `target`, as it is to lie on the hub."""
    shutil.copytree(checkpoint.folder, target, ignore=shutil.ignore_patterns(".*", "*.tmp"))
    base = HUB_IDS.get(checkpoint.base or "", checkpoint.base or "")
    adapter = target / ADAPTER_CONFIG
    if adapter.is_file():
        config = json.loads(adapter.read_text(encoding="utf-8")) | {"base_model_name_or_path": base}
        adapter.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    card = target / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else f"# {checkpoint.folder.name}\n"
    card.write_text(front_matter(checkpoint, base, licence) + text, encoding="utf-8")
    return target


def front_matter(checkpoint: Checkpoint, base: str, licence: str) -> str:
    """Return the YAML block that the hub reads: kind, base, languages, and figures where there are some."""
    lines = ["---", "language: en", "pipeline_tag: text-generation", "tags:", "  - personabot", "  - persona"]
    lines += [f"library_name: {'peft' if checkpoint.kind == 'adapter' else 'transformers'}"]
    if licence:
        lines.append(f"license: {licence}")
    trained_on = base or _base_of(checkpoint.folder)
    if "/" in trained_on and not Path(trained_on).is_absolute():
        lines.append(f"base_model: {trained_on}")
    metrics = checkpoint.folder / METRICS_FILE
    evaluation = json.loads(metrics.read_text(encoding="utf-8")).get("evaluation") if metrics.is_file() else None
    if evaluation:
        lines += _index(checkpoint.folder.name, evaluation)
    return "\n".join([*lines, "---", "", ""])


def _index(name: str, evaluation: dict[str, dict[str, float]]) -> list[str]:
    """Return the hub's model-index of the perplexities."""
    lines = ["model-index:", f"  - name: {name}", "    results:"]
    for data, figures in evaluation.items():
        lines += [
            "      - task: {type: text-generation}",
            f"        dataset: {{name: {json.dumps(data)}, type: {json.dumps(data)}}}",
            "        metrics:",
        ]
        lines += [
            f"          - {{type: {kind}, name: {title}, value: {figures[kind]:.4f}}}"
            for kind, title in (("ppl_word", "word perplexity"), ("bpb", "bits per byte"))
            if kind in figures
        ]
    return lines


def _base_of(folder: Path) -> str:
    """Return the base that a fully trained checkpoint began with, "" where it began with nothing."""
    path = folder / "train.toml"
    base = tomllib.loads(path.read_text(encoding="utf-8")).get("base", "") if path.is_file() else ""
    return HUB_IDS.get(base, str(base))
