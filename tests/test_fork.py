"""After `fork()` a child uses nothing of its parent's: no socket, no SQL connection, no lock, no counter."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text

import cellcache
from cellcache import CellDirectory, InstanceNotMapped
from tests.caches import RedisCache
from tests.children import in_child
from tests.directories import CACHES, HERE, SHARED_CACHES, THERE, Site, new_uuids, open_site

PROJECT = "project-1"


@pytest.fixture(params=CACHES)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, request.param) as site:
        yield site


@pytest.fixture(params=SHARED_CACHES)
def shared(request: pytest.FixtureRequest, tmp_path: Path, senders: set[int]) -> Iterator[Site]:
    with open_site(request, tmp_path, request.param) as site:
        yield site


@pytest.fixture
def senders(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The sockets, by inode, through which anything is sent to a cache server from now on."""
    inodes: set[int] = set()
    send = socket.socket.sendall

    def sendall(sock: socket.socket, *arguments: Any) -> None:
        inodes.add(os.fstat(sock.fileno()).st_ino)
        send(sock, *arguments)

    monkeypatch.setattr(socket.socket, "sendall", sendall)
    return inodes


def cells(directory: CellDirectory, keys: list[str]) -> list[str]:
    return [directory.resolve_cell(key).uuid for key in keys]


@pytest.mark.slow
def test_child_finds_what_the_parent_has_mapped(site: Site) -> None:
    directory, keys = site.open(), new_uuids(10)
    directory.map_instances((key, HERE, PROJECT) for key in keys)
    assert cells(directory, keys) == [HERE] * 10
    assert in_child(lambda: cells(directory, keys)) == [HERE] * 10
    assert in_child(lambda: sorted(directory.resolve_cells(keys))) == sorted(keys)
    assert cells(directory, keys) == [HERE] * 10


@pytest.mark.slow
def test_child_uses_none_of_the_parents_sockets(shared: Site, senders: set[int]) -> None:
    directory, keys = shared.open(), new_uuids(30)
    directory.map_instances((key, HERE, PROJECT) for key in keys)
    cells(directory, keys)
    of_parent = set(senders)

    def work() -> list[int]:
        senders.clear()
        cells(directory, keys)
        directory.resolve_cells(new_uuids(30))
        directory.map_instances((key, HERE, PROJECT) for key in new_uuids(30))
        directory.close()
        return sorted(senders)

    of_child = set(in_child(work))
    assert of_child
    assert not of_child & of_parent
    senders.clear()
    cells(directory, keys)
    assert senders & of_parent  # the parent goes on with its own
    assert directory.stats().cache_errors == 0


