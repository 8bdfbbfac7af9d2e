"""A file from a platform onto the disk: piece by piece, the limit held against what comes and not what was announced.

Knows no platform: adapters bring the pieces, by whichever library speaks to theirs.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path
from typing import Final

from bots.services import in_thread
from bots.workshop import UnfitFile

PIECE_BYTES: Final = 1 << 16
PATIENCE_S: Final = 30.0  # for the next piece


async def write_pieces(pieces: AsyncIterable[bytes], path: Path, max_bytes: int) -> None:
    """Write a file as it comes. Nothing is left of one that breaks off; one above `max_bytes` raises `UnfitFile`."""
    num_bytes = 0
    file = await in_thread(path.open, "xb")
    try:
        with file:
            async for piece in pieces:
                num_bytes += len(piece)
                if num_bytes > max_bytes:
                    raise UnfitFile(
                        f"That file is larger than was said: more than {max_bytes / 1e6:.0f} MB (max_upload_mb)."
                    )
                await in_thread(file.write, piece)
    except BaseException:
        await in_thread(path.unlink, missing_ok=True)
        raise


async def pieces_of(path: Path) -> AsyncIterator[bytes]:
    """Yield a file of this machine."""
    with await in_thread(path.open, "rb") as file:
        while piece := await in_thread(file.read, PIECE_BYTES):
            yield piece
