"""A server that answers byte by byte: what a lookup waits for it, on a clock of the test's own."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from cellcache import CellDirectory, InstanceNotMapped, Settings
from cellcache.backends.breaker import Breaker
from cellcache.backends.memcached import MemcachedBackend
from cellcache.protocol import Absent, Fill, Lease
from tests.directories import create_tables
from tests.scripted import MemcachedConnection, RedisConnection, memcached, redis

LIMIT_S = 5.0
KEY = "0d4ed1d2-8b8c-4e0a-9a43-3b1f3ad1e4ab"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class DrippingSocket:
    """Sends a byte `first_s` after it was asked and one every `then_s` after that, for ever."""

    def __init__(self, clock: Clock, first_s: float, then_s: float) -> None:
        self._clock = clock
        self._next_s = first_s
        self._then_s = then_s
        self._limit_s = 0.0

    def settimeout(self, seconds: float) -> None:
        self._limit_s = seconds

    def sendall(self, data: bytes) -> None:
        """Take it."""

    def recv(self, _size: int) -> bytes:
        if self._next_s > self._limit_s:
            self._clock.now += self._limit_s
            self._next_s -= self._limit_s
            raise TimeoutError
        self._clock.now += self._next_s
        self._next_s = self._then_s
        return b"V" if self._then_s else b""

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("stream", "redis", "node"):
        monkeypatch.setattr(f"cellcache.backends.{module}.time", SimpleNamespace(monotonic=clock.monotonic))
    monkeypatch.setattr("cellcache.backends.memcached.monotonic", clock.monotonic)
    return clock


def backend_over(kind: str, sock: Any) -> Any:
    connections = iter([(MemcachedConnection if kind == "memcached" else RedisConnection)(sock, LIMIT_S)])

    def dial(_within_s: float) -> Any:
        for connection in connections:
            return connection
        raise ConnectionRefusedError("no second connection")

    backend: Any = (memcached if kind == "memcached" else redis)()[0]
    node = backend._nodes[0] if kind == "memcached" else backend._node
    node._dial = dial
    return backend


@pytest.mark.parametrize("kind", ["memcached", "redis"])
@pytest.mark.parametrize("at_once", [1, 5])
@pytest.mark.parametrize(
    ("first_s", "then_s"),
    [(100.0, 1.0), (0.1, 100.0), (0.98 * LIMIT_S, 0.9 * LIMIT_S), (0.98 * LIMIT_S, 0.0005), (0.01, 0.01)],
    ids=["never", "once", "late and slowly", "late and fast", "slowly"],
)
def test_a_dripping_reply_costs_little_more_than_the_limit(
    kind: str, at_once: int, first_s: float, then_s: float, clock: Clock
) -> None:
    backend = backend_over(kind, DrippingSocket(clock, first_s, then_s))
    began = clock.now
    assert backend.lookup_multi([KEY] * at_once) == [Absent.UNREACHABLE] * at_once
    assert clock.now - began <= 1.1 * LIMIT_S + 0.01
    assert backend.errors == 1


@pytest.mark.parametrize("kind", ["memcached", "redis"])
@pytest.mark.parametrize(
    ("first_s", "then_s"), [(0.98 * LIMIT_S, 0.9 * LIMIT_S), (0.98 * LIMIT_S, 0.0005), (0.01, 0.01)]
)
def test_so_does_one_to_a_single_lookup(kind: str, first_s: float, then_s: float, clock: Clock) -> None:
    backend = backend_over(kind, DrippingSocket(clock, first_s, then_s))
    began = clock.now
    assert backend.lookup(KEY) is Absent.UNREACHABLE
    assert clock.now - began <= 1.1 * LIMIT_S + 0.01


@pytest.mark.parametrize("at_once", [0, 1, 5])
@pytest.mark.parametrize("kind", ["memcached", "redis"])
def test_a_server_that_hangs_up_late_is_not_asked_again(kind: str, at_once: int, clock: Clock) -> None:
    backend = backend_over(kind, DrippingSocket(clock, 0.9 * LIMIT_S, 0.0))
    began = clock.now
    assert (backend.lookup_multi([KEY] * at_once) if at_once else [backend.lookup(KEY)])[0] is Absent.UNREACHABLE
    assert clock.now - began <= LIMIT_S
    assert backend.errors == 1  # which a second try, refused, would have made two


# -- what means nothing ------------------------------------------------------------------------------------------------


class GarbageSocket:
    """Answers each request with garbage that has changed, so long after it was asked."""

    def __init__(self, clock: Clock, kind: str, late_s: float) -> None:
        self.asked = 0
        self._clock = clock
        self._kind = kind
        self._late_s = late_s
        self._limit_s = 0.0
        self._replies = b""

    def settimeout(self, seconds: float) -> None:
        self._limit_s = seconds

    def sendall(self, data: bytes) -> None:
        if self._kind == "redis":
            script = b"EVALSHA" in data
            self._replies += b":1\r\n" if script else b"$-1\r\n$3\r\nbad\r\n" * data.count(b"GETRANGE")
            self.asked += 1
            return
        for line in data.splitlines():
            self.asked += 1
            tag = next(word for word in line.split() if word.startswith(b"O"))
            changed = b"EX %b\r\n" % tag if line.startswith(b"md") else b"VA 3 %b c%d\r\nbad\r\n" % (tag, self.asked)
            self._replies += changed

    def recv(self, _size: int) -> bytes:
        late_s = min(self._late_s, self._limit_s)
        self._clock.now += late_s
        if late_s < self._late_s:
            raise TimeoutError
        replies, self._replies = self._replies, b""
        return replies

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def directory(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CellDirectory]:
    """One whose lookups go by the test's clock; its cache is put in by the test."""
    url = f"sqlite:///{tmp_path / 'cellcache.db'}"
    create_tables(url)
    monkeypatch.setattr("cellcache.directory.monotonic", clock.monotonic)
    monkeypatch.setattr("cellcache.read_through.time", SimpleNamespace(monotonic=clock.monotonic, sleep=clock.sleep))
    cache = {"backend": "cellcache.memcached", "servers": ["scripted:1"], "timeout_s": LIMIT_S, "lease_ttl_s": 9.0}
    with CellDirectory(Settings(database={"url": url}, cache=cache)) as directory:
        yield directory


