"""dogpile's backend interface over leases: any region over these backends is safe from stale fills.

dogpile calls get, perhaps waits for its mutex, calls get again, calls the creator and calls set, all in one
thread. So a get that misses remembers, for this thread and key, the lease that it won, or that it won none;
the set that follows is the fill: it stores over that very lease, or not at all.
"""

from __future__ import annotations

import abc
import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from dogpile.cache.api import NO_VALUE, BytesBackend, SerializedReturnType

from cellcache.codec import MARK
from cellcache.errors import ConfigError
from cellcache.protocol import Absent, Fill, Held, Lease

_MOST_REMEMBERED = 100_000  # misses of one thread that no set has followed
_LONGEST_S = 1e9  # 31 years: what is longer overflows in one server or another
_LARGEST_VALUE = 1 << 29  # 512 MB, what Redis takes; beyond 2 GB memcached would read the value as commands
_LONGEST_MARK_S = 600.0  # while settings are being changed, processes respect those of others


class _Miss(NamedTuple):
    lease: Lease | None
    ends_at: float  # when the node will have forgotten the lease
    repeated: bool  # dogpile's second get, the one under its mutex, has been


class _Misses(threading.local):
    def __init__(self) -> None:
        self.of: dict[str, _Miss] = {}
        self.overflowed_at = -math.inf  # when some of them had to be forgotten


def checked_value(value: bytes, longest: int) -> bytes:
    """Return a value that cannot be taken for a mark of the protocol nor for a command, or raise an error.

    TypeError for what is not bytes, whose size may be another than the number of its items; else ValueError.
    """
    if not isinstance(value, bytes):
        raise TypeError(f"a cached value must be bytes, and the region's serializer made a {type(value).__name__}")
    if not value or value.startswith(MARK):
        raise ValueError("a cached value must not be empty nor begin with a zero byte: those are leases and fences")
    if len(value) > longest:
        raise ValueError(f"a cached value of {len(value):,} bytes is too large: at most {longest:,} may be sent")
    return value


def seconds_in(arguments: Mapping[str, Any], name: str, default: float, *, least: float = 1e-9) -> float:
    """Return a time that a region's arguments name; raise ConfigError for one that cannot be waited for."""
    value = arguments.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= _LONGEST_S:
        raise ConfigError(f"{name} = {value!r}: must be seconds, a number from {least:g} to {_LONGEST_S:g}")
    return value


class LeasingBackend(BytesBackend, abc.ABC):
    """The part that memory, memcached and Redis share. Values are bytes; objects are kept as JSON."""

    held: Mapping[object, Held] = MappingProxyType({})

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.ttl_s = seconds_in(arguments, "ttl_s", 0.0, least=0.0)  # 0: for ever
        self.lease_ttl_s = seconds_in(arguments, "lease_ttl_s", 5.0)
        self.fence_ttl_s = seconds_in(arguments, "fence_ttl_s", 60.0)
        self.longest_mark_s = max(self.lease_ttl_s, self.fence_ttl_s, _LONGEST_MARK_S)
        self.longest_value = min(arguments.get("longest_value") or _LARGEST_VALUE, _LARGEST_VALUE)
        self._misses = _Misses()

    @staticmethod
    def serializer(value: Any) -> bytes:
        return json.dumps(value).encode()

    @staticmethod
    def deserializer(value: bytes) -> Any:
        return json.loads(value)

    @abc.abstractmethod
    def lookup(self, key: str) -> bytes | Lease | Absent: ...

    @abc.abstractmethod
    def lookup_multi(self, keys: Sequence[str]) -> list[bytes | Lease | Absent]: ...

    @abc.abstractmethod
    def fill_multi(self, fills: Sequence[Fill]) -> list[bool]:
        """Replace each lease by its value if that very lease still stands; say which were stored.

        What dogpile's `set` does: whoever has waited at dogpile's mutex must find the value.
        """

    def send_fills(self, fills: Sequence[Fill], refused: Callable[[int], object], *, wait: bool) -> None:  # noqa: ARG002
        """Do the same, and tell `refused` how many were not stored; without `wait` a backend may hear of that later."""
        refused(len(fills) - sum(self.fill_multi(fills)))

    @abc.abstractmethod
    def invalidate_multi(self, keys: Sequence[str], *, deadline: float | None = None) -> list[bool]: ...

    @abc.abstractmethod
    def store_multi(self, values: Mapping[str, bytes]) -> None:
        """Store whatever stands there: what dogpile's `set` means where no miss came before it."""

    def get_serialized(self, key: str) -> SerializedReturnType:
        misses = self._misses.of
        miss = misses.pop(key, None)
        if miss is not None and miss.lease is not None and not miss.repeated and time.monotonic() < miss.ends_at:
            misses[key] = miss._replace(repeated=True)  # nobody else can store while this thread holds the lease
            return NO_VALUE
        return self._remember(key, self.lookup(key), miss)

    def get_serialized_multi(self, keys: Iterable[str]) -> Sequence[SerializedReturnType]:
        keys, misses = list(keys), self._misses.of
        entries = self.lookup_multi(keys)
        return [self._remember(key, entry, misses.get(key)) for key, entry in zip(keys, entries, strict=True)]

    def _remember(self, key: str, entry: bytes | Lease | Absent, before: _Miss | None) -> SerializedReturnType:
        misses = self._misses.of
        if isinstance(entry, bytes):
            misses.pop(key, None)
            return entry
        if entry is Absent.LEASED and before is not None and time.monotonic() < before.ends_at:
            misses[key] = before  # most likely it is this thread's own lease that stands there; the fill will tell
            return NO_VALUE
        while len(misses) >= _MOST_REMEMBERED:
            del misses[next(iter(misses))]
            self._misses.overflowed_at = time.monotonic()
        lease = entry if isinstance(entry, Lease) else None
        misses[key] = _Miss(lease, time.monotonic() + self.lease_ttl_s, repeated=False)
        return NO_VALUE

    def pass_over(self, key: str) -> SerializedReturnType:
        """Answer a get as if nothing stood there, and let the set that follows store nothing.

        For a value that its reader cannot judge, and will not remove.
        """
        return self._remember(key, Absent.FENCED, None)

    def set_serialized(self, key: str, value: bytes) -> None:
        self.set_serialized_multi({key: value})

    def set_serialized_multi(self, mapping: Mapping[str, bytes]) -> None:
        fills, stores = [], {}
        for value in mapping.values():
            checked_value(value, self.longest_value)
        for key, value in mapping.items():
            miss = self._misses.of.pop(key, None)
            if miss is None:
                if not self._may_have_forgotten():
                    stores[key] = value
            elif miss.lease is not None:
                fills.append(Fill(key, miss.lease, value, self.ttl_s))
        if fills:
            self.fill_multi(fills)
        if stores:
            self.store_multi(stores)

    def _may_have_forgotten(self) -> bool:
        """A `set` without a miss in front of it may be the fill of a miss that this thread had to forget."""
        return time.monotonic() < self._misses.overflowed_at + self.fence_ttl_s

    def delete(self, key: str) -> None:
        self.delete_multi([key])

    def delete_multi(self, keys: Iterable[str]) -> None:
        keys = list(keys)
        for key in keys:
            self._misses.of.pop(key, None)
        self.invalidate_multi(keys)
