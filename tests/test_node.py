"""Which connection a node lends to a request, and when it is tried again: a pool, generations, the circuit breaker."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cellcache.backends.breaker import Breaker
from cellcache.backends.node import Node

LIMIT_S = 5.0
RETRY_S = 1.0


class Connection:
    """One that is in no trouble by itself; `hung_up` says that its server has ended it meanwhile."""

    def __init__(self) -> None:
        self.generation: object = None
        self.made_at = 0.0
        self.hung_up = False
        self.closed = False

    def is_idle(self, deadline: float) -> bool:
        return not (self.closed or self.hung_up)

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

    def take(self) -> Connection | None:
        connection: Connection | None = self.node.take(self.clock.now)
        return connection

    def taken(self) -> Connection:
        """Take one that must be there; a moment passes, so that each is older than the next."""
        connection = self.take()
        assert connection is not None
        self.clock.now += 0.1
        return connection

    def take_older(self, asked_at: float) -> Connection | None:
        connection: Connection | None = self.node.take_older(asked_at, self.clock.now)
        return connection

    def three(self) -> list[Connection]:
        """Return three that are free, the eldest first; the youngest was given back last."""
        connections = [self.taken() for _ in range(3)]
        for connection in connections:
            self.node.give_back(connection)
        return connections

    def fail(self) -> None:
        """Let a connection fail that is taken, which retires all; then wait until the node is tried again."""
        connection = self.taken()
        self.node.failed(connection, OSError("no reply"))
        self.clock.now += RETRY_S

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


def test_connection_that_was_given_back_serves_the_next(scene: Scene) -> None:
    connection = scene.taken()
    scene.node.give_back(connection)
    assert scene.taken() is connection
    assert scene.dials == 1


def test_who_comes_in_between_takes_another(scene: Scene) -> None:
    """A signal handler, a finalizer, a greenlet: none of them reads the reply that its thread waits for."""
    connections = [scene.taken() for _ in range(3)]
    assert len(set(connections)) == scene.dials == 3


def test_last_given_back_is_the_first_taken(scene: Scene) -> None:
    eldest, middle, youngest = scene.three()
    assert [scene.taken() for _ in range(3)] == [youngest, middle, eldest]
    for connection in (youngest, eldest, middle):
        scene.node.give_back(connection)
    assert [scene.taken() for _ in range(3)] == [middle, eldest, youngest]
    assert scene.dials == 3


def test_connection_that_its_caller_forgets_is_in_nobodys_way(scene: Scene) -> None:
    """An interrupted caller gives nothing back: its reply may yet come."""
    scene.taken()
    assert scene.taken() is scene.made[1]


# -- one that has been idle -----------------------------------------------------------------------------------------


def test_connection_that_the_server_has_ended_is_not_taken_for_what_is_not_asked_twice(scene: Scene) -> None:
    """Nor are the others that were free then: a server that has restarted has ended them all."""
    connections = scene.three()
    connections[-1].hung_up = True
    new = scene.node.take_idle(scene.clock.now)
    assert new is scene.made[3]
    assert all(connection.closed for connection in connections)
    assert scene.node.errors == 0  # the server has failed nobody


def test_new_connection_is_not_looked_at(scene: Scene) -> None:
    new = scene.node.take_idle(scene.clock.now)
    assert new is scene.made[0]


# -- tokens: only over what is older than they are ------------------------------------------------------------------


def test_older_connection_is_found_beneath_younger_ones_which_stay(scene: Scene) -> None:
    eldest, middle, youngest = scene.three()
    assert scene.take_older(eldest.made_at) is eldest
    assert [scene.taken(), scene.taken()] == [youngest, middle]  # in the order in which they were given back
    assert scene.dials == 3


def test_the_last_given_back_of_those_that_are_old_enough_is_taken(scene: Scene) -> None:
    _, middle, youngest = scene.three()
    assert scene.take_older(middle.made_at + 0.05) is middle
    assert scene.take_older(scene.clock.now) is youngest


def test_no_connection_is_made_for_a_token_that_is_older_than_all(scene: Scene) -> None:
    connections = scene.three()
    assert scene.take_older(connections[0].made_at - 0.01) is None
    assert [scene.taken() for _ in range(3)] == connections[::-1]
    assert scene.dials == 3


def test_older_connection_that_the_server_has_ended_is_closed_and_retires_the_rest(scene: Scene) -> None:
    eldest, middle, youngest = scene.three()
    middle.hung_up = True
    assert scene.take_older(middle.made_at) is None
    assert middle.closed
    assert scene.taken() is scene.made[3]
    assert eldest.closed
    assert youngest.closed


class Bell:
    """Waits on the test's clock for a connection to be given back; `meanwhile` happens once."""

    def __init__(self, clock: Clock, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.waited_s = 0.0
        self._clock = clock
        self._meanwhile = meanwhile

    def wait(self, limit_s: float) -> None:
        self.waited_s += limit_s
        self._clock.now += limit_s
        meanwhile, self._meanwhile = self._meanwhile, lambda: None
        meanwhile()

    def wake(self) -> None:
        """Nobody but the test waits."""


def bell_of(scene: Scene, meanwhile: Callable[[], object] = lambda: None) -> Bell:
    bell: Any = Bell(scene.clock, meanwhile)
    scene.node._pool().given_back = bell
    return cast("Bell", bell)


def test_token_waits_a_moment_for_an_older_connection_that_is_in_use(scene: Scene) -> None:
    """The pool has just grown, and its eldest serve others: a lease that is not filled would stand until it ends."""
    eldest, _middle, youngest = (scene.taken() for _ in range(3))
    scene.node.give_back(youngest)
    bell_of(scene, lambda: scene.node.give_back(eldest))
    assert scene.take_older(eldest.made_at) is eldest
    assert scene.taken() is youngest


def test_token_does_not_wait_for_long(scene: Scene) -> None:
    eldest, youngest = scene.taken(), scene.taken()
    scene.node.give_back(youngest)
    bell = bell_of(scene)
    assert scene.take_older(eldest.made_at) is None
    assert 0 < bell.waited_s < LIMIT_S / 100


def test_token_waits_for_no_connection_that_is_gone_retired_or_younger(scene: Scene) -> None:
    scene.taken()
    scene.made.clear()  # its caller was interrupted, and has forgotten it
    bell = bell_of(scene)
    assert scene.take_older(scene.clock.now) is None
    retired = scene.taken()
    scene.fail()
    assert scene.take_older(retired.made_at) is None
    youngest = scene.taken()
    assert scene.take_older(youngest.made_at - 0.01) is None
    assert bell.waited_s == 0


# -- generations ----------------------------------------------------------------------------------------------------


def test_failure_retires_those_that_are_free(scene: Scene) -> None:
    connections = scene.three()
    scene.fail()
    assert scene.taken() is scene.made[3]
    assert all(connection.closed for connection in connections)


def test_failure_retires_those_that_are_in_use(scene: Scene) -> None:
    in_use = scene.taken()
    scene.fail()
    scene.node.give_back(in_use)
    assert in_use.closed
    assert scene.taken() is scene.made[2]


def test_retired_connection_is_taken_for_no_token(scene: Scene) -> None:
    connections = scene.three()
    scene.fail()
    assert scene.take_older(scene.clock.now) is None
    assert all(connection.closed for connection in connections)


def test_failure_retires_the_connections_that_were_being_made(scene: Scene) -> None:
    """The server may have started again between the making of one and the failure of another."""
    theirs = scene.taken()
    scene.meanwhile = lambda: scene.node.failed(theirs, OSError("no reply"))
    made = scene.taken()
    scene.node.give_back(made)
    assert scene.taken() is not made
    assert made.closed
    assert scene.dials == 3


def test_failure_of_an_old_connection_spares_those_made_since(scene: Scene) -> None:
    old = scene.taken()
    scene.node.failed(old, OSError("no reply"))
    scene.clock.now += RETRY_S
    new = scene.taken()
    scene.node.give_back(new)
    scene.node.broke(old, ConnectionResetError("gone"), scene.clock.now - LIMIT_S)  # another thread's, which finds out
    assert scene.taken() is new


def test_connection_of_a_parent_is_neither_taken_nor_closed_in_its_child(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that Python is not told of has nothing to know it by but its process id."""
    parents = scene.three()
    scene.node.count_errors(5)
    monkeypatch.setattr("cellcache.per_process.getpid", lambda: -1)
    assert scene.take_older(scene.clock.now) is None
    child = scene.taken()
    assert child is scene.made[3]
    scene.node.give_back(child)
    assert scene.node.take_idle(scene.clock.now) is child
    assert scene.node.errors == 0
    scene.node.close()
    assert not any(connection.closed for connection in parents)


def test_connection_that_was_in_use_at_a_fork_is_not_given_to_the_childs_callers(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a signal handler forks in the midst of a lookup, both processes come to its end."""
    parents = scene.taken()
    monkeypatch.setattr("cellcache.per_process.getpid", lambda: -1)
    scene.node.give_back(parents)
    assert scene.taken() is scene.made[1]


def test_child_tries_a_node_that_was_down_for_its_parent(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.refused = True
    assert scene.take() is None
    assert scene.take() is None
    assert scene.dials == 1
    monkeypatch.setattr("cellcache.per_process.getpid", lambda: -1)
    assert scene.take() is None
    assert scene.dials == 2


# -- closing --------------------------------------------------------------------------------------------------------


def test_connection_that_is_made_while_the_node_closes_is_closed(scene: Scene) -> None:
    scene.meanwhile = scene.node.close
    made = scene.take()
    if made is not None:
        scene.node.give_back(made)
    assert [connection.closed for connection in scene.made] == [True]
    assert scene.take() is None
    assert scene.dials == 1


def test_close_closes_those_that_are_free_and_the_others_when_they_are_given_back(scene: Scene) -> None:
    in_use, free = scene.taken(), scene.taken()
    scene.node.give_back(free)
    scene.node.close()
    assert (free.closed, in_use.closed) == (True, False)
    scene.node.give_back(in_use)
    assert in_use.closed
    assert scene.take() is None
    assert scene.take_older(scene.clock.now) is None
    assert scene.dials == 2


# -- the circuit breaker --------------------------------------------------------------------------------------------


def test_one_caller_tries_in_each_interval_while_it_is_down(scene: Scene) -> None:
    scene.refused = True
    for interval in range(3):
        for _ in range(5):
            assert scene.take() is None
        assert scene.dials == interval + 1
        scene.clock.now += RETRY_S
    scene.refused = False
    assert scene.take() is not None
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
