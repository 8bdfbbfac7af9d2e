"""Rooms for a crowd on the strict Bot API server, with flood control: private chats, and the real adapter between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import SecretStr

from benchmarks.crowd import Heard
from bots.services import Services
from bots.telegram.app import serve
from personas.conversation import Conversation
from personas.settings import Settings
from tests.helpers.telegram_files import TelegramFileServer
from tests.helpers.telegram_server import TOKEN
from tests.helpers.telegram_world import Chat, Object

MAX_PER_SECOND = 1.0  # messages into a private chat, in the long run


class TelegramRooms(TelegramFileServer):
    """The strict server; `admin` is the one person who may retrain."""

    def __init__(self) -> None:
        super().__init__()
        self.max_per_second = MAX_PER_SECOND
        self.admin = self.user("Ann")
        self.persona = ""
        self._rooms: dict[str, Chat] = {}
        self._names: dict[int, str] = {}
        self._heard: asyncio.Queue[Heard] = asyncio.Queue()

    async def speak(self, room: str, text: str) -> None:
        """See `Way`."""
        if room not in self._rooms:
            chat = self._rooms[room] = self.private_chat(self.user(f"Guest {room}"))
            self._names[chat.id] = room
        chat = self._rooms[room]
        await self.say(chat, self.users[chat.id], text)

    async def heard(self) -> AsyncIterator[Heard]:
        """See `Way`."""
        while True:
            yield await self._heard.get()

    def where(self, room: str) -> Conversation:
        """Return which conversation a room is."""
        return Conversation("telegram", str(self._rooms[room].id))

    def message_ids(self, room: str) -> list[str]:
        """Return the ids of everything said in a room, oldest first."""
        return [str(message_id) for message_id in self._rooms[room].messages]

    def _do_sendmessage(self, parameters: Object) -> Object:
        message = super()._do_sendmessage(parameters)
        if room := self._names.get(message["chat"]["id"]):
            self._heard.put_nowait(Heard(room, message["text"].startswith(f"{self.persona}:")))
        return message


@asynccontextmanager
async def rooms_on_telegram(settings: Settings, url: str) -> AsyncIterator[TelegramRooms]:
    """Run the adapter of these settings against a server of its own."""
    rooms = TelegramRooms()
    async with rooms:
        here = {"telegram_token": SecretStr(TOKEN), "telegram_api": rooms.url}
        settings = settings.model_copy(update=here | {"admins": f"telegram:{rooms.admin['id']}"})
        services, stop = Services.open(settings, url), asyncio.Event()
        rooms.persona = (await services.persona_of(Conversation("telegram", "anywhere"))).name
        serving = asyncio.create_task(serve(settings, services, stop))
        try:
            yield rooms
        finally:
            stop.set()
            await serving
            await services.close()
