"""Whether the database takes our writes, asked by statements that touch no row and are rolled back.

A standby, a server or an account that is set to be read-only, a right that was not granted, a file that only others may
write: each refuses the statement before it looks for rows, and says why in its own words.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, Table, delete, false, func, insert, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.dml import UpdateBase

from cellcache.config import DatabaseSettings
from cellcache.database import database_errors, open_engine, reason_of
from cellcache.tables import metadata


def refusals(settings: DatabaseSettings) -> list[str]:
    """Return what the database does not let us do, a line each. Raises DatabaseUnavailable."""
    url = settings.connection_url
    engine = open_engine(
        url, pool_size=1, timeout_s=settings.timeout_s, connect_timeout_s=settings.connect_timeout_s, use="write"
    )
    refused = []
    try:
        with database_errors(url):
            for table in metadata.sorted_tables:
                for what, statement in _statements(table):
                    with engine.connect() as connection:
                        if reason := _refusal(connection, statement):
                            refused.append(f"{what} {table.name}: {reason}")
            if engine.dialect.name == "postgresql":
                with engine.connect() as connection:
                    refused += [f"take an id for {name}" for name in _without_sequence(connection)]
    finally:
        engine.dispose()
    return refused


def _statements(table: Table) -> Iterator[tuple[str, UpdateBase]]:
    """Yield one statement for each right that our writes need, as they use it: an `id` comes from the database."""
    columns = [column for column in table.columns if column is not table.autoincrement_column]
    yield "INSERT INTO", insert(table).from_select(columns, select(*columns).where(false()))
    yield "UPDATE", update(table).where(false()).values({column.name: column for column in columns})
    yield "DELETE FROM", delete(table).where(false())


def _refusal(connection: Connection, statement: UpdateBase) -> str | None:
    try:
        with connection.begin() as transaction:
            connection.execute(statement)
            transaction.rollback()
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        return reason_of(error)
    return None


def _without_sequence(connection: Connection) -> list[str]:
    """Return the tables for which PostgreSQL gives us no ids: a right of its own, which no row is inserted to test."""
    return [
        table.name
        for table in metadata.sorted_tables
        if table.autoincrement_column is not None
        and connection.scalar(
            select(func.has_sequence_privilege(func.pg_get_serial_sequence(table.name, "id"), "USAGE"))
        )
        is False
    ]
