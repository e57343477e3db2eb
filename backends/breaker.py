"""A circuit breaker for one cache node: fail fast while it is down, try again a second later.

The well-kept libraries for this wrap every call in a context manager or a decorator and cost microseconds;
a cache hit costs eight altogether. This one costs the hot path nothing: a failure also retires the node's
connections, so only a caller without one ever asks `allows`.
"""

from __future__ import annotations

import threading
import time


class Breaker:
    """Open for `retry_s` after each failure; then one caller at a time may try, and success closes it."""

    def __init__(self, retry_s: float) -> None:
        self._retry_s = retry_s
        self._retry_at = 0.0
        self._lock = threading.RLock()  # a signal handler's lookup may come in between
        self.closed = True

    def allows(self) -> bool:
        """Return whether the node may be tried now. True for one caller per `retry_s` while it is down."""
        if self.closed:
            return True
        with self._lock:
            now = time.monotonic()
            if now < self._retry_at:
                return False
            self._retry_at = now + self._retry_s  # the others wait for what this caller finds
            return True

    def failed(self) -> None:
        with self._lock:
            self._retry_at = time.monotonic() + self._retry_s
            self.closed = False

    def succeeded(self) -> None:
        self.closed = True
