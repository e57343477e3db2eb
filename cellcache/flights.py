"""One SQL read per instance at a time in this process: the others who miss meanwhile wait for it.

Whoever waited does not simply take the answer: the read may have begun before the waiter's own lookup did, and a
write may have returned in between. It takes the answer only of a read that began after it.
"""

from __future__ import annotations

import itertools
import threading
from typing import Generic, TypeVar

from cellcache.errors import CellCacheError, DatabaseUnavailable

T = TypeVar("T")

beginning = itertools.count(1).__next__
"""Returns a number greater than that of all that began before; one call into C, so that threads agree on the order."""


class Flight(Generic[T]):
    """One SQL read under way. Its leader calls `land` or `fail`, the others `wait`."""

    def __init__(self) -> None:
        self.began = beginning()
        self._landed = threading.Event()
        self._answers: list[T] = []
        self._error: CellCacheError = DatabaseUnavailable("the thread that read from it was interrupted")

    def land(self, answer: T) -> None:
        self._answers.append(answer)
        self._landed.set()

    def fail(self, error: BaseException) -> None:
        if isinstance(error, CellCacheError):
            self._error = error
        self._landed.set()

    def wait(self, limit_s: float) -> T:
        """Return the answer, or raise an error of the same kind as the leader's; block for at most `limit_s`."""
        if not self._landed.wait(limit_s):
            raise DatabaseUnavailable(f"the database did not answer within {limit_s:g} s")
        if not self._answers:
            raise type(self._error)(*self._error.args) from self._error
        return self._answers[0]


class Flights(Generic[T]):
    """The flights of this process, by key."""

    def __init__(self) -> None:
        self._flights: dict[str, Flight[T]] = {}
        self._lock = threading.Lock()

    def join(self, key: str, *, lead: bool) -> tuple[Flight[T], bool]:
        """Return the flight for the key, and whether the caller leads it and so must end it.

        With `lead` the caller leads a new one in any case: it holds the lease, so only its answer can be stored.
        """
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None and not lead:
                return flight, False
            flight = self._flights[key] = Flight()
            return flight, True

    def current(self, key: str) -> Flight[T] | None:
        return self._flights.get(key)

    def end(self, key: str, flight: Flight[T]) -> None:
        """Let the next who misses begin a flight of its own. Called before the flight lands."""
        with self._lock:
            if self._flights.get(key) is flight:
                del self._flights[key]
