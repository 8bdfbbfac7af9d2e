"""`personabot personas`: look at the catalogue and check persona files. Needs no model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from personas.catalogue import SHIPPED, Catalogue, Entry, load_catalogue, read_entries

app = typer.Typer(
    help="List, show and check personas.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]


@app.command("list")
def list_personas(is_json: AsJson = False) -> None:
    """List every persona: the shipped ones and those of your `personas_dir`."""
    catalogue = _catalogue()
    if is_json:
        _print_json([_described(entry) for entry in catalogue])
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("Name", style="bold", no_wrap=True)
    table.add_column("Who it is")
    table.add_column("From", style="dim", no_wrap=True)
    for entry in catalogue:
        table.add_row(_titled(entry), Text(entry.persona.description or ""), _origin(entry))
    Console().print(table)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name, first name or file name.", show_default=False)],
    is_json: AsJson = False,
) -> None:
    """Show everything about one persona."""
    from personas.settings import load_settings
    from personas.voices import speaks_with

    entry = _catalogue().entry(name)
    if is_json:
        _print_json(_described(entry))
        return
    persona = entry.persona
    parts = [Text(persona.description, style="italic")] if persona.description else []
    parts += [Text(f"• {fact}") for fact in persona.facts]
    if persona.greeting:
        parts.append(Text(f"\nGreets: {persona.greeting}"))
    for example in persona.examples:
        parts.append(Text(f"\nYou: {example.user}\n{persona.name}: {example.bot}", style="dim"))
    if generation := persona.generation.model_dump(exclude_none=True):
        parts.append(Text("\nSampling: " + ", ".join(f"{key} {value}" for key, value in generation.items())))
    if checkpoint := speaks_with(load_settings(), persona):
        parts.append(Text(f"\nCheckpoint: {checkpoint}"))
    Console().print(
        Panel(Group(*parts), title=_titled(entry), subtitle=Text(str(entry.file), style="dim"), expand=False)
    )


@app.command()
def check(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Files or folders; without any, all that `list` reads.")
    ] = None,
) -> None:
    """Check persona files, name every problem with line, field and what was expected; exit status 1 if there is any."""
    entries, problems = read_entries(*(paths or _folders()))
    for problem in problems:
        typer.echo(problem)
    if problems:
        num_files = len({problem.file for problem in problems})
        typer.echo(f"{_counted(len(problems), 'problem')} in {_counted(num_files, 'file')}. See docs/personas.md")
        raise typer.Exit(1)
    shipped = {name.casefold() for name in load_catalogue(None).names()}
    for entry in entries:
        if not entry.is_shipped and entry.persona.name.casefold() in shipped:
            typer.echo(f"{entry.file}: takes the place of the shipped {entry.persona.name}")
    typer.echo(f"{_counted(len(entries), 'persona')}, no problems")


def _catalogue() -> Catalogue:
    return Catalogue.load(*_folders())


def _folders() -> list[Path]:
    from personas.settings import load_settings

    own = load_settings().personas_dir
    return [SHIPPED, own] if own else [SHIPPED]


def _described(entry: Entry) -> dict[str, Any]:
    described = entry.persona.model_dump(mode="json", exclude_none=True)
    return {**described, "origin": _origin(entry), "file": str(entry.file)}


def _origin(entry: Entry) -> str:
    return "shipped" if entry.is_shipped else "own"


def _titled(entry: Entry) -> Text:
    """Put the avatar before the name where it is a sign rather than a picture's address."""
    avatar = entry.persona.avatar or ""
    return Text(f"{avatar} {entry.persona.name}" if avatar and not avatar.isascii() else entry.persona.name)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))
