"""Layouts: the rule that turns persona + turns into token ids, the same for training and for serving.

Pure functions over a tokenizer; knows nothing of models, Redis or platforms:

- `persona`: `<bos> facts (<speaker2> user <eos> | <speaker1> bot <eos>)*`, speakers by role, no token types;
- `chat`: the base model's own chat template, with the facts as the system message;
- `dialogpt`: turns joined by the end-of-text token, for base models as they are published.

Text that people wrote is never parsed as markup: it goes through a tokenizer in which special tokens are plain text.
"""

from __future__ import annotations

import json
from pathlib import Path

from personas.errors import LayoutError
from personas.layout.base import LAYOUT_FILE, Block, Example, Layout, Part, Prompt, first_kept, merged
from personas.layout.chat import TEMPLATE_FILE, ChatLayout
from personas.layout.dialogpt import DialogptLayout
from personas.layout.persona import PERSONA_TOKENS, PersonaLayout

__all__ = [
    "LAYOUTS",
    "LAYOUT_FILE",
    "PERSONA_TOKENS",
    "TEMPLATE_FILE",
    "Block",
    "ChatLayout",
    "DialogptLayout",
    "Example",
    "Layout",
    "Part",
    "PersonaLayout",
    "Prompt",
    "first_kept",
    "layout_for_hf_folder",
    "load_layout",
    "merged",
]

LAYOUTS: dict[str, type[Layout]] = {layout.name: layout for layout in (PersonaLayout, ChatLayout, DialogptLayout)}


def load_layout(folder: Path) -> Layout:
    """Read the layout stored in a checkpoint; refuse a name or version this program does not know."""
    path = folder / LAYOUT_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        name, version, max_tokens = data["name"], data["version"], int(data["max_tokens"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LayoutError(f"{path}: expected a JSON object with name, version and max_tokens ({error})") from error
    layout = LAYOUTS.get(name)
    if layout is None or version != layout.version:
        known = ", ".join(f"{entry.name} version {entry.version}" for entry in LAYOUTS.values())
        raise LayoutError(
            f"{path}: layout {name!r} version {version} is not known here (known: {known}). Update personabot."
        )
    return layout(folder, max_tokens=max_tokens)


def layout_for_hf_folder(folder: Path, *, max_tokens: int) -> Layout:
    """Choose the layout of a plain Hugging Face folder: our tokens, else a chat template, else an end-of-text token."""
    reasons = []
    for layout in LAYOUTS.values():
        try:
            return layout(folder, max_tokens=max_tokens)
        except LayoutError as error:
            reasons.append(str(error))
    raise LayoutError(f"{folder}: none of the layouts {', '.join(LAYOUTS)} fits. " + "; ".join(reasons))
