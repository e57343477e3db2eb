"""The directory and its database: without tables, away between two calls, and locked by others.

What a server that stops or restarts does to it is in test_database_down.py.
"""

from __future__ import annotations

import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import psycopg
import pymysql
import pytest
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from cellcache import CellDirectory, CommitUnknown, ConfigError, DatabaseUnavailable, InstanceMapping, SchemaError
from cellcache.config import Settings
from cellcache.protocol import Absent
from cellcache.row_lookup import Disconnected
from cellcache.transaction import Transaction
from tests.costs import Meter
from tests.directories import CACHES, DATABASES, HERE, THERE, Site, new_uuids, open_site

PROJECT = "project-1"

Call = Callable[[CellDirectory, str], Any]

CALLS: dict[str, Call] = {
    "resolve_cell": lambda directory, key: directory.resolve_cell(key),
    "resolve_cells": lambda directory, key: directory.resolve_cells([key]),
    "map_instance": lambda directory, key: directory.map_instance(key, HERE, PROJECT),
    "map_instances": lambda directory, key: directory.map_instances([(key, HERE, PROJECT)]),
    "move_instance": lambda directory, key: directory.move_instance(key, HERE),
    "prune": lambda directory, key: directory.prune([key]),
    "prune_purged": lambda directory, _: directory.prune_purged(HERE),
    "get_instance": lambda directory, key: directory.get_instance(key),
    "list_instances": lambda directory, _: directory.list_instances(),
    "connect_cell": lambda directory, key: directory.connect_cell(key).__enter__(),
    "create_cell": lambda directory, _: directory.create_cell("cell1", "sqlite:///cell.db", "fake://"),
    "get_cell": lambda directory, _: directory.get_cell(HERE),
    "list_cells": lambda directory, _: directory.list_cells(),
    "update_cell": lambda directory, _: directory.update_cell(HERE, name="x"),
    "delete_cell": lambda directory, _: directory.delete_cell(HERE),
    "count_by_cell": lambda directory, _: directory.count_by_cell(),
    "waiting_invalidations": lambda directory, _: directory.waiting_invalidations(),
}


@pytest.fixture(params=DATABASES)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, "memory", request.param) as site:
        yield site


@pytest.fixture
def directory(site: Site) -> CellDirectory:
    return site.open()


def drop_tables(site: Site) -> None:
    for table in ("instance_mapping", "cell_mapping", "cache_invalidation"):
        site.run(f"DROP TABLE {table}")


def test_database_without_tables_says_which_command_to_run(site: Site) -> None:
    drop_tables(site)
    directory = site.open()
    for call in CALLS.values():
        with pytest.raises(SchemaError, match=r"lacks a table or column .* run `cellcache db upgrade`") as caught:
            call(directory, str(uuid4()))
        assert "\n" not in str(caught.value)
    assert directory.stats().invalidations_pending is None


def test_database_that_lacks_one_column_says_so_too(site: Site, directory: CellDirectory) -> None:
    site.run("ALTER TABLE cell_mapping DROP COLUMN disabled")
    with pytest.raises(SchemaError, match=r"disabled.* run `cellcache db upgrade`"):
        directory.list_cells()


@pytest.mark.parametrize("name", CALLS)
def test_database_that_cannot_be_opened_is_unavailable(name: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'nowhere' / 'cellcache.db'}"
    directory = CellDirectory.open(Settings(database={"url": url}))
    with directory, pytest.raises(DatabaseUnavailable, match="unable to open database file"):
        CALLS[name](directory, str(uuid4()))


@pytest.mark.slow
@pytest.mark.parametrize(
    "url", ["mysql+pymysql://nova:hush@127.0.0.1:1/x", "postgresql+psycopg://nova:hush@127.0.0.1:1/x"]
)
def test_server_that_refuses_is_unavailable_and_its_password_not_shown(url: str) -> None:
    with CellDirectory.open(Settings(database={"url": url})) as directory:
        for name, call in CALLS.items():
            with pytest.raises(DatabaseUnavailable) as caught:
                call(directory, str(uuid4()))
            assert "hush" not in str(caught.value), name
            assert "\n" not in str(caught.value), name


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_sqlite_in_memory_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        CellDirectory.open(Settings(database={"url": url}))


