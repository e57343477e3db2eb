"""The examination: reach every server that the configuration names, and say what to do about what is wrong.

It changes nothing but what any process does that opens the directory. No finding holds a password.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sqlalchemy import Connection, inspect, select, text

from cellcache import schema
from cellcache.config import DatabaseSettings, Settings
from cellcache.database import LONGEST_ANSWER, Use, database_errors, open_engine
from cellcache.database_clock import DatabaseTime
from cellcache.directory import CellDirectory
from cellcache.errors import BackendUnsupported, CellCacheError, DatabaseUnavailable
from cellcache.findings import Finding, Level
from cellcache.known_backends import MEMCACHED, REDIS
from cellcache.masking import mask_text, mask_url
from cellcache.model import CellMapping
from cellcache.odd_rows import odd_cells, odd_mappings
from cellcache.protocol import NodeStatus
from cellcache.shared_databases import shared_databases
from cellcache.sqlite_file import odd_file
from cellcache.tables import instance_mapping
from cellcache.writability import refusals

_PINGS = 5
_CELLS_AT_ONCE = 16
_OVERDUE_S = 60.0
_COMPARED = 1000
_CLOCK_IS_WRONG_S = 60.0

_VERSION_OF = {
    "mysql": "SELECT VERSION()",
    "mariadb": "SELECT VERSION()",
    "postgresql": "SHOW server_version",
    "sqlite": "SELECT sqlite_version()",
}


def examine(settings: Settings, *, cells: bool = True) -> Iterator[Finding]:
    """Yield the findings as they come in; an unreachable server takes as long as its time limit."""
    database = _database(settings.database)
    yield database
    readable = database.level is not Level.PROBLEM
    if readable:
        yield from odd_file(settings.database.sqlalchemy_url)
        yield _clock(settings.database)
        tables = _tables(settings)
        yield tables
        readable = tables.level is not Level.PROBLEM
        if readable:
            yield _writes(settings.database)
    try:
        directory = CellDirectory.open(settings)
    except BackendUnsupported as error:
        yield Finding(
            what="cache",
            name=settings.cache.backend,
            level=Level.PROBLEM,
            says=str(error),
            advice="Upgrade that server.",
        )
        return
    with directory:
        yield _promise(settings, directory)
        if settings.cache.signing_keys:
            yield _signing(directory)
        nodes = directory.check_cache()
        yield from map(_node, nodes)
        if readable:
            if settings.cache.backend in {MEMCACHED, REDIS} and all(node.trouble is None for node in nodes):
                yield _entries(directory)
            yield _invalidations(directory)
            yield from odd_mappings(settings.database)
            if cells:
                known = directory.list_cells()
                yield from odd_cells(known)
                yield from _cells(settings, known)
                yield from _shared_databases(settings, known)


def _database(settings: DatabaseSettings) -> Finding:
    url = settings.connection_url
    name = mask_url(url)
    try:
        version, round_trip_s, _ = _ask(url, settings, use="as it is", table=instance_mapping.name)
    except CellCacheError as error:
        return Finding(
            what="database",
            name=name,
            level=Level.PROBLEM,
            says=str(error),
            advice="See that the server runs, and that database.url names it, the account and the database rightly. "
            "For a new SQLite file: `cellcache db upgrade`. One that is there must be writable, and its folder too.",
        )
    return Finding(what="database", name=name, version=version, round_trip_s=round_trip_s)


def _ask(url: str, limits: DatabaseSettings, *, use: Use, table: str) -> tuple[str | None, float, bool]:
    """Return the server's version, the round trip to it, and whether there is such a table."""
    engine = open_engine(
        url,
        pool_size=1,
        timeout_s=limits.timeout_s,
        connect_timeout_s=limits.connect_timeout_s,
        use=use,
        most_bytes=LONGEST_ANSWER if use == "cell" else None,
    )
    try:
        file = (engine.url.database or "").removeprefix("file:" if "uri" in engine.url.query else "")
        if engine.dialect.name == "sqlite" and not Path(file).exists():
            raise DatabaseUnavailable(f"there is no file {file}")  # connecting would make one
        with database_errors(url), engine.connect() as connection:
            question = _VERSION_OF.get(connection.dialect.name)
            version = None if question is None else str(connection.scalar(text(question)))
            return version, _round_trip_s(connection), inspect(connection).has_table(table)
    finally:
        engine.dispose()


