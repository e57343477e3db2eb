"""`cellcache instance`: which instance is in which cell."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from cellcache.cli.choices import find_cell, seconds
from cellcache.cli.commands import Session, command
from cellcache.cli.completion import complete_cell
from cellcache.cli.exits import ExitCode, UsageProblem, complain, exit_code_of
from cellcache.cli.render import mapping_fields, print_fields, print_json, print_line, print_table, progress
from cellcache.cli.rows import read_rows
from cellcache.directory import CellDirectory
from cellcache.errors import CellCacheError, MappingExists
from cellcache.model import CellMapping, InstanceMapping

app = typer.Typer(name="instance", help="Which instance is in which cell.", no_args_is_help=True)

_BATCH = 1000
_COLUMNS = ("id", "instance_uuid", "cell", "project_id")

UuidArgument = Annotated[str, typer.Argument(metavar="UUID", help="The instance.")]
CellOption = Annotated[
    str | None,
    typer.Option(
        "--cell", metavar="CELL", help="The cell's UUID or name.", show_default=False, autocompletion=complete_cell
    ),
]
ProjectOption = Annotated[
    str | None, typer.Option("--project", metavar="PROJECT", help="The project's id.", show_default=False)
]


@command(
    app,
    "map",
    "cellcache instance map 0f0e3f6e-... --cell cell1 --project 8d1c...",
    "cellcache instance map --from mappings.csv",
)
def map_(
    session: Session,
    uuid: Annotated[str | None, typer.Argument(metavar="UUID", help="The instance.", show_default=False)] = None,
    cell: CellOption = None,
    project: ProjectOption = None,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="FILE", help="CSV, uuid,cell,project a line; - is stdin.", show_default=False),
    ] = None,
) -> None:
    """Map an instance to its cell, or many at once from CSV. Repeating the same mapping changes nothing."""
    if source is not None:
        if uuid or cell or project:
            raise UsageProblem("give --from FILE, or one UUID with --cell and --project, not both")
        with session.directory() as directory:
            _map_many(session, directory, source)
        return
    if not (uuid and cell and project):
        raise UsageProblem("give UUID, --cell and --project, or --from FILE")
    with session.directory() as directory:
        cells = directory.list_cells()
        try:
            mapping = directory.map_instance(uuid, find_cell(cells, cell).uuid, project)
        except MappingExists as error:
            if not error.identical:
                raise
            mapping = error.existing
        _print_mapping(session, mapping, cells)


def _map_many(session: Session, directory: CellDirectory, source: str) -> None:
    read = created = 0
    with progress() as bar, _opened(source) as (stream, size):
        task = bar.add_task("mapping", total=size)
        rows = read_rows(stream, directory.list_cells())
        try:
            while batch := list(islice(rows, _BATCH)):
                created += directory.map_instances(batch)
                read += len(batch)
                bar.update(task, completed=stream.tell() if size else read, description=f"{read:,} mapped")
        except CellCacheError:
            complain(f"{read:,} lines were done before this one's thousand; run it again once it is put right")
            raise
    if session.json:
        print_json({"read": read, "created": created})
    else:
        print_line(f"{created:,} mappings created, {read - created:,} were there already")


@contextmanager
def _opened(source: str) -> Iterator[tuple[BinaryIO, int | None]]:
    if source == "-":
        yield sys.stdin.buffer, None
        return
    with ExitStack() as stack:
        try:
            stream = stack.enter_context(Path(source).open("rb"))
        except OSError as error:
            raise UsageProblem(f"--from {source}: {error.strerror}") from error
        yield stream, Path(source).stat().st_size


@command(app, "move", "cellcache instance move 0f0e3f6e-... --cell cell2")
def move(
    session: Session,
    uuid: UuidArgument,
    cell: Annotated[
        str, typer.Option("--cell", metavar="CELL", help="Where it is now: UUID or name.", autocompletion=complete_cell)
    ],
) -> None:
    """Say that an instance is in another cell now."""
    with session.directory() as directory:
        cells = directory.list_cells()
        _print_mapping(session, directory.move_instance(uuid, find_cell(cells, cell).uuid), cells)


@command(app, "show", "cellcache instance show 0f0e3f6e-...")
def show(session: Session, uuid: UuidArgument) -> None:
    """Show an instance's row in instance_mapping, from the database, past the cache."""
    with session.directory() as directory:
        _print_mapping(session, directory.get_instance(uuid), directory.list_cells())


