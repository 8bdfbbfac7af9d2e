"""The commands as slash commands: a tree built from `commands.COMMANDS`, and how a response answers an interaction.

Owns Discord's three seconds: what takes longer is deferred first.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final

import discord
import structlog
from discord import app_commands

from bots import commands
from bots.command import Command, Option, Permission, Response
from bots.commands import COMMANDS
from bots.discord import reading
from bots.discord.buttons import view_of
from bots.services import Services

log = structlog.get_logger(__name__)

DEFER_AFTER_S: Final = 1.5  # of the three seconds that Discord gives
_GROUP_HELP: Final = {
    "persona": "Who speaks here",
    "retrain": "Train a new version",
    "model": "Checkpoints and what is served",
}
_KIND: Final = inspect.Parameter.POSITIONAL_OR_KEYWORD
_NOBODY: Final = discord.AllowedMentions.none()

Called = Callable[[discord.Interaction[Any], Command, Mapping[str, str], discord.Attachment | None], Awaitable[None]]


def add_commands(tree: app_commands.CommandTree[Any], services: Services, called: Called) -> None:
    """Fill the tree; every use of a command ends in `called`."""
    groups: dict[str, app_commands.Group] = {}
    for command in COMMANDS:
        if not command.is_listed:
            continue
        group_name, _, name = command.name.rpartition(" ")
        rendered = _rendered(command, name, services, called)
        if not group_name:
            rendered.default_permissions = _shown_to(command)
            tree.add_command(rendered)
            continue
        if group_name not in groups:
            groups[group_name] = app_commands.Group(
                name=group_name,
                description=_GROUP_HELP[group_name],
                default_permissions=_shown_to(command),
            )
            tree.add_command(groups[group_name])
        groups[group_name].add_command(rendered)


def _shown_to(command: Command) -> discord.Permissions | None:
    """Keep administrators' commands out of everybody's sight; who may use them is not decided by this."""
    return discord.Permissions(manage_guild=True) if command.permission is Permission.ADMIN else None


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
    """Return the slash command; discord.py reads the options from the callback's signature."""

    async def callback(interaction: discord.Interaction[Any], **values: Any) -> None:
        texts = {key: value for key, value in values.items() if isinstance(value, str)}
        file = next((value for value in values.values() if isinstance(value, discord.Attachment)), None)
        await called(interaction, command, texts, file)

    parameters = [inspect.Parameter("interaction", _KIND, annotation=discord.Interaction[Any])]
    for option in sorted(command.options, key=lambda option: not option.is_required):
        kind = discord.Attachment if option.is_file else str
        default = inspect.Parameter.empty if option.is_required else (None if option.is_file else "")
        annotation = kind if option.is_required or not option.is_file else kind | None
        parameters.append(inspect.Parameter(option.name, _KIND, annotation=annotation, default=default))
    callback.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    if command.options:
        app_commands.describe(**{option.name: option.help for option in command.options})(callback)
    made: Any = callback
    rendered: app_commands.Command[Any, Any, Any] = app_commands.Command(
        name=name, description=command.help, callback=made
    )
    for option in command.options:
        if option.suggest is not None:
            rendered.autocomplete(option.name)(_suggester(command, option, services))
    return rendered


def _suggester(
    command: Command, option: Option, services: Services
) -> Callable[[discord.Interaction[Any], str], Coroutine[Any, Any, list[app_commands.Choice[str]]]]:
    async def suggest(interaction: discord.Interaction[Any], typed: str) -> list[app_commands.Choice[str]]:
        caller = reading.caller_of(interaction)
        if option.suggest is None or (
            command.permission is Permission.ADMIN and not commands.may_use(services, command, caller)
        ):
            return []
        found = await asyncio.to_thread(option.suggest, services, typed)
        return [app_commands.Choice(name=name[:100], value=name[:100]) for name in found[: commands.MAX_SUGGESTIONS]]

    return suggest
