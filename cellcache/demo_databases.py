"""The databases that the demonstration makes: each by a step that fails where there is one of that name already.

So whatever was made by that step is the demonstration's own, and nothing else is ever dropped.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, text

from cellcache import sqlite_file
from cellcache.database import Use, database_errors, open_engine
from cellcache.errors import ConfigError, DatabaseUnavailable

_NAMES = {
    "mysql": "SELECT schema_name FROM information_schema.schemata",
    "mariadb": "SELECT schema_name FROM information_schema.schemata",
    "postgresql": "SELECT datname FROM pg_database",
}


def open_patiently(url: URL, *, use: Use = "as it is") -> Engine:
    """Return an engine of one connection for what may take its time, such as creating a database."""
    clear = url.render_as_string(hide_password=False)
    return open_engine(clear, pool_size=1, timeout_s=60.0, connect_timeout_s=10.0, use=use)


def name_beside(url: URL, suffix: str) -> str:
    """Return the name of a database, on SQLite of a file, beside the main one."""
    if not url.database or url.database.startswith("file:"):
        raise ConfigError("database.url: the demonstration needs one that names a database, or a file by its path")
    if url.get_backend_name() != "sqlite":
        return f"{url.database}_{suffix}"
    path = Path(url.database)
    return str(path.with_name(f"{path.stem}_{suffix}{path.suffix}"))


def those_there(connection: Connection, names: list[str]) -> list[str]:
    """Return those of the names that a database, or on SQLite a file, has already."""
    backend = connection.dialect.name
    if backend == "sqlite":
        return [name for name in names if any(path.exists() for path in _files(name))]
    known = set(connection.scalars(text(_NAMES[backend])))
    return [name for name in names if name in known]


def make(url: URL, name: str) -> None:
    """Create an empty database; raise ConfigError where that cannot be done, and then there is none of ours."""
    if url.get_backend_name() == "sqlite":
        if not make_file(name):
            raise ConfigError(f"{name} is there already, and the demonstration leaves it alone: move it away")
        return
    try:
        _administer(url, "CREATE DATABASE", name)
    except DatabaseUnavailable as error:
        raise ConfigError(
            f"cannot create database {name}: {error}; the demonstration needs to, and no such database"
        ) from error


def drop(url: URL, name: str) -> None:
    """Drop a database that `make` has made, with all that is in it."""
    if url.get_backend_name() == "sqlite":
        for path in _files(name):
            path.unlink(missing_ok=True)
    else:
        _administer(url, "DROP DATABASE", name)


def make_file(name: str) -> bool:
    """Create an empty file, which is an empty SQLite database; return False where there is one already."""
    try:
        sqlite_file.make_file(name)
    except FileExistsError:
        return False
    except OSError as error:
        raise DatabaseUnavailable(f"cannot create {name}: {error.strerror}") from error
    return True


def remove_unused_file(name: str) -> str | None:
    """Remove a SQLite database in which nothing is; return why not, if something is or another has it open."""
    with closing(sqlite3.connect(name, timeout=1.0, isolation_level=None)) as connection:
        try:
            # Refused while anybody else has it open: what he wrote from now on would go into a file without a name.
            connection.execute("PRAGMA journal_mode = DELETE")
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            return "another process has it open"
        # SQLite keeps some tables of its own, which go with the file alone.
        if connection.execute("SELECT 1 FROM sqlite_master WHERE name NOT LIKE 'sqlite~_%' ESCAPE '~'").fetchone():
            return "something else is in it"
        Path(name).unlink(missing_ok=True)
    return None


def _files(name: str) -> list[Path]:
    """Return the file of a SQLite database, and those that SQLite keeps beside it."""
    return [Path(name + suffix) for suffix in ("", "-wal", "-shm", "-journal")]


def _administer(url: URL, statement: str, name: str) -> None:
    engine = open_patiently(url, use="read")  # in autocommit: PostgreSQL creates no database inside a transaction
    try:
        with database_errors(str(url)), engine.connect() as connection:
            quoted = connection.dialect.identifier_preparer.quote_identifier(name)
            connection.exec_driver_sql(f"{statement} {quoted}")
    finally:
        engine.dispose()