@command(app, "list", "cellcache instance list --cell cell1 --limit 50", "cellcache instance list --all --json")
def list_(
    session: Session,
    project: ProjectOption = None,
    cell: CellOption = None,
    after: Annotated[int | None, typer.Option(metavar="ID", help="Go on behind this id.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="At most so many.")] = _BATCH,
    all_: Annotated[bool, typer.Option("--all", help="All there are, page by page.")] = False,
) -> None:
    """List mappings in the order of their ids, from the database."""
    with session.directory() as directory:
        cells = directory.list_cells()
        cell_uuid = find_cell(cells, cell).uuid if cell else None
        pages = _pages(directory, project, cell_uuid, after, None if all_ else limit)
        if session.json:
            for page in pages:
                print_json(*(mapping_fields(mapping) for mapping in page))
            return
        names = {each.uuid: each.name for each in cells}
        last: InstanceMapping | None = None
        shown = 0
        for page in pages:
            print_table(_COLUMNS, (_row(mapping, names) for mapping in page), numbers=("id",), whole=_COLUMNS[1:2])
            shown, last = shown + len(page), page[-1]
        if last is None:
            print_line("no mappings")
        elif shown == limit and not all_:
            print_line(f"{shown:,} shown; go on with --after {last.id}")


def _pages(
    directory: CellDirectory, project: str | None, cell_uuid: str | None, after: int | None, limit: int | None
) -> Iterator[list[InstanceMapping]]:
    left = limit
    while left is None or left > 0:
        size = _BATCH if left is None else min(left, _BATCH)
        page = list(directory.list_instances(project_id=project, cell_uuid=cell_uuid, after=after, limit=size))
        if page:
            yield page
        if len(page) < size:
            return
        after = page[-1].id
        left = None if left is None else left - size


@command(
    app,
    "prune",
    "cellcache instance prune 0f0e3f6e-... 5b0c1c1e-...",
    "cellcache instance prune --purged --older-than 1d --dry-run",
)
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
    batch: Annotated[int, typer.Option(min=1, max=10_000, help="With --purged: compare so many at a time.")] = _BATCH,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --purged: only count what would go.")] = False,
    allow_empty: Annotated[
        bool,
        typer.Option(
            "--allow-empty", help="With --purged: go on though a cell's instances table holds nothing at all."
        ),
    ] = False,
) -> None:
    """Remove mappings of instances that are purged.

    A mapping outlives its instance: it may go once the row is gone from its cell's instances table, not when that
    row is only marked deleted. --purged compares the two, cell by cell. A cell that cannot be reached loses nothing
    and is reported; the others are still done.
    """
    if bool(uuids) == purged:
        raise UsageProblem("give UUIDs, or --purged, one of the two")
    if uuids and (cell or dry_run or allow_empty):
        raise UsageProblem("--cell, --dry-run and --allow-empty go with --purged")
    with session.directory() as directory:
        if uuids:
            removed = directory.prune(uuids)
            if session.json:
                print_json({"removed": removed})
            else:
                print_line(f"{removed:,} removed, {len(uuids) - removed:,} were not mapped")
            return
        cells = directory.list_cells()
        chosen = [find_cell(cells, cell)] if cell else cells
        _prune_cells(session, directory, chosen, older_than, batch, dry_run=dry_run, allow_empty=allow_empty)


def _prune_cells(
    session: Session,
    directory: CellDirectory,
    cells: list[CellMapping],
    older_than_s: float,
    batch: int,
    *,
    dry_run: bool,
    allow_empty: bool,
) -> None:
    failed: ExitCode | None = None
    results: list[tuple[CellMapping, int, int, str | None]] = []
    with progress() as bar:
        task = bar.add_task("comparing", total=None)
        for cell in cells:

            def tick(checked: int, removed: int, cell: CellMapping = cell) -> None:
                bar.update(task, completed=checked, description=f"{cell.name}: {removed:,} purged of")

            bar.reset(task, description=f"{cell.name}")
            try:
                report = directory.prune_purged(
                    cell.uuid,
                    older_than_s=older_than_s,
                    batch=batch,
                    dry_run=dry_run,
                    allow_empty=allow_empty,
                    progress=tick,
                )
            except CellCacheError as error:
                complain(f"cell {cell.name}: nothing more was removed: {error}")
                failed = failed or exit_code_of(error)
                results.append((cell, 0, 0, str(error)))
            else:
                results.append((cell, report.checked, report.removed, None))
    if session.json:
        print_json(
            *(
                {"cell_uuid": c.uuid, "cell": c.name, "checked": n, "removed": m, "dry_run": dry_run, "error": e}
                for c, n, m, e in results
            )
        )
    else:
        heads = ("cell", "checked", "would be removed" if dry_run else "removed", "")
        print_table(heads, ((c.name, n, m, "failed" if e else "") for c, n, m, e in results), numbers=heads[1:3])
    if failed:
        raise typer.Exit(failed)


def _row(mapping: InstanceMapping, names: dict[str, str | None]) -> list[object]:
    fields = mapping_fields(mapping) | {"cell": names.get(mapping.cell_uuid) or mapping.cell_uuid}
    return [fields[column] for column in _COLUMNS]


def _print_mapping(session: Session, mapping: InstanceMapping, cells: list[CellMapping]) -> None:
    fields = mapping_fields(mapping)
    if session.json:
        print_json(fields)
        return
    name = next((cell.name for cell in cells if cell.uuid == mapping.cell_uuid), None)
    print_fields(fields | {"cell_uuid": f"{mapping.cell_uuid} ({name or 'no name'})"})
