"""The in-process backend: for one process, for tests, and for those who want to see it work without a server.

Coherent inside its process: regions of the same `name` share one store. Other processes have stores of their own,
so between processes an answer is stale for at most its time-to-live.

Reading takes no lock: a dictionary's `get` is atomic. Every change takes the store's lock.
"""

from __future__ import annotations

import itertools
import secrets
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

from cellcache.codec import FENCE, LEASE, MARK
from cellcache.protocol import Absent, Fence, Fill, Held, Lease, NodeStatus, Seen, Settlement

from .leasing import LeasingBackend


class _Store:
    def __init__(self) -> None:
        self.entries: dict[object, Held] = {}
        self.lock = threading.Lock()


_next_lease = itertools.count(1).__next__  # one call into C: threads that share a store get different ones
_named: weakref.WeakValueDictionary[str, _Store] = weakref.WeakValueDictionary()
_naming = threading.Lock()


def _store_of(name: str | None) -> _Store:
    if name is None:
        return _Store()
    with _naming:
        return _named.setdefault(name, _Store())


class MemoryBackend(LeasingBackend):
    """Arguments: `ttl_s`, `lease_ttl_s`, `fence_ttl_s`, `max_entries` (a million), `name` (None: a store of its own).

    When it is full the oldest tenth goes, used or not: keeping the order of use would cost every hit a lock.
    """

    promise = "coherent inside this process; between processes an answer is stale for at most its time-to-live"
    errors = 0

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__(arguments)
        self._most: int = arguments.get("max_entries", 1_000_000)
        self._name: str | None = arguments.get("name")
        self._store = _store_of(self._name)
        self.held: Mapping[object, Held] = self._store.entries
        self._get = self.held.get

    def lookup(self, key: str) -> bytes | Lease | Absent:
        entry = self._get(key)
        if entry is not None and entry[1] > time.monotonic() and entry[0][0]:  # a mark begins with zero
            return entry[0]
        with self._store.lock:
            return self._value_or_lease(key, time.monotonic())

    def lookup_multi(self, keys: Sequence[str]) -> list[bytes | Lease | Absent]:
        return [self.lookup(key) for key in keys]

    def peek_multi(self, keys: Sequence[str]) -> list[Seen]:
        now = time.monotonic()
        return [self._seen(key, now) for key in keys]

    def fill_multi(self, fills: Sequence[Fill]) -> list[bool]:
        now = time.monotonic()
        stored = []
        with self._store.lock:
            for key, lease, value, ttl_s in fills:
                stored.append(self._standing(key, now) == lease.token)
                if stored[-1]:
                    self._put(key, value, now + ttl_s if ttl_s else inf)
        return stored

    def fence_multi(self, keys: Sequence[str]) -> list[Fence]:
        fence = Fence(FENCE + secrets.token_bytes(8), connection=self)
        ends_at = time.monotonic() + self.fence_ttl_s
        with self._store.lock:
            for key in keys:
                self._put(key, fence.mark, ends_at)
        return [fence] * len(keys)

    def settle_multi(self, settlements: Sequence[Settlement]) -> list[bool]:
        now = time.monotonic()
        with self._store.lock:
            for key, fence, value, ttl_s in settlements:
                standing = self._standing(key, now)
                if standing == fence.mark and value is not None:
                    self._put(key, value, now + ttl_s if ttl_s else inf)
                elif standing is not None and (standing == fence.mark or not standing.startswith(FENCE)):
                    del self._store.entries[key]
        return [True] * len(settlements)

    def invalidate_multi(self, keys: Sequence[str], *, deadline: float | None = None) -> list[bool]:  # noqa: ARG002
        now = time.monotonic()
        with self._store.lock:
            for key in keys:
                standing = self._standing(key, now)
                if standing is not None and not standing.startswith(FENCE):
                    del self._store.entries[key]
        return [True] * len(keys)

    def store_multi(self, values: Mapping[str, bytes]) -> None:
        ends_at = time.monotonic() + self.ttl_s if self.ttl_s else inf
        with self._store.lock:
            for key, value in values.items():
                self._put(key, value, ends_at)

    def check(self) -> list[NodeStatus]:
        entries = len(self._store.entries)
        return [NodeStatus(f"this process, {entries:,} of {self._most:,} entries", None, 0.0, None)]

    def forget_connections(self) -> None:
        # The parent's threads may have held the lock, leases and fences at the moment of the fork.
        self._store.lock = threading.Lock()
        self._store.entries.clear()

    def close(self) -> None:
        """Leave the store to the other regions of its name, if there are any."""
        self._store = _Store()
        self.held = self._store.entries
        self._get = self.held.get

    def _value_or_lease(self, key: str, now: float) -> bytes | Lease | Absent:
        seen = self._seen(key, now)
        if seen is not None:
            return seen
        token = b"%b%d" % (LEASE, _next_lease())
        self._put(key, token, now + self.lease_ttl_s)
        return Lease(token, self)

    def _seen(self, key: str, now: float) -> Seen:
        standing = self._standing(key, now)
        if standing is not None and standing.startswith(MARK):
            return Absent.FENCED if standing.startswith(FENCE) else Absent.LEASED
        return standing

    def _standing(self, key: str, now: float) -> bytes | None:
        entry = self._get(key)
        return entry[0] if entry is not None and entry[1] > now else None

    def _put(self, key: str, value: bytes, ends_at: float) -> None:
        entries = self._store.entries
        if key not in entries and len(entries) >= self._most:
            for oldest in list(entries)[: self._most // 10 + 1]:
                del entries[oldest]
        entries[key] = (value, ends_at)
