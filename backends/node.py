"""One cache server as this process sees it: a pool of connections to it, and whether to try at all.

A connection is one request's from its taking until its reply is read. Whoever comes in between takes another: another
thread or greenlet, a signal handler, a finalizer. It is given back when it is clean, so that an interrupted caller,
whose reply may yet come, does nothing but forget it: a connection that nobody has closes itself.

A connection belongs to one generation of the node. Any failed request begins a new one, which retires the others too:
after a restart they are all dead, and were each caller to find that out for himself, each would open the breaker once
more.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

from cellcache.counter import Counter
from cellcache.errors import BackendUnsupported
from cellcache.event import Event
from cellcache.per_process import PerProcess

from .breaker import Breaker
from .stream import reason

log = logging.getLogger("cellcache.backends")

_PAUSE_S = 0.5  # longer than any server takes to free one value
_WAITS_S = 0.01  # as long as a request takes that is not in trouble
_LOOK_AGAIN_S = 0.005  # whom a connection was given back for may have been interrupted


class Pooled(Protocol):
    """What a node must know of a connection to its server."""

    generation: object
    made_at: float
    """When it was ready, on the monotonic clock: see `protocol.Lease` for what that is worth."""

    def is_idle(self, deadline: float) -> bool: ...

    def limit_next(self, seconds: float) -> None: ...

    def close(self) -> None: ...


Connection = TypeVar("Connection", bound=Pooled)


class _Pool(Generic[Connection]):
    """What one process has of a node."""

    def __init__(self, retry_s: float) -> None:
        self.free: deque[Connection] = deque()
        self.given_back = Event()  # never set, but rung
        self.made: dict[int, weakref.ref[Connection]] = {}
        self.breaker = Breaker(retry_s)
        self.generation = object()
        self.errors = Counter()
        self.pause_ends_at = 0.0

    def add(self, connection: Connection) -> None:
        self.made[id(connection)] = weakref.ref(connection)
        for key, made in list(self.made.items()):
            if made() is None:
                self.made.pop(key, None)

    def has_older(self, asked_at: float) -> bool:
        """Return whether a connection that is good for a token of then is lent to somebody."""
        alive = [connection for made in list(self.made.values()) if (connection := made()) is not None]
        return any(one.generation is self.generation and one.made_at <= asked_at for one in alive)


class Node(Generic[Connection]):
    """Hands each request a connection, or None while the node is not to be tried.

    `dial` makes one within so many seconds. `began` is when the caller began to wait, on the monotonic clock:
    connecting and asking, and connecting to several nodes, together stay within one time limit.
    """

    def __init__(self, name: str, dial: Callable[[float], Connection], *, timeout_s: float, retry_s: float) -> None:
        self.name = name
        self._dial = dial
        self._timeout_s = timeout_s
        self._pools: PerProcess[_Pool[Connection]] = PerProcess(lambda: _Pool(retry_s))
        self._pool = self._pools.get
        self._closed = False

    @property
    def errors(self) -> int:
        return self._pool().errors.value

    def count_errors(self, number: int) -> None:
        if number:
            self._pool().errors.add_many(number)

    def take(self, began: float) -> Connection | None:
        """Return a connection that is the caller's until it gives it back; a new one if need be.

        None while the node is down, and where less than half of the time limit is left, before connecting or after: the
        next caller connects, or finds it made.
        """
        pool = self._pool()
        while pool.free:
            try:
                connection = pool.free.pop()
            except IndexError:  # another was faster
                break
            if connection.generation is pool.generation:
                return connection
            connection.close()
        return self._connect(began)

    def take_idle(self, began: float) -> Connection | None:
        """The same, but never one that the server has closed since: for requests that are not asked twice."""
        while (connection := self.take(began)) is not None:
            if connection.made_at >= began or self._is_idle(connection, began):
                return connection
        return None

    def take_older(self, asked_at: float, began: float) -> Connection | None:
        """Return an idle connection that was made by `asked_at`: over any other a token of then means nothing.

        Where those that are old enough are all in use, as when a process begins, wait a moment for one.
        """
        pool = self._pool()
        while True:
            found = self._pop_older(pool, asked_at, began)
            left_s = began + _WAITS_S - time.monotonic()
            if found is not None or left_s <= 0 or not pool.has_older(asked_at):
                return found
            pool.given_back.wait(min(left_s, _LOOK_AGAIN_S))

    def _pop_older(self, pool: _Pool[Connection], asked_at: float, began: float) -> Connection | None:
        younger: list[Connection] = []
        found: Connection | None = None
        while found is None and pool.free:
            try:
                connection = pool.free.pop()
            except IndexError:
                break
            if connection.generation is not pool.generation:
                connection.close()
            elif connection.made_at > asked_at:
                younger.append(connection)
            elif self._is_idle(connection, began):
                found = connection
        pool.free.extend(reversed(younger))
        return found

    def give_back(self, connection: Connection) -> None:
        """Let others have a connection whose every reply has been read, or is owed to nobody but the next request."""
        pool = self._pool()
        if connection.generation is not pool.generation:
            connection.close()
            return
        pool.free.append(connection)
        pool.given_back.wake()

    def failed(self, connection: Connection, error: OSError) -> None:
        """Close a connection that did not do what was asked, retire all others, and let the node rest a while."""
        pool = self._pool()
        if time.monotonic() < pool.pause_ends_at:
            pool.errors.add()
            connection.close()
            return
        self._retire(connection)
        self._rest(error)

    def expect_pause(self) -> None:
        """Blame the node for no failure of the next moments: it frees what somebody else has stored, of any size."""
        self._pool().pause_ends_at = time.monotonic() + _PAUSE_S

    def broke(self, connection: Connection, error: OSError, began: float) -> Connection | None:
        """Replace a connection that broke so soon after a request that it had most likely been closed before it.

        One that kept its caller waiting is a failure of the node: to ask again would double the wait.
        """
        self._retire(connection)
        if time.monotonic() - began < self._timeout_s / 4:
            return self._connect(began)
        self._rest(error)
        return None

    def check(self) -> Connection:
        """Return a new connection of the caller's own, past the breaker; raises as Connection does."""
        return self._dial(self._timeout_s)

    def close(self) -> None:
        """Close the connections that are free now, and those in use when they are given back."""
        self._closed = True
        pool = self._pool()
        pool.generation, free = object(), pool.free
        while free:
            with suppress(IndexError):
                free.pop().close()

    def _is_idle(self, connection: Connection, began: float) -> bool:
        """Return whether nothing is to be read from it; close it where that is the end, or what should not be."""
        try:
            if connection.is_idle(began + self._timeout_s):
                return True
        except ConnectionError as error:
            if time.monotonic() - began >= self._timeout_s / 4:
                self._rest(error)
        except OSError as error:
            self._rest(error)
        self._retire(connection)
        return False

    def _connect(self, began: float) -> Connection | None:
        pool = self._pool()
        left_s = self._left_s(began)
        if self._closed or left_s < self._timeout_s / 2 or not pool.breaker.allows():
            return None
        generation = pool.generation  # a failure while this one is being made retires it, too
        try:
            connection = self._dial(left_s)
        except BackendUnsupported as error:
            self._rest(error)
            return None
        except OSError as error:
            self._rest(error)
            return None
        connection.generation, connection.made_at = generation, time.monotonic()
        pool.add(connection)
        if not pool.breaker.closed:
            pool.breaker.succeeded()
            log.info("cache server %s answers again", self.name)
        left_s = self._left_s(began)
        connection.limit_next(left_s)
        if left_s > self._timeout_s / 2:
            return connection
        self.give_back(connection)
        return None

    def _left_s(self, began: float) -> float:
        return self._timeout_s - (time.monotonic() - began)

    def _retire(self, connection: Connection) -> None:
        connection.close()
        pool = self._pool()
        if connection.generation is pool.generation:
            pool.generation = object()

    def _rest(self, error: Exception) -> None:
        pool = self._pool()
        pool.errors.add()
        if pool.breaker.closed:
            log.warning(
                "cache server %s does not answer, its lookups go to SQL meanwhile: %s", self.name, reason(error)
            )
        pool.breaker.failed()
