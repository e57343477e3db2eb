"""Statements of the hot write path, compiled once for each kind of database, past SQLAlchemy's expressions.

To look a compiled statement up in SQLAlchemy's cache and fit parameters to it takes 100 us of Python, twice per create.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Dialect, Insert


class PreparedInsert:
    """An INSERT of at most one row into a table with an `id` of its own."""

    def __init__(self, statement: Insert, columns: Sequence[str]) -> None:
        """`columns` are those with values in the INSERT itself; none where it is from a SELECT."""
        self._statement = statement
        self._columns = list(columns)
        self._compiled = lru_cache(maxsize=8)(self._compile)

    def execute(self, connection: Connection, values: Mapping[str, Any]) -> int | None:
        """Insert the row; return its id, or None where the SELECT found nothing to insert."""
        text, order, processors = self._compiled(connection.dialect)
        processed = {name: process(values[name]) if process else values[name] for name, process in processors.items()}
        result = connection.exec_driver_sql(text, processed if order is None else tuple(processed[n] for n in order))
        if connection.dialect.name == "postgresql":  # the others tell the new id without being asked
            row_id: int | None = result.scalar()
            return row_id
        return result.lastrowid if result.rowcount else None

    def _compile(self, dialect: Dialect) -> tuple[str, Sequence[str] | None, dict[str, Any]]:
        """Return the driver's text, the order of its parameters if they have no names, and what each passes through."""
        statement = self._statement
        if dialect.name == "postgresql":
            statement = statement.returning(statement.table.c.id)
        compiled = statement.compile(dialect=dialect, column_keys=self._columns or None)
        types = {name: bind.type.dialect_impl(dialect) for name, bind in compiled.binds.items()}
        processors = {name: type_.bind_processor(dialect) for name, type_ in types.items()}
        return compiled.string, compiled.positiontup, processors
