"""One process at a time changes the tables: the lock that every upgrade and downgrade takes.

The databases do the locking: a process that dies lets go of the lock as its connection closes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

LOCK_TIMEOUT_S = 60.0
POSTGRESQL_LOCK = int.from_bytes(b"cellcach")  # there, advisory locks have numbers for names, one set per database
MYSQL_LOCK = "CONCAT('cellcache.', MD5(COALESCE(DATABASE(), '')))"  # names are the whole server's; 64 characters


@contextmanager
def alone(connection: Connection, timeout_s: float) -> Iterator[None]:
    """Hold the lock for the block, then commit; raise TimeoutError where it takes too long.

    On PostgreSQL and SQLite the block is one transaction: all of it happens, or nothing. MySQL and MariaDB commit
    each statement about a table by itself; there the lock is the session's, and ends with the connection.
    """
    try:
        if not _TAKE[connection.dialect.name](connection, timeout_s):
            raise TimeoutError(f"another process has been changing the tables for {timeout_s:g} s")
        yield
        connection.commit()
    except OperationalError as error:
        if _is_lock_timeout(error):
            raise TimeoutError(f"another process has kept the tables locked for {timeout_s:g} s") from error
        raise


def _take_mysql(connection: Connection, timeout_s: float) -> bool:
    limit = {"limit": max(1, round(timeout_s))}
    connection.execute(text("SET SESSION lock_wait_timeout = :limit"), limit)  # the tables' own locks: else a day
    granted: int | None = connection.scalar(text(f"SELECT GET_LOCK({MYSQL_LOCK}, :limit)"), limit)
    connection.commit()
    return granted == 1


def _take_postgresql(connection: Connection, timeout_s: float) -> bool:
    # Whatever is the default here: what others committed while we waited for a lock must be seen behind it.
    connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
    # Both are for this transaction alone, and so hold through a pooler like PgBouncer. The limit is the tables', too.
    limit = {"limit": f"{max(1, round(timeout_s * 1000))}ms"}
    connection.execute(text("SELECT set_config('lock_timeout', :limit, true)"), limit)
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": POSTGRESQL_LOCK})
    return True


def _take_sqlite(connection: Connection, timeout_s: float) -> bool:
    connection.exec_driver_sql(f"PRAGMA busy_timeout = {max(1, round(timeout_s * 1000))}")
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    return True


_TAKE: dict[str, Callable[[Connection, float], bool]] = {
    "mysql": _take_mysql,
    "mariadb": _take_mysql,
    "postgresql": _take_postgresql,
    "sqlite": _take_sqlite,
}


def _is_lock_timeout(error: OperationalError) -> bool:
    """Tell a lock that was not to be had from whatever else a database may object to."""
    cause = error.orig
    return (
        getattr(cause, "sqlstate", getattr(cause, "pgcode", None)) == "55P03"  # PostgreSQL: lock_not_available
        or getattr(cause, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
        or (cause is not None and cause.args[:1] == (1205,))  # MySQL: ER_LOCK_WAIT_TIMEOUT
    )