@pytest.mark.parametrize(
    ("kind", "question"),
    [
        pytest.param("mariadb", "SELECT CONNECTION_ID()", marks=pytest.mark.needs("mariadb")),
        pytest.param("postgresql", "SELECT pg_backend_pid()", marks=pytest.mark.needs("postgresql")),
    ],
)
def test_child_uses_none_of_the_parents_sql_connections(
    kind: str, question: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with open_site(request, tmp_path, "memory", kind) as site:
        directory, key = site.open(), str(uuid4())
        cell = directory.create_cell("cell1", site.database_url, "fake://")
        directory.map_instance(key, cell.uuid, PROJECT)

        def connections() -> list[int]:
            ids = []
            for engine in (directory._here().store._reading, directory._here().store._writing):
                with engine.connect() as connection:
                    ids.append(connection.scalar(text(question)))
            with directory.connect_cell(key) as connection:
                ids.append(connection.scalar(text(question)))
            return ids

        before = connections()
        assert len(set(before)) == 3

        def work() -> list[int]:
            of_child = connections()
            directory.move_instance(key, THERE)
            directory.close()
            return of_child

        assert not set(in_child(work)) & set(before)
        directory.move_instance(key, cell.uuid)
        assert connections() == before  # the child has said goodbye on none of them


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHARED_CACHES)
def test_writes_of_parent_and_child_are_seen_by_the_other(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with open_site(request, tmp_path, kind) as site:
        directory, key = site.open(), str(uuid4())
        directory.map_instance(key, HERE, PROJECT)
        cells(directory, [key])
        assert in_child(lambda: directory.move_instance(key, THERE).cell_uuid) == THERE
        assert cells(directory, [key]) == [THERE]
        in_child(lambda: directory.prune([key]))
        with pytest.raises(InstanceNotMapped):
            directory.resolve_cell(key)


def test_child_counts_from_zero(site: Site) -> None:
    directory, keys = site.open(), new_uuids(5)
    directory.map_instances((key, HERE, PROJECT) for key in keys)
    cells(directory, keys)
    directory.resolve_cells(new_uuids(5))
    assert directory.stats().sql_reads > 0
    counted = in_child(lambda: directory.stats().as_dict())
    assert {name: value for name, value in counted.items() if value} == {}


def test_child_counts_the_caches_errors_from_zero_too(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    with open_site(request, tmp_path, "fakeredis") as site:
        directory, key = site.open(), str(uuid4())
        directory.map_instance(key, HERE, PROJECT)
        assert isinstance(site.cache, RedisCache)
        site.cache.server.stop()
        assert cells(directory, [key]) == [HERE]
        assert directory.stats().cache_errors > 0
        assert in_child(lambda: directory.stats().cache_errors) == 0


def test_child_has_a_background_thread_of_its_own(site: Site) -> None:
    directory = site.open()

    def threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "cellcache"]

    def closed() -> list[str]:
        directory.close()
        return threads()

    assert in_child(threads) == ["cellcache"]
    assert in_child(closed) == []
    assert threads() == ["cellcache"]


def test_child_delivers_nothing_that_is_the_parents(site: Site) -> None:
    directory = site.open()
    directory._here().invalidations._settled.append(12345)
    assert in_child(lambda: len(directory._here().invalidations._settled)) == 0
    assert list(directory._here().invalidations._settled) == [12345]


@pytest.mark.slow
def test_grandchild_works_too(site: Site) -> None:
    directory, keys = site.open(), new_uuids(5)
    directory.map_instances((key, HERE, PROJECT) for key in keys)
    assert in_child(lambda: in_child(lambda: cells(directory, keys), watched=False)) == [HERE] * 5


def test_closed_directory_stays_closed_in_the_child(site: Site) -> None:
    directory = CellDirectory.open(site.settings())
    directory.close()
    assert in_child(lambda: [thread.name for thread in threading.enumerate()].count("cellcache")) == 0


@pytest.mark.slow
def test_the_processs_own_directory_works_in_the_child(site: Site) -> None:
    key = str(uuid4())
    try:
        cellcache.configure(site.settings()).map_instance(key, HERE, PROJECT)
        cellcache.resolve_cell(key)
        assert in_child(lambda: cellcache.resolve_cell(key).uuid) == HERE
        assert in_child(lambda: list(cellcache.resolve_cells([key]))) == [key]
    finally:
        _forget_the_processs_directory()


def _forget_the_processs_directory() -> None:
    from cellcache import process

    if process._directory is not None:
        process._directory.close()
    process._directory = None


FORKS = 8


@pytest.mark.slow
def test_fork_while_other_threads_are_inside_lookups(site: Site) -> None:
    """Whatever lock or socket a thread held at that moment, the child neither waits for it nor reads from it.

    They are all hits: SQLite is a part of this process, and a child waits for ever for a lock of SQLite's own that
    another thread of the parent held.
    """
    directory, keys = site.open(), new_uuids(20)
    directory.map_instances((key, HERE, PROJECT) for key in keys)

    def look_up() -> None:
        assert cells(directory, keys) == [HERE] * 20
        assert len(directory.resolve_cells(keys)) == 20

    look_up()  # and with it the cells, which come from SQL
    _fork_while(look_up, directory, keys)
    assert directory.stats().misses == 0


@pytest.mark.needs("memcached")
@pytest.mark.parametrize(
    "database",
    [
        pytest.param("mariadb", marks=pytest.mark.needs("mariadb")),
        pytest.param("postgresql", marks=pytest.mark.needs("postgresql")),
    ],
)
def test_fork_while_other_threads_are_inside_anything(
    database: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with open_site(request, tmp_path, "memcached", database) as site:
        directory, keys = site.open(), new_uuids(20)
        directory.map_instances((key, HERE, PROJECT) for key in keys)

        def use_all() -> None:
            directory.resolve_cells([*keys, *new_uuids(3)])
            directory.resolve_cell(keys[0])
            directory.stats()
            key = directory.map_instance(uuid4(), HERE, PROJECT).instance_uuid
            directory.move_instance(key, THERE)
            directory.prune([key])

        _fork_while(use_all, directory, keys)


def _fork_while(use: Callable[[], None], directory: CellDirectory, keys: list[str]) -> None:
    """Fork while six threads do this all the time; each child must find all the keys."""
    stop, failures = threading.Event(), []

    def go_on() -> None:
        try:
            while not stop.is_set():
                use()
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            failures.append(error)

    def work() -> list[str]:
        directory.stats()
        assert len(directory.resolve_cells(keys)) == len(keys)
        return cells(directory, keys)

    threads = [threading.Thread(target=go_on) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(FORKS):
            assert in_child(work) == [HERE] * len(keys)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert directory.stats().cache_errors == 0
