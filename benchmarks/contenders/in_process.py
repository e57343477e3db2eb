"""What one can do inside a process without a server: a dictionary, functools.lru_cache, cachetools."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from benchmarks.contenders.base import Contender, Lookup
from benchmarks.contenders.sql import Core
from benchmarks.instances import Instances
from benchmarks.world import Place

_HOUR_S = 3600.0


class Dictionary(Contender):
    key = "dict"
    title = "dict.get (the floor)"
    family = "memory"
    how = "a dictionary from UUID to cell: no time-to-live, no limit, no reading through"
    shares_threads = True

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._cells: dict[str, str] = {}

    @property
    def lookup(self) -> Lookup:
        return self._cells.get

    def store(self, instances: Instances, numbers: Sequence[int]) -> None:
        self._cells.update(self.answers(instances, numbers))


class LruCache(Contender):
    key = "lru_cache"
    title = "functools.lru_cache"
    family = "memory"
    how = "@lru_cache(maxsize) over a function that reads the table: no time-to-live, no way to remove one entry"
    shares_threads = True

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._table = Core(place)
        self._given: dict[str, str] = {}
        self._lookup = lru_cache(maxsize=place.room)(self._read)

    @property
    def lookup(self) -> Lookup:
        return self._lookup

    def store(self, instances: Instances, numbers: Sequence[int]) -> None:
        self._given = self.answers(instances, numbers)
        for key in self._given:
            self._lookup(key)
        self._given = {}

    def close(self) -> None:
        self._lookup.cache_clear()
        self._table.close()

    def _read(self, key: str) -> Any:
        return self._given.get(key) or self._table.lookup(key)


class CacheTools(Contender):
    key = "cachetools"
    title = "cachetools TTLCache"
    family = "memory"
    how = "@cached(TTLCache(maxsize, ttl), lock=Lock()) over a function that reads the table (cachetools, Memoizing)"
    needs = ("cachetools",)
    reads_through = True
    shares_threads = True

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        from cachetools import TTLCache, cached

        self._table = Core(place)
        self._cache: TTLCache[Any, Any] = TTLCache(maxsize=place.room, ttl=_HOUR_S)
        self._lookup: Callable[[str], Any] = cached(self._cache, lock=threading.Lock())(self._table.lookup)

    @property
    def lookup(self) -> Lookup:
        return self._lookup

    @property
    def lookup_unmapped(self) -> Lookup:
        return self._lookup

    def store(self, instances: Instances, numbers: Sequence[int]) -> None:
        from cachetools.keys import hashkey

        for key, cell in self.answers(instances, numbers).items():
            self._cache[hashkey(key)] = cell

    def forget(self, keys: Sequence[str]) -> None:
        from cachetools.keys import hashkey

        for key in keys:
            self._cache.pop(hashkey(key), None)

    def close(self) -> None:
        self._table.close()
