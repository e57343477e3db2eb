"""Which cells have one database, by what the databases say of themselves: `localhost` and `127.0.0.1` are one server.

No two cells should. What finds some warns and forbids nothing: a database may be away just now, or a cell half renamed.
That no mapping goes by another cell's database is up to purge_verdict.py.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sqlalchemy import Connection, make_url, text

from cellcache.config import DatabaseSettings
from cellcache.database import LONGEST_ANSWER, database_errors, open_engine
from cellcache.database_identity import database_identity
from cellcache.errors import CellCacheError
from cellcache.model import CellMapping
from cellcache.sqlite_file import sqlite_file

_AT_ONCE = 16

_MYSQL_SERVER = text(
    "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('server_uuid', 'server_uid', 'hostname', 'port', 'datadir')"
)
_GALERA_CLUSTER = text("SHOW GLOBAL STATUS WHERE Variable_name = 'wsrep_cluster_state_uuid' AND Value <> ''")
_MYSQL_DATABASE = text("SELECT DATABASE()")
# The copy of a data directory keeps its identifier, but not the moment at which its server was started. The table's
# number stands for its schema, whichever of the search path it is in.
_POSTGRESQL = text(
    "SELECT system_identifier, CAST(pg_postmaster_start_time() AS text), current_database(), "
    "COALESCE(CAST(CAST(to_regclass('instances') AS oid) AS text), current_schema()) FROM pg_control_system()"
)


def shared_databases(cells: Iterable[CellMapping], limits: DatabaseSettings) -> list[list[CellMapping]]:
    """Return the cells that have one database with another, those of each database together.

    16 databases are asked at a time, each for as long as its time limits allow. One that cannot be asked is told by its
    URL.
    """
    together: dict[Hashable, list[CellMapping]] = {}
    chosen = list(cells)
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        databases = threads.map(lambda cell: _database(cell.database_connection, limits), chosen)
        for cell, database in zip(chosen, databases, strict=True):
            if database is not None:
                together.setdefault(database, []).append(cell)
    return [sharing for sharing in together.values() if len(sharing) > 1]


def sharing_with(cell: CellMapping, cells: Iterable[CellMapping], limits: DatabaseSettings) -> list[CellMapping]:
    """Return those of the cells that have the database of this one; itself, it is none of them.

    Only databases of the same kind are asked.
    """
    others = [each for each in cells if each.uuid != cell.uuid and _kind(each) == _kind(cell)]
    for sharing in shared_databases([cell, *others], limits):
        if sharing[0] is cell:
            return sharing[1:]
    return []


def _kind(cell: CellMapping) -> str:
    return cell.database_connection.partition(":")[0].partition("+")[0].replace("mariadb", "mysql")


def _database(url: str, limits: DatabaseSettings) -> Hashable:
    """Return what stands for a URL's database; None for a URL that leads to none."""
    try:
        engine = open_engine(
            url,
            pool_size=1,
            timeout_s=limits.timeout_s,
            connect_timeout_s=limits.connect_timeout_s,
            use="cell",
            most_bytes=LONGEST_ANSWER,
        )
    except CellCacheError:
        return None
    try:
        if engine.dialect.name == "sqlite":
            return _file(sqlite_file(make_url(url)))
        with database_errors(url), engine.connect() as connection:
            return _ASK[engine.dialect.name](connection)
    except CellCacheError:
        return database_identity(make_url(url))
    finally:
        engine.dispose()


def _file(path: str) -> Hashable:
    try:
        found = Path(path).stat()
    except OSError:
        return path
    return found.st_dev, found.st_ino


def _mysql(connection: Connection) -> Hashable:
    """Ask which server this is, or which cluster: the nodes of one hold the same databases."""
    server = connection.execute(_GALERA_CLUSTER).all() or connection.execute(_MYSQL_SERVER).all()
    return (*map(tuple, server), connection.scalar(_MYSQL_DATABASE))


def _postgresql(connection: Connection) -> Hashable:
    return tuple(connection.execute(_POSTGRESQL).one())


_ASK: dict[str, Callable[[Connection], Hashable]] = {
    "mysql": _mysql,
    "mariadb": _mysql,
    "postgresql": _postgresql,
}
