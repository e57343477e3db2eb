"""Ctrl-C, or a time-out that gevent or a signal raises: the request is on its way, and its reply may yet come.

Whoever was interrupted goes on to ask something else, and must not be given that reply for an answer.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cellcache.codec import encode
from cellcache.protocol import Fill, Settlement
from tests.caches import Backend, Cache, cache_on, fenced, leased, new_key
from tests.directories import HERE as CELL
from tests.directories import THERE as ANOTHER
from tests.directories import new_uuids, open_site
from tests.servers import DatabaseServer, Memcached, Redis

HERE, THERE = encode("0" * 32), encode("1" * 32)
SOON_S = 0.1


class Interrupted(BaseException):
    """What the signal raises."""


def _hit(backend: Backend, key: str) -> Callable[[], object]:
    backend.store_multi({key: HERE})
    return lambda: backend.lookup(key)


def _fill(backend: Backend, key: str) -> Callable[[], object]:
    fill = Fill(key, leased(backend, key), HERE, 60)
    return lambda: backend.fill_multi([fill])


def _settle(backend: Backend, key: str) -> Callable[[], object]:
    settlement = Settlement(key, fenced(backend, key), HERE, 60)
    return lambda: backend.settle_multi([settlement])


def _send_fills_and_look(backend: Backend, key: str) -> Callable[[], object]:
    fill = Fill(key, leased(backend, key), HERE, 60)

    def send_and_look() -> None:
        backend.send_fills([fill], lambda _: None, wait=False)
        backend.fence_multi([new_key()])  # which reads the reply to the fill first

    return send_and_look


REQUESTS: dict[str, Callable[[Any, str], Callable[[], object]]] = {
    "hit": _hit,
    "lookup": lambda backend, key: lambda: backend.lookup(key),
    "lookup of many": lambda backend, key: lambda: backend.lookup_multi([key, new_key(), new_key()]),
    "peek": lambda backend, key: lambda: backend.peek_multi([key]),
    "fill": _fill,
    "fence": lambda backend, key: lambda: backend.fence_multi([key, new_key()]),
    "settle": _settle,
    "invalidate": lambda backend, key: lambda: backend.invalidate_multi([key]),
    "store": lambda backend, key: lambda: backend.store_multi({key: HERE}),
    "a fill that nobody waits for": _send_fills_and_look,
}


@pytest.fixture
def cache(cache_server: Memcached | Redis) -> Iterator[Cache]:
    cache = cache_on(cache_server)
    yield cache
    cache.close()


def interrupt(call: Callable[[], object]) -> None:
    """Make a call that waits for a stopped server, and interrupt it there."""

    def handler(_signal: int, _frame: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, handler)
    timer = threading.Timer(SOON_S, lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1))
    timer.start()
    try:
        with pytest.raises(Interrupted):
            call()
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("name", REQUESTS)
def test_who_is_interrupted_gets_no_answer_to_an_earlier_question(
    cache_server: Memcached | Redis, cache: Cache, name: str
) -> None:
    backend = cache.backend()
    asked, present, other = new_key(), new_key(), new_key()
    for key, value in ((present, THERE), (other, HERE)):
        assert backend.settle_multi([Settlement(key, fenced(backend, key), value, 60)]) == [True]
    call = REQUESTS[name](backend, asked)
    cache_server.suspend()
    interrupt(call)
    cache_server.resume()
    cache.backend().lookup(new_key())  # by now the reply is there
    assert backend.lookup(present) == THERE
    assert backend.lookup_multi([other, present]) == [HERE, THERE]
    assert backend.lookup(other) == HERE
    assert backend.errors == 0  # an interruption is no fault of the server's: nobody else goes without it


@pytest.mark.parametrize("bulk", [False, True], ids=["single", "bulk"])
@pytest.mark.parametrize("database", ["mariadb", "postgresql"])
def test_nor_does_who_is_interrupted_in_a_miss(
    request: pytest.FixtureRequest, tmp_path: Path, database: str, bulk: bool
) -> None:
    server: DatabaseServer = request.getfixturevalue(database)
    with open_site(request, tmp_path, "memory", database) as site:
        directory = site.open(database={"pool_size": 1})
        here, there = new_uuids(2)
        directory.map_instances([(here, CELL, "project"), (there, ANOTHER, "project")])
        for _ in range(3):
            site.cache.evict(here)
            site.cache.evict(there)
            server.suspend()
            interrupt(lambda: directory.resolve_cells([here]) if bulk else directory.resolve_cell(here))
            server.resume()
            assert directory.resolve_cell(there).uuid == ANOTHER
            assert directory.resolve_cells([here, there])[here].uuid == CELL
