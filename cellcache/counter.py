"""A counter that threads share, without a lock: nobody can wait for a thread that a fork has left behind."""

from __future__ import annotations

from collections import deque
from itertools import count, islice


class Counter:
    """`add()` counts one and returns how many there are now, or a few more.

    Every step is a single call into C, so no thread can come between its reading and its writing. Reading counts, too:
    how many of the steps were readings is taken off.
    """

    def __init__(self) -> None:
        self._steps = count(1)
        self._readings = count(1)
        self.add = self._steps.__next__

    def add_many(self, n: int) -> None:
        deque(islice(self._steps, n), maxlen=0)

    @property
    def value(self) -> int:
        readings = next(self._readings)
        return next(self._steps) - readings
