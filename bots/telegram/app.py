"""The Telegram adapter: starts up, polls for updates, and ends cleanly.

Updates are confirmed only once they are in the mailbox, so that a killed adapter loses none.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

import structlog
import telegram
from telegram.error import Conflict, InvalidToken, RetryAfter, TelegramError
from telegram.request import HTTPXRequest

from bots.command import Permission
from bots.commands import COMMANDS
from bots.delivery import GRACE_S, Delivery
from bots.errors import TokenMissing, TokenRefused
from bots.intake import notice_of_silence
from bots.lanes import Lanes
from bots.registration import register_once
from bots.running import first_to_end, run_adapter
from bots.services import Services
from bots.telegram.platform import TYPING_EVERY_S, TelegramPlatform, seconds_of
from bots.telegram.updates import Updates, lane_of, settled
from bots.typing import Typing
from bots.watch import Watch
from personas.settings import Settings
from worker.queue.outbox import Outbox

log = structlog.get_logger(__name__)

PLATFORM: Final = "telegram"
POLL_S: Final = 25
BATCH_S: Final = 15.0  # how long a batch may hold up the next poll
EMPTY_PAUSE_S: Final = 0.05
MAX_PAUSE_S: Final = 30.0
UPDATES: Final = ["message", "callback_query"]
WATCH_EVERY_S: Final = 4.0
_GROUP_HELP: Final = {"persona": "show who speaks, list everyone, or let another take over"}


def run(settings: Settings) -> None:
    """Serve Telegram until SIGINT or SIGTERM."""
    if settings.telegram_token is None or not settings.telegram_token.get_secret_value():
        raise TokenMissing("TELEGRAM_TOKEN is not set. Ask @BotFather for a token; docs/telegram.md shows how.")
    run_adapter(settings, partial(serve, settings))


async def serve(settings: Settings, services: Services, stop: asyncio.Event) -> None:
    """Run the adapter until `stop` is set."""
    bot = make_bot(settings)
    await _signed_in(bot, services, stop)
    if stop.is_set():
        return
    platform = TelegramPlatform(bot)
    outbox = Outbox(services.redis, PLATFORM)
    typing = Typing(platform.show_typing, every_s=TYPING_EVERY_S, longest_s=services.reply_deadline_s + 10)
    delivery = Delivery(services, outbox, platform, typing)
    typing.on_lapse = partial(notice_of_silence, services, delivery)
    watch = Watch(services, platform, PLATFORM, every_s=WATCH_EVERY_S)
    poller = Poller(bot, Updates(bot, services, platform, delivery, typing))
    try:
        await first_to_end(stop.wait(), delivery.run(), poller.run(), watch.run())
    finally:
        await poller.close()
        await typing.close()
        await delivery.close()
        await bot.shutdown()


def make_bot(settings: Settings) -> telegram.Bot:
    """Return a client for the token and the server of the settings."""
    assert settings.telegram_token is not None
    return telegram.Bot(
        settings.telegram_token.get_secret_value(),
        base_url=settings.telegram_root,
        base_file_url=settings.telegram_root.removesuffix("/bot") + "/file/bot",
        request=HTTPXRequest(connection_pool_size=64, read_timeout=20, write_timeout=20, pool_timeout=30),
        get_updates_request=HTTPXRequest(connection_pool_size=2, read_timeout=10),
    )


def menu() -> list[telegram.BotCommand]:
    """Return what Telegram's menu button lists to everybody; Telegram has no commands of two words."""
    wanted: dict[str, telegram.BotCommand] = {}
    for command in COMMANDS:
        name = command.name.split()[0]
        if command.is_listed and command.permission is not Permission.ADMIN and name not in wanted:
            wanted[name] = telegram.BotCommand(name, _GROUP_HELP.get(name, command.help))
    return list(wanted.values())


class Poller:
    """Fetches updates, and the next ones only when these are taken care of."""

    def __init__(self, bot: telegram.Bot, updates: Updates, *, poll_s: int = POLL_S) -> None:
        self._bot = bot
        self._updates = updates
        self._poll_s = poll_s
        self._lanes = Lanes()
        self._offset: int | None = None

    async def run(self) -> None:
        """Poll for ever; a refused token ends it."""
        pause_s = 1.0
        while True:
            try:
                batch = await self._bot.get_updates(offset=self._offset, timeout=self._poll_s, allowed_updates=UPDATES)
                pause_s = 1.0
            except InvalidToken as error:
                raise TokenRefused("Telegram refuses the token: TELEGRAM_TOKEN was revoked or is mistyped.") from error
            except TelegramError as error:
                if isinstance(error, Conflict) and "webhook" in error.message.casefold():
                    await self._without_webhook()
                pause_s = await _pause(error, pause_s)
                continue
            if not batch:
                await asyncio.sleep(EMPTY_PAUSE_S)  # for a server that does not hold the poll
                continue
            tasks = [self._lanes.run(lane_of(update), partial(self._updates.handle, update)) for update in batch]
            await settled(tasks, BATCH_S)
            self._offset = batch[-1].update_id + 1

    async def _without_webhook(self) -> None:
        log.warning("removing the webhook that was set for this bot: it is polled from now on")
        try:
            await self._bot.delete_webhook(drop_pending_updates=False)
        except TelegramError as error:
            log.warning("webhook not removed", error=error.message)

    async def close(self) -> None:
        """Finish what has begun, and confirm it so that it does not come again."""
        await self._lanes.close(grace_s=GRACE_S)
        if self._offset is not None:
            try:
                await self._bot.get_updates(offset=self._offset, limit=1, timeout=0, allowed_updates=UPDATES)
            except TelegramError as error:
                log.debug("last updates not confirmed", error=error.message)


async def _signed_in(bot: telegram.Bot, services: Services, stop: asyncio.Event) -> None:
    """Sign in and set up, as often as it takes: the network may come up after us."""
    pause_s = 1.0
    while not stop.is_set():
        try:
            await bot.initialize()
            break
        except InvalidToken as error:
            raise TokenRefused("Telegram refuses the token: TELEGRAM_TOKEN is wrong or was revoked.") from error
        except TelegramError as error:
            pause_s = await _pause(error, pause_s)
    else:
        return
    commands = menu()
    try:
        await register_once(
            services.redis,
            f"telegram:{bot.id}",
            [command.to_dict() for command in commands],
            partial(bot.set_my_commands, commands),
        )
    except TelegramError as error:
        log.warning("commands not registered", error=error.message)
    log.info("signed in to Telegram", bot=bot.username)
    if not bot.can_read_all_group_messages:
        log.warning(
            "privacy mode is on: in groups I hear commands and replies to me, but no plain @mention, "
            "unless I am an administrator; docs/telegram.md shows how to change that"
        )


async def _pause(error: TelegramError, pause_s: float) -> float:
    """Wait before the next attempt, and return how long to wait after that."""
    if isinstance(error, RetryAfter):
        log.warning("Telegram asks to be left alone", after_s=seconds_of(error))
        await asyncio.sleep(seconds_of(error))
        return pause_s
    hint = "another process polls with this token" if isinstance(error, Conflict) else error.message
    log.warning("Telegram not reachable, trying again", error=hint, after_s=pause_s)
    await asyncio.sleep(pause_s)
    return min(pause_s * 2, MAX_PAUSE_S)
