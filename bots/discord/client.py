"""The Discord client: hears messages, answers commands, and says nothing on its own.

Owns the gateway session and what becomes of each event. Needs no privileged intent: Discord shows a bot the text of
messages that mention it, of replies that ping it, and of direct messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

import discord
import structlog
import yarl
from discord import app_commands
from discord.gateway import DiscordWebSocket
from discord.http import Route

from bots import commands
from bots.addressed import is_addressed
from bots.command import Command, Response
from bots.delivery import Delivery
from bots.discord import reading, slash
from bots.discord.buttons import CommandButton
from bots.discord.platform import TYPING_EVERY_S, DiscordPlatform
from bots.intake import Heard, Intake, notice_of_silence
from bots.registration import register_once
from bots.services import Services
from bots.typing import Typing
from bots.watch import Watch
from personas.conversation import Conversation
from worker.queue.outbox import Outbox

log = structlog.get_logger(__name__)

WATCH_EVERY_S: Final = 5.0  # edits of one message faster than that end in rate limits
UNREADABLE: Final = (
    "I can't read a reply without its ping. Switch the ping on when you reply to me, or mention me by name."
)


def intents() -> discord.Intents:
    """Return what the bot asks Discord for: servers and messages, nothing privileged."""
    return discord.Intents(guilds=True, guild_messages=True, dm_messages=True)


class PersonaClient(discord.AutoShardedClient):
    """One bot on Discord. `api` is set where another server than Discord's is to be used."""

    def __init__(self, services: Services, *, api: str = "") -> None:
        super().__init__(
            intents=intents(),
            allowed_mentions=discord.AllowedMentions.none(),
            max_messages=None,
            chunk_guilds_at_startup=False,
            member_cache_flags=discord.MemberCacheFlags.none(),
        )
        self.signed_in = asyncio.Event()
        self._services = services
        self._api = api
        self.tree: app_commands.CommandTree[PersonaClient] = app_commands.CommandTree(self)
        self.platform = DiscordPlatform(self)
        self.typing = Typing(
            self.platform.show_typing, every_s=TYPING_EVERY_S, longest_s=services.reply_deadline_s + 10
        )
        outbox = Outbox(services.redis, reading.PLATFORM)
        self.delivery = Delivery(services, outbox, self.platform, self.typing)
        self.typing.on_lapse = partial(notice_of_silence, services, self.delivery)
        self.watch = Watch(services, self.platform, reading.PLATFORM, every_s=WATCH_EVERY_S)
        self._intake = Intake(services, self.typing)
        slash.add_commands(self.tree, services, self.called)
        self.add_dynamic_items(CommandButton)

    async def setup_hook(self) -> None:
        """Ask where the gateway is, and register the commands if they have changed: once, not on every reconnect."""
        self.signed_in.set()
        if self._api:
            answer = await self.http.request(Route("GET", "/gateway/bot"))
            # Reconnects go to this constant when a session cannot be resumed.
            DiscordWebSocket.DEFAULT_GATEWAY = yarl.URL(answer["url"])
        payload = [command.to_dict(self.tree) for command in self.tree.get_commands()]
        try:
            await register_once(self._services.redis, f"discord:{self.application_id}", payload, self.tree.sync)
        except (discord.HTTPException, app_commands.AppCommandError) as error:
            log.warning("commands not registered", error=str(error))

    async def on_ready(self) -> None:
        """Log that we are there; this comes again after every new session."""
        log.info("signed in to Discord", bot=str(self.user), num_servers=len(self.guilds))

    async def on_message(self, message: discord.Message) -> None:
        """Put a message that is for us into the mailbox."""
        me = self.user
        if me is None:
            return
        sighting = reading.sighting_of(message, me)
        if not is_addressed(sighting):
            return
        conversation = reading.conversation_of(message.channel, message.channel.id)
        is_group = not sighting.is_private
        if reading.is_unreadable_reply(message, sighting):
            notice = UNREADABLE
        else:
            notice = await self._intake.accept(
                Heard(
                    conversation,
                    reading.text_for_us(message, me),
                    author_id=str(message.author.id),
                    author_name=message.author.display_name,
                    message_id=str(message.id),
                    is_group=is_group,
                    server=str(message.guild.id) if message.guild else "",
                )
            )
        if notice:
            self.delivery.say(conversation, Response(notice), reply_to=str(message.id) if is_group else "")

    async def called(
        self,
        interaction: discord.Interaction[Any],
        command: Command,
        arguments: Mapping[str, str],
        file: discord.Attachment | None = None,
    ) -> None:
        """Run a command and answer the interaction."""
        caller = replace(reading.caller_of(interaction), attachment=reading.attachment_of(file))
        conversation = caller.conversation
        running = commands.run(self._services, command, caller, arguments)
        response = await slash.answer(interaction, command, running, partial(self._texts, conversation))
        log.info("command", command=command.name, conversation=str(conversation))
        if response.speech:
            # A message of its own: Discord hides the text of replies to what answers a command.
            self.delivery.say(conversation, Response(speech=response.speech))
        if response.awaits_reply:
            self.typing.start(conversation)

    def _texts(self, conversation: Conversation, response: Response) -> list[str]:
        return self.delivery.texts(conversation, replace(response, speech=None))

    async def pressed(self, interaction: discord.Interaction[Any], data: str) -> None:
        """Run the command of a pressed button."""
        found = commands.pressed(data)
        if found is None:
            await interaction.response.send_message("This button is out of date.", ephemeral=True)
            return
        await self.called(interaction, *found)

    async def close(self) -> None:
        """Leave; what is under way is delivered after the next start."""
        await self.typing.close()
        await self.delivery.close()
        await super().close()
