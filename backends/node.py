"""One cache server as this process sees it: a connection per thread, and whether to try at all.

A connection belongs to one thread and to one generation of the node. Any failed request begins a new generation, which
retires the other threads' connections too: after a restart they are all dead, and were each thread to find that
out for itself, each would open the breaker once more.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from cellcache.errors import BackendUnsupported

from .breaker import Breaker
from .stream import reason

log = logging.getLogger("cellcache.backends")

_PAUSE_S = 0.5  # longer than any server takes to free one value
_NONE = -1  # the generation of a connection that nobody may use


class Closable(Protocol):
    """What a node must know of a connection to its server."""

    generation: int

    def is_idle(self, deadline: float) -> bool: ...

    def limit_next(self, seconds: float) -> None: ...

    def close(self) -> None: ...


Connection = TypeVar("Connection", bound=Closable)


class Node(Generic[Connection]):
    """Hands each thread its connection, or None while the node is not to be tried.

    `dial` makes one within so many seconds. `began` is when the caller began to wait, on the monotonic clock:
    connecting and asking, and connecting to several nodes, together stay within one time limit.
    """

    def __init__(self, name: str, dial: Callable[[float], Connection], *, timeout_s: float, retry_s: float) -> None:
        self.name = name
        self.errors = 0
        self._dial = dial
        self._timeout_s = timeout_s
        self._breaker = Breaker(retry_s)
        self._generation = 0
        self._lock = threading.Lock()
        self._local = threading.local()
        self._open: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._closed = False
        self._pause_ends_at = 0.0

    def connection(self, began: float) -> Connection | None:
        """Return this thread's connection, made now if need be; None while the node is down.

        None also where less than half of the time limit is left, before connecting or after: the next caller connects,
        or finds it made.
        """
        connection: Connection | None = getattr(self._local, "connection", None)
        if connection is not None and connection.generation == self._generation:
            return connection
        return self._connect(began)

    def idle_connection(self, began: float) -> Connection | None:
        """The same, but never one that the server has closed since: for requests that are not asked twice."""
        connection = self.connection(began)
        if connection is None:
            return None
        try:
            idle = connection.is_idle(began + self._timeout_s)
        except ConnectionError as error:
            return self.broke(connection, error, began)
        except OSError as error:
            self.failed(connection, error)
            return None
        except BaseException:
            self.interrupted(connection)
            raise
        return connection if idle else self._replace(connection, began)

    def failed(self, connection: Connection, error: OSError) -> None:
        """Close a connection that did not do what was asked, retire all others, and let the node rest a while."""
        if time.monotonic() < self._pause_ends_at:
            self.errors += 1
            self.interrupted(connection)
            return
        self._retire(connection)
        self._rest(error)

    def expect_pause(self) -> None:
        """Blame the node for no failure of the next moments: it frees what somebody else has stored, of any size."""
        self._pause_ends_at = time.monotonic() + _PAUSE_S

    def interrupted(self, connection: Connection) -> None:
        """Close a connection whose caller was interrupted, by Ctrl-C or a time-out of gevent's: a reply may yet come.

        Its next request would take that for an answer. The server is not to blame, so nobody else goes without it.
        """
        connection.close()
        connection.generation = _NONE

    def broke(self, connection: Connection, error: OSError, began: float) -> Connection | None:
        """Replace a connection that broke so soon after a request that it had most likely been closed before it.

        One that kept its caller waiting is a failure of the node: to ask again would double the wait.
        """
        if time.monotonic() - began < self._timeout_s / 4:
            return self._replace(connection, began)
        self.failed(connection, error)
        return None

    def check(self) -> Connection:
        """Return a new connection of the caller's own, past the breaker; raises as Connection does."""
        return self._dial(self._timeout_s)

    def forget_connections(self) -> None:
        self.errors = 0
        self._lock = threading.Lock()
        self._breaker.forget_lock()
        self._local = threading.local()
        self._open = weakref.WeakSet()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._generation += 1
            connections = list(self._open)
        for connection in connections:
            connection.close()

    def _replace(self, connection: Connection, began: float) -> Connection | None:
        """Close one that the server had closed before this request, as after a restart or idle time; make another."""
        self._retire(connection)
        return self._connect(began)

    def _connect(self, began: float) -> Connection | None:
        left_s = self._left_s(began)
        if self._closed or left_s < self._timeout_s / 2 or not self._breaker.allows():
            return None
        generation = self._generation
        try:
            connection = self._dial(left_s)
        except BackendUnsupported as error:
            self._rest(error)
            return None
        except OSError as error:
            self._rest(error)
            return None
        if not self._admit(connection, generation):
            return None
        if not self._breaker.closed:
            self._breaker.succeeded()
            log.info("cache server %s answers again", self.name)
        left_s = self._left_s(began)
        connection.limit_next(left_s)
        return connection if left_s > self._timeout_s / 2 else None

    def _left_s(self, began: float) -> float:
        return self._timeout_s - (time.monotonic() - began)

    def _admit(self, connection: Connection, generation: int) -> bool:
        with self._lock:
            if self._closed:
                connection.close()
                return False
            connection.generation = generation
            self._local.connection = connection
            self._open.add(connection)
            return True

    def _retire(self, connection: Connection) -> None:
        connection.close()
        with self._lock:
            if connection.generation == self._generation:
                self._generation += 1

    def _rest(self, error: Exception) -> None:
        self.errors += 1
        if self._breaker.closed:
            log.warning(
                "cache server %s does not answer, its lookups go to SQL meanwhile: %s", self.name, reason(error)
            )
        self._breaker.failed()
