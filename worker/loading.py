"""Finds a model and brings it into memory: one of our checkpoints, or any causal LM of `transformers`.

Owns names, folders and what may be wrong with them. Knows nothing of requests.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import structlog
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from personas.checkpoint import Checkpoint, is_checkpoint, read_checkpoint
from personas.errors import CheckpointError, PersonabotError
from personas.layout import Layout, load_layout
from personas.registry import LINEAGE_FILE, SHIPPED_FOLDER, Registry
from personas.registry import SHIPPED as SHIPPED_VERSION
from worker.adapter import merge_adapter
from worker.bases import HUB_IDS, base_folder, is_installed
from worker.device import choose_device, choose_dtype, stored_dtype
from worker.engine.runner import model_window, vocabulary_size
from worker.engine.threads import release_team
from worker.head import load_head
from worker.plain_folder import first_line, plain_layout

log = structlog.get_logger(__name__)

# The better one first; the second needs no base.
SHIPPED = ("smollm2-persona", "starter")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
HUB_FILES = ["*.json", "*.jinja", "*.safetensors", "*.txt", "*.model"]
WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True, slots=True)
class Found:
    """Where a model is: a folder or a hub id. `reference` is NAME@VERSION for one of the registry's."""

    name: str
    place: Path | str
    reference: str = ""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory and what belongs to it; `reason` says why this device and this number format.

    `head`: the checkpoint's next-utterance head, if it has one.
    """

    model: PreTrainedModel
    layout: Layout
    checkpoint: Checkpoint | None
    name: str
    digest: str
    device: torch.device
    dtype: torch.dtype
    reason: str
    window: int
    head: torch.nn.Module | None = None

    @property
    def banned_ids(self) -> frozenset[int]:
        """The ids a reply may not contain: the layout's markup, and rows of the vocabulary that stand for no token."""
        num_ids = vocabulary_size(self.model)
        return self.layout.banned_ids | frozenset(range(self.layout.vocabulary_size, num_ids))


def load_model(
    model: str | Found = "", *, device: str = "auto", dtype: str = "auto", registry: Registry | None = None
) -> LoadedModel:
    """Load what `find_model` finds, or has found; files of a registered version are checked first."""
    try:
        return _loaded(model, device=device, dtype=dtype, registry=registry)
    finally:
        release_team()  # the threads that converted weights


def _loaded(model: str | Found, *, device: str, dtype: str, registry: Registry | None) -> LoadedModel:
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    chosen_device, device_reason = choose_device(device)
    chosen_dtype, dtype_reason = choose_dtype(chosen_device, dtype)
    found = model if isinstance(model, Found) else find_model(model, registry)
    if found.reference and registry:
        registry.verify(found.reference)
    folder = _here(found.place)
    checkpoint = read_checkpoint(folder) if is_checkpoint(folder) else None
    network, layout = _load_ours(checkpoint, stored_dtype(chosen_dtype)) if checkpoint else _load_plain(folder)
    _check_vocabulary(folder, network, layout)
    head = load_head(folder)
    network.train(False).requires_grad_(False)
    cast(Any, network).to(device=chosen_device, dtype=stored_dtype(chosen_dtype))
    loaded = LoadedModel(
        model=network,
        layout=layout,
        checkpoint=checkpoint,
        name=_name(found),
        digest=checkpoint.digest if checkpoint else _digest(folder),
        device=chosen_device,
        dtype=chosen_dtype,
        reason=f"{chosen_device}: {device_reason}; {str(chosen_dtype).removeprefix('torch.')}: {dtype_reason}",
        window=min(model_window(network), layout.max_tokens),
        head=None if head is None else head.to(chosen_device),
    )
    log.info(
        "model loaded",
        model=loaded.name,
        digest=loaded.digest,
        layout=layout.name,
        window=loaded.window,
        reason=loaded.reason,
    )
    return loaded


def find_model(model: str = "", registry: Registry | None = None) -> Found:
    """Find a registered name or NAME@VERSION, a checkpoint or Hugging Face folder, a shipped model, or a hub id.

    "" is what was chosen to be served, or else the shipped default; of a name, the version that is current. Raises
    `CheckpointError`, `RegistryError`, or `CheckpointRefused` for what the gate refused.
    """
    if registry is not None:
        wanted = model or registry.chosen() or _shipped_default().name
        if registry.has(wanted):
            version = registry.served(wanted)
            return Found(version.name, version.folder, version.reference)
    place = resolve_model(model)
    return Found(place if isinstance(place, str) else place.resolve().name, place)


def earlier_versions(model: str, registry: Registry) -> list[str]:
    """Return what `model` was before, newest first, as far as the registry knows; what is shipped comes last."""
    name = model or registry.chosen() or _shipped_default().name
    if not registry.has(name) or "@" in name:
        return []
    promotions = registry.pointer(name).promotions[-2::-1]
    return [f"{name}@{version}" for version in (*(promotion.version for promotion in promotions), SHIPPED_VERSION)]


