"""An event that an interruption cannot leave locked.

That of the standard library takes a lock within Python code. An exception that comes from outside, a time-out of
gevent's or one of a signal handler, may strike between the taking and the `with` block: whoever sets or awaits that
event afterwards waits for ever. Here each step is a single call into C.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress


class Event:
    """What has happened or not; has the methods of `threading.Event`."""

    def __init__(self) -> None:
        self._has_happened = False
        self._bells: deque[threading.Lock] = deque()  # of those who wait, each locked until it rings

    def is_set(self) -> bool:
        return self._has_happened

    def set(self) -> None:
        self._has_happened = True
        self.wake()

    def wake(self) -> None:
        """Let those who wait go on, though it may not have happened."""
        while self._bells:
            with suppress(IndexError):
                self._bells.popleft().release()

    def clear(self) -> None:
        self._has_happened = False

    def wait(self, limit_s: float) -> bool:
        """Return whether it has happened; wait for that, or to be woken, for at most `limit_s`."""
        bell = threading.Lock()
        bell.acquire()
        self._bells.append(bell)
        if not self._has_happened:  # else perhaps before the bell hung there
            bell.acquire(timeout=limit_s)
        with suppress(ValueError):
            self._bells.remove(bell)
        return self._has_happened
