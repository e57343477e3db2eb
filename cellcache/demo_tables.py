"""The tables for the demonstration: made where there are none, and then taken away again without a trace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, MetaData, Table, create_engine, inspect
from sqlalchemy.pool import NullPool

from cellcache import schema
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


def _names(url: URL) -> set[str]:
    engine = create_engine(url, poolclass=NullPool, hide_parameters=True)
    return set(inspect(engine).get_table_names())


def _drop(url: URL, names: Iterable[str]) -> None:
    engine = create_engine(url, poolclass=NullPool, hide_parameters=True)
    for name in names:
        Table(name, MetaData()).drop(engine)
