"""An interruption at every line of ours: what it leaves behind.

It is what a time-out of gevent's, a soft time limit or Ctrl-C is: an exception that is nobody's fault, at any moment.
Its own caller pays for it. Nobody else may: no answer is wrong, no instance stays unresolvable, no connection goes back
inside a transaction, no place in a pool is lost, no lock is held, and what must be delivered is.
"""

from __future__ import annotations

import gc
import linecache
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from sqlalchemy import text

from cellcache import CellCacheError, CellDirectory, InstanceNotMapped
from cellcache.codec import decode
from tests.directories import HERE, THERE, Site, new_uuids, open_site

PROJECT = "project-1"
PATIENCE_S = 20.0
POOL = 2
EVERY = int(os.environ.get("INTERRUPT_EVERY", "15"))  # 1 takes minutes; each call begins with another line


class Interrupted(BaseException):
    """It comes from outside."""


class AtLine:
    """Interrupts this thread once, at the n-th line of ours that it runs.

    Not where a `with` block is left: the interpreter, which looks for what comes from outside after calls and at jumps
    back, does not do so between the last call of the block and that of `__exit__`.
    """

    def __init__(self, number: int) -> None:
        self._left = number
        self._inside: dict[FrameType, set[int]] = {}

    def __enter__(self) -> AtLine:
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)
        self._inside.clear()  # frames hold what they were interrupted with

    @property
    def reached(self) -> bool:
        return self._left == 0

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if self._left == 0 or not frame.f_globals.get("__name__", "").startswith("cellcache"):
            return None
        if event == "line" and not self._leaves_a_block(frame):
            self._left -= 1
            if self._left == 0:
                raise Interrupted(f"{frame.f_code.co_filename}:{frame.f_lineno}")
        return self._trace

    def _leaves_a_block(self, frame: FrameType) -> bool:
        entered = self._inside.setdefault(frame, set())
        if frame.f_lineno in entered:
            return True
        if linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith(("with ", "async with ")):
            entered.add(frame.f_lineno)
        return False


@pytest.fixture(params=["memory", "fakeredis"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, request.param) as site:
        yield site


@pytest.fixture(params=[pytest.param("memcached", marks=pytest.mark.needs("memcached")), "fakeredis"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, request.param) as site:
        yield site


def miss(site: Site, directory: CellDirectory, key: str) -> None:
    site.cache.evict(key)
    directory.resolve_cell(key)


def hit(_: Site, directory: CellDirectory, key: str) -> None:
    directory.resolve_cell(key)


def bulk(site: Site, directory: CellDirectory, key: str) -> None:
    site.cache.evict(key)
    directory.resolve_cells([key, *new_uuids(2)])


def move(_: Site, directory: CellDirectory, key: str) -> None:
    directory.move_instance(key, THERE)
    directory.move_instance(key, HERE)


def prune_and_map(_: Site, directory: CellDirectory, key: str) -> None:
    directory.prune([key])
    directory.map_instance(key, HERE, PROJECT)


def map_many(_: Site, directory: CellDirectory, key: str) -> None:
    directory.map_instances([(key, HERE, PROJECT), *((one, THERE, PROJECT) for one in new_uuids(2))])


def background_pass(_: Site, directory: CellDirectory, key: str) -> None:
    directory._here().store.add_invalidation([key], 0.0)
    directory._here().maintenance._pass(hurry=True)


CALLS: dict[str, Callable[[Site, CellDirectory, str], None]] = {
    "hit": hit,
    "miss": miss,
    "bulk": bulk,
    "move": move,
    "prune and map": prune_and_map,
    "map many": map_many,
    "background pass": background_pass,
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_left_behind_by_who_is_interrupted_at_any_line(shared: Site, name: str) -> None:
    directory = shared.open(database={"pool_size": POOL})
    other = shared.open()
    key = new_uuids(1)[0]
    directory.map_instance(key, HERE, PROJECT)
    CALLS[name](shared, directory, key)  # whatever is made once has been made
    number, reached = list(CALLS).index(name) % EVERY + 1 - EVERY, True
    while reached:
        number += EVERY
        with AtLine(number) as line:
            try:
                CALLS[name](shared, directory, key)
            except Interrupted:
                pass
            except CellCacheError:
                assert name in {"move", "prune and map"}  # it was interrupted between its two parts once before
        reached = line.reached
        _judge(shared, directory, other, key, f"interrupted at line {number}")
    assert number > 5


def _judge(site: Site, directory: CellDirectory, other: CellDirectory, key: str, where: str) -> None:
    gc.collect()  # a connection may be left in a circle; who waits for it in vain does this, too
    now = site.table().get(key)
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(_cell_of, directory, key).result(PATIENCE_S) == now, where
    assert _cell_of(directory, key) == now, where
    assert _cell_of(other, key) == now, where
    stands = site.cache.backend().peek_multi([key])[0]
    assert not isinstance(stands, bytes) or decode(stands) == now, where
    for engine in (directory._here().store._reading, directory._here().store._writing):
        held = [engine.connect() for _ in range(POOL)]
        for connection in held:
            connection.execute(text("SELECT 1"))
            connection.close()
    if now is None:
        directory.map_instance(key, HERE, PROJECT)
    elif now != HERE:
        directory.move_instance(key, HERE)
    for _ in range(5):  # another row may come due after the delivery: its writer was interrupted ten seconds ago
        directory.deliver_invalidations()
        if not directory.waiting_invalidations().count:
            return
    pytest.fail(f"invalidations wait on: {where}")


def _cell_of(directory: CellDirectory, key: str) -> str | None:
    try:
        return directory.resolve_cell(key).uuid
    except InstanceNotMapped:
        return None