def resolve_model(model: str = "") -> Path | str:
    """Return the folder of a model, or the hub id to fetch it by."""
    if not model:
        return _shipped_default()
    for folder in (Path(model).expanduser(), SHIPPED_FOLDER / model):
        if folder.is_dir():
            return folder
    if model in HUB_IDS:
        return base_folder(model)
    if HUB_ID.fullmatch(model) and not model.startswith("."):
        return model
    raise CheckpointError(f"{model}: there is no such folder. {_known_models()}")


def model_folder(model: str = "") -> Path:
    """Return the folder of a model, fetched from the hub where it is a hub id; raise `CheckpointError` without one."""
    return _here(resolve_model(model))


def _here(place: Path | str) -> Path:
    return place if isinstance(place, Path) else _fetched(place)


def _name(found: Found) -> str:
    """A registered version's folder is called by the version, the one around it by the name."""
    is_registered = isinstance(found.place, Path) and (found.place / LINEAGE_FILE).is_file()
    return Path(found.place).resolve().parent.name if is_registered else found.name


def _shipped_default() -> Path:
    for folder in (SHIPPED_FOLDER / name for name in SHIPPED):
        if is_checkpoint(folder):
            checkpoint = read_checkpoint(folder)
            if checkpoint.base is None or checkpoint.base not in HUB_IDS or is_installed(checkpoint.base):
                return folder
    raise CheckpointError(
        f"{SHIPPED_FOLDER} holds no model that can be used here. Run `make setup`, or name a model with --model-path."
    )


def _known_models() -> str:
    names = [folder.name for folder in sorted(SHIPPED_FOLDER.glob("*")) if is_checkpoint(folder)]
    return f"Name a folder, a hub id such as microsoft/DialoGPT-medium, or one of {', '.join([*names, *HUB_IDS])}."


def _fetched(hub_id: str) -> Path:
    """Return the folder of a hub model, downloading what is not in the cache; honours HF_HUB_OFFLINE."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=HUB_FILES))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(hub_id, allow_patterns=[*HUB_FILES, "pytorch_model*.bin"]))
    except Exception as error:  # network, access, unknown name: the hub's client has an error class for each
        raise CheckpointError(
            f"{hub_id}: there is no such folder here, and it could not be fetched from the Hugging Face hub "
            f"({first_line(error)}). {_known_models()}"
        ) from error
    return folder


def _load_ours(checkpoint: Checkpoint, dtype: torch.dtype) -> tuple[PreTrainedModel, Layout]:
    layout = load_layout(checkpoint.folder)
    if checkpoint.kind == "full":
        return load_network(checkpoint.folder), layout
    return _merged(checkpoint, layout, dtype), layout


def _load_plain(folder: Path) -> tuple[PreTrainedModel, Layout]:
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} is neither a checkpoint of ours (checkpoint.json) nor a Hugging Face model (config.json). "
            f"{_known_models()}"
        )
    network = load_network(folder)
    return network, plain_layout(folder, max_tokens=model_window(network))


def load_network(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Read config and weights; weights that are missing are a `CheckpointError`, not random numbers."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype, output_loading_info=True)
    except Exception as error:  # whatever a damaged or foreign folder makes transformers raise
        raise CheckpointError(
            f"{folder}: the model can't be loaded: {first_line(error)}. Copy the whole folder again, or name another."
        ) from error
    network, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} weights are missing, among them {missing[0]}. Copy the whole folder again."
        )
    return cast(PreTrainedModel, network)


def _merged(checkpoint: Checkpoint, layout: Layout, dtype: torch.dtype) -> PreTrainedModel:
    """Load the base and add the adapter, in float32 before anything is rounded."""
    network = load_network(base_of(checkpoint))
    if layout.vocabulary_size > network.config.get_text_config().vocab_size:
        network.resize_token_embeddings(layout.vocabulary_size, pad_to_multiple_of=64)
    try:
        return merge_adapter(network, checkpoint.folder, dtype=dtype)
    except Exception as error:
        raise CheckpointError(
            f"{checkpoint.folder}: the adapter can't be added to {checkpoint.base}: {first_line(error)}. "
            "Copy the whole folder again, or train it again on this base."
        ) from error


def base_of(checkpoint: Checkpoint) -> Path:
    """Return the folder of an adapter's base: beside it, known by name, or from the hub."""
    base = checkpoint.base or ""
    beside = checkpoint.folder / base
    if base not in HUB_IDS and beside.is_dir():
        return beside
    try:
        return model_folder(base)
    except PersonabotError as error:
        raise CheckpointError(f"{checkpoint.folder} is an adapter on {base}: {error}") from error


def _check_vocabulary(folder: Path, network: PreTrainedModel, layout: Layout) -> None:
    num_ids = vocabulary_size(network)
    if layout.vocabulary_size > num_ids:
        raise CheckpointError(
            f"{folder}: the tokenizer has {layout.vocabulary_size} tokens, the model only {num_ids}. "
            "They don't belong together: copy the whole folder again."
        )


def _digest(folder: Path) -> str:
    """A short hash of a plain folder: its texts, and of the weights size and beginning."""
    total = hashlib.sha256()
    for path in sorted({file for pattern in ("*.json", *WEIGHT_PATTERNS) for file in folder.glob(pattern)}):
        total.update(f"{path.name}:{path.stat().st_size}:".encode())
        with path.open("rb") as file:
            total.update(file.read(1 << 20))
    return total.hexdigest()[:12]
