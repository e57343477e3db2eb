"""Invalidations that survive their writer: a row commits with the write and goes once the cache has settled.

Whoever finds one left over delivers it: removes what the cache holds for those instances, unless that is a fence,
and forgets the row when every node has confirmed. Delivering twice, or late, costs a miss and nothing else.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Literal, NamedTuple, TypeVar

from cellcache.errors import CellCacheError
from cellcache.event import Event
from cellcache.protocol import CoherentBackend, Fence, Settlement
from cellcache.store import Store
from cellcache.transaction import Transaction

log = logging.getLogger(__name__)

T = TypeVar("T")

GRACE_S = 10.0
"""How long a row that its writer will most likely remove is left alone by all others."""

_AT_ONCE = 100
_MOST_OF_OUR_OWN = 10_000  # what is beyond waits for its time like any other's


class Delivery(NamedTuple):
    """What one pass did: rows delivered and forgotten, and rows that must wait for a node."""

    delivered: int
    waiting: int


class Invalidations:
    """This process's share in them: the rows of its own writes, and the delivery of anyone's."""

    def __init__(self, store: Store, backend: CoherentBackend, durable: Literal["always", "unreachable"]) -> None:
        self._store = store
        self._backend = backend
        self._always = durable == "always"
        self._settled: deque[int] = deque()  # rows to be forgotten
        self._unsettled: deque[tuple[int, Sequence[Settlement]]] = deque(maxlen=_MOST_OF_OUR_OWN)  # with their rows
        self._unrecorded: deque[tuple[list[str], float]] = deque()  # what could not even be recorded, and its after_s
        self._delivering = threading.RLock()  # one thread's pass at a time; it may be interrupted by one of its own
        self.wanted = Event()
        """Set when there is something to deliver that should not wait for the next pass."""

    def record(self, transaction: Transaction, keys: Sequence[str], unfenced: Sequence[str]) -> int | None:
        """Let a row commit with the write, if one is needed; return its id.

        Needed for keys that could not be fenced; and with `durable = "always"` for all, since a fence can be lost
        (evicted, or its node restarted) and its writer die before it notices.
        """
        if unfenced:
            return transaction.add_invalidation(keys if self._always else unfenced, 0.0)
        return transaction.add_invalidation(keys, GRACE_S) if self._always else None

    def settled(self, row: int | None) -> None:
        """The cache is as it should be: the row may go, with the next pass."""
        if row is not None:
            self._settled.append(row)

    def unsettled(self, row: int | None, fences: Mapping[str, Fence]) -> None:
        """The write is committed and the cache could not be told: make sure that somebody will.

        Only we know our fences: nobody else may remove them, and until they end they send readers to SQL.
        """
        if row is None:
            row = self._record_later(list(fences), 0.0)
        if row is not None:
            # Another thread will ask, over its own connection: the mark is enough, and what is kept here stays open.
            settlements = [Settlement(key, Fence(fence.mark), None) for key, fence in fences.items()]
            self._unsettled.append((row, settlements))
        self.wanted.set()

    def in_doubt(self, keys: Sequence[str], *, after_s: float) -> None:
        """The write may have been committed, or may yet be: what the cache holds after so long must go."""
        self._record_later(keys, after_s)
        self.wanted.set()

    def _record_later(self, keys: Sequence[str], after_s: float) -> int | None:
        """Record an invalidation outside its write; return its row's id, or None while the database does not answer."""
        try:
            return self._store.add_invalidation(keys, after_s)
        except CellCacheError as error:
            log.warning("an invalidation waits in this process alone until the database answers: %s", error)
            self._unrecorded.append((list(keys), after_s))
            return None

    def deliver(self) -> Delivery:
        """Forget the settled rows, then deliver every row whose time has come. Raises DatabaseUnavailable.

        Waits for a pass that another thread has under way: what that one has in hand would be missed otherwise.
        """
        with self._delivering:
            return self._deliver()

    def _deliver(self) -> Delivery:
        self.wanted.clear()
        self._deliver_unsettled()
        self._record_the_unrecorded()
        self._forget_settled()
        delivered, waiting, last = 0, len(self._unsettled), 0
        while rows := self._store.invalidations(limit=_AT_ONCE, after=last, due=True):
            last = rows[-1].id
            done = [row.id for row in rows if all(self._backend.invalidate_multi(row.instance_uuids))]
            self._store.forget_invalidations(done)
            delivered += len(done)
            waiting += len(rows) - len(done)
        if waiting:
            self.wanted.set()  # a node is down: look again soon
        if delivered:
            log.info("delivered %d invalidations that were left over", delivered)
        return Delivery(delivered, waiting)

    def flush(self) -> None:
        """Before the process ends: forget the settled rows, or leave them to others if the database is away."""
        try:
            with self._delivering:
                self._record_the_unrecorded()
                self._forget_settled()
        except CellCacheError as error:  # close() goes on, whatever has become of the database
            log.warning("%d settled invalidations are left to other processes: %s", len(self._settled), error)
        for keys, _ in self._unrecorded:
            log.error("an invalidation of %d instances is lost with this process: %s", len(keys), ", ".join(keys[:10]))

    def _deliver_unsettled(self) -> None:
        """Deliver what our own writes could not settle; others leave those rows alone for a while."""
        with _taken(self._unsettled) as waiting:
            for _ in range(len(waiting)):
                row, settlements = waiting[0]
                if all(self._backend.settle_multi(settlements)):
                    self._settled.append(row)
                    waiting.popleft()
                else:
                    waiting.rotate(-1)

    def _forget_settled(self) -> None:
        with _taken(self._settled) as ids:
            if ids:
                self._store.forget_invalidations(ids)
                ids.clear()

    def _record_the_unrecorded(self) -> None:
        """Make what waits in this process alone a row like any other, now that the database answers, or seems to.

        Removing the entries at once is all that can be done until then, and not enough: where the commit is in
        doubt a fence stands there, and what takes its place when it ends may be from before the commit.
        """
        with _taken(self._unrecorded) as waiting:
            for keys, _ in waiting:
                self._backend.invalidate_multi(keys)
            while waiting:
                self._store.add_invalidation(*waiting[0])
                waiting.popleft()


@contextmanager
def _taken(queue: deque[T]) -> Iterator[deque[T]]:
    """Take all that is queued; what the block leaves of it goes back, also where the block is interrupted."""
    taken: deque[T] = deque()
    try:
        with suppress(IndexError):
            while True:
                taken.append(queue.popleft())
        yield taken
    finally:
        queue.extendleft(reversed(taken))
