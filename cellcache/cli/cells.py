"""`cellcache cell`: the cells there are and how to reach them."""

from __future__ import annotations

from typing import Annotated

import typer

from cellcache.cli.choices import find_cell, secret_url
from cellcache.cli.commands import Session, command, group
from cellcache.cli.completion import complete_cell
from cellcache.cli.exits import UsageProblem, complain
from cellcache.cli.render import cell_fields, print_fields, print_json, print_line, print_table
from cellcache.directory import CellDirectory
from cellcache.model import CellMapping
from cellcache.shared_databases import sharing_with

app = group("cell", "The cells there are, and how to reach them.")

DATABASE_VARIABLE = "CELL_DATABASE_CONNECTION"
TRANSPORT_VARIABLE = "CELL_TRANSPORT_URL"
_NO_QUEUE = "none:///"
_VISIBLE = "A password in it shows in `ps`; from stdin (-) or a file it does not."

CellArgument = Annotated[
    str, typer.Argument(metavar="CELL", help="The cell's UUID or name.", autocompletion=complete_cell)
]
CellOption = Annotated[
    str | None,
    typer.Option(
        "--cell", metavar="CELL", help="The cell's UUID or name.", show_default=False, autocompletion=complete_cell
    ),
]
DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database-connection",
        metavar="URL",
        help=f"SQLAlchemy URL of the cell's database. {_VISIBLE}",
        show_default=False,
    ),
]
DatabaseFileOption = Annotated[
    str | None,
    typer.Option(
        "--database-connection-file", metavar="FILE", help="The same from a file; - is stdin.", show_default=False
    ),
]
TransportOption = Annotated[
    str | None,
    typer.Option(
        "--transport-url",
        metavar="URL",
        help=f"URL of the cell's message queue. {_VISIBLE}",
        show_default=False,
    ),
]
TransportFileOption = Annotated[
    str | None,
    typer.Option("--transport-url-file", metavar="FILE", help="The same from a file; - is stdin.", show_default=False),
]
SecretsOption = Annotated[bool, typer.Option("--show-secrets", help="Show the URLs with their passwords.")]


def _urls(
    database: str | None,
    database_file: str | None,
    transport: str | None,
    transport_file: str | None,
    *,
    environment: bool = False,
) -> tuple[str | None, str | None]:
    if {database, database_file} & {"-"} and {transport, transport_file} & {"-"}:
        raise UsageProblem("only one URL can come from stdin; put the other one in a file")
    variables = (DATABASE_VARIABLE, TRANSPORT_VARIABLE) if environment else (None, None)
    return (
        secret_url("--database-connection", database, database_file, variables[0]),
        secret_url("--transport-url", transport, transport_file, variables[1]),
    )


@command(
    app,
    "create",
    "cellcache cell create cell1 --database-connection-file /etc/cellcache/cell1.url",
    "pass show cell1 | cellcache cell create cell1 --database-connection -",
)
def create(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What people call the cell.")],
    database_connection: DatabaseOption = None,
    database_connection_file: DatabaseFileOption = None,
    transport_url: TransportOption = None,
    transport_url_file: TransportFileOption = None,
    uuid: Annotated[
        str | None, typer.Option(metavar="UUID", help="Else a new one is made.", show_default=False)
    ] = None,
) -> None:
    """Add a cell.

    The URLs are also taken from $CELL_DATABASE_CONNECTION and $CELL_TRANSPORT_URL. Without a
    transport URL the cell has none:///, no queue.
    """
    database, transport = _urls(
        database_connection, database_connection_file, transport_url, transport_url_file, environment=True
    )
    if database is None:
        raise UsageProblem(f"give --database-connection, --database-connection-file or ${DATABASE_VARIABLE}")
    with session.directory() as directory:
        cell = directory.create_cell(name, database, _NO_QUEUE if transport is None else transport, uuid=uuid)
        _print_cell(session, cell)
        _warn_of_shared_database(directory, cell)


@command(app, "list", "cellcache cell list", "cellcache cell list --json | jq -r .uuid")
def list_(session: Session, show_secrets: SecretsOption = False) -> None:
    """List the cells."""
    with session.directory() as directory:
        cells = [cell_fields(cell, show_secrets=show_secrets) for cell in directory.list_cells()]
    if session.json:
        print_json(*cells)
    else:
        columns = ("uuid", "name", "disabled", "database_connection")
        print_table(columns, ([cell[column] for column in columns] for cell in cells), whole=("uuid",))


@command(app, "show", "cellcache cell show cell1")
def show(session: Session, cell: CellArgument, show_secrets: SecretsOption = False) -> None:
    """Show one cell."""
    with session.directory() as directory:
        _print_cell(session, find_cell(directory.list_cells(), cell), show_secrets=show_secrets)


@command(app, "update", "cellcache cell update cell1 --disable", "cellcache cell update cell1 --name cell-one")
def update(
    session: Session,
    cell: CellArgument,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="A new name.", show_default=False)] = None,
    database_connection: DatabaseOption = None,
    database_connection_file: DatabaseFileOption = None,
    transport_url: TransportOption = None,
    transport_url_file: TransportFileOption = None,
    disabled: Annotated[
        bool | None,
        typer.Option(
            "--disable/--enable", help="A disabled cell takes no instances; its own still resolve.", show_default=False
        ),
    ] = None,
) -> None:
    """Change a cell. Running processes see it once they refresh their cells ([bold]cells.refresh_s[/])."""
    database, transport = _urls(database_connection, database_connection_file, transport_url, transport_url_file)
    if all(change is None for change in (name, database, transport, disabled)):
        raise UsageProblem("nothing to change: give --name, a URL, --disable or --enable")
    with session.directory() as directory:
        uuid = find_cell(directory.list_cells(), cell).uuid
        changed = directory.update_cell(
            uuid, name=name, database_connection=database, transport_url=transport, disabled=disabled
        )
        _print_cell(session, changed)
        if database is not None:
            _warn_of_shared_database(directory, changed)


@command(app, "delete", "cellcache cell delete cell1")
def delete(session: Session, cell: CellArgument) -> None:
    """Delete a cell that no instance is mapped to any more."""
    with session.directory() as directory:
        found = find_cell(directory.list_cells(), cell)
        directory.delete_cell(found.uuid)
    if session.json:
        print_json({"deleted": found.uuid})
    else:
        print_line(f"cell {found.uuid} ({found.name}) is deleted")


def _warn_of_shared_database(directory: CellDirectory, cell: CellMapping) -> None:
    for other in sharing_with(cell, directory.list_cells(), directory.settings.database):
        complain(
            f"warning: cell {_called(cell)} has one database with cell {_called(other)}; put the URL of the one right "
            "whose instances are elsewhere: `instance prune --purged` is refused for whichever has fewer in it"
        )


def _called(cell: CellMapping) -> str:
    return cell.uuid if cell.name is None else f"{cell.name} ({cell.uuid})"


def _print_cell(session: Session, cell: CellMapping, *, show_secrets: bool = False) -> None:
    fields = cell_fields(cell, show_secrets=show_secrets)
    if session.json:
        print_json(fields)
    else:
        print_fields(fields)
