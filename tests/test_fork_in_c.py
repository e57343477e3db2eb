"""A fork that Python is not told of, as uWSGI's: the child uses nothing of its parent's, and answers nothing wrong."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.pool import NullPool

from cellcache import CellDirectory
from cellcache.codec import decode
from cellcache.tables import instance_mapping
from tests.caches import eventually
from tests.children import PATIENCE_S, Child, fork_in_c, in_child
from tests.directories import HERE, THERE, Site, new_uuids, open_site
from tests.servers import Memcached, Redis

PROJECT = "project-1"
CELLS = [HERE, THERE]

# Not SQLite, whose connections no child may have inherited at all.
DATABASES = [pytest.param(kind, marks=pytest.mark.needs(kind)) for kind in ("mariadb", "postgresql")]
CACHES = [
    "memory",
    pytest.param("memcached", marks=pytest.mark.needs("memcached")),
    pytest.param("redis", marks=pytest.mark.needs("redis")),
    pytest.param("dogpile.cache.pymemcache", marks=pytest.mark.needs("memcached")),
]

pytestmark = pytest.mark.slow


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture(params=CACHES)
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
def site(kind: str, database: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    cache = "memory" if kind.startswith("dogpile.") else kind
    with open_site(request, tmp_path, cache, database) as site:
        yield site


@pytest.fixture
def server(kind: str, request: pytest.FixtureRequest) -> Memcached | Redis | None:
    if kind == "memory":
        return None
    server = request.getfixturevalue("redis_server" if kind == "redis" else "memcached")
    assert isinstance(server, Memcached | Redis)
    return server


@pytest.fixture
def directory(kind: str, site: Site, server: Memcached | Redis | None) -> Iterator[CellDirectory]:
    foreign: dict[str, Any] = {}
    if kind.startswith("dogpile."):
        assert isinstance(server, Memcached)
        foreign = {"backend": kind, "arguments": {"url": server.address}}
    directory = site.open(**foreign)
    directory.list_cells()
    yield directory
    _demand_that_nothing_wrong_is_stored(directory, site)
    directory.close()
    if foreign:
        directory.region.actual_backend.client.close()


def _demand_that_nothing_wrong_is_stored(directory: CellDirectory, site: Site) -> None:
    table = site.table()
    entries = directory._here().backend.peek_multi(list(table))
    stored = {key: decode(entry) for key, entry in zip(table, entries, strict=True) if isinstance(entry, bytes)}
    assert {key: cell for key, cell in stored.items() if cell != table[key]} == {}
    assert directory._here().backend.errors == 0


def mapped(directory: CellDirectory, n: int) -> dict[str, str]:
    """Map so many instances to two cells in turn; return in which each lives."""
    placed = {key: CELLS[number % 2] for number, key in enumerate(new_uuids(n))}
    directory.map_instances((key, cell, PROJECT) for key, cell in placed.items())
    return placed


def wrong(directory: CellDirectory, placed: dict[str, str]) -> int:
    """Resolve each by itself, then all at once; return how many answers are wrong."""
    one_by_one = sum(directory.resolve_cell(key).uuid != cell for key, cell in placed.items())
    found = directory.resolve_cells(placed)
    return one_by_one + sum(found[key].uuid != cell for key, cell in placed.items())


@pytest.mark.parametrize("parent", ["has written", "has looked up", "goes on"])
def test_children_at_the_same_time_answer_right(directory: CellDirectory, parent: str) -> None:
    placed = mapped(directory, 1000)
    if parent != "has written":
        assert wrong(directory, placed) == 0
    children = [Child(lambda: wrong(directory, placed), fork_in_c) for _ in range(3)]
    if parent == "goes on":
        assert wrong(directory, placed) == 0
    assert [child.result() for child in children] == [0, 0, 0]


def test_grandchildren_answer_right(directory: CellDirectory) -> None:
    placed = mapped(directory, 300)
    assert wrong(directory, placed) == 0

    def child() -> list[int]:
        before = wrong(directory, placed)
        grandchildren = [Child(lambda: wrong(directory, placed), fork_in_c, watched=False) for _ in range(2)]
        return [before, wrong(directory, placed), *(one.result() for one in grandchildren)]

    assert in_child(child, fork=fork_in_c) == [0, 0, 0, 0]


def test_child_writes(directory: CellDirectory) -> None:
    """What it has moved and mapped, its parent finds; in memory each has its own entries, for a time-to-live."""
    placed = mapped(directory, 20)

    def child() -> int:
        for key in placed:
            directory.move_instance(key, THERE)
        return wrong(directory, dict.fromkeys(placed, THERE)) + wrong(directory, mapped(directory, 20))

    assert in_child(child, fork=fork_in_c) == 0
    if directory.settings.cache.backend == "cellcache.memory":
        directory._here().backend.invalidate_multi(list(placed))
    assert wrong(directory, dict.fromkeys(placed, THERE)) == 0


def test_child_waits_for_no_lock_that_a_thread_of_its_parent_holds(directory: CellDirectory) -> None:
    placed = mapped(directory, 20)
    assert wrong(directory, placed) == 0

    def child() -> int:
        key, cell = next(iter(placed.items()))
        directory.move_instance(key, THERE)
        directory.move_instance(key, cell)
        directory.stats()
        directory.list_cells()
        answers = wrong(directory, placed)
        directory.close()
        return answers

    with another_thread_holds(locks_of(directory)):
        assert in_child(child, fork=fork_in_c) == 0


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # dogpile's clients belong to threads, which end
def test_child_of_a_fork_in_the_midst_of_calls(
    directory: CellDirectory, site: Site, server: Memcached | Redis | None
) -> None:
    """Threads of the parent wait for the cache, and for a row; the replies come when there are three processes.

    None of them waits for the interpreter: of such a fork's children CPython itself lets most hang, doing anything.
    """
    placed = mapped(directory, 300)
    moved, *rest = placed
    untouched, begun = {key: placed[key] for key in rest}, list[str]()
    assert wrong(directory, placed) == 0

    def resolve(key: str) -> str:
        begun.append(key)
        return directory.resolve_cell(key).uuid

    def move() -> str:
        begun.append(moved)
        return directory.move_instance(moved, THERE).cell_uuid

    with ThreadPoolExecutor(6) as pool, ExitStack() as stack:
        stack.enter_context(_locked_row(site, moved))
        writes = [pool.submit(move) for _ in range(2)]
        assert eventually(lambda: len(begun) == 2, PATIENCE_S)
        if server is not None:
            server.suspend()
            stack.callback(server.resume)
        lookups = {key: pool.submit(resolve, key) for key in rest[:4]}
        assert eventually(lambda: len(begun) == 6, PATIENCE_S)
        assert eventually(_all_wait, PATIENCE_S)
        children = [Child(lambda: wrong(directory, untouched), fork_in_c) for _ in range(2)]
        stack.close()
        assert [write.result(PATIENCE_S) for write in writes] == [THERE] * 2
        assert {key: lookup.result(PATIENCE_S) for key, lookup in lookups.items()} == {
            key: placed[key] for key in lookups
        }
    assert [child.result() for child in children] == [0, 0]


def _all_wait() -> bool:
    """Return whether no other thread has got on for a moment in which all could: they wait in the kernel."""
    places = _places()
    time.sleep(0.2)
    return places == _places()


def _places() -> set[tuple[int, int]]:
    here = threading.get_ident()
    return {(id(frame), frame.f_lasti) for thread, frame in sys._current_frames().items() if thread != here}


@contextmanager
def _locked_row(site: Site, key: str) -> Iterator[None]:
    engine = create_engine(site.database_url, poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(select(instance_mapping).where(instance_mapping.c.instance_uuid == key).with_for_update())
        yield
        connection.rollback()


Lock = type(threading.Lock())
RLock = type(threading.RLock())


def locks_of(directory: CellDirectory) -> list[Any]:
    """Return every lock that can be reached from a directory: ours, and those of SQLAlchemy and the drivers."""
    seen, pending, locks = set[int](), list[object]([directory]), list[Any]()
    while pending:
        one = pending.pop()
        if id(one) in seen or isinstance(one, type | ModuleType | FunctionType | threading.Thread):
            continue
        seen.add(id(one))
        if isinstance(one, Lock | RLock):
            locks.append(one)
        pending += gc.get_referents(one)
    assert len(locks) > 5
    return locks


@contextmanager
def another_thread_holds(locks: list[Any]) -> Iterator[None]:
    """Let another thread hold these. What a thread waits on at rest (a queue, an event) is held by nobody for long."""
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with ExitStack() as stack:
            for lock in locks:
                if lock.acquire(timeout=1.0):
                    stack.callback(lock.release)
            held.set()
            let_go.wait(PATIENCE_S)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(PATIENCE_S)
        yield
    finally:
        let_go.set()
        thread.join()
