"""How a database differs from the tables, one sentence for each difference."""

from __future__ import annotations

from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect

from cellcache.tables import metadata

_MYSQL = ("mysql", "mariadb")


def _default_differs(
    migration: MigrationContext, _found: object, _wanted: object, found: str | None, _: object, wanted: str | None
) -> bool | None:
    """Let Alembic compare (None), but for MySQL's booleans: it writes false and reads 0."""
    return False if migration.dialect.name in _MYSQL and (found, wanted) == ("0", "false") else None


OPTIONS: dict[str, Any] = {
    "version_table": "cellcache_alembic_version",  # the database may hold Nova's tables, and Nova's own version table
    "target_metadata": metadata,
    "include_name": lambda name, kind, _parents: kind != "table" or name in metadata.tables,
    "compare_server_default": _default_differs,
}
"""What Alembic must know, whoever runs it."""


def find_differences(connection: Connection) -> list[str]:
    """Return a sentence for each difference; what else is in the database does not count."""
    compared = compare_metadata(MigrationContext.configure(connection, opts=OPTIONS), metadata)
    flat = [one for some in compared for one in (some if isinstance(some, list) else [some])]
    missing = {difference[1].name for difference in flat if difference[0] == "add_table"}
    return [
        _sentence(difference)
        for difference in flat
        if not (difference[0] == "add_index" and difference[1].table.name in missing)
    ] + _differences_of_storage(connection)


def _sentence(difference: tuple[Any, ...]) -> str:
    match difference:
        case ("add_table", table):
            return f"the table {table.name} is missing"
        case ("add_column", _, table, column):
            return f"the column {table}.{column.name} is missing"
        case ("remove_column", _, table, column):
            return f"the column {table}.{column.name} is not cellcache's"
        case ("add_index" | "add_constraint", index):
            return f"the index {index.name} on {index.table.name} is missing, or is another"
        case ("remove_index" | "remove_constraint", index):
            return f"the index {index.name} on {index.table.name} is not cellcache's"
        case (what, _, table, column, _, found, wanted):
            kind = what.removeprefix("modify_")
            return f"the column {table}.{column} has {kind} {_plain(found)}, not {_plain(wanted)}"
    return str(difference)


def _plain(value: object) -> str:
    return str(getattr(value, "arg", value))


def _differences_of_storage(connection: Connection) -> list[str]:
    """Compare what Alembic does not: an engine without transactions, a collation that folds case."""
    dialect, inspector = connection.dialect.name, inspect(connection)
    if dialect not in _MYSQL:
        return []
    found = {table: inspector.get_table_options(table) for table in metadata.tables if inspector.has_table(table)}
    return [
        f"the table {name} has the {option} {options.get(f'{dialect}_{option}')}, not {wanted}"
        for name, options in found.items()
        for option in ("engine", "collate")
        if (wanted := metadata.tables[name].kwargs[f"mysql_{option}"]) != options.get(f"{dialect}_{option}")
    ]