def _round_trip_s(connection: Connection) -> float:
    times = []
    for _ in range(_PINGS):
        started = time.perf_counter()
        connection.exec_driver_sql("SELECT 1").close()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _clock(settings: DatabaseSettings) -> Finding:
    """Say how far this host's clock is from the database's. A note at most: no lookup, write or prune goes by it.

    The database told its time, in whole seconds, at some moment between two looks at ours: so much is not known.
    """
    what, name, url = "clock", "this host's", settings.connection_url
    engine = open_engine(
        url, pool_size=1, timeout_s=settings.timeout_s, connect_timeout_s=settings.connect_timeout_s, use="as it is"
    )
    try:
        with database_errors(url), engine.connect() as connection:
            before = time.time()
            second = connection.execute(select(DatabaseTime())).scalar_one().timestamp()
            after = time.time()
    except CellCacheError as error:
        return Finding(what=what, name=name, level=Level.PROBLEM, says=str(error), advice="See the database.")
    finally:
        engine.dispose()
    ahead_s, unknown_s = (before + after - second - (second + 1)) / 2, (after - before + 1) / 2
    if abs(ahead_s) <= unknown_s:
        return Finding(what=what, name=name, says="in step with the database's")
    says = f"{abs(ahead_s):,.0f} s {'ahead of' if ahead_s > 0 else 'behind'} the database's"
    if abs(ahead_s) - unknown_s <= _CLOCK_IS_WRONG_S:
        return Finding(what=what, name=name, says=says)
    return Finding(
        what=what,
        name=name,
        level=Level.NOTE,
        says=says,
        advice="Put the wrong one right (chronyc tracking, timedatectl). Log lines and the dates of certificates go by "
        "this host's, and so do the entries of a dogpile.cache backend that is not ours.",
    )


def _tables(settings: Settings) -> Finding:
    url, newest = settings.database.sqlalchemy_url, schema.head()
    try:
        found = schema.current(url)
        differences = schema.check(url) if found == newest else []
    except CellCacheError as error:
        return Finding(what="tables", name="revision", level=Level.PROBLEM, says=str(error), advice="See the database.")
    if found is None:
        says, advice = "there are none", "Run `cellcache db upgrade`."
    elif found not in {revision.revision for revision in schema.history()}:
        says = f"at {found}, which this release does not know (its newest is {newest})"
        advice = "A newer cellcache migrated this database: install that one here."
    elif found != newest:
        says, advice = f"at {found}; this release's are at {newest}", "Run `cellcache db upgrade`."
    elif differences:
        says = f"at {found}, but altered since: {'; '.join(differences[:3])}"
        return Finding(
            what="tables", name="revision", level=Level.NOTE, says=says, advice="Compare with `cellcache db check`."
        )
    else:
        return Finding(what="tables", name="revision", says=f"{found}, the newest")
    return Finding(what="tables", name="revision", level=Level.PROBLEM, says=says, advice=advice)


def _writes(settings: DatabaseSettings) -> Finding:
    """Say whether the database takes writes. Lookups go on without, so nothing else would show it until one is made."""
    what, name = "writes", "to cellcache's tables"
    try:
        refused = refusals(settings)
    except CellCacheError as error:
        return Finding(what=what, name=name, level=Level.PROBLEM, says=str(error), advice="See the database.")
    if not refused:
        return Finding(what=what, name=name, says="allowed")
    return Finding(
        what=what,
        name=name,
        level=Level.PROBLEM,
        says=f"refused: {refused[0]}" + (f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""),
        advice="Let database.url lead to the primary, which is not set to read-only, with an account that may SELECT, "
        "INSERT, UPDATE and DELETE in each of the tables. For SQLite, the file and its folder must be writable.",
    )


def _promise(settings: Settings, directory: CellDirectory) -> Finding:
    what, name, says = "cache", settings.cache.backend, directory.promise
    if name.startswith("cellcache."):
        return Finding(what=what, name=name, says=says)
    advice = "Where an outdated answer does harm, configure cellcache.memcached or cellcache.redis."
    return Finding(what=what, name=name, level=Level.NOTE, says=says, advice=advice)


def _signing(directory: CellDirectory) -> Finding:
    """Say for which deployment entries are signed. If nobody knows, lookups go to SQL, and nothing else shows it."""
    try:
        return Finding(what="signing", name="deployment", says=directory.deployment())
    except CellCacheError as error:
        return Finding(
            what="signing",
            name="deployment",
            level=Level.PROBLEM,
            says=f"its identity could not be read: {error}",
            advice="Run `cellcache db upgrade`, and let the account read and write the table cache_agreement. Until "
            "then no entry is signed or believed, and lookups go to SQL.",
        )


