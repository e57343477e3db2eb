"""The database's clock, by which times that more than one host reads are made and compared.

The clocks of hosts differ, by hours where time synchronisation failed. So the database makes such a time within the
statement that stores it, and compares it itself or with another of its own. Where a process must compare without
asking, it goes by what the database said last and by its own monotonic clock.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple, Self

from sqlalchemy import BindParameter, literal_column
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from cellcache.tables import UTCDateTime


class DatabaseTime(FunctionElement[datetime]):
    """The database's time in UTC, in the form in which its columns hold times; or so many seconds after it."""

    type = UTCDateTime()
    inherit_cache = True

    def __init__(self, after_s: int | BindParameter[int] = 0) -> None:
        super().__init__(literal_column(str(after_s)) if isinstance(after_s, int) else after_s)


class KnownTime(NamedTuple):
    """What to add to the monotonic clock of this host to have the database's, in seconds since 1970.

    Its time is told in whole seconds, at some moment between the question and the answer: so there are two limits.
    """

    earliest_s: float
    latest_s: float

    @classmethod
    def between(cls, told: datetime, asked_at: float, answered_at: float) -> Self:
        second = told.timestamp()
        return cls(second - answered_at, second + 1 - asked_at)


@compiles(DatabaseTime, "mysql", "mariadb")
def _on_mysql(element: DatabaseTime, compiler: SQLCompiler, **options: Any) -> str:
    return f"(UTC_TIMESTAMP() + INTERVAL {compiler.process(element.clauses, **options)} SECOND)"


@compiles(DatabaseTime, "postgresql")
def _on_postgresql(element: DatabaseTime, compiler: SQLCompiler, **options: Any) -> str:
    """`now()` is when the transaction began; no index serves a comparison with `clock_timestamp()`."""
    after = compiler.process(element.clauses, **options)
    return f"(date_trunc('second', statement_timestamp() AT TIME ZONE 'UTC') + make_interval(secs => {after}))"


@compiles(DatabaseTime, "sqlite")
def _on_sqlite(element: DatabaseTime, compiler: SQLCompiler, **options: Any) -> str:
    """SQLite compares times as texts, and SQLAlchemy stores them with six digits behind the second."""
    return f"strftime('%Y-%m-%d %H:%M:%S.000000', 'now', {compiler.process(element.clauses, **options)} || ' seconds')"
