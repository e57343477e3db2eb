"""What a demonstration could leave behind: databases and files, and tables in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, inspect, make_url, text
from sqlalchemy.pool import NullPool

from cellcache.differences import OPTIONS
from cellcache.tables import metadata

OURS = {*metadata.tables, OPTIONS["version_table"]}


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    """Connect for the block; whatever is not committed in it is rolled back."""
    with create_engine(url, poolclass=NullPool, connect_args=_at_once(url)).connect() as connection:
        yield connection


def databases(url: str) -> set[str]:
    """Name the databases of the server, or the files beside the SQLite database."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        assert parsed.database is not None
        return {path.name for path in Path(parsed.database).parent.glob("*.db*")}
    query = "SHOW DATABASES" if parsed.get_backend_name() == "mysql" else "SELECT datname FROM pg_database"
    with connected(url) as connection:
        return set(connection.scalars(text(query)))


def tables(url: str) -> set[str]:
    with connected(url) as connection:
        return set(inspect(connection).get_table_names())


def execute(url: str, *statements: str) -> None:
    with connected(url) as connection:
        for statement in statements:
            connection.execute(text(statement))
        connection.commit()


def create_database(url: str, name: str) -> None:
    """Create a database beside this one; on SQLite the file comes with the first table."""
    if make_url(url).get_backend_name() != "sqlite":
        _administer(url, f"CREATE DATABASE {name}")


def drop_database(url: str, name: str) -> None:
    """Drop a database beside this one, on SQLite remove the file of that stem."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        _administer(url, f"DROP DATABASE {name}")
        return
    for path in Path(str(parsed.database)).parent.glob(f"{Path(name).stem}.db*"):
        path.unlink()


def _administer(url: str, statement: str) -> None:
    with connected(url) as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql(statement)


def _at_once(url: str) -> dict[str, Any]:
    """Wait for no lock of others for longer than a second."""
    kind = make_url(url).get_backend_name()
    if kind == "sqlite":
        return {"timeout": 0.1}
    if kind == "postgresql":
        return {"options": "-c lock_timeout=1000"}
    return {"init_command": "SET lock_wait_timeout = 1"}
