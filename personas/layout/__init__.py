"""Layouts: the rule that turns persona + turns into token ids, the same for training and for serving.

Pure functions over a tokenizer; knows nothing of models, Redis or platforms:

- `persona`: `<bos> facts (<speaker2> user <eos> | <speaker1> bot <eos>)*`, speakers by role, no token types;
- `chat`: the base model's own chat template, with the facts as the system message;
- `convai`: TransferTransfo's, with a token type for every token;
- `dialogpt`: turns joined by the end-of-text token, for base models as they are published;
- `corpus`: plain text of one voice.

Text that people wrote is never parsed as markup: it goes through a tokenizer in which special tokens are plain text.
"""

from __future__ import annotations

import json
from pathlib import Path

from personas.errors import LayoutError
from personas.layout.base import LAYOUT_FILE, Layout
from personas.layout.chat import TEMPLATE_FILE, ChatLayout
from personas.layout.convai import ConvaiLayout
from personas.layout.corpus import CorpusLayout
from personas.layout.dialogpt import DialogptLayout
from personas.layout.persona import PERSONA_TOKENS, PersonaLayout
from personas.layout.shapes import Block, Example, Part, Prompt, Span
from personas.layout.turns import first_kept, merged

__all__ = [
    "LAYOUTS",
    "LAYOUT_FILE",
    "PERSONA_TOKENS",
    "TEMPLATE_FILE",
    "Block",
    "ChatLayout",
    "ConvaiLayout",
    "CorpusLayout",
    "DialogptLayout",
    "Example",
    "Layout",
    "Part",
    "PersonaLayout",
    "Prompt",
    "Span",
    "first_kept",
    "layout_for_hf_folder",
    "load_layout",
    "merged",
]

# The layouts that the tokenizer of a plain folder can speak for, the most telling first.
RECOGNISED: tuple[type[Layout], ...] = (PersonaLayout, ChatLayout, DialogptLayout)
_ALL: tuple[type[Layout], ...] = (*RECOGNISED, ConvaiLayout, CorpusLayout)
LAYOUTS: dict[str, type[Layout]] = {layout.name: layout for layout in _ALL}


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


def layout_for_hf_folder(folder: Path, *, max_tokens: int, has_choice_head: bool = False) -> Layout:
    """Choose the layout of a plain Hugging Face folder: our tokens, else a chat template, else an end-of-text token.

    TransferTransfo's checkpoints have the tokens of `persona`, and two heads: that is how they are told apart. Not all
    of them say so in `config.json`; `has_choice_head` is what the weights say.
    """
    reasons = []
    for layout in (ConvaiLayout,) if has_choice_head or _has_two_heads(folder) else RECOGNISED:
        try:
            return layout(folder, max_tokens=max_tokens)
        except LayoutError as error:
            reasons.append(str(error))
    raise LayoutError(
        f"{folder}: none of the layouts {', '.join(layout.name for layout in RECOGNISED)} fits. " + "; ".join(reasons)
    )


def _has_two_heads(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and "DoubleHeadsModel" in config.read_text(encoding="utf-8")
