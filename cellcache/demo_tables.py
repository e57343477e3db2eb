"""The tables for the demonstration: made where there are none, and then taken away again without a trace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, Engine, MetaData, Table, inspect

from cellcache import schema
from cellcache.database import Use, database_errors, open_engine
from cellcache.errors import SchemaError


@contextmanager
def tables(url: URL, *, keep: bool = False) -> Iterator[None]:
    """Create the tables where there are none; refuse those of another release, which someone must still need."""
    new_file = url.database if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists() else None
    found = schema.current(url)
    if found is not None and found != schema.head():
        raise SchemaError(f"the tables are at revision {found}, not at {schema.head()}; run `cellcache db upgrade`")
    before = _names(url)
    if found is None:
        schema.upgrade(url)
    try:
        yield
    finally:
        if found is None and not keep:
            schema.downgrade(url, "base")
            _drop(url, _names(url) - before)  # Alembic's own, which outlives the last downgrade
            if new_file:
                remove_sqlite(new_file)


def remove_sqlite(name: str) -> None:
    """Remove a SQLite database: its file, and those that SQLite keeps beside it."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        Path(name + suffix).unlink(missing_ok=True)


def open_patiently(url: URL, *, use: Use = "cell") -> Engine:
    """Return an engine of one connection for what may take its time, such as creating a database."""
    clear = url.render_as_string(hide_password=False)
    return open_engine(clear, pool_size=1, timeout_s=60.0, connect_timeout_s=10.0, use=use)


def _names(url: URL) -> set[str]:
    engine = open_patiently(url)
    try:
        with database_errors(str(url)):
            return set(inspect(engine).get_table_names())
    finally:
        engine.dispose()


def _drop(url: URL, names: Iterable[str]) -> None:
    engine = open_patiently(url)
    try:
        with database_errors(str(url)):
            for name in names:
                Table(name, MetaData()).drop(engine)
    finally:
        engine.dispose()
