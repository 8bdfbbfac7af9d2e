"""The Discord adapter: starts up, stays connected, and ends cleanly."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

import aiohttp
import discord
import structlog
from discord.http import Route

from bots.discord.client import PersonaClient
from bots.errors import TokenMissing, TokenRefused
from bots.running import first_to_end, run_adapter
from bots.services import Services
from personas.settings import Settings

log = structlog.get_logger(__name__)

MAX_PAUSE_S: Final = 30.0
_REFUSED_CODES: Final = (4004, 4010, 4011, 4012, 4013, 4014)
_DISCORD: Final = Route.BASE


def run(settings: Settings) -> None:
    """Serve Discord until SIGINT or SIGTERM."""
    if settings.discord_token is None or not settings.discord_token.get_secret_value():
        raise TokenMissing("DISCORD_TOKEN is not set. docs/discord.md shows how to make a bot and get its token.")
    run_adapter(settings, partial(serve, settings))


async def serve(settings: Settings, services: Services, stop: asyncio.Event) -> None:
    """Run the adapter until `stop` is set; Discord or the network being away only delays it."""
    pause_s = 1.0
    while not stop.is_set():
        try:
            await _session(settings, services, stop)
        except discord.LoginFailure as error:
            raise TokenRefused("Discord refuses the token: DISCORD_TOKEN is wrong or was reset.") from error
        except discord.ConnectionClosed as error:
            if error.code in _REFUSED_CODES:
                raise TokenRefused(f"Discord closed the connection for good (code {error.code}).") from error
            pause_s = await _pause(error, pause_s)
        except (discord.DiscordException, aiohttp.ClientError, OSError, TimeoutError) as error:
            pause_s = await _pause(error, pause_s)


async def _session(settings: Settings, services: Services, stop: asyncio.Event) -> None:
    assert settings.discord_token is not None
    Route.BASE = settings.discord_root
    # We never join a voice channel: nobody needs to read that the libraries for it are missing.
    discord.VoiceClient.warn_nacl = discord.VoiceClient.warn_dave = False
    client = PersonaClient(services, api=settings.discord_root if settings.discord_root != _DISCORD else "")
    try:
        await first_to_end(
            stop.wait(), client.start(settings.discord_token.get_secret_value()), _deliver_when_ready(client)
        )
    finally:
        await client.close()


async def _deliver_when_ready(client: PersonaClient) -> None:
    """Deliver once servers and names are known; what was pending comes first."""
    await client.signed_in.wait()
    await client.wait_until_ready()
    await first_to_end(client.delivery.run(), client.watch.run())


async def _pause(error: Exception, pause_s: float) -> float:
    log.warning("Discord not reachable, trying again", error=f"{type(error).__name__}: {error}", after_s=pause_s)
    await asyncio.sleep(pause_s)
    return min(pause_s * 2, MAX_PAUSE_S)
