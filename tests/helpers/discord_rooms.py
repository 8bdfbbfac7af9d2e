"""Rooms for a crowd on the simulated Discord: channels of one server, and the real adapter between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import discord
import simcord

from benchmarks.crowd import Heard
from bots.discord.client import PersonaClient
from bots.services import Services
from personas.conversation import Conversation
from personas.settings import Settings


class DiscordRooms:
    """One server in the simulation; `admin` is the one person who may retrain."""

    def __init__(self, env: simcord.Env, persona: str) -> None:
        assert env.bot.user is not None
        self.env = env
        self.guild = env.create_guild()
        self.managers = self.guild.create_role("Mods", permissions=discord.Permissions(manage_guild=True))
        self.admin = self.guild.add_member(env.create_user("ann"), roles=[self.managers])
        self._guest = self.guild.add_member(env.create_user("guest"))
        self._me = env.bot.user.id
        self._persona = persona
        self._rooms: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._heard: asyncio.Queue[Heard] = asyncio.Queue()
        env.backend.subscribers.append(self._hear)

    async def speak(self, room: str, text: str) -> None:
        """See `Way`. Unlike the simulation's actors, nobody waits until the bot has come to rest."""
        backend = self.env.backend
        if room not in self._rooms:
            channel = self._rooms[room] = backend.create_channel(self.guild.id, f"room-{room}").id
            self._names[channel] = room
        backend.create_message(self._rooms[room], self._guest.id, f"<@{self._me}> {text}")

    async def heard(self) -> AsyncIterator[Heard]:
        """See `Way`."""
        while True:
            yield await self._heard.get()

    def where(self, room: str) -> Conversation:
        """Return which conversation a room is."""
        return Conversation("discord", str(self._rooms[room]))

    def message_ids(self, room: str) -> list[str]:
        """Return the ids of everything said in a room, oldest first."""
        return [str(message_id) for message_id in sorted(self.env.backend.messages[self._rooms[room]])]

    def _hear(self, event: str, payload: Any) -> None:
        if event != "MESSAGE_CREATE" or int(payload["author"]["id"]) != self._me:
            return
        if room := self._names.get(int(payload["channel_id"])):
            self._heard.put_nowait(Heard(room, payload["content"].startswith(f"**{self._persona}:**")))


@asynccontextmanager
async def rooms_on_discord(settings: Settings, url: str) -> AsyncIterator[DiscordRooms]:
    """Run the adapter of these settings in a simulation of its own; errors of the adapter are raised at the end."""
    admins: set[str] = set()
    services = replace(Services.open(settings, url), admins=admins)
    client = PersonaClient(services)
    env = simcord.Env(client, shard_count=1)  # not `simcord.run`, in which time stands still for whoever measures it
    await env.start()
    speaking = asyncio.gather(client.delivery.run(), client.watch.run())
    try:
        persona = await services.persona_of(Conversation("discord", "anywhere"))
        rooms = DiscordRooms(env, persona.name)
        admins.add(f"discord:{rooms.admin.id}")
        yield rooms
    finally:
        speaking.cancel()
        await asyncio.gather(speaking, return_exceptions=True)
        await env.shutdown()
        await services.close()
    env.raise_errors()
