"""What a plain Hugging Face folder has beside its weights: a tokenizer, and the layout that goes with it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from personas.errors import LayoutError
from personas.layout import TEMPLATE_FILE, Layout, layout_for_hf_folder
from worker.head import load_head

TOKENIZER_FILES = ("vocab.json", "tokenizer.model", "vocab.txt")


def plain_layout(folder: Path, *, max_tokens: int) -> Layout:
    """Choose the layout by the tokenizer, which older folders hold only in pieces, and by the heads of the weights."""
    has_choice_head = load_head(folder) is not None
    if (folder / "tokenizer.json").is_file():
        return layout_for_hf_folder(folder, max_tokens=max_tokens, has_choice_head=has_choice_head)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise LayoutError(
            f"{folder}: no tokenizer.json, nor {', '.join(TOKENIZER_FILES)}. Copy the whole folder again."
        )
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = read_tokenizer(folder)
        Path(scratch, "tokenizer.json").write_text(tokenizer.backend_tokenizer.to_str(), encoding="utf-8")
        if isinstance(tokenizer.chat_template, str):
            Path(scratch, TEMPLATE_FILE).write_text(tokenizer.chat_template, encoding="utf-8")
        return layout_for_hf_folder(Path(scratch), max_tokens=max_tokens, has_choice_head=has_choice_head)


def read_tokenizer(folder: Path) -> Any:
    """Read a folder's tokenizer, whatever files it is in; raise `LayoutError` where there is none in the fast form."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
        tokenizer.backend_tokenizer.to_str()
    except Exception as error:
        raise LayoutError(f"{folder}: no tokenizer that can be read ({first_line(error)})") from error
    return tokenizer


def first_line(error: BaseException) -> str:
    """Return the first line of what a library says, without its full stop."""
    return (str(error).strip().splitlines() or [repr(error)])[0].rstrip(".")
