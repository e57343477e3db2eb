"""`cellcache instance prune`: mappings that have outlived their instances."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.progress import TaskID

from cellcache.cli.cells import CellOption
from cellcache.cli.choices import find_cell, seconds
from cellcache.cli.commands import Session, command
from cellcache.cli.exits import ExitCode, UsageProblem, complain, exit_code_of
from cellcache.cli.render import print_json, print_line, print_table, progress
from cellcache.directory import CellDirectory
from cellcache.errors import CellCacheError, PruneRefused
from cellcache.masking import mask_text
from cellcache.model import CellMapping, canonical_uuids

_SPARED = {
    "still_there": "still there",
    "too_young": "too young",
    "changed_meanwhile": "changed",
    "rows_without_uuid": "rows without UUID",
}
"""What a report says of those that were not removed, and how its table heads it."""


def register(app: typer.Typer) -> None:
    examples = ("instance prune 0f0e3f6e-... 5b0c1c1e-...", "instance prune --purged --older-than 1d --dry-run")
    command(app, "prune", *(f"cellcache {example}" for example in examples))(prune)


def prune(
    session: Session,
    uuids: Annotated[
        list[str] | None, typer.Argument(metavar="UUID...", help="These, whatever their cells say.", show_default=False)
    ] = None,
    purged: Annotated[
        bool, typer.Option("--purged", help="All whose row is gone from the instances table of their cell.")
    ] = False,
    cell: CellOption = None,
    older_than: Annotated[
        float,
        typer.Option(
            metavar="TIME",
            parser=seconds,
            help="With --purged: spare mappings younger than this, whose instance may still be building.",
        ),
    ] = "1h",  # type: ignore[assignment]  # the parser turns it into seconds
    batch: Annotated[int, typer.Option(min=1, max=10_000, help="With --purged: compare so many at a time.")] = 1000,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --purged: only count what would go.")] = False,
    allow_many: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="With --purged: up to so many may go from a cell, be they more than half of its mappings.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Remove mappings of instances that are purged.

    A mapping outlives its instance: it may go once the row is gone from its cell's instances table, not when that
    row is only marked deleted. --purged compares the two, cell by cell. A cell that cannot be reached, or whose
    database looks like another's, loses nothing and is reported; the others are still done. --dry-run reports it, too.
    """
    if bool(uuids) == purged:
        raise UsageProblem("give UUIDs, or --purged, one of the two")
    if uuids and (cell is not None or dry_run or allow_many is not None):
        raise UsageProblem("--cell, --dry-run and --allow-many go with --purged")
    with session.directory() as directory:
        if uuids:
            named = canonical_uuids(uuids)
            removed = directory.prune(named)
            if session.json:
                print_json({"removed": removed})
            else:
                print_line(f"{removed:,} removed, {len(named) - removed:,} were not mapped")
            return
        cells = directory.list_cells()
        chosen = cells if cell is None else [find_cell(cells, cell)]
        _prune_cells(session, directory, chosen, older_than, batch, dry_run=dry_run, allow_many=allow_many)


def _prune_cells(
    session: Session,
    directory: CellDirectory,
    cells: list[CellMapping],
    older_than_s: float,
    batch: int,
    *,
    dry_run: bool,
    allow_many: int | None,
) -> None:
    failed: ExitCode | None = None
    reports: list[dict[str, Any]] = []
    with progress() as bar:
        totals = {} if bar.disable else directory.count_by_cell()
        for cell in cells:
            task = bar.add_task(f"{cell.name}", total=totals.get(cell.uuid, 0))
            report = {"cell_uuid": cell.uuid, "cell": cell.name, "checked": 0, "removed": 0}
            report |= dict.fromkeys(_SPARED) | {"dry_run": dry_run, "error": None}
            reports.append(report)

            def tick(checked: int, removed: int, report: dict[str, Any] = report, task: TaskID = task) -> None:
                report.update(checked=checked, removed=removed)
                bar.update(task, completed=checked, description=f"{report['cell']}: {removed:,} of {checked:,}")

            try:
                done = directory.prune_purged(
                    cell.uuid,
                    older_than_s=older_than_s,
                    batch=batch,
                    dry_run=dry_run,
                    allow_many=allow_many,
                    progress=tick,
                )
            except CellCacheError as error:
                refused = isinstance(error, PruneRefused)
                complain(f"refused: {error}" if refused else f"cell {cell.name}: nothing more was removed: {error}")
                failed = failed or exit_code_of(error)
                report.update(error=mask_text(str(error)), removed=0 if dry_run else report["removed"])
            else:
                report.update(asdict(done))
    if session.json:
        print_json(*reports)
    else:
        heads = ("cell", "checked", "would be removed" if dry_run else "removed", *_SPARED.values(), "")
        keys = ("cell", "checked", "removed", *_SPARED)
        rows = ([*(each[key] for key in keys), "failed" if each["error"] else ""] for each in reports)
        print_table(heads, rows, numbers=heads[1:-1])
    if failed:
        raise typer.Exit(failed)
