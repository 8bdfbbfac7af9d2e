"""A small Discord on a socket for tests: gateway and REST as a bot sees them, with what a simulation cannot show.

That is: identify, heartbeats, resume after a dropped socket, compression, rate limits, failing answers, and sends that
are repeated with the same nonce. Servers, members and rules are few.
"""

from __future__ import annotations

import contextlib
import json
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import WSMsgType, web

from tests.helpers.discord_world import BOT_ID, DiscordWorld, Object, Refused, now

TOKEN = "MTIz.test-token.of-the-small-server"
PRIVILEGED = (1 << 1) | (1 << 8) | (1 << 15)


@dataclass
class Session:
    """A gateway session; it outlives its socket until it is resumed or invalidated."""

    id: str
    shard: list[int]
    events: list[Object] = field(default_factory=list)
    socket: web.WebSocketResponse | None = None
    squeeze: Any = None


class DiscordServer(DiscordWorld):
    """The server and the world behind it. `async with DiscordServer() as server:`; `server.url` is the REST root."""

    def __init__(self) -> None:
        super().__init__()
        self.url = ""
        self.identified: list[Object] = []
        self.num_resumes = 0
        self.num_heartbeats = 0
        self.answers: dict[str, Object] = {}
        self.commands: list[Object] = []
        self.violations: list[str] = []
        self.after_create: Callable[[Object], None] | None = None
        self._nonces: dict[tuple[str, str], Object] = {}
        self._sessions: dict[str, Session] = {}

    async def __aenter__(self) -> DiscordServer:
        app = web.Application()
        app.router.add_get("/gateway", self._gateway)
        app.router.add_route("*", "/api/v10/{path:.*}", self._rest)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self._port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}/api"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.drop_sockets()
        await self._runner.cleanup()

    async def drop_sockets(self) -> None:
        """Cut every connection; the sessions can be resumed."""
        for session in self._sessions.values():
            if session.socket is not None:
                await session.socket.close(code=4000)

    def invalidate_sessions(self) -> None:
        """Forget every session: a resume is answered with "invalid session"."""
        self._sessions.clear()

    # --- the gateway ---

    async def _gateway(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=4096)
        await socket.prepare(request)
        squeeze = zlib.compressobj() if request.query.get("compress") == "zlib-stream" else None
        if request.query.get("v") != "10" or request.query.get("encoding") != "json":
            await socket.close(code=4012)
            return socket
        await _send(socket, squeeze, {"op": 10, "d": {"heartbeat_interval": 41250, "_trace": []}, "s": None, "t": None})
        session: Session | None = None
        async for frame in socket:
            if frame.type is not WSMsgType.TEXT:
                break
            packet = json.loads(frame.data)
            if packet["op"] == 1:
                self.num_heartbeats += 1
                await _send(socket, squeeze, {"op": 11, "d": None, "s": None, "t": None})
            elif packet["op"] == 2:
                session = await self._identify(socket, squeeze, packet["d"])
            elif packet["op"] == 6:
                session = await self._resume(socket, squeeze, packet["d"])
            if socket.closed:
                break
            await self._notify()
        if session is not None and session.socket is socket:
            session.socket = None
        return socket

    async def _identify(self, socket: web.WebSocketResponse, squeeze: Any, data: Object) -> Session | None:
        self.identified.append(data)
        if data["token"] != TOKEN:
            await socket.close(code=4004, message=b"Authentication failed.")
            return None
        if data["intents"] & PRIVILEGED:
            await socket.close(code=4014, message=b"Disallowed intent(s).")
            return None
        session = Session(f"session-{self._id()}", data.get("shard", [0, 1]), socket=socket, squeeze=squeeze)
        self._sessions[session.id] = session
        ready = {
            "v": 10,
            "user": self.me,
            "guilds": [{"id": self.guild, "unavailable": True}],
            "session_id": session.id,
            "resume_gateway_url": f"ws://127.0.0.1:{self._port}/gateway",
            "shard": session.shard,
            "application": {"id": BOT_ID, "flags": 0},
            "private_channels": [],
            "relationships": [],
        }
        await self._dispatch("READY", ready, only=session)
        await self._dispatch("GUILD_CREATE", self._guild(), only=session)
        return session

    async def _resume(self, socket: web.WebSocketResponse, squeeze: Any, data: Object) -> Session | None:
        session = self._sessions.get(data["session_id"])
        if session is None or data["token"] != TOKEN:
            await _send(socket, squeeze, {"op": 9, "d": False, "s": None, "t": None})
            return None
        self.num_resumes += 1
        session.socket, session.squeeze = socket, squeeze
        for event in [event for event in session.events if event["s"] > (data["seq"] or 0)]:
            await _send(socket, squeeze, event)
        await self._dispatch("RESUMED", {"_trace": []}, only=session)
        return session

    async def _dispatch(self, name: str, data: Object, *, only: Session | None = None) -> None:
        for session in [only] if only else list(self._sessions.values()):
            event = {"op": 0, "t": name, "s": len(session.events) + 1, "d": data}
            session.events.append(event)
            if session.socket is not None and not session.socket.closed:
                await _send(session.socket, session.squeeze, event)

    # --- REST ---

    async def _rest(self, request: web.Request) -> web.Response:
        method, path = request.method, "/" + request.match_info["path"]
        body = await request.json() if request.can_read_body else {}
        self.requests.append((method, path, body))
        try:
            if request.headers.get("Authorization") != f"Bot {TOKEN}" and not path.startswith(
                ("/interactions", "/webhooks")
            ):
                raise Refused(401, 0, "401: Unauthorized")
            for hook in self._hooks:
                hook(method, path, body)
            for index, (pattern, error) in enumerate(self._refusals):
                if re.fullmatch(pattern, f"{method} {path}"):
                    del self._refusals[index]
                    raise error
            result = await self._route(method, path, body)
        except Refused as error:
            headers = {"Retry-After": str(error.body["retry_after"])} if "retry_after" in error.body else {}
            await self._notify()
            return _json(error.body, error.status, **headers, Via="1.1 test")
        await self._notify()
        return web.Response(status=204) if result is None else _json(result)

    async def _route(self, method: str, path: str, body: Any) -> Any:
        parts = path.strip("/").split("/")
        match method, parts:
            case "GET", ["users", "@me"]:
                return self.me | {"verified": True, "mfa_enabled": False, "locale": "en-US", "email": None}
            case "GET", ["oauth2", "applications", "@me"] | ["applications", "@me"]:
                return self._application()
            case "GET", ["gateway", "bot"]:
                limits = {"total": 1000, "remaining": 999, "reset_after": 1000, "max_concurrency": 1}
                return {"url": f"ws://127.0.0.1:{self._port}/gateway", "shards": 1, "session_start_limit": limits}
            case "PUT", ["applications", _, "commands"]:
                self.commands = [{"id": self._id(), "application_id": BOT_ID, "version": "1", **c} for c in body]
                return self.commands
            case "POST", ["channels", channel_id, "typing"]:
                self._known(channel_id)
                return None
            case "POST", ["channels", channel_id, "messages"]:
                return await self._create_message(channel_id, body)
            case "PATCH", ["channels", channel_id, "messages", message_id]:
                message = self._own(channel_id, message_id)
                message |= {"content": _checked_content(body), "edited_timestamp": now()}
                return message
            case "DELETE", ["channels", channel_id, "messages", message_id]:
                self.messages[channel_id].remove(self._own(channel_id, message_id))
                return None
            case "POST", ["interactions", interaction_id, _, "callback"]:
                self.answers[interaction_id] = body
                return {"interaction": {"id": interaction_id, "type": 2, "response_message_loading": False}}
            case ("POST", ["webhooks", _, _]) | ("PATCH", ["webhooks", _, _, "messages", "@original"]):
                return self._message(next(iter(self.channels)), self.me, body.get("content", ""))
        raise Refused(404, 0, f"404: {method} {path}")

    async def _create_message(self, channel_id: str, body: Object) -> Object:
        self._known(channel_id)
        nonce = body.get("nonce")
        if nonce is not None and len(str(nonce)) > 25:
            raise Refused(400, 50035, "Invalid Form Body", errors={"nonce": {}})
        if nonce and body.get("enforce_nonce") and (channel_id, str(nonce)) in self._nonces:
            return self._nonces[channel_id, str(nonce)]
        content = _checked_content(body)
        if body.get("allowed_mentions", {}).get("parse", ["users"]):
            self.violations.append("a message could have pinged somebody")
        message = self._message(channel_id, self.me, content) | {"nonce": nonce}
        if reference := body.get("message_reference"):
            message |= {"type": 19, "message_reference": reference}
        self.messages[channel_id].append(message)
        if nonce:
            self._nonces[channel_id, str(nonce)] = message
        if self.after_create is not None:
            self.after_create(message)
        await self._dispatch("MESSAGE_CREATE", message | self._member_part(channel_id))
        return message


def _json(body: Any, status: int = 200, **headers: str) -> web.Response:
    """Answer as Discord does: its content type names no charset, and discord.py insists on that."""
    headers["Content-Type"] = "application/json"
    return web.Response(body=json.dumps(body).encode(), status=status, headers=headers)


async def _send(socket: web.WebSocketResponse, squeeze: Any, packet: Object) -> None:
    data = json.dumps(packet)
    with contextlib.suppress(ConnectionError):
        if squeeze is None:
            await socket.send_str(data)
        else:
            await socket.send_bytes(squeeze.compress(data.encode()) + squeeze.flush(zlib.Z_SYNC_FLUSH))


def _checked_content(body: Object) -> str:
    content = str(body.get("content") or "")
    if not content.strip():
        raise Refused(400, 50006, "Cannot send an empty message")
    if len(content) > 2000:
        raise Refused(
            400, 50035, "Invalid Form Body", errors={"content": {"_errors": [{"code": "BASE_TYPE_MAX_LENGTH"}]}}
        )
    return content
