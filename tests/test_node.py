"""Which connection a node hands to a thread, and when it is tried again: generations, closing, the circuit breaker."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from cellcache.backends.breaker import Breaker
from cellcache.backends.node import Node

LIMIT_S = 5.0
RETRY_S = 1.0


class Connection:
    """One that is never idle for long and never in trouble by itself."""

    def __init__(self) -> None:
        self.generation = -1
        self.closed = False

    def is_idle(self, deadline: float) -> bool:
        return not self.closed

    def limit_next(self, seconds: float) -> None:
        """Nobody waits here."""

    def close(self) -> None:
        self.closed = True


class Scene:
    """A node on a clock of its own; `meanwhile` happens once, while a connection is being made."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.made: list[Connection] = []
        self.meanwhile: Callable[[], object] | None = None
        self.refused = False
        self.dials = 0
        self.node = Node("scripted", self._dial, timeout_s=LIMIT_S, retry_s=RETRY_S)

    def connection(self) -> Connection | None:
        connection: Connection | None = self.node.connection(self.clock.now)
        return connection

    def _dial(self, _within_s: float) -> Connection:
        self.dials += 1
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        if self.refused:
            raise ConnectionRefusedError("nobody is there")
        self.made.append(Connection())
        return self.made[-1]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("node", "breaker"):
        monkeypatch.setattr(f"cellcache.backends.{module}.time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def scene(clock: Clock) -> Scene:
    return Scene(clock)


def test_thread_keeps_its_connection(scene: Scene) -> None:
    connection = scene.connection()
    assert connection is not None
    assert scene.connection() is connection
    assert scene.dials == 1


def test_failure_retires_the_connections_that_were_being_made(scene: Scene) -> None:
    """The server may have started again between the making of one and the failure of another: its tokens are old."""
    with ThreadPoolExecutor(1) as another:
        theirs = another.submit(scene.connection).result()
    assert theirs is not None
    scene.meanwhile = lambda: scene.node.failed(theirs, OSError("no reply"))
    made = scene.connection()
    assert made is not None
    assert scene.connection() is not made
    assert scene.dials == 3


def test_failure_of_an_old_connection_spares_those_made_since(scene: Scene) -> None:
    old = scene.connection()
    assert old is not None
    scene.node.failed(old, OSError("no reply"))
    scene.clock.now += RETRY_S
    new = scene.connection()
    assert new is not None
    scene.node.broke(old, ConnectionResetError("gone"), scene.clock.now - LIMIT_S)  # another thread's, which finds out
    assert scene.connection() is new


def test_connection_that_is_made_while_the_node_closes_is_closed(scene: Scene) -> None:
    scene.meanwhile = scene.node.close
    assert scene.connection() is None
    assert [connection.closed for connection in scene.made] == [True]
    assert scene.connection() is None
    assert scene.dials == 1


def test_close_closes_every_connection(scene: Scene) -> None:
    connection = scene.connection()
    assert connection is not None
    scene.node.close()
    assert connection.closed
    assert scene.connection() is None


def test_one_caller_tries_in_each_interval_while_it_is_down(scene: Scene) -> None:
    scene.refused = True
    for interval in range(3):
        for _ in range(5):
            assert scene.connection() is None
        assert scene.dials == interval + 1
        scene.clock.now += RETRY_S
    scene.refused = False
    assert scene.connection() is not None
    assert scene.dials == 4


def test_the_others_do_not_wait_for_who_tries(clock: Clock) -> None:
    """It may take a time limit to find out that the node is still down."""
    breaker = Breaker(RETRY_S)
    assert breaker.allows()
    breaker.failed()
    assert not breaker.allows()
    clock.now += RETRY_S
    assert [breaker.allows() for _ in range(5)] == [True] + [False] * 4
    clock.now += RETRY_S
    assert [breaker.allows() for _ in range(5)] == [True] + [False] * 4
    breaker.succeeded()
    assert [breaker.allows() for _ in range(5)] == [True] * 5
