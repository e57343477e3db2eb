"""Statements of the hot write path, compiled once for each kind of database, past SQLAlchemy's expressions.

To look a compiled statement up in SQLAlchemy's cache and fit parameters to it takes 100 us of Python, twice per create.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import Column, Connection, Dialect, Insert, select

_Processor = Callable[[Any], Any] | None


class PreparedInsert:
    """An INSERT of at most one row into a table that gives each row an `id`."""

    def __init__(self, statement: Insert, returning: Sequence[Column[Any]]) -> None:
        """`returning` are the columns to tell the caller of, the `id` first."""
        self._statement = statement
        self._returning = returning
        self._compiled = lru_cache(maxsize=8)(self._compile)

    def execute(self, connection: Connection, values: Mapping[str, Any]) -> Sequence[Any] | None:
        """Insert the row; return what it has in `returning`, or None where the SELECT found nothing to insert.

        One statement; where the database does not know RETURNING, two for what is not the id alone.
        """
        text, order, processors, results = self._compiled(connection.dialect)
        processed = {name: process(values[name]) if process else values[name] for name, process in processors.items()}
        result = connection.exec_driver_sql(text, processed if order is None else tuple(processed[n] for n in order))
        if results is not None:
            row = result.one_or_none()
            return row and [process(value) if process else value for value, process in zip(row, results, strict=True)]
        if not result.rowcount:
            return None
        if len(self._returning) == 1:
            return [result.lastrowid]
        return connection.execute(select(*self._returning).where(self._returning[0] == result.lastrowid)).one()

    def _compile(self, dialect: Dialect) -> _Compiled:
        returns = dialect.insert_returning and (len(self._returning) > 1 or dialect.name == "postgresql")
        statement = self._statement.returning(*self._returning) if returns else self._statement
        compiled = statement.compile(dialect=dialect)
        types = {name: bind.type.dialect_impl(dialect) for name, bind in compiled.binds.items()}
        return _Compiled(
            compiled.string,
            compiled.positiontup,
            {name: type_.bind_processor(dialect) for name, type_ in types.items()},
            [column.type.dialect_impl(dialect).result_processor(dialect, None) for column in self._returning]
            if returns
            else None,
        )


class _Compiled(NamedTuple):
    """A driver's text, the order of its parameters if they have no names, and what each and each result pass through.

    There are no results where the database is not asked for them: all but PostgreSQL's drivers tell an id anyway.
    """

    text: str
    order: Sequence[str] | None
    parameters: Mapping[str, _Processor]
    results: Sequence[_Processor] | None
