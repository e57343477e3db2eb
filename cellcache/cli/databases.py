"""`cellcache db`: the tables' revisions."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from sqlalchemy import URL

from cellcache import schema
from cellcache.cli.commands import Session, command, group
from cellcache.cli.exits import ExitCode, complain
from cellcache.cli.render import print_json, print_line, print_table

app = group("db", "Create the tables and keep them at this release's revision.")

SqlOption = Annotated[
    bool, typer.Option("--sql", help="Print the statements, for someone else to run; the database is not asked.")
]


@command(app, "upgrade", "cellcache db upgrade", "cellcache db upgrade --sql > upgrade.sql")
def upgrade(
    session: Session,
    revision: Annotated[str, typer.Argument(help="Up to here; with --sql, FROM:TO for what lies between.")] = "head",
    sql: SqlOption = False,
) -> None:
    """Create the tables, or bring them to this release's revision. Safe to repeat, and to run twice at once."""
    url = session.settings().database.sqlalchemy_url
    schema.upgrade(url, revision, sql=sql, output=sys.stdout)
    if not sql:
        _print_current(session, url)


@command(app, "downgrade", "cellcache db downgrade -1", "cellcache db downgrade base --yes")
def downgrade(
    session: Session,
    revision: Annotated[str, typer.Argument(help='Down to here; "base" drops the tables; with --sql, FROM:TO.')],
    sql: SqlOption = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask, though what the tables hold may be lost.")] = False,
) -> None:
    """Take the tables back to an older revision."""
    url = session.settings().database.sqlalchemy_url
    if not sql and not yes and not _agreed(f"Downgrade to {revision}? What the tables hold may be lost."):
        complain("nothing was done; --yes downgrades without asking")
        raise typer.Exit(ExitCode.USAGE)
    schema.downgrade(url, revision, sql=sql, output=sys.stdout)
    if not sql:
        _print_current(session, url)


def _agreed(question: str) -> bool:
    return sys.stdin is not None and sys.stdin.isatty() and typer.confirm(question, err=True)


@command(app, "current", "cellcache db current")
def current(session: Session) -> None:
    """Say which revision the database is at, and which is the newest."""
    _print_current(session, session.settings().database.sqlalchemy_url)


def _print_current(session: Session, url: URL) -> None:
    found, newest = schema.current(url), schema.head()
    if session.json:
        print_json({"current": found, "head": newest, "up_to_date": found == newest})
    elif found == newest:
        print_line(f"{found}: the newest")
    else:
        print_line(f"{found or 'no tables'}; the newest is {newest}: run `cellcache db upgrade`")


@command(app, "history", "cellcache db history")
def history(session: Session) -> None:
    """List the revisions this release knows, oldest first."""
    revisions = schema.history()
    if session.json:
        print_json(*(revision._asdict() for revision in revisions))
    else:
        print_table(("revision", "run", "what it does"), ((r.revision, r.phase, r.message) for r in revisions))


@command(app, "check", "cellcache db check")
def check(session: Session) -> None:
    """Compare the database with the tables as this release knows them; exit code 1 if they differ."""
    differences = schema.check(session.settings().database.sqlalchemy_url)
    if session.json:
        print_json({"differences": differences})
    else:
        for difference in differences or ["the database is as it should be"]:
            print_line(difference)
    if differences:
        raise typer.Exit(ExitCode.NO)
