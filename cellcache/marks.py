"""Leases and fences that lookups meet: whoever meets one twice sees whether it will end.

Ours end within seconds or, where a writer died, a minute. One that somebody else has put there, to stand for ever,
would send every lookup of its instance to SQL, until somebody writes that instance.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic

_AGAIN_AFTER_S = 1.0  # by then nearly all of ours are gone
_MOST = 10_000


class Marks:
    """When lookups of this process met a mark, by instance; threads share it."""

    def __init__(self) -> None:
        self._met_at: dict[str, float] = {}

    def met_again(self, keys: Iterable[str]) -> list[str]:
        """Note that a lookup met a mark under each of these; return those under which one was met a while ago."""
        now, again = monotonic(), []
        for key in keys:
            if len(self._met_at) >= _MOST:
                self._met_at = {}
            if now - self._met_at.setdefault(key, now) >= _AGAIN_AFTER_S:
                self._met_at.pop(key, None)
                again.append(key)
        return again
