"""`personabot doctor`: every check in one table, and how to mend what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from personabot import checks, platform_checks
from personabot.findings import Finding, Status, ok, problem
from personas.errors import SettingsError
from personas.settings import Settings, config_file, load_settings

CHECKS: Final[dict[str, Callable[[Settings], list[Finding]]]] = {
    "python": checks.check_python,
    "redis": checks.check_redis,
    "model": checks.check_model,
    "device": checks.check_device,
    "engine": checks.check_engine,
    "personas": checks.check_personas,
    "discord": platform_checks.check_discord,
    "telegram": platform_checks.check_telegram,
    "disk": checks.check_disk,
    "trackers": checks.check_tracking,
}
# Asked for by name alone: before `personabot up` no worker is alive, and nothing is wrong with that.
HEALTH: Final[dict[str, Callable[[Settings], list[Finding]]]] = {"worker": checks.check_worker}
STYLES: Final = {Status.OK: "green", Status.NOTE: "yellow", Status.PROBLEM: "bold red"}


def examine(only: Sequence[str] = ()) -> int:
    """Print what is found; return 1 if anything is missing or misconfigured, else 0."""
    findings = list(find(only))
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        text = Text(finding.text)
        if finding.mend:
            text.append(f"\n→ {finding.mend}", style="dim")
        table.add_row(Text(finding.status, style=STYLES[finding.status]), Text(finding.part, style="bold"), text)
    console = Console(highlight=False)
    console.print(table)
    num_problems = sum(finding.status is Status.PROBLEM for finding in findings)
    console.print(f"{num_problems} to mend." if num_problems else "Nothing to mend.")
    return 1 if num_problems else 0


def find(only: Sequence[str] = ()) -> list[Finding]:
    """Run the checks named in `only`, or all of them."""
    try:
        settings = load_settings()
    except SettingsError as error:
        return [problem("settings", line, "docs/settings.md lists every setting") for line in str(error).splitlines()]
    where = f"{config_file()}, then environment" if config_file().exists() else "defaults and environment"
    findings = [ok("settings", where)]
    for name in only or CHECKS:
        try:
            findings += (CHECKS | HEALTH)[name](settings)
        except Exception as error:  # one check that stumbles must not hide what the others find
            findings.append(problem(name, f"this check failed: {type(error).__name__}: {error}", "please report it"))
    return findings
