"""Attachments come to the disk in pieces; the limit is held against what comes, and nothing is left of a failure."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import discord
import pytest
import telegram
from aiohttp import web
from aiohttp.test_utils import TestServer

from bots.command import Attachment
from bots.discord.reading import attachment_of as discord_attachment
from bots.download import PIECE_BYTES, write_pieces
from bots.telegram.reading import attachment_of as telegram_attachment
from bots.workshop import UnfitFile

DATA = b"0123456789" * PIECE_BYTES  # ten pieces


class Source:
    """Pieces of 400 kB without end, or until the connection breaks."""

    def __init__(self, breaks_after: int = 10**9) -> None:
        self.num_sent = 0
        self._breaks_after = breaks_after

    async def pieces(self) -> AsyncIterator[bytes]:
        while self.num_sent < self._breaks_after:
            self.num_sent += 1
            yield b"more" * 100_000
        raise ConnectionError("broken off")


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_what_is_larger_than_the_limit_is_not_read_on(tmp_path: Path) -> None:
    source = Source()
    with pytest.raises(UnfitFile, match="larger than was said: more than 1 MB"):
        await write_pieces(source.pieces(), tmp_path / "data", 1_000_000)
    assert source.num_sent == 3
    assert names(tmp_path) == []


async def test_nothing_is_left_of_what_breaks_off_and_no_file_is_overwritten(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError):
        await write_pieces(Source(2).pieces(), tmp_path / "data", 10**6)
    assert names(tmp_path) == []
    (tmp_path / "data").write_bytes(b"older")
    with pytest.raises(FileExistsError):
        await write_pieces(Source(2).pieces(), tmp_path / "data", 10**6)
    assert (tmp_path / "data").read_bytes() == b"older"


@pytest.fixture
async def platform() -> AsyncIterator[TestServer]:
    async def download(_request: web.Request) -> web.Response:
        return web.Response(body=DATA)

    app = web.Application()
    app.router.add_get("/data.jsonl", download)
    async with TestServer(app) as server:
        yield server


class Bot:
    """What `Document.get_file` asks: Telegram's answer names an address, or a path of a server in local mode."""

    def __init__(self, place: str) -> None:
        self._place = place

    async def get_file(self, **_: Any) -> telegram.File:
        return telegram.File("id", "unique", file_path=self._place)


def attached(kind: str, place: str) -> Attachment:
    """Return an attachment of which the platform says that it has ten bytes."""
    if kind == "discord":
        data = {"id": "1", "size": 10, "url": place, "proxy_url": place, "filename": "data.jsonl"}
        found = discord_attachment(
            discord.Attachment(data=cast("Any", data), state=cast("Any", SimpleNamespace(http=None)))
        )
    else:
        document = telegram.Document("id", "unique", file_name="data.jsonl", file_size=10)
        document.set_bot(cast("Any", Bot(place)))
        chat = telegram.Chat(1, "private")
        found = telegram_attachment(telegram.Message(1, date=cast("Any", None), chat=chat, document=document))
    assert found is not None
    assert found.num_bytes == 10
    return found


@pytest.mark.parametrize("kind", ["discord", "telegram", "telegram on this machine"])
async def test_a_file_is_saved_whole_or_refused_whatever_was_said_of_its_size(
    platform: TestServer, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "server.jsonl").write_bytes(DATA)
    is_local = kind.endswith("machine")
    attachment = attached(kind, str(tmp_path / "server.jsonl" if is_local else platform.make_url("/data.jsonl")))
    await attachment.save(tmp_path / "saved", len(DATA))
    assert (tmp_path / "saved").read_bytes() == DATA
    with pytest.raises(UnfitFile, match="larger than was said"):
        await attachment.save(tmp_path / "refused", len(DATA) - 1)
    assert not (tmp_path / "refused").exists()
    gone = attached(kind, str(tmp_path / "gone" if is_local else platform.make_url("/gone-token")))
    with pytest.raises(UnfitFile, match="does not hand that file over") as refused:
        await gone.save(tmp_path / "refused", len(DATA))
    assert "gone" not in str(refused.value)
