"""One SQL read per instance at a time in this process: the others who miss meanwhile wait for it.

Whoever waited does not simply take the answer: the read may have begun before the waiter's own lookup did, and a
write may have returned in between. It takes the answer only of a read that began after it.

A reader may be interrupted anywhere, by a time limit or Ctrl-C; whoever waited for it then reads for himself. A signal
handler or a finalizer may look up in the midst of its thread's own read, and waits for nobody: whom it waited for might
be waiting for that thread. So there is no lock in here: each step is one that a dictionary does at once.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from copy import copy
from typing import Generic, NamedTuple, TypeVar

from cellcache.errors import CellCacheError, DatabaseUnavailable
from cellcache.event import Event

T = TypeVar("T")

beginning = itertools.count(1).__next__
"""Returns a number greater than that of all that began before; one call into C, so that threads agree on the order."""


class Flight(Generic[T]):
    """One SQL read of some instances. Its leader calls `take_off`, then `land` or `fail`; the others `wait`."""

    def __init__(self, longest_s: float) -> None:
        self.keys: list[str] = []
        self.leased: set[str] = set()
        """Those whose lease somebody aboard holds, its leader or one who waits."""
        self.followed = False
        """Whether anybody waits for it beside its leader."""
        self._began = 0
        self._overdue_at = time.monotonic() + longest_s
        self._over = Event()
        self._answers: Mapping[str, T] = {}
        self._error: CellCacheError | None = None

    def take_off(self) -> None:
        """Say that the read begins now."""
        self._began = beginning()

    def began_after(self, moment: int) -> bool:
        return self._began > moment

    def began_before(self, moment: int) -> bool:
        return 0 < self._began < moment

    @property
    def is_over(self) -> bool:
        return self._over.is_set() or time.monotonic() > self._overdue_at

    def land(self, answers: Mapping[str, T]) -> None:
        self._answers = answers
        self._over.set()

    def fail(self, error: CellCacheError) -> None:
        self._error = error
        self._over.set()

    def abandon(self) -> None:
        """Say that there will be no answers, if there are none yet: its leader was interrupted."""
        self._over.set()

    def wait(self) -> Mapping[str, T]:
        """Return the answers, none where it was abandoned, or raise an error like the leader's.

        Blocks until the longest time that a flight takes has passed since its beginning; then raises
        DatabaseUnavailable.
        """
        if not self._over.wait(max(0.0, self._overdue_at - time.monotonic())):
            raise DatabaseUnavailable("the database did not answer the read that this one waited for")
        if self._error is not None:
            raise copy(self._error) from self._error
        return self._answers


class Flights(Generic[T]):
    """The flights of this process, by key."""

    def __init__(self, *, longest_s: float) -> None:
        self._longest_s = longest_s
        self._flights: dict[str, Flight[T]] = {}
        self._of_thread: dict[int, Flight[T]] = {}

    def begin(self) -> Lead[T]:
        """Return the lead of a new flight, which is over at the end of a `with` block, however that comes."""
        return Lead(self, Flight(self._longest_s))

    def join(
        self, own: Flight[T], keys: Iterable[str], *, leased: Collection[str], asked_at: int
    ) -> dict[str, Flight[T]]:
        """Put into `own` the keys that the caller is to read; return for the others the flights to wait for.

        `leased` are those whose lease the caller holds. It waits for no read of theirs that began before it asked:
        nobody but itself can store what is true now. A thread that leads a flight already waits for no other.
        """
        thread = threading.get_ident()
        leads = self._of_thread.get(thread)
        leads_already = leads is not None and not leads.is_over
        if not leads_already:
            self._of_thread[thread] = own
        joined: dict[str, Flight[T]] = {}
        for key in keys:
            flight = self._flights.setdefault(key, own)
            if leads_already or flight.is_over or (key in leased and flight.began_before(asked_at)):
                flight = self._flights[key] = own  # two who do this at the same moment both read it
            if flight is own:
                own.keys.append(key)
            else:
                joined[key] = flight
                flight.followed = True
            if key in leased:
                flight.leased.add(key)
        return joined

    def end(self, flight: Flight[T]) -> None:
        """Let the next who misses begin a flight of its own. Called before the flight lands."""
        while flight.keys:
            key = flight.keys.pop()
            if self._flights.get(key) is flight:
                self._flights.pop(key, None)  # perhaps another's, who came in between: the next reads for himself
        thread = threading.get_ident()
        if self._of_thread.get(thread) is flight:
            self._of_thread.pop(thread, None)


class Lead(NamedTuple, Generic[T]):
    """Whoever holds it leads the flight. Held by nobody any more, the flight is over: no flight outlives its leader.

    An interruption may come where not even the end of a `with` block is reached; what is left then is the collector.
    It is a tuple because that is made in one step: there is none that lacks one of the two.
    """

    flights: Flights[T]
    flight: Flight[T]

    def __enter__(self) -> Flight[T]:
        return self.flight

    def __exit__(self, *_: object) -> None:
        self.flights.end(self.flight)
        self.flight.abandon()

    def __del__(self) -> None:
        self.__exit__()
