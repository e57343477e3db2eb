"""A counter that threads share: counting takes no lock."""

from __future__ import annotations

import itertools
import threading


class Counter:
    """`add()` counts one; it is a single call into C, so no thread can come between its reading and its writing.

    Reading counts one as well, which is taken off again.
    """

    def __init__(self) -> None:
        self.add = itertools.count(1).__next__
        self._lock = threading.Lock()
        self._extra = 0

    def add_many(self, n: int) -> None:
        with self._lock:
            self._extra += n

    @property
    def value(self) -> int:
        with self._lock:
            self._extra -= 1
            return self.add() + self._extra
