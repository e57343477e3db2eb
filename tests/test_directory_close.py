"""`close()` leaves nothing open: no thread, no socket, no file, no SQL connection."""

from __future__ import annotations

import gc
import os
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import text

from cellcache import BackendUnsupported, CellDirectory, ConfigError, InstanceNotMapped, schema
from tests.caches import eventually
from tests.directories import (
    CACHES,
    DATABASES,
    HERE,
    Site,
    new_cell_database,
    new_uuids,
    open_site,
)
from tests.fake_redis import FakeRedis

PROJECT = "project-1"


@pytest.fixture(params=CACHES)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, request.param) as site:
        yield site


@pytest.fixture(params=DATABASES)
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, "memory", request.param) as site:
        yield site


def open_files() -> list[str]:
    """Every file descriptor of this process: what it is."""
    found = []
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208 - the names, not paths that end while they are listed
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}"))  # noqa: PTH115
        except FileNotFoundError:  # the one that the listing itself had open
            continue
    return sorted(found)


def sockets() -> int:
    return len([one for one in psutil.Process().net_connections("all") if one.status != psutil.CONN_LISTEN])


def work(directory: CellDirectory, path: Path) -> None:
    """Use all of it, from many threads."""
    keys = new_uuids(16)
    cell = directory.create_cell("cell1", new_cell_database(path), "fake://")
    directory.map_instances((key, cell.uuid, PROJECT) for key in keys)

    def look_up(key: str) -> None:
        assert directory.resolve_cell(key) == cell
        assert directory.resolve_cells(keys).keys() == set(keys)
        with directory.connect_cell(key) as connection:
            connection.execute(text("SELECT uuid FROM instances")).all()
        with pytest.raises(InstanceNotMapped):
            directory.resolve_cell(cell.uuid)
        directory.move_instance(key, HERE)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(look_up, keys))
    directory.check_cache()


@pytest.mark.slow
def test_close_leaves_nothing_open(site: Site, tmp_path: Path) -> None:
    _leaves_nothing_open(site, tmp_path)


@pytest.mark.slow
def test_close_leaves_no_connection_to_any_database(stored: Site, tmp_path: Path) -> None:
    _leaves_nothing_open(stored, tmp_path)


def _leaves_nothing_open(site: Site, tmp_path: Path) -> None:
    with CellDirectory.open(site.settings()) as directory:
        work(directory, tmp_path)  # whatever Python and the drivers open once and keep
    gc.collect()
    before, threads_before = open_files(), threading.active_count()
    directory = CellDirectory.open(site.settings())
    work(directory, tmp_path)
    assert open_files() != before
    directory.close()
    gc.collect()
    assert eventually(lambda: open_files() == before), set(open_files()) ^ set(before)
    assert eventually(lambda: threading.active_count() == threads_before)


@pytest.mark.slow
def test_close_leaves_no_socket(site: Site, tmp_path: Path) -> None:
    before = sockets()
    directory = CellDirectory.open(site.settings())
    work(directory, tmp_path)
    directory.close()
    gc.collect()
    assert eventually(lambda: sockets() == before)


@pytest.mark.slow
def test_server_sees_every_connection_go(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    with FakeRedis() as server, open_site(request, tmp_path, "memory") as site:
        directory = CellDirectory.open(site.settings(backend="cellcache.redis", url=server.url))
        work(directory, tmp_path)
        handlers = server._server
        assert handlers is not None
        assert handlers.open
        directory.close()
        assert eventually(lambda: not handlers.open)


def test_connection_in_use_while_it_closes_is_closed_when_it_is_given_back(site: Site, tmp_path: Path) -> None:
    key = new_uuids(1)[0]
    directory = CellDirectory.open(site.settings())
    cell = directory.create_cell("cell1", new_cell_database(tmp_path), "fake://")
    directory.map_instance(key, cell.uuid, PROJECT)
    with (
        directory.connect_cell(key) as of_cell,
        directory._here().store._reading.connect() as reading,
        directory._here().store._writing.connect() as writing,
    ):
        drivers: list[Any] = [one.connection.dbapi_connection for one in (of_cell, reading, writing)]
        directory.close()
    for driver in drivers:
        assert isinstance(driver, sqlite3.Connection)
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            driver.execute("SELECT 1")


def test_closing_twice_is_harmless(site: Site) -> None:
    directory = site.open()
    directory.map_instances([(key, HERE, PROJECT) for key in new_uuids(3)])
    directory.close()
    directory.close()


def test_leaving_the_context_closes(site: Site) -> None:
    with CellDirectory.open(site.settings()) as directory:
        directory.list_cells()
        assert _threads_of_directories() == 1
    assert _threads_of_directories() == 0


def test_closing_what_was_never_used_is_harmless(site: Site) -> None:
    CellDirectory.open(site.settings()).close()
    CellDirectory(site.settings()).close()


def test_closing_one_directory_leaves_the_others(site: Site) -> None:
    key = new_uuids(1)[0]
    one, other = site.open(), site.open()
    one.map_instance(key, HERE, PROJECT)
    one.close()
    assert other.resolve_cell(key).uuid == HERE
    other.move_instance(key, HERE)


@pytest.mark.slow
def test_directory_that_cannot_be_opened_leaves_nothing_open(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    with FakeRedis(redis_version="5.0.0") as old, open_site(request, tmp_path, "memory") as site:
        before = open_files()
        with pytest.raises(BackendUnsupported, match=r"5\.0\.0"):
            CellDirectory.open(site.settings(backend="cellcache.redis", url=old.url))
        with pytest.raises(ConfigError, match=r"dogpile\.cache\.dbm needs an argument"):
            CellDirectory.open(site.settings(backend="dogpile.cache.dbm"))
        assert _threads_of_directories() == 0
        gc.collect()
        assert eventually(lambda: len(open_files()) <= len(before))


def test_settled_invalidations_are_forgotten_before_the_process_ends(stored: Site) -> None:
    with CellDirectory.open(stored.settings()) as directory:
        for key in new_uuids(5):
            directory.map_instance(key, HERE, PROJECT)
    assert stored.run("SELECT id FROM cache_invalidation") == []


def test_closing_when_the_tables_are_gone_closes_everything(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    with open_site(request, tmp_path, "memory") as site:
        directory = CellDirectory.open(site.settings())
        directory.map_instance(new_uuids(1)[0], HERE, PROJECT)
        for table in ("instance_mapping", "cell_mapping", "cache_invalidation"):
            site.run(f"DROP TABLE {table}")
        directory.close()
        assert _threads_of_directories() == 0
        assert not any(site.database_url.endswith(file) for file in open_files())


@pytest.mark.slow
def test_migrating_leaves_nothing_open(tmp_path: Path) -> None:
    schema.upgrade(f"sqlite:///{tmp_path / 'a.db'}")
    gc.collect()
    before = open_files()
    schema.upgrade(f"sqlite:///{tmp_path / 'b.db'}")
    gc.collect()
    assert open_files() == before


def _threads_of_directories() -> int:
    return [thread.name for thread in threading.enumerate()].count("cellcache")
