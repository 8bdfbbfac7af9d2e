"""`personabot checkpoints`: look at the registry and change what is current. Loads no model."""

from __future__ import annotations

import contextlib
import getpass
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from personas.catalogue import Catalogue, load_catalogue
from personas.errors import CheckpointError, PersonabotError
from personas.leases import held_versions
from personas.registry import DEFAULT_KEPT, Registry, Version
from personas.voices import caution, give, given_voices, pinned, roll_back, speakers_of
from personas.voices import withdraw as taken_away

app = typer.Typer(
    help="List, promote and roll back trained models, for everybody or as one persona's voice. NAME is its current "
    "version; NAME@3 or NAME@DIGEST is another.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
Reference = Annotated[str, typer.Argument(help="NAME, NAME@3 or NAME@DIGEST.", show_default=False)]
Name = Annotated[str, typer.Argument(help="The checkpoint's name.", show_default=False)]
Remote = Annotated[
    str, typer.Argument(help="Any fsspec URL: s3://bucket/folder, hf://…, file:///…", show_default=False)
]


@app.command("list")
def list_checkpoints(
    name: Annotated[str | None, typer.Argument(help="Only this name.", show_default=False)] = None,
    is_json: AsJson = False,
) -> None:
    """List every version: the shipped models and those of your data folder."""
    registry = _registry()
    versions = [version for each in ([name] if name else registry.names()) for version in registry.versions(each)]
    held = held_versions(registry.folder)
    speaking = _speakers(registry)
    if is_json:
        _print_json([_described(version, held, speaking) for version in versions])
        return
    table = Table(box=None, pad_edge=False)
    for title, style in (("Name", "bold"), ("Version", None), ("", None), ("Gate", None), ("Added", "dim")):
        table.add_column(title, style=style, no_wrap=True)
    for version in versions:
        mark = "current" if version.is_current else ""
        in_use = "in use" if version.reference in held else ""
        added = "" if version.is_shipped else f"{version.lineage.at:%Y-%m-%d %H:%M} {version.lineage.by}"
        voice = f"speaks as {', '.join(personas)}" if (personas := speaking.get(version.reference)) else ""
        marks = ", ".join(filter(None, (mark, in_use, voice)))
        table.add_row(version.name, version.version, marks, _verdict(version), Text(added.strip()))
    Console().print(table)


@app.command()
def show(reference: Reference, is_json: AsJson = False) -> None:
    """Show where a version comes from, what was measured, and what the gate said."""
    registry = _registry()
    version = registry.version(reference)
    described = _described(version, held_versions(registry.folder), _speakers(registry))
    described |= version.lineage.model_dump(mode="json")
    if is_json:
        _print_json(described)
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in described.items():
        if value not in (None, "", {}, []) and key not in ("verdict", "files", "format"):
            table.add_row(key, Text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    if verdict := version.lineage.verdict:
        for figure in verdict.figures:
            table.add_row("gate", Text(f"{'kept' if figure.is_met else 'NOT KEPT'}: {figure}"))
        if verdict.against:
            table.add_row("judged beside", Text(verdict.against))
    Console().print(table)


@app.command()
def promote(
    reference: Reference,
    is_forced: Annotated[
        bool, typer.Option("--force", help="Serve it although the gate refused it; its lineage will say so.")
    ] = False,
) -> None:
    """Make a version current; every worker switches to it within seconds, between two requests."""
    version = _registry().promote(reference, by=_user(), is_forced=is_forced)
    typer.echo(f"{version.reference} is current")


@app.command()
def rollback(name: Name) -> None:
    """Take the last promotion back; below the first version of a persona's voice is the default model."""
    typer.echo(roll_back(_registry(), name, by=_user()))


@app.command()
def use(
    name: Name,
    persona: Annotated[str | None, typer.Option(help="Only as this persona's voice.", show_default=False)] = None,
) -> None:
    """Serve a name to every persona without a checkpoint of its own, or to one as its voice."""
    registry = _registry()
    if persona is None:
        typer.echo(f"{registry.choose(name, by=_user()).reference} is served by default")
        return
    speaker = _catalogue().get(persona)
    version = give(registry, speaker.name, name, by=_user())
    typer.echo(f"{version.reference} speaks as {speaker.name}")
    if speaker.checkpoint:
        typer.echo(f"but not before the line checkpoint: {speaker.checkpoint} is gone from the persona's file")
    if said := caution(version):
        typer.echo(said)


@app.command()
def unvoice(
    persona: Annotated[str, typer.Argument(help="The persona's name.", show_default=False)],
) -> None:
    """Take a persona's voice away: it speaks with the default model again."""
    with contextlib.suppress(PersonabotError):  # of one that has left the catalogue a voice may be left
        persona = _catalogue().get(persona).name
    voice = taken_away(_registry(), persona)
    typer.echo(f"{voice.persona} no longer speaks with {voice.checkpoint}")


@app.command()
def add(
    folder: Annotated[Path, typer.Argument(help="A checkpoint folder, as `personabot train` writes it.")],
    name: Annotated[str, typer.Option(help="The name to add it to.", show_default=False)],
) -> None:
    """Copy a checkpoint folder into the registry as the next version of a name; promote it when you like."""
    from personas.lineage import Lineage

    version = _registry().add(folder, name, Lineage(by=_user()))
    typer.echo(f"added {version.reference}; to serve it: personabot checkpoints promote {version.reference}")


@app.command()
def verify(
    references: Annotated[list[str] | None, typer.Argument(help="All versions if none is named.")] = None,
) -> None:
    """Hash every file anew and name what is damaged; exit status 1 if anything is."""
    registry = _registry()
    everything = [version.reference for name in registry.names() for version in registry.versions(name)]
    num_damaged = 0
    for reference in references or everything:
        try:
            registry.verify(reference)
        except CheckpointError as error:
            num_damaged += 1
            typer.echo(f"damaged: {error}")
        else:
            typer.echo(f"whole: {registry.version(reference).reference}")
    if num_damaged:
        raise typer.Exit(1)


@app.command()
def prune(
    name: Annotated[str | None, typer.Argument(help="Only this name.", show_default=False)] = None,
    keep: Annotated[int, typer.Option(min=0, help="How many of the newest versions stay in any case.")] = DEFAULT_KEPT,
) -> None:
    """Delete old versions; the current one, the one before it, and what is in use, pinned or a base of others stay."""
    from personas.settings import load_settings

    registry, in_files = _registry(), pinned(load_settings())
    for each in [name] if name else registry.names():
        for version in registry.prune(each, keep=keep, pinned=in_files):
            typer.echo(f"deleted {version.reference}")


@app.command()
def push(reference: Reference, url: Remote) -> None:
    """Copy a version to a remote store; the current one becomes current there."""
    from personas.remote import push as run

    typer.echo(f"pushed {run(_registry(), reference, url, by=_user()).reference}")


@app.command()
def pull(
    reference: Reference,
    url: Remote,
    is_promoted: Annotated[bool, typer.Option("--promote", help="Make it current here at once.")] = False,
) -> None:
    """Copy a version from a remote store, NAME alone being what is current there, and check it."""
    from personas.remote import pull as run

    registry = _registry()
    version = run(registry, reference, url)
    if is_promoted:
        version = registry.promote(version.reference, by=_user())
    typer.echo(f"pulled {version.reference}{', which is current' if version.is_current else ''}")


def _registry() -> Registry:
    from personas.settings import load_settings

    return Registry.of(load_settings())


def _catalogue() -> Catalogue:
    from personas.settings import load_settings

    return load_catalogue(load_settings().personas_dir)


def _speakers(registry: Registry) -> dict[str, list[str]]:
    """Return the personas that speak with a checkpoint of their own, by the version that this is now."""
    personas: dict[str, list[str]] = {}
    everybody = (entry.persona for entry in _catalogue())
    for reference, names in speakers_of(everybody, given_voices(registry)).items():
        with contextlib.suppress(PersonabotError):  # a folder or a hub id is no version of the registry's
            personas.setdefault(registry.version(reference).reference, []).extend(names)
    return personas


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user id without a name, as in some containers
        return ""


def _described(version: Version, held: Mapping[str, list[str]], speaking: Mapping[str, list[str]]) -> dict[str, Any]:
    return {
        "name": version.name,
        "version": version.version,
        "reference": version.reference,
        "digest": version.digest,
        "is_current": version.is_current,
        "is_shipped": version.is_shipped,
        "gate": _verdict(version),
        "used_by": held.get(version.reference, []),
        "voice_of": speaking.get(version.reference, []),
        "base": version.lineage.base,
        "by": version.lineage.by,
        "at": None if version.is_shipped else version.lineage.at.isoformat(),
        "folder": str(version.folder),
    }


def _verdict(version: Version) -> str:
    forced = f", forced by {version.lineage.forced_by}" if version.lineage.forced_by else ""
    return f"{version.lineage.judgement}{forced}"


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))
