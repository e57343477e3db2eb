"""An in-process copy in front of a shared backend: off by default, for those who can bear a bounded staleness.

It adds staleness of at most its own time-to-live, counted from before the cache was asked, and nothing else. Writes
of this process take their instances out of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from time import monotonic

from cellcache.protocol import Absent, CoherentBackend, Fence, Fill, Held, Lease, NodeStatus, Seen, Settlement


class LocalLayer:
    """A CoherentBackend that remembers the answers of another for `ttl_s`, the latest `max_entries` of them."""

    def __init__(self, backend: CoherentBackend, *, ttl_s: float, max_entries: int) -> None:
        self.promise = f"stale for at most {ttl_s:g} s (cache.local_ttl_s); behind that, {backend.promise}"
        self.held: dict[object, Held] = {}
        self._backend = backend
        self._ttl_s = ttl_s
        self._most = max_entries
        self._lock = threading.RLock()  # a signal handler's lookup may come in between
        self._drops = 0

    @property
    def errors(self) -> int:
        return self._backend.errors

    def lookup(self, key: str) -> bytes | Lease | Absent:
        asked_at, drops = monotonic(), self._drops
        entry = self._backend.lookup(key)
        if isinstance(entry, bytes):
            self._hold([(key, entry)], asked_at, drops)
        return entry

    def lookup_multi(self, keys: Sequence[str]) -> list[bytes | Lease | Absent]:
        asked_at, drops = monotonic(), self._drops
        answers: dict[str, bytes | Lease | Absent] = {}
        for key in keys:
            held = self.held.get(key)
            if held is not None and held[1] > asked_at:
                answers[key] = held[0]
        rest = [key for key in keys if key not in answers]
        if rest:
            asked = dict(zip(rest, self._backend.lookup_multi(rest), strict=True))
            self._hold([(key, entry) for key, entry in asked.items() if isinstance(entry, bytes)], asked_at, drops)
            answers |= asked
        return [answers[key] for key in keys]

    def peek_multi(self, keys: Sequence[str]) -> list[Seen]:
        return self._backend.peek_multi(keys)

    def send_fills(self, fills: Sequence[Fill], refused: Callable[[int], object], *, wait: bool) -> None:
        self._backend.send_fills(fills, refused, wait=wait)

    def fence_multi(self, keys: Sequence[str]) -> list[Fence]:
        self._drop(keys)
        return self._backend.fence_multi(keys)

    def settle_multi(self, settlements: Sequence[Settlement]) -> list[bool]:
        self._drop(settlement.key for settlement in settlements)
        return self._backend.settle_multi(settlements)

    def invalidate_multi(self, keys: Sequence[str], *, deadline: float | None = None) -> list[bool]:
        self._drop(keys)
        return self._backend.invalidate_multi(keys, deadline=deadline)

    def check(self) -> list[NodeStatus]:
        return self._backend.check()

    def close(self) -> None:
        self.held.clear()
        self._backend.close()

    def _hold(self, entries: Collection[tuple[str, bytes]], asked_at: float, drops: int) -> None:
        """Hold answers, unless a write of this process has dropped any since they were asked for.

        They might be from before that write, whose caller has been told by now that it is done. A place is made for
        each before that is looked at: a signal handler's write, which the lock does not keep out, then takes it away.
        """
        with self._lock:
            places: dict[str, Held] = {}
            for key, _ in entries:
                self.held.pop(key, None)
                self.held[key] = places[key] = [b"", 0.0]
            if drops != self._drops:
                for key in places:
                    self.held.pop(key, None)
                return
            for key, entry in entries:
                places[key][:] = entry, asked_at + self._ttl_s
            while len(self.held) > self._most:
                with suppress(LookupError, RuntimeError, StopIteration):  # a signal handler has taken some away
                    del self.held[next(iter(self.held))]

    def _drop(self, keys: Iterable[str]) -> None:
        with self._lock:
            self._drops += 1
            for key in keys:
                self.held.pop(key, None)