def _node(node: NodeStatus) -> Finding:
    return Finding(
        what="cache node",
        name=mask_text(node.name),
        level=Level.FINE if node.trouble is None else Level.PROBLEM,
        says=node.trouble or "",
        version=node.version,
        round_trip_s=node.round_trip_s,
        advice=None
        if node.trouble is None
        else "See that it runs and can be reached from here. Meanwhile lookups of its instances go to SQL, and writes "
        "leave invalidations that are delivered once it is back.",
    )


def _entries(directory: CellDirectory) -> Finding:
    """Compare what the cache holds of some instances with the table, as `verify` does."""
    what, name = "cache entries", f"of {_COMPARED:,} instances at most"
    try:
        *_, report = directory.verify(sample=_COMPARED)
    except CellCacheError as error:
        return Finding(what=what, name=name, level=Level.PROBLEM, says=str(error), advice="See the database.")
    if not report.wrong:
        return Finding(what=what, name=name, says=f"{report.cached:,} compared with the table, none wrong")
    first = report.differences[0]
    return Finding(
        what=what,
        name=name,
        level=Level.PROBLEM,
        says=f"{report.wrong:,} of {report.cached:,} are wrong, such as that of {first.instance_uuid}: "
        f"{first.cached_cell_uuid or 'not mapped'}",
        advice="Run `cellcache verify --repair`, and find out who else writes to this cache, or changed rows by hand.",
    )


def _invalidations(directory: CellDirectory) -> Finding:
    statistics_ = directory.stats()
    waiting, oldest_s = statistics_.invalidations_pending, statistics_.invalidations_oldest_s
    what, name = "invalidations", "waiting"
    if not waiting:
        return Finding(what=what, name=name, says="none")
    says = f"{waiting:,}, the oldest for {oldest_s or 0:,.0f} s"
    if oldest_s is None or oldest_s < _OVERDUE_S:
        return Finding(what=what, name=name, level=Level.NOTE, says=says, advice="Look again in a minute.")
    return Finding(
        what=what,
        name=name,
        level=Level.PROBLEM,
        says=says,
        advice="Bring the cache node back that writers cannot reach: any process that has the directory open then "
        "delivers them. Until then, readers who do reach that node may see what was true before those writes.",
    )


def _cells(settings: Settings, cells: list[CellMapping]) -> Iterator[Finding]:
    if not cells:
        yield Finding(
            what="cells",
            name="none",
            level=Level.NOTE,
            advice="Add the first with `cellcache cell create`.",
        )
        return
    with ThreadPoolExecutor(_CELLS_AT_ONCE) as threads:
        yield from threads.map(lambda cell: _cell(settings, cell), cells)


def _cell(settings: Settings, cell: CellMapping) -> Finding:
    name = cell.name or cell.uuid
    says = f"{mask_url(cell.database_connection)}{' (disabled)' if cell.disabled else ''}"
    try:
        version, round_trip_s, has_instances = _ask(
            cell.database_connection, settings.database, use="cell", table="instances"
        )
    except CellCacheError as error:
        return Finding(
            what="cell",
            name=name,
            level=Level.PROBLEM,
            says=str(error),
            advice=f"See that its database runs, or put its URL right: `cellcache cell update {cell.uuid} "
            "--database-connection-file FILE`.",
        )
    if not has_instances:
        return Finding(
            what="cell",
            name=name,
            level=Level.PROBLEM,
            says=f"{says}: no `instances` table",
            version=version,
            round_trip_s=round_trip_s,
            advice="Its URL names a database that is not a cell's, or the cell's own migrations have not run.",
        )
    return Finding(what="cell", name=name, says=says, version=version, round_trip_s=round_trip_s)


def _shared_databases(settings: Settings, cells: list[CellMapping]) -> Iterator[Finding]:
    """Yield a finding for each database that several cells have; none is found where each has its own."""
    for sharing in shared_databases(cells, settings.database):
        yield Finding(
            what="cells",
            name=", ".join(cell.uuid if cell.name is None else f"{cell.name} ({cell.uuid})" for cell in sharing),
            level=Level.PROBLEM,
            says=f"have one database, {mask_url(sharing[0].database_connection)}",
            advice="Put the URL of the one right whose instances are elsewhere: `cellcache cell update CELL "
            "--database-connection-file FILE`. `instance prune --purged` is refused for whichever has fewer in it.",
        )