def put_in(directory: CellDirectory, backend: Any) -> None:
    (getattr(backend, "_node", None) or backend._nodes[0])._pool().breaker = Breaker(3600.0)
    directory._here().backend = directory._here().read_through._backend = backend
    directory._here().lookup = backend.lookup


@pytest.mark.parametrize("kind", ["memcached", "redis"])
@pytest.mark.parametrize("bulk", [False, True], ids=["single", "bulk"])
@pytest.mark.parametrize("late", [0.0, 0.2, 0.45, 0.95])
def test_a_server_whose_garbage_changes_costs_little_more_than_the_limit_however_late(
    kind: str, bulk: bool, late: float, clock: Clock, directory: CellDirectory
) -> None:
    sock = GarbageSocket(clock, kind, late * LIMIT_S)
    put_in(directory, backend_over(kind, sock))
    began = clock.now
    for _ in range(20):
        if bulk:
            assert directory.resolve_cells([KEY]) == {}
        else:
            with pytest.raises(InstanceNotMapped):
                directory.resolve_cell(KEY)
        assert sock.asked <= 4, "two looks, a removal, and a look for the lease"
        assert clock.now - began <= 1.3 * LIMIT_S
        assert directory._here().backend.errors == (1 if late > 0.4 and (late > 0.9 or kind == "memcached") else 0)
        began, sock.asked = clock.now, 0


# -- connecting counts too -------------------------------------------------------------------------------------------


