"""Buttons that give a command, rendered so that they work after a restart, too."""

from __future__ import annotations

import re
from typing import Any, Protocol, Self, cast

import discord

from bots.command import Button
from bots.delivery import Rows


class Pressable(Protocol):
    """A client that knows what to do with a pressed button."""

    async def pressed(self, interaction: discord.Interaction[Any], data: str) -> None: ...


class CommandButton(
    discord.ui.DynamicItem[discord.ui.Button[discord.ui.View]], template=r"(?P<data>[a-z]+(?: [a-z]+)?\|.{0,64})"
):
    """Carries the command in its id, so that no process needs to remember it."""

    def __init__(self, label: str, data: str, *, row: int | None = None) -> None:
        super().__init__(discord.ui.Button(label=label[:80], custom_id=data, row=row))
        self._data = data

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: discord.ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        """Rebuild the button that was pressed."""
        return cls(getattr(item, "label", None) or "", match["data"])

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        """Hand the press to the client."""
        await cast(Pressable, interaction.client).pressed(interaction, self._data)


def view_of(rows: Rows) -> discord.ui.View:
    """Render rows of buttons."""
    view = discord.ui.View(timeout=None)
    for index, row in enumerate(rows):
        for button in row:
            view.add_item(_rendered(button, index))
    return view


def _rendered(button: Button, row: int) -> CommandButton:
    return CommandButton(button.label, button.data, row=row)
