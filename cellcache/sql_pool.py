"""SQLAlchemy's pool with a limit that survives interruptions.

Its own counts up when it lends a connection and down when that comes back. A caller who is interrupted in between, by
a time-out of gevent's or a signal, may leave the count as it is: each time a place is lost for good. Here the
connections that there are count themselves: one that nobody holds any more has given its place back.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from collections import deque
from contextlib import suppress
from typing import Any

from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry, Pool

from cellcache.event import Event

_LOOK_AGAIN_S = 0.05  # whom a connection was given back for may have been interrupted, too


class _Place:
    """Lives as long as its connection, or the attempt to make that."""


class CountingPool(Pool):
    """Lends the connection that came back last; at most `pool_size` at a time, for which callers wait `timeout`."""

    def __init__(self, creator: Any, pool_size: int, timeout: float, **options: Any) -> None:
        super().__init__(creator, **options)
        # SQLAlchemy names a pool's logger by its module; with ours, what it says at DEBUG would be said by cellcache.
        self.logger = logging.getLogger(f"sqlalchemy.pool.{type(self).__name__}.{self.logging_name}")
        self._size = pool_size
        self._timeout = timeout
        self._free: deque[ConnectionPoolEntry] = deque()
        self._places: weakref.WeakSet[_Place] = weakref.WeakSet()
        self._place_of: weakref.WeakKeyDictionary[ConnectionPoolEntry, _Place] = weakref.WeakKeyDictionary()
        self._taking = threading.RLock()
        self._waiting: deque[Event] = deque()

    def recreate(self) -> CountingPool:
        return CountingPool(
            self._creator,
            pool_size=self._size,
            timeout=self._timeout,
            recycle=self._recycle,
            echo=self.echo,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            pre_ping=self._pre_ping,
            _dispatch=self.dispatch,
            dialect=self._dialect,
        )

    def dispose(self) -> None:
        with suppress(IndexError):
            while True:
                self._free.pop().close()

    def status(self) -> str:
        return f"{len(self._places)} of {self._size} connections, {len(self._free)} of them idle"

    def _do_get(self) -> ConnectionPoolEntry:
        deadline, collected = time.monotonic() + self._timeout, False
        while True:
            with suppress(IndexError):
                return self._free.pop()
            if place := self._place():
                try:
                    record = self._create_connection()
                except BaseException:  # whose frames, and the place with them, may be kept for a while
                    self._places.discard(place)
                    raise
                self._place_of[record] = place
                return record
            left_s = deadline - time.monotonic()
            if left_s <= 0 and not collected:
                gc.collect()  # of an interrupted caller a connection may be left that holds itself, in a circle
                collected = True
            elif left_s <= 0:
                raise PoolTimeout(f"all {self._size} pooled connections stayed busy for {self._timeout:g} s")
            else:
                self._wait(min(left_s, _LOOK_AGAIN_S))

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        self._free.append(record)
        with suppress(IndexError):
            self._waiting.popleft().set()

    def _place(self) -> _Place | None:
        with self._taking:
            if len(self._places) >= self._size:
                return None
            place = _Place()
            self._places.add(place)
            return place

    def _wait(self, limit_s: float) -> None:
        returned = Event()
        self._waiting.append(returned)
        if not self._free:
            returned.wait(limit_s)
        with suppress(ValueError):
            self._waiting.remove(returned)
