"""`cellcache instance`: which instance is in which cell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from cellcache.cli.cells import CellOption
from cellcache.cli.choices import find_cell
from cellcache.cli.commands import Session, command, group
from cellcache.cli.completion import complete_cell
from cellcache.cli.exits import UsageProblem, complain
from cellcache.cli.render import mapping_fields, print_fields, print_json, print_line, print_table, progress
from cellcache.cli.rows import read_rows
from cellcache.cli.streams import standard_input
from cellcache.directory import CellDirectory
from cellcache.errors import CellCacheError, MappingExists
from cellcache.model import CellMapping, InstanceMapping

app = group("instance", "Which instance is in which cell.")

_BATCH = 1000
_COLUMNS = ("id", "instance_uuid", "cell", "project_id")

UuidArgument = Annotated[str, typer.Argument(metavar="UUID", help="The instance.")]
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
        if (uuid, cell, project) != (None, None, None):
            raise UsageProblem("give --from FILE, or one UUID with --cell and --project, not both")
        with session.directory() as directory:
            _map_many(session, directory, source)
        return
    if uuid is None or cell is None or project is None:
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
        yield standard_input().buffer, None
        return
    with ExitStack() as stack:
        try:
            stream = stack.enter_context(Path(source).open("rb"))
        except (OSError, ValueError) as error:  # ValueError: there is no such name
            raise UsageProblem(f"--from {source}: {getattr(error, 'strerror', error)}") from error
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
        cell_uuid = None if cell is None else find_cell(cells, cell).uuid
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
