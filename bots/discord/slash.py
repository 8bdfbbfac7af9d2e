"""The commands as slash commands: a tree built from `commands.COMMANDS`, and how a response answers an interaction.

Owns Discord's three seconds: what takes longer is deferred first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final

import discord
import structlog
from discord import app_commands

from bots import commands
from bots.commands import COMMANDS, Command, Option, Response
from bots.discord.buttons import view_of
from bots.services import Services

log = structlog.get_logger(__name__)

DEFER_AFTER_S: Final = 1.5  # of the three seconds that Discord gives
_GROUP_HELP: Final = {"persona": "Who speaks here"}
_NOBODY: Final = discord.AllowedMentions.none()

Called = Callable[[discord.Interaction[Any], Command, Mapping[str, str]], Awaitable[None]]


def add_commands(tree: app_commands.CommandTree[Any], services: Services, called: Called) -> None:
    """Fill the tree; every use of a command ends in `called`."""
    groups: dict[str, app_commands.Group] = {}
    for command in COMMANDS:
        if not command.is_listed:
            continue
        group_name, _, name = command.name.rpartition(" ")
        rendered = _rendered(command, name, services, called)
        if not group_name:
            tree.add_command(rendered)
            continue
        if group_name not in groups:
            groups[group_name] = app_commands.Group(name=group_name, description=_GROUP_HELP[group_name])
            tree.add_command(groups[group_name])
        groups[group_name].add_command(rendered)


async def answer(
    interaction: discord.Interaction[Any],
    command: Command,
    running: Awaitable[Response],
    texts: Callable[..., list[str]],
) -> Response:
    """Answer an interaction with what `running` comes to, deferring if it takes long."""
    task = asyncio.ensure_future(running)
    done, _ = await asyncio.wait({task}, timeout=DEFER_AFTER_S)
    if not done:
        await interaction.response.defer(ephemeral=command.is_private, thinking=True)
    response = await task
    parts = texts(response) or ["…"]
    if response.replaces and interaction.type is discord.InteractionType.component and not done:
        await interaction.followup.send(parts[0], ephemeral=True, allowed_mentions=_NOBODY)
    elif response.replaces and interaction.type is discord.InteractionType.component:
        await interaction.response.edit_message(
            content=parts[0], view=view_of(response.buttons), allowed_mentions=_NOBODY
        )
    else:
        await _send(interaction, parts, response)
    return response


async def _send(interaction: discord.Interaction[Any], parts: list[str], response: Response) -> None:
    for index, text in enumerate(parts):
        more: dict[str, Any] = {"ephemeral": response.is_private, "allowed_mentions": _NOBODY}
        if response.buttons and index == len(parts) - 1:
            more["view"] = view_of(response.buttons)
        if interaction.response.is_done():
            await interaction.followup.send(text, **more)
        else:
            await interaction.response.send_message(text, **more)


def _rendered(command: Command, name: str, services: Services, called: Called) -> app_commands.Command[Any, Any, Any]:
    """Return the slash command; discord.py reads an option from the callback's parameter."""
    if not command.options:

        async def plain(interaction: discord.Interaction[Any]) -> None:
            await called(interaction, command, {})

        return app_commands.Command(name=name, description=command.help, callback=plain)
    option = command.options[0]

    async def required(interaction: discord.Interaction[Any], value: str) -> None:
        await called(interaction, command, {option.name: value})

    async def optional(interaction: discord.Interaction[Any], value: str = "") -> None:
        await called(interaction, command, {option.name: value})

    callback: Any = required if option.is_required else optional
    app_commands.describe(value=option.help)(callback)
    app_commands.rename(value=option.name)(callback)
    rendered: app_commands.Command[Any, Any, Any] = app_commands.Command(
        name=name, description=command.help, callback=callback
    )
    if option.suggest is not None:
        rendered.autocomplete("value")(_suggester(option, services))
    return rendered


def _suggester(
    option: Option, services: Services
) -> Callable[[discord.Interaction[Any], str], Coroutine[Any, Any, list[app_commands.Choice[str]]]]:
    async def suggest(_interaction: discord.Interaction[Any], typed: str) -> list[app_commands.Choice[str]]:
        found = option.suggest(services, typed) if option.suggest else []
        return [app_commands.Choice(name=name[:100], value=name[:100]) for name in found[: commands.MAX_SUGGESTIONS]]

    return suggest