def test_what_is_cached_is_answered_while_the_tables_are_gone(site: Site, directory: CellDirectory) -> None:
    keys, absent = new_uuids(3), str(uuid4())
    directory.map_instances((key, HERE, PROJECT) for key in keys)
    assert directory.resolve_cells([*keys, absent]).keys() == set(keys)
    drop_tables(site)
    assert directory.resolve_cell(keys[0]).uuid == HERE
    assert directory.resolve_cells([*keys, absent]).keys() == set(keys)
    with pytest.raises(SchemaError):
        directory.resolve_cell(uuid4())


@pytest.mark.parametrize("kind", CACHES)
def test_failed_read_leaves_nothing_in_the_cache(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    with open_site(request, tmp_path, kind) as site:
        directory, key = site.open(lease_ttl_s=4.5), str(uuid4())
        directory.map_instance(key, HERE, PROJECT)
        site.cache.evict(key)
        site.run("ALTER TABLE instance_mapping RENAME TO away")
        for call in (directory.resolve_cell, lambda it: directory.resolve_cells([it])):
            with pytest.raises(SchemaError):
                call(key)
        site.run("ALTER TABLE away RENAME TO instance_mapping")
        assert directory.resolve_cell(key).uuid == HERE


@pytest.mark.parametrize("kind", CACHES)
def test_failed_write_leaves_the_cache_as_right_as_before(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with open_site(request, tmp_path, kind) as site:
        directory, other, key = site.open(), site.open(), str(uuid4())
        directory.map_instance(key, HERE, PROJECT)
        site.run("ALTER TABLE cache_invalidation RENAME TO away")  # needed last, when the fence is there
        calls: list[Callable[[], object]] = [
            lambda: directory.move_instance(key, THERE),
            lambda: directory.prune([key]),
            lambda: directory.map_instance(uuid4(), HERE, PROJECT),
        ]
        for call in calls:
            with pytest.raises(SchemaError):
                call()
        site.run("ALTER TABLE away RENAME TO cache_invalidation")
        assert site.table() == {key: HERE}
        assert directory.resolve_cell(key).uuid == other.resolve_cell(key).uuid == HERE
        misses = directory.stats().misses
        assert directory.resolve_cell(key).uuid == HERE
        assert directory.stats().misses == misses  # no fence was left behind


# -- locks -------------------------------------------------------------------------------------------------------


class Other:
    """Another client with a transaction of its own."""

    def __init__(self, site: Site) -> None:
        self.connection = create_engine(site.database_url, poolclass=NullPool).connect()

    def lock(self, key: str) -> None:
        self.connection.execute(
            text("UPDATE instance_mapping SET project_id = 'other' WHERE instance_uuid = :key"), {"key": key}
        )

    def close(self) -> None:
        self.connection.rollback()
        self.connection.close()


@pytest.fixture
def other(site: Site) -> Iterator[Other]:
    other = Other(site)
    yield other
    other.close()


def test_writer_waits_for_another_and_then_sees_what_it_wrote(
    site: Site, directory: CellDirectory, other: Other
) -> None:
    key = str(uuid4())
    directory.map_instance(key, HERE, PROJECT)
    other.lock(key)
    with ThreadPoolExecutor(1) as pool:
        moving = pool.submit(directory.move_instance, key, THERE)
        time.sleep(0.2)
        assert not moving.done()
        other.connection.commit()
        assert moving.result(30).project_id == "other"
    assert site.table() == {key: THERE}


@pytest.mark.slow
def test_lock_that_is_never_given_up_ends_the_write_with_nothing_written(site: Site, other: Other) -> None:
    directory, key = site.open(database={"timeout_s": 1.0}), str(uuid4())
    directory.map_instance(key, HERE, PROJECT)
    other.lock(key)
    with pytest.raises(DatabaseUnavailable):
        directory.move_instance(key, THERE)
    other.close()
    assert site.table() == {key: HERE}
    assert directory.resolve_cell(key).uuid == HERE
    directory.move_instance(key, THERE)


def test_readers_do_not_wait_for_writers(site: Site, directory: CellDirectory, other: Other) -> None:
    key = str(uuid4())
    directory.map_instance(key, HERE, PROJECT)
    directory.region.delete(key)
    other.lock(key)
    assert directory.resolve_cell(key).uuid == HERE
    assert directory.get_instance(key).project_id == PROJECT


@pytest.mark.parametrize("database", [database for database in DATABASES if database != "sqlite"])
def test_deadlock_is_tried_again(database: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    with open_site(request, tmp_path, "memory", database) as site:
        directory, other = site.open(), Other(site)
        first, second = sorted(new_uuids(2))
        directory.map_instances((key, HERE, PROJECT) for key in (first, second))
        # More rows changed than by the directory, so that InnoDB lets this one live.
        weight = [{"key": key, "cell": HERE} for key in new_uuids(200)]
        other.connection.execute(
            text("INSERT INTO instance_mapping (instance_uuid, cell_uuid, project_id) VALUES (:key, :cell, 'other')"),
            weight,
        )
        other.lock(second)
        tries: list[int] = []
        change = threading.Event()
        transaction = directory._here().store.transaction

        def counted() -> Any:
            tries.append(1)
            change.set()
            return transaction()

        directory._here().store.transaction = counted  # type: ignore[method-assign]
        with ThreadPoolExecutor(1) as pool:
            pruning = pool.submit(directory.prune, [first, second])
            assert change.wait(30)
            time.sleep(0.3)  # it holds the first and waits for the second
            other.lock(first)
            other.connection.commit()
            other.close()
            assert pruning.result(60) == 2
        assert len(tries) == 2
        assert site.table().keys() == {row["key"] for row in weight}
        assert directory.resolve_cells([first, second]) == {}


# -- how a commit ends -------------------------------------------------------------------------------------------


def told(cause: Exception, *, hung_up: bool = False) -> OperationalError:
    """What SQLAlchemy makes of a driver's error; `hung_up` where it knows that the connection is gone."""
    return OperationalError("COMMIT", None, cause, connection_invalidated=hung_up)


def cause_of(error: object) -> str | None:
    cause = getattr(error, "orig", error)
    return f"{type(cause).__name__} {cause}" if isinstance(cause, Exception) else None


UNKNOWN = [
    told(pymysql.err.OperationalError(2013, "Lost connection to MySQL server during query"), hung_up=True),
    told(pymysql.err.OperationalError(2014, "Command Out of Sync")),
    told(pymysql.err.OperationalError(2000, "unknown")),
    told(pymysql.err.OperationalError(2999, "unknown")),
    told(pymysql.err.OperationalError(4031, "The client was disconnected"), hung_up=True),
    told(pymysql.err.InternalError("Packet sequence number wrong - got 254 expected 1")),
    told(pymysql.err.InterfaceError(0, "")),
    told(pymysql.err.OperationalError(-1, "unknown")),
    told(pymysql.err.OperationalError()),
    told(psycopg.OperationalError("server closed the connection unexpectedly")),
    told(psycopg.errors.AdminShutdown("terminating connection due to administrator command"), hung_up=True),
]
REFUSED = [
    told(pymysql.err.OperationalError(1180, "Got error 5 during COMMIT")),
    told(pymysql.err.OperationalError(1999, "whatever the server says")),
    told(pymysql.err.OperationalError(3000, "whatever the server says")),
    told(psycopg.errors.ReadOnlySqlTransaction("cannot execute")),
    told(sqlite3.OperationalError("database is locked")),
]


@pytest.fixture
def local(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, "memory") as site:
        yield site


def commits_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def commit(_connection: Connection) -> None:
        raise error

    monkeypatch.setattr(Connection, "commit", commit)


@pytest.mark.parametrize("error", UNKNOWN, ids=cause_of)
def test_commit_that_nobody_refused_is_unknown_and_its_fence_stands(
    local: Site, monkeypatch: pytest.MonkeyPatch, error: OperationalError
) -> None:
    directory, key = local.open(), str(uuid4())
    directory.map_instance(key, HERE, PROJECT)
    with monkeypatch.context() as patch:
        commits_with(error, patch)
        with pytest.raises(CommitUnknown, match="it may have happened"):
            directory.move_instance(key, THERE)
    assert directory._here().backend.lookup(key) is Absent.FENCED
    assert [key] in [one.instance_uuids for one in directory.list_invalidations()]


@pytest.mark.parametrize("error", REFUSED, ids=cause_of)
def test_commit_that_the_database_refused_leaves_no_fence(
    local: Site, monkeypatch: pytest.MonkeyPatch, error: OperationalError
) -> None:
    directory, key = local.open(), str(uuid4())
    directory.map_instance(key, HERE, PROJECT)
    directory.deliver_invalidations()
    with monkeypatch.context() as patch:
        commits_with(error, patch)
        with pytest.raises(DatabaseUnavailable) as caught:
            directory.move_instance(key, THERE)
    assert not isinstance(caught.value, CommitUnknown)
    assert directory._here().backend.lookup(key) is not Absent.FENCED
    assert directory.list_invalidations() == []


@pytest.mark.parametrize(
    ("cause", "tries"),
    [
        (pymysql.err.OperationalError(1213, "Deadlock found when trying to get lock"), 3),
        (pymysql.err.OperationalError(1467, "Failed to read auto-increment value from storage engine"), 3),
        (psycopg.errors.DeadlockDetected("deadlock detected"), 3),
        (psycopg.errors.SerializationFailure("could not serialize access"), 3),
        (pymysql.err.OperationalError(1205, "Lock wait timeout exceeded"), 1),
        (psycopg.errors.LockNotAvailable("canceling statement due to lock timeout"), 1),
    ],
    ids=cause_of,
)
def test_only_who_lost_in_a_deadlock_tries_again(
    local: Site, monkeypatch: pytest.MonkeyPatch, cause: Exception, tries: int
) -> None:
    directory, key = local.open(), str(uuid4())
    directory.map_instance(key, HERE, PROJECT)
    tried: list[object] = []

    def lose(_transaction: Transaction, keys: Sequence[str]) -> dict[str, InstanceMapping]:
        tried.append(keys)
        raise told(cause)

    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "lock_mappings", lose)
        with pytest.raises(DatabaseUnavailable):
            directory.move_instance(key, THERE)
    assert len(tried) == tries
    assert local.table() == {key: HERE}


# -- the order of locks ------------------------------------------------------------------------------------------


def test_rows_and_cells_are_locked_in_one_order_whoever_asks(local: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else two that lock the same ones wait for each other."""
    meter, keys = Meter(monkeypatch), new_uuids(3)
    directory = local.open()
    directory.map_instances((key, cell, PROJECT) for key, cell in zip(keys, (THERE, HERE, THERE), strict=True))
    with meter.count(set()) as costs:
        directory.map_instances((key, cell, PROJECT) for key, cell in zip(new_uuids(2), (THERE, HERE), strict=True))
        directory.prune(keys)
    locking = [statement for statement in costs.statements if re.search(r"SELECT.* IN ", statement, re.DOTALL)]
    ordered = [re.findall(r"FROM (\w+)\s.*ORDER BY (\w+\.\w+)", statement, re.DOTALL) for statement in locking]
    assert ordered == [
        [("instance_mapping", "instance_mapping.instance_uuid")],
        [("cell_mapping", "cell_mapping.uuid")],
        [("instance_mapping", "instance_mapping.instance_uuid")],
    ]


# -- time limits of reads ----------------------------------------------------------------------------------------

LIMIT_S = 8.0


@pytest.mark.parametrize(("took_s", "tries"), [(0.45 * LIMIT_S, 2), (0.55 * LIMIT_S, 1)])
@pytest.mark.parametrize("call", ["resolve_cell", "resolve_cells", "get_instance"])
def test_read_whose_connection_died_of_a_time_limit_is_not_tried_again(
    local: Site, monkeypatch: pytest.MonkeyPatch, call: str, took_s: float, tries: int
) -> None:
    """One that broke at once, as after a restart of the server, is: the caller has not waited yet."""
    directory, key = local.open(database={"timeout_s": LIMIT_S}), str(uuid4())
    directory.map_instance(key, HERE, PROJECT)
    local.cache.evict(key)
    directory.get_cell(HERE)
    now, tried = [1000.0], list[str]()
    lost = told(psycopg.OperationalError("gone"), hung_up=True)

    def broken(how: Callable[[], Exception], work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            tried.append(call)
            if len(tried) > 1:
                return work(*arguments)
            now[0] += took_s
            raise how()

        return run

    store: Any = directory._here().store
    monkeypatch.setattr("cellcache.store.time", SimpleNamespace(monotonic=lambda: now[0]))
    for name in ("cell_of", "cells_of"):
        monkeypatch.setattr(store._rows, name, broken(lambda: Disconnected(lost), getattr(store._rows, name)))
    if call == "get_instance":
        monkeypatch.setattr(store, "_reading", SimpleNamespace(connect=broken(lambda: lost, store._reading.connect)))
    ask = CALLS[call]
    if tries == 1:
        with pytest.raises(DatabaseUnavailable):
            ask(directory, key)
    else:
        ask(directory, key)
    assert len(tried) == tries
    monkeypatch.undo()
