"""Commands as people type them: which one is meant, and its options. Pure functions on strings."""

from __future__ import annotations

import re
from typing import Final

from bots.command import Command
from bots.commands import COMMANDS, find

GROUPS: Final = frozenset(command.name.split()[0] for command in COMMANDS if " " in command.name)
_ALONE: Final = {"persona": "show", "retrain": "help", "model": "list"}
_OTHERWISE: Final = {"persona": "set", "retrain": "help", "model": "list"}
# A word, or name="several words"; phones turn quotes into curly ones.
_WORD: Final = re.compile(r'(?:[^\s=]+=)?["“„][^"“”]*["“”](?!\S)|\S+')
_QUOTED: Final = re.compile(r'["“„](.*)["“”]')


def read_command(name: str, rest: str) -> tuple[Command | None, dict[str, str]]:
    """Return the command that `/name rest` means, None if there is none, and its arguments.

    >>> read_command("persona", "Ada")[1]
    {'name': 'Ada'}
    """
    command, rest = find(name), rest.strip()
    if name in GROUPS:
        word, _, after = rest.partition(" ")
        command = find(f"{name} {word.casefold() or _ALONE[name]}")
        # "/persona Ada" can only mean one thing.
        command, rest = (command, after.strip()) if command else (find(f"{name} {_OTHERWISE[name]}"), rest)
    return command, read_arguments(command, rest) if command else {}


def read_arguments(command: Command, rest: str) -> dict[str, str]:
    """Return the options as typed: all of it for a command with one, name=value for one with several.

    >>> read_arguments(find("retrain start"), "ada recipe=quick")
    {'name': 'ada', 'recipe': 'quick'}
    >>> read_arguments(find("retrain start"), 'ada speaker="Bo Li"')
    {'name': 'ada', 'speaker': 'Bo Li'}
    """
    names = [option.name for option in command.options]
    plain = [option.name for option in command.options if not option.is_file]
    if len(names) <= 1:
        return {names[0]: rest} if names and rest else {}
    given: dict[str, str] = {}
    for word in _WORD.findall(rest):
        name, sign, value = word.partition("=")
        if sign and name.casefold() in names:
            given[name.casefold()] = _unquoted(value)
        elif free := [name for name in plain if name not in given]:
            given[free[0]] = _unquoted(word)
    return given


def _unquoted(word: str) -> str:
    found = _QUOTED.fullmatch(word)
    return found[1].strip() if found else word