class MuteSocket(DrippingSocket):
    """Takes requests and never answers."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock, first_s=float("inf"), then_s=0.0)

    def recv(self, _size: int) -> bytes:
        self._clock.now += self._limit_s
        raise TimeoutError


def dialled_in(seconds: float, clock: Clock, kind: str) -> Callable[[float], Any]:
    """Connections that take so long to make, over which nothing is ever answered."""

    def dial(within_s: float) -> Any:
        clock.now += min(seconds, within_s)
        if seconds > within_s:
            raise TimeoutError
        return (MemcachedConnection if kind == "memcached" else RedisConnection)(MuteSocket(clock), LIMIT_S)

    return dial


@pytest.mark.parametrize("kind", ["memcached", "redis"])
@pytest.mark.parametrize("at_once", [0, 1, 5])
@pytest.mark.parametrize("seconds", [0.1 * LIMIT_S, 0.45 * LIMIT_S, 0.7 * LIMIT_S, 9 * LIMIT_S])
def test_connecting_and_asking_stay_within_one_limit(kind: str, at_once: int, seconds: float, clock: Clock) -> None:
    backend: Any = (memcached if kind == "memcached" else redis)()[0]
    node = backend._nodes[0] if kind == "memcached" else backend._node
    node._dial = dialled_in(seconds, clock, kind)
    began = clock.now
    assert (backend.lookup_multi([KEY] * at_once) if at_once else [backend.lookup(KEY)])[0] is Absent.UNREACHABLE
    assert clock.now - began <= LIMIT_S * 1.001


@pytest.mark.parametrize("seconds", [0.0, 0.2 * LIMIT_S, 0.45 * LIMIT_S, 0.7 * LIMIT_S, 9 * LIMIT_S])
def test_so_does_a_bulk_lookup_on_many_nodes_that_are_all_in_trouble(seconds: float, clock: Clock) -> None:
    backend: Any = MemcachedBackend({"servers": [f"scripted:{n}" for n in range(1, 9)], "timeout_s": LIMIT_S})
    for node in backend._nodes:
        node._dial = dialled_in(seconds, clock, "memcached")
    keys = [str(UUID(int=number)) for number in range(100)]
    began = clock.now
    assert set(backend.lookup_multi(keys)) == {Absent.UNREACHABLE}
    assert clock.now - began <= LIMIT_S * 1.01  # a millisecond for each node at the end


@pytest.mark.parametrize("nodes", [1, 8])
@pytest.mark.parametrize("request_", ["lookup", "lookup_multi", "fence_multi"])
def test_a_fill_that_is_not_answered_costs_the_next_request_one_limit(nodes: int, request_: str, clock: Clock) -> None:
    backend: Any = MemcachedBackend({"servers": [f"scripted:{n}" for n in range(1, nodes + 1)], "timeout_s": LIMIT_S})
    for node in backend._nodes:
        node._dial = dialled_in(0.0, clock, "memcached")
    keys = [str(UUID(int=number)) for number in range(100)]
    for node in backend._nodes:
        node.give_back(node.take(clock.now))
    began = clock.now
    backend.send_fills([Fill(key, Lease(b"1", began), b"value", 60.0) for key in keys], _ignore, wait=False)
    assert clock.now == began
    getattr(backend, request_)(keys[0] if request_ == "lookup" else keys)
    assert clock.now - began <= LIMIT_S * 1.01
    assert backend.errors == (1 if request_ == "lookup" else nodes)


def _ignore(_refused: int) -> None:
    """Nobody asks."""


@pytest.mark.parametrize("kind", ["memcached", "redis"])
def test_what_is_left_after_connecting_limits_only_the_first_request(kind: str, clock: Clock) -> None:
    backend: Any = (memcached if kind == "memcached" else redis)()[0]
    node = backend._nodes[0] if kind == "memcached" else backend._node
    node._dial = dialled_in(0.4 * LIMIT_S, clock, kind)
    connection = node.take(clock.now)
    assert connection._sock._limit_s == pytest.approx(0.6 * LIMIT_S)
    with pytest.raises(TimeoutError):
        connection.recv(512)
    assert connection._sock._limit_s == LIMIT_S
    assert connection.recv == connection._sock.recv


@pytest.mark.parametrize("kind", ["memcached", "redis"])
def test_a_connection_that_its_caller_forgets_is_gone_at_once(kind: str, clock: Clock) -> None:
    """An interrupted one, for instance: nobody reads its reply, and the socket is no more."""
    backend: Any = (memcached if kind == "memcached" else redis)()[0]
    node = backend._nodes[0] if kind == "memcached" else backend._node
    node._dial = dialled_in(0.0, clock, kind)
    taken = node.take(clock.now)
    connection = weakref.ref(taken)
    assert connection() is not None
    del taken
    assert connection() is None
