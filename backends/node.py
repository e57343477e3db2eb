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


class Closable(Protocol):
    """What a node must know of a connection to its server."""

    generation: int

    def is_idle(self) -> bool: ...

    def close(self) -> None: ...


Connection = TypeVar("Connection", bound=Closable)


class Node(Generic[Connection]):
    """Hands each thread its connection, or None while the node is not to be tried."""

    def __init__(self, name: str, dial: Callable[[], Connection], *, timeout_s: float, retry_s: float) -> None:
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

    def connection(self) -> Connection | None:
        """Return this thread's connection, made now if need be; None while the node is down.

        Making one takes at most the time limit. If it takes more than half of it the caller gets None all the
        same, so that connecting and asking together stay within the limit; the next caller finds it made.
        """
        connection: Connection | None = getattr(self._local, "connection", None)
        if connection is not None and connection.generation == self._generation:
            return connection
        return self._connect()

    def idle_connection(self) -> Connection | None:
        """The same, but never one that the server has closed since: for requests that are not asked twice."""
        connection = self.connection()
        if connection is not None and not connection.is_idle():
            return self.broke_while_idle(connection)
        return connection

    def failed(self, connection: Connection, error: OSError) -> None:
        """Close a connection that did not do what was asked, retire all others, and let the node rest a while."""
        self._retire(connection)
        self._rest(error)

    def broke(self, connection: Connection, error: OSError, after_s: float) -> Connection | None:
        """Replace a connection that broke so soon after a request that it had most likely been closed before it.

        One that kept its caller waiting is a failure of the node: to ask again would double the wait.
        """
        if after_s < self._timeout_s / 4:
            return self.broke_while_idle(connection)
        self.failed(connection, error)
        return None

    def broke_while_idle(self, connection: Connection) -> Connection | None:
        """Replace a connection that the server had closed before this request, as after a restart or idle time."""
        self._retire(connection)
        return self._connect()

    def check(self) -> Connection:
        """Return a new connection of the caller's own, past the breaker; raises as Connection does."""
        return self._dial()

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

    def _connect(self) -> Connection | None:
        if self._closed or not self._breaker.allows():
            return None
        began = time.monotonic()
        generation = self._generation
        try:
            connection = self._dial()
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
        return connection if time.monotonic() - began < self._timeout_s / 2 else None

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
