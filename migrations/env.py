"""Run the revisions, one process at a time: for `cellcache.schema`, or, with cellcache's settings, for plain `alembic`.

The databases do the locking: a process that dies lets go of the lock as its connection closes. Nothing here touches
logging, which belongs to whoever calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from alembic import context
from sqlalchemy import URL, Connection, create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

LOCK_TIMEOUT_S = 60.0
POSTGRESQL_LOCK = int.from_bytes(b"cellcach")  # there, advisory locks have numbers for names, one set per database
MYSQL_LOCK = "CONCAT('cellcache.', MD5(COALESCE(DATABASE(), '')))"  # names are the whole server's; 64 characters


def write(url: URL, options: dict[str, Any]) -> None:
    """Write the statements for a database of this kind, without connecting to it."""
    transactional = url.get_backend_name() not in {"mysql", "mariadb"}  # Alembic supposes that SQLite is not, either
    dialect = {"paramstyle": "named"}
    context.configure(url=url, literal_binds=True, dialect_opts=dialect, transactional_ddl=transactional, **options)
    with context.begin_transaction():
        context.run_migrations()


def execute(connection: Connection, options: dict[str, Any], lock_timeout_s: float = LOCK_TIMEOUT_S) -> None:
    """Execute the statements; raise TimeoutError where a lock takes too long."""
    with alone(connection, lock_timeout_s):
        context.configure(connection=connection, **options)
        with context.begin_transaction():
            context.run_migrations()


@contextmanager
def alone(connection: Connection, timeout_s: float) -> Iterator[None]:
    """Hold the lock for the block, then commit.

    On PostgreSQL and SQLite the block is one transaction: all of it happens, or nothing. MySQL and MariaDB commit
    each statement about a table by itself; there the lock is the session's, and ends with the connection.
    """
    try:
        if not TAKE[connection.dialect.name](connection, timeout_s):
            raise TimeoutError(f"another process has been changing the tables for {timeout_s:g} s")
        yield
        connection.commit()
    except OperationalError as error:
        if is_lock_timeout(error):
            raise TimeoutError(f"another process has kept the tables locked for {timeout_s:g} s") from error
        raise


def take_mysql(connection: Connection, timeout_s: float) -> bool:
    limit = {"limit": max(1, round(timeout_s))}
    connection.execute(text("SET SESSION lock_wait_timeout = :limit"), limit)  # the tables' own locks: else a day
    granted: int | None = connection.scalar(text(f"SELECT GET_LOCK({MYSQL_LOCK}, :limit)"), limit)
    connection.commit()
    return granted == 1


def take_postgresql(connection: Connection, timeout_s: float) -> bool:
    # Both are for this transaction alone, and so hold through a pooler like PgBouncer. The limit is the tables', too.
    limit = {"limit": f"{max(1, round(timeout_s * 1000))}ms"}
    connection.execute(text("SELECT set_config('lock_timeout', :limit, true)"), limit)
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": POSTGRESQL_LOCK})
    return True


def take_sqlite(connection: Connection, timeout_s: float) -> bool:
    connection.exec_driver_sql(f"PRAGMA busy_timeout = {max(1, round(timeout_s * 1000))}")
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    return True


TAKE: dict[str, Callable[[Connection, float], bool]] = {
    "mysql": take_mysql,
    "mariadb": take_mysql,
    "postgresql": take_postgresql,
    "sqlite": take_sqlite,
}


def is_lock_timeout(error: OperationalError) -> bool:
    """Tell a lock that was not to be had from whatever else a database may object to."""
    cause = error.orig
    return (
        getattr(cause, "sqlstate", getattr(cause, "pgcode", None)) == "55P03"  # PostgreSQL: lock_not_available
        or getattr(cause, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
        or (cause is not None and cause.args[:1] == (1205,))  # MySQL: ER_LOCK_WAIT_TIMEOUT
    )


def run_for_alembic() -> None:
    """Do what `cellcache.schema` would have prepared, for those who run `alembic` itself."""
    from cellcache.config import Settings  # noqa: PLC0415
    from cellcache.differences import OPTIONS  # noqa: PLC0415

    url = Settings.load().database.sqlalchemy_url
    if context.is_offline_mode():
        write(url, OPTIONS)
        return
    with create_engine(url, poolclass=NullPool).connect() as connection:
        execute(connection, OPTIONS)


prepared = context.config.attributes
if "connection" in prepared:
    execute(prepared["connection"], prepared["options"], prepared["lock_timeout_s"])
elif "url" in prepared:
    write(prepared["url"], prepared["options"])
else:
    run_for_alembic()
