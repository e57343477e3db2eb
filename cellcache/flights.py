"""One SQL read per instance at a time in this process: the others who miss meanwhile wait for it.

Whoever waited does not simply take the answer: the read may have begun before the waiter's own lookup did, and a
write may have returned in between. It takes the answer only of a read that began after it.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Collection, Iterable, Mapping
from copy import copy
from typing import Generic, TypeVar

from cellcache.errors import CellCacheError, DatabaseUnavailable

T = TypeVar("T")

beginning = itertools.count(1).__next__
"""Returns a number greater than that of all that began before; one call into C, so that threads agree on the order."""


class Flight(Generic[T]):
    """One SQL read of some instances. Its leader calls `take_off`, then `land` or `fail`; the others `wait`."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.leased: set[str] = set()
        """Those whose lease somebody aboard holds, its leader or one who waits."""
        self.followed = False
        """Whether anybody waits for it beside its leader."""
        self._began = 0
        self._landed = threading.Event()
        self._answers: Mapping[str, T] | None = None
        self._error: CellCacheError = DatabaseUnavailable("the thread that read from it was interrupted")

    def take_off(self) -> None:
        """Say that the read begins now."""
        self._began = beginning()

    def began_after(self, moment: int) -> bool:
        return self._began > moment

    def began_before(self, moment: int) -> bool:
        return 0 < self._began < moment

    def land(self, answers: Mapping[str, T]) -> None:
        self._answers = answers
        self._landed.set()

    def fail(self, error: BaseException) -> None:
        if isinstance(error, CellCacheError):
            self._error = error
        self._landed.set()

    def wait(self, limit_s: float) -> Mapping[str, T]:
        """Return the answers, or raise an error of the same kind as the leader's; block for at most `limit_s`."""
        if not self._landed.wait(limit_s):
            raise DatabaseUnavailable(f"the database did not answer within {limit_s:g} s")
        if self._answers is None:
            raise copy(self._error) from self._error
        return self._answers


class Flights(Generic[T]):
    """The flights of this process, by key."""

    def __init__(self) -> None:
        self._flights: dict[str, Flight[T]] = {}
        self._lock = threading.Lock()

    def join(
        self, keys: Iterable[str], *, leased: Collection[str], asked_at: int
    ) -> tuple[Flight[T], dict[str, Flight[T]]]:
        """Return a flight that the caller leads, and so must end, and for the other keys the flights to wait for.

        `leased` are those whose lease the caller holds. It waits for no read of theirs that began before it asked:
        nobody but itself can store what is true now.
        """
        own: Flight[T] = Flight()
        joined: dict[str, Flight[T]] = {}
        with self._lock:
            for key in keys:
                flight = self._flights.get(key)
                if flight is None or (key in leased and flight.began_before(asked_at)):
                    flight = self._flights[key] = own
                    own.keys.append(key)
                else:
                    joined[key] = flight
                    flight.followed = True
                if key in leased:
                    flight.leased.add(key)
        return own, joined

    def end(self, flight: Flight[T]) -> None:
        """Let the next who misses begin a flight of its own. Called before the flight lands."""
        with self._lock:
            for key in flight.keys:
                if self._flights.get(key) is flight:
                    del self._flights[key]
