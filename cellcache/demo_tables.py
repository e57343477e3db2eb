"""The tables for the demonstration: made in a database that has none of them, and taken away if nobody uses them.

Services may start while it runs, find the tables, and write to them. Then the tables are theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy import URL, Connection, exists, inspect, select

from cellcache import schema
from cellcache.demo_databases import make_file, remove_unused_file, those_there
from cellcache.differences import OPTIONS
from cellcache.errors import CellCacheError, ConfigError
from cellcache.masking import mask_url
from cellcache.tables import cache_agreement, metadata

_LOCK_TIMEOUT_S = 10.0
_NAMES: list[str] = [*metadata.tables, OPTIONS["version_table"]]


class DatabaseInUse(CellCacheError):
    """The database has tables of ours already, and the demonstration works only where it has made everything."""


@contextmanager
def tables(url: URL, cells: Sequence[str], *, keep: bool, left: list[str]) -> Iterator[None]:
    """Create the tables, and drop them in the end, unless asked to `keep` them.

    Raises DatabaseInUse where one of them is there already, and ConfigError where a database of `cells` is. What
    stays because others use it is added to `left`, a sentence each.
    """
    with _file(url, keep=keep, left=left):
        _create(url, cells)
        try:
            yield
        finally:
            if not keep:
                with schema.alone(url, lock_timeout_s=_LOCK_TIMEOUT_S) as connection:
                    reason = _drop_unused(connection)
                if reason:
                    left.append(f"the tables in {_shown(url)}: {reason}")


@contextmanager
def _file(url: URL, *, keep: bool, left: list[str]) -> Iterator[None]:
    """Create the file of a SQLite database where there is none, and then remove it again if nothing is left in it."""
    name = url.database if url.get_backend_name() == "sqlite" else None
    made = name is not None and make_file(name)
    try:
        yield
    finally:
        if name and made and not keep and not left and (reason := remove_unused_file(name)):
            left.append(f"the file {name}: {reason}")


def _create(url: URL, cells: Sequence[str]) -> None:
    # The lock is held from the look to the last table: no upgrade of another process comes in between, and so the
    # tables are our own. Whoever waits for it finds them, and makes none.
    with schema.alone(url, lock_timeout_s=_LOCK_TIMEOUT_S) as connection:
        _demand_nothing(connection, url, those_there(connection, list(cells)))
        try:
            schema.create(connection)
        except BaseException:
            connection.rollback()
            _drop_unused(connection)  # MySQL has committed those that were made before the one that failed
            raise


def _demand_nothing(connection: Connection, url: URL, cells: Sequence[str]) -> None:
    found = _there(connection)
    if found:
        killed = f"; if a demonstration that was killed has left them, drop them, and {_listed(cells)}" if cells else ""
        raise DatabaseInUse(
            f"the database {_shown(url)} has tables of cellcache already, {_listed(found)}: nothing was done; "
            f"the demonstration needs an empty database, so name one{killed}"
        )
    if cells:
        raise ConfigError(
            f"{_listed(cells)} {'is' if len(cells) == 1 else 'are'} there already, and the demonstration leaves alone "
            "what it has not made: nothing was done; name another database, or drop what a demonstration that was "
            "killed has left"
        )


def _drop_unused(connection: Connection) -> str | None:
    """Drop the tables, all of them or none; return why not, if somebody uses them."""
    there = _there(connection)
    if not there:
        return None
    _lock(connection, there)
    filled = [
        name
        for name, table in metadata.tables.items()
        if name in there
        and table is not cache_agreement  # which whoever opens a directory writes to, and which serves the others alone
        and connection.scalar(select(exists().select_from(table)))
    ]
    if filled:
        return f"rows that others wrote, or that are not delivered yet, are in {_listed(filled)}"
    revision = schema.revision_of(connection)
    # Not the newest where making them failed: MySQL keeps the tables, and takes back what was said of the revision.
    if revision not in {None, *(known.revision for known in schema.history())}:
        return f"another release has brought them to revision {revision}"
    _drop(connection, there)
    return None


def _lock(connection: Connection, names: Sequence[str]) -> None:
    """Let nobody read or write these tables until the transaction, or on MySQL the session, ends.

    Waits for those who write to them just now. On SQLite the lock of `schema.alone` is the whole database's.
    """
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"LOCK TABLE {', '.join(names)} IN ACCESS EXCLUSIVE MODE")
    elif connection.dialect.name != "sqlite":
        connection.exec_driver_sql(f"LOCK TABLES {', '.join(f'{name} WRITE' for name in names)}")


def _drop(connection: Connection, names: Sequence[str]) -> None:
    if connection.dialect.name != "sqlite":
        connection.exec_driver_sql(f"DROP TABLE {', '.join(names)}")
        return
    for name in names:
        connection.exec_driver_sql(f"DROP TABLE {name}")


def _there(connection: Connection) -> list[str]:
    inspector = inspect(connection)
    return [name for name in _NAMES if inspector.has_table(name)]


def _shown(url: URL) -> str:
    return mask_url(url.render_as_string(hide_password=False))


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
