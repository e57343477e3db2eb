"""`cellcache resolve` and `cellcache stats`: what a lookup answers, and what a deployment holds."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from cellcache.cli.commands import Session, command
from cellcache.cli.exits import ExitCode, complain
from cellcache.cli.render import cell_fields, duration, print_fields, print_json, print_line, print_table
from cellcache.directory import CellDirectory
from cellcache.errors import CellCacheError, CellNotFound, InstanceNotMapped
from cellcache.model import CellMapping, canonical_uuid


def register(app: typer.Typer) -> None:
    command(app, "resolve", "cellcache resolve 0f0e3f6e-...", "cellcache resolve 0f0e3f6e-... --explain")(resolve)
    command(app, "stats", "cellcache stats", "cellcache stats --json")(stats)


def resolve(
    session: Session,
    uuids: Annotated[
        list[str], typer.Argument(metavar="UUID...", help="Instances, in any case, with or without hyphens.")
    ],
    explain: Annotated[
        bool, typer.Option("--explain", help="Say where the answer came from, and what each step took.")
    ] = False,
    show_secrets: Annotated[bool, typer.Option("--show-secrets", help="Show the URLs with their passwords.")] = False,
) -> None:
    """Say in which cell instances live, as a service would learn it: from the cache, else from SQL.

    Exit code 1 if one of them is not mapped, or to what is no cell.
    """
    keys = list(dict.fromkeys(map(canonical_uuid, uuids)))
    look_up = _explained if explain else _resolved
    answers: list[dict[str, Any]] = []
    missing: list[CellCacheError] = []
    with session.directory() as directory:
        for key in keys:
            cell, error, more = look_up(directory, key)
            shown = None if cell is None else cell_fields(cell, show_secrets=show_secrets)
            answers.append({"instance_uuid": key, "cell": shown} | more)
            missing += [] if error is None else [error]
    if session.json:
        print_json(*answers)
    else:
        _print_answers([answer for answer in answers if answer["cell"]])
        for answer in answers if explain else []:
            _print_steps(answer)
    for error in missing:
        complain(error)
    if missing:
        raise typer.Exit(ExitCode.NO)


_Found = tuple[CellMapping | None, CellCacheError | None, dict[str, Any]]


def _resolved(directory: CellDirectory, key: str) -> _Found:
    try:
        return directory.resolve_cell(key), None, {}
    except (InstanceNotMapped, CellNotFound) as error:
        return None, error, {}


def _explained(directory: CellDirectory, key: str) -> _Found:
    explanation = directory.explain(key)
    more = {"source": explanation.source, "steps": [asdict(step) for step in explanation.steps]}
    return explanation.cell, explanation.error, more


def _print_answers(answers: list[dict[str, Any]]) -> None:
    if len(answers) == 1:
        cell = answers[0]["cell"]
        fields = {"cell": cell["uuid"], "name": cell["name"], "disabled": cell["disabled"]}
        print_fields(fields | {key: cell[key] for key in ("database_connection", "transport_url")})
    elif answers:
        rows = [
            (answer["instance_uuid"], cell["name"] or cell["uuid"], cell["database_connection"])
            for answer in answers
            for cell in [answer["cell"]]
        ]
        print_table(("instance", "cell", "database_connection"), rows, whole=("instance",))


def _print_steps(answer: dict[str, Any]) -> None:
    source = {"cache": "the cache", "sql": "SQL"}[answer["source"]]
    print_line()
    print_line(f"{answer['instance_uuid']}: the answer came from {source}")
    steps = answer["steps"]
    rows = [(step["what"], step["found"], duration(step["seconds"])) for step in steps]
    print_table(("step", "answer", "took"), rows, numbers=("took",))


def stats(session: Session) -> None:
    """Count what the deployment holds: mappings per cell, invalidations that wait, and the cache's nodes.

    Hits and misses are counted by each service for itself (directory.stats() in its process); this process has only
    just begun and would show zeros. Counting reads a whole index: seconds, for millions of mappings.
    """
    with session.directory() as directory:
        counts = directory.count_by_cell()
        cells = {cell.uuid: cell for cell in directory.list_cells()}
        waiting = directory.waiting_invalidations()
        nodes = directory.check_cache()
        promise = directory.promise
    per_cell = [
        {
            "uuid": uuid,
            "name": cells[uuid].name if uuid in cells else None,
            "disabled": cells[uuid].disabled if uuid in cells else None,
            "mappings": counts.get(uuid, 0),
        }
        for uuid in [*cells, *(uuid for uuid in counts if uuid not in cells)]
    ]
    if session.json:
        print_json(
            {
                "mappings": sum(counts.values()),
                "cells": per_cell,
                "invalidations": {"waiting": waiting.count, "oldest_s": waiting.oldest_s},
                "cache": {"promise": promise, "nodes": [node._asdict() for node in nodes]},
            }
        )
        return
    print_table(
        ("cell", "name", "disabled", "mappings"),
        [*(list(each.values()) for each in per_cell), ["all", "", "", sum(counts.values())]],
        numbers=("mappings",),
        whole=("cell",),
    )
    print_line()
    print_table(
        ("cache node", "version", "round trip", "trouble"),
        ((node.name, node.version, duration(node.round_trip_s), node.trouble or "none") for node in nodes),
        numbers=("round trip",),
    )
    oldest = "" if waiting.oldest_s is None else f", the oldest for {waiting.oldest_s:,.0f} s"
    print_line()
    print_line(f"Invalidations that wait: {waiting.count:,}{oldest}. Promise: {promise}.")
