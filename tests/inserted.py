"""A call in the midst of another, in the same thread, at a line of ours that a test chooses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


class Inserted:
    """Does something at every so-many-th line of ours that this thread runs, as a signal may come at any of them."""

    def __init__(self, work: Callable[[], None], every: int, most: int = 40) -> None:
        self._work = work
        self._every = every
        self._most = most
        self._lines = 0
        self._inside = False
        self.times = 0

    def __enter__(self) -> Inserted:
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if self._inside or self.times == self._most:
            return None
        if event == "line" and "cellcache" in frame.f_globals.get("__name__", ""):
            self._lines += 1
            if self._lines % self._every == 0:
                self._inside = True
                self.times += 1
                self._work()
                self._inside = False
        return self._trace
