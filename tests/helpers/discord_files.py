"""Attachments of the simulated Discord on a real socket: the simulation itself gives addresses that nobody serves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import simcord
from aiohttp import web
from aiohttp.test_utils import TestServer


@asynccontextmanager
async def served_attachments(env: simcord.Env, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Serve what people attach within the block."""

    async def download(request: web.Request) -> web.Response:
        data = env.backend.cdn.get(str(request.url))
        return web.Response(status=404) if data is None else web.Response(body=data)

    app = web.Application()
    app.router.add_get("/{path:.*}", download)
    async with TestServer(app) as server:
        monkeypatch.setattr("simcord.backend.cdn.CDN_BASE", str(server.make_url("")).rstrip("/"))
        yield
