"""The in-process backend: for one process, for tests, and for those who want to see it work without a server.

Coherent inside its process: regions of the same `name` share one store. Other processes have stores of their own,
so between processes an answer is stale for at most its time-to-live.

Reading takes no lock: a dictionary's `get` is atomic. Every change takes the store's lock. A signal handler's may come
in between all the same, in the thread that has it: so what may replace only a lease, or a fence of one's own, changes
that very entry in place, which by then is perhaps nobody's any more.
"""

from __future__ import annotations

import itertools
import secrets
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from math import inf
from typing import Any

from cellcache.codec import FENCE, LEASE, MARK
from cellcache.per_process import PerProcess
from cellcache.protocol import Absent, Fence, Fill, Held, Lease, NodeStatus, Seen, Settlement

from .leasing import LeasingBackend


class _Store:
    def __init__(self) -> None:
        self.entries: dict[object, Held] = {}
        self.lock = threading.RLock()  # a signal handler's lookup may come in between


_next_lease = itertools.count(1).__next__  # one call into C: threads that share a store get different ones


class _Named:
    """The stores of one process that have a name."""

    def __init__(self) -> None:
        self._stores: weakref.WeakValueDictionary[str, _Store] = weakref.WeakValueDictionary()
        self._lock = threading.RLock()

    def store(self, name: str) -> _Store:
        with self._lock:
            return self._stores.setdefault(name, _Store())


_named = PerProcess(_Named)


def _store_of(name: str | None) -> _Store:
    return _Store() if name is None else _named.get().store(name)


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
        self._stores = PerProcess(lambda: _store_of(self._name))
        self._read_from(self._stores.get())

    def lookup(self, key: str) -> bytes | Lease | Absent:
        entry = self._get(key)
        if entry is not None and entry[1] > time.monotonic() and entry[0][0]:  # a mark begins with zero
            value: bytes = entry[0]
            return value
        with self._changing():
            return self._value_or_lease(key, time.monotonic())

    def lookup_multi(self, keys: Sequence[str]) -> list[bytes | Lease | Absent]:
        return [self.lookup(key) for key in keys]

    def peek_multi(self, keys: Sequence[str]) -> list[Seen]:
        now = time.monotonic()
        return [self._seen(key, now) for key in keys]

    def fill_multi(self, fills: Sequence[Fill]) -> list[bool]:
        now = time.monotonic()
        stored = []
        with self._changing():
            for key, lease, value, ttl_s in fills:
                stored.append(self._replace(key, lease.token, value, now, ttl_s))
        return stored

    def fence_multi(self, keys: Sequence[str]) -> list[Fence]:
        fence = Fence(FENCE + secrets.token_bytes(8), asked_at=0.0)
        ends_at = time.monotonic() + self.fence_ttl_s
        with self._changing():
            for key in keys:
                self._put(key, fence.mark, ends_at)
        return [fence] * len(keys)

    def settle_multi(self, settlements: Sequence[Settlement]) -> list[bool]:
        now = time.monotonic()
        with self._changing():
            for key, fence, value, ttl_s in settlements:
                if value is not None and self._replace(key, fence.mark, value, now, ttl_s):
                    continue
                standing = self._standing(key, now)
                if standing is not None and (standing == fence.mark or not standing.startswith(FENCE)):
                    self._entries.pop(key, None)
        return [True] * len(settlements)

    def invalidate_multi(self, keys: Sequence[str], *, deadline: float | None = None) -> list[bool]:  # noqa: ARG002
        now = time.monotonic()
        with self._changing():
            for key in keys:
                standing = self._standing(key, now)
                if standing is not None and not standing.startswith(FENCE):
                    self._entries.pop(key, None)
        return [True] * len(keys)

    def store_multi(self, values: Mapping[str, bytes]) -> None:
        ends_at = time.monotonic() + self.ttl_s if self.ttl_s else inf
        with self._changing():
            for key, value in values.items():
                self._put(key, value, ends_at)

    def check(self) -> list[NodeStatus]:
        entries = len(self.held)
        return [NodeStatus(f"this process, {entries:,} of {self._most:,} entries", None, 0.0, None)]

    def close(self) -> None:
        """Leave the store to the other regions of its name, if there are any."""
        self._stores = PerProcess(_Store)
        self._read_from(self._stores.get())

    def _changing(self) -> AbstractContextManager[object]:
        """Return the lock under which this process changes its store, which is a new one where it was its parent's."""
        store = self._stores.get()
        if store.entries is not self._entries:
            self._read_from(store)
        return store.lock

    def _read_from(self, store: _Store) -> None:
        self._entries = store.entries
        self.held: Mapping[object, Held] = store.entries
        self._get = self.held.get

    def _value_or_lease(self, key: str, now: float) -> bytes | Lease | Absent:
        seen = self._seen(key, now)
        if seen is not None:
            return seen
        token = b"%b%d" % (LEASE, _next_lease())
        self._put(key, token, now + self.lease_ttl_s)
        return Lease(token, 0.0)

    def _seen(self, key: str, now: float) -> Seen:
        standing = self._standing(key, now)
        if standing is not None and standing.startswith(MARK):
            return Absent.FENCED if standing.startswith(FENCE) else Absent.LEASED
        return standing

    def _standing(self, key: str, now: float) -> bytes | None:
        entry = self._get(key)
        return entry[0] if entry is not None and entry[1] > now else None

    def _replace(self, key: str, mark: bytes, value: bytes, now: float, ttl_s: float) -> bool:
        entry = self._get(key)
        if entry is None or entry[0] != mark or entry[1] <= now:
            return False
        entry[:] = value, now + ttl_s if ttl_s else inf
        return True

    def _put(self, key: str, value: bytes, ends_at: float) -> None:
        entries = self._entries
        if key not in entries and len(entries) >= self._most:
            for oldest in list(entries)[: self._most // 10 + 1]:
                entries.pop(oldest, None)
        entries[key] = [value, ends_at]
