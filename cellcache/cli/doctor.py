"""`cellcache doctor`: the examination, as a table that says what to do."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.text import Text

from cellcache.cli.commands import Session, command
from cellcache.cli.exits import ExitCode, complain
from cellcache.cli.render import as_text, duration, print_json, print_table, progress
from cellcache.doctor import examine
from cellcache.findings import Finding, Level

_MARKS = {
    Level.FINE: Text("ok", style="green"),
    Level.NOTE: Text("note", style="yellow"),
    Level.PROBLEM: Text("wrong", style="bold red"),
}


def register(app: typer.Typer) -> None:
    command(app, "doctor", "cellcache doctor", "cellcache doctor --no-cells --json")(doctor)


def doctor(
    session: Session,
    cells: Annotated[bool, typer.Option("--cells/--no-cells", help="Reach each cell's database as well.")] = True,
) -> None:
    """Reach every server the configuration names, and say what to do about what is wrong.

    Shows versions, round trips, the tables' revision, which promise holds and how many invalidations wait. Changes
    no mapping and no cell. Exit code 1 if something is wrong.
    """
    settings = session.settings()
    findings: list[Finding] = []
    with progress() as bar:
        task = bar.add_task("examining", total=None)
        for finding in examine(settings, cells=cells):
            findings.append(finding)
            bar.update(task, description=f"{finding.what} {finding.name}", completed=len(findings))
    if session.json:
        print_json(*(asdict(finding) for finding in findings))
    else:
        print_table(("", "what", "found"), map(_row, findings), whole=("", "what"))
    wrong = sum(finding.level is Level.PROBLEM for finding in findings)
    if wrong:
        complain(f"{wrong} thing{'s are' if wrong > 1 else ' is'} wrong")
        raise typer.Exit(ExitCode.NO)


def _row(finding: Finding) -> list[object]:
    found = [as_text(f"{finding.name}: {finding.says}" if finding.says else finding.name)]
    if finding.round_trip_s:
        version = f"version {finding.version}, " if finding.version else ""
        found.append(as_text(f"{version}answers in {duration(finding.round_trip_s)}"))
        found[-1].stylize("dim")
    if finding.advice:
        found.append(as_text(finding.advice))
        found[-1].stylize("yellow")
    return [_MARKS[finding.level], finding.what, Text("\n").join(found)]
