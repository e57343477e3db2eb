"""A plain dogpile.cache region in front of the table: what one has today without cellcache, and OpenStack's oslo.cache.

They read through, and they go stale: nothing ties what they store to what a writer has committed meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dogpile.cache import make_region

from benchmarks.contenders.base import Contender, batches
from benchmarks.contenders.sql import CELL_OF_ONE, CELLS_OF_MANY, Core
from benchmarks.instances import Instances, Row
from benchmarks.world import Place

_HOUR_S = 3600


class DogpileRegion(Contender):
    """get_or_create over a pooled SQLAlchemy engine; after a write, the region's set or delete."""

    reads_through = True
    shares_threads = True
    backend: str

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._table = Core(place)
        self.region = make_region().configure(self.backend, expiration_time=_HOUR_S, arguments=self._arguments())

    def _arguments(self) -> dict[str, Any]:
        return {}

    def lookup(self, key: str) -> Any:
        return self.region.get_or_create(key, lambda: self._read(key))

    lookup_unmapped = lookup

    def lookup_many(self, keys: Sequence[str]) -> Sequence[Any]:
        return self.region.get_or_create_multi(keys, self._read_many)

    def create(self, row: Row) -> None:
        self._table.create(row)
        self.region.set(row[0], row[1])

    def create_many(self, rows: Sequence[Row]) -> None:
        self._table.create_many(rows)
        self.region.set_multi({row[0]: row[1] for row in rows})

    def move(self, change: tuple[str, str]) -> None:
        self._table.move(change)
        self.region.set(*change)

    def prune(self, keys: Sequence[str]) -> None:
        self._table.prune(keys)
        self.region.delete_multi(keys)

    def store(self, instances: Instances, numbers: Sequence[int]) -> None:
        for batch in batches(numbers):
            self.region.set_multi(self.answers(instances, batch))

    def forget(self, keys: Sequence[str]) -> None:
        self.region.delete_multi(keys)

    def cells_of(self, answer: Any, keys: Sequence[str]) -> dict[str, str | None]:
        return {key: self.cell_of(value) for key, value in zip(keys, answer, strict=True)}

    def close(self) -> None:
        self._table.close()

    def _read(self, key: str) -> Any:
        with self._table.engine.connect() as connection:
            return connection.scalar(CELL_OF_ONE, {"key": key})

    def _read_many(self, *keys: str) -> list[Any]:
        with self._table.engine.connect() as connection:
            found = {row[0]: row[1] for row in connection.execute(CELLS_OF_MANY, {"keys": keys})}
        return [found.get(key) for key in keys]


class DogpileMemcached(DogpileRegion):
    key = "dogpile.pymemcache"
    title = "dogpile.cache over pymemcache"
    family = "memcached"
    how = "make_region().configure('dogpile.cache.pymemcache'), get_or_create / get_or_create_multi"
    backend = "dogpile.cache.pymemcache"
    many_nodes = True

    def _arguments(self) -> dict[str, Any]:
        return {"url": list(self.place.memcached)}

    def close(self) -> None:
        self.region.backend.client.close()  # this thread's; those of others go with their threads
        super().close()


class DogpileRedis(DogpileRegion):
    key = "dogpile.redis"
    title = "dogpile.cache over Redis"
    family = "redis"
    how = "make_region().configure('dogpile.cache.redis'), get_or_create"
    needs = ("redis",)
    backend = "dogpile.cache.redis"

    def _arguments(self) -> dict[str, Any]:
        return {"url": self.place.redis, "redis_expiration_time": 2 * _HOUR_S}

    def close(self) -> None:
        self.region.backend.reader_client.close()
        self.region.backend.writer_client.close()
        super().close()


class DogpileMemory(DogpileRegion):
    key = "dogpile.memory"
    title = "dogpile.cache in memory"
    family = "memory"
    how = "make_region().configure('dogpile.cache.memory'), get_or_create; it never evicts"
    backend = "dogpile.cache.memory"


class OsloCache(Contender):
    key = "oslo.cache"
    title = "oslo.cache over pymemcache"
    family = "memcached"
    how = "create_region, configure_cache_region and get_memoization_decorator, as its module's page has it"
    needs = ("oslo_cache",)
    reads_through = True
    shares_threads = True

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        from oslo_cache import core
        from oslo_config import cfg

        self._table = Core(place)
        conf = cfg.ConfigOpts()
        core.configure(conf)
        conf.register_opts([cfg.BoolOpt("caching", default=True), cfg.IntOpt("cache_time", default=_HOUR_S)], "mapping")
        conf([], project="cellcache-benchmarks", default_config_files=[], default_config_dirs=[])
        conf.set_override("enabled", True, "cache")
        conf.set_override("backend", "dogpile.cache.pymemcache", "cache")
        conf.set_override("backend_argument", [f"url:{place.memcached[0]}"], "cache")
        self.region = core.create_region()
        memoize = core.get_memoization_decorator(conf, self.region, "mapping")

        def cell_of_instance(key: str) -> Any:
            return self._table.lookup(key)

        self._cell_of_instance: Any = memoize(cell_of_instance)
        core.configure_cache_region(conf, self.region)

    def lookup(self, key: str) -> Any:
        return self._cell_of_instance(key)

    lookup_unmapped = lookup

    def store(self, instances: Instances, numbers: Sequence[int]) -> None:
        for key, cell in self.answers(instances, numbers).items():
            self._cell_of_instance.set(cell, key)

    def forget(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._cell_of_instance.invalidate(key)

    def close(self) -> None:
        self.region.actual_backend.client.close()
        self._table.close()
