"""cellcache itself, over each of its backends."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import make_url

from benchmarks.cells import ROW_OF_ONE
from benchmarks.contenders.base import Contender, Lookup, batches
from benchmarks.contenders.sql import PAGE
from benchmarks.instances import Instances, Row
from benchmarks.world import Place
from cellcache import CellDirectory, InstanceNotMapped, Settings

_HOUR_S = 3600.0
_numbers = itertools.count(1)


class Directory(Contender, ABC):
    """The public calls of one CellDirectory."""

    how = "CellDirectory.open(settings), then its methods; the times-to-live are an hour"
    reads_through = True
    shares_threads = True

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.directory = CellDirectory.open(
            Settings(
                database={"url": self._database(), "pool_size": 40},
                cache={"ttl_s": _HOUR_S, "negative_ttl_s": _HOUR_S, **self._cache()},
            )
        )

    @property
    def lookup(self) -> Lookup:
        return self.directory.resolve_cell

    @property
    def lookup_many(self) -> Callable[[Sequence[str]], object]:
        return self.directory.resolve_cells

    @property
    def create_many(self) -> Callable[[Sequence[Row]], object]:
        return self.directory.map_instances

    @property
    def prune(self) -> Callable[[Sequence[str]], object]:
        return self.directory.prune

    def _database(self) -> str:
        return self.place.database

    @abstractmethod
    def _cache(self) -> dict[str, Any]:
        """Return the keys of the section [cache] that name the backend."""

    def lookup_unmapped(self, key: str) -> None:
        try:
            self.directory.resolve_cell(key)
        except InstanceNotMapped:
            return
        raise AssertionError(f"{key} is mapped")

    def create(self, row: Row) -> None:
        self.directory.map_instance(*row)

    def move(self, change: tuple[str, str]) -> None:
        self.directory.move_instance(*change)

    def listing(self, project_id: str) -> object:
        return self.directory.list_instances(project_id=project_id, limit=PAGE)

    def request(self, key: str) -> object:
        with self.directory.connect_cell(key) as connection:
            return connection.execute(ROW_OF_ONE, {"key": key}).one()

    def store(self, instances: Instances, numbers: Sequence[int]) -> None:
        for batch in batches(numbers):
            self.directory.resolve_cells(map(instances.uuid, batch))

    def forget(self, keys: Sequence[str]) -> None:
        self.directory.region.delete_multi(keys)

    def cell_of(self, answer: Any) -> str | None:
        return None if answer is None else str(answer.uuid)

    def close(self) -> None:
        self.directory.close()


class OnMemcached(Directory):
    key = "cellcache.memcached"
    title = "cellcache on memcached"
    family = "memcached"
    many_nodes = True

    def _cache(self) -> dict[str, Any]:
        return {
            "backend": "cellcache.memcached",
            "servers": list(self.place.memcached),
            "timeout_s": self.place.timeout_s,
        }


class OnRedis(Directory):
    key = "cellcache.redis"
    title = "cellcache on Redis"
    family = "redis"

    def _cache(self) -> dict[str, Any]:
        return {"backend": "cellcache.redis", "url": self.place.redis, "timeout_s": self.place.timeout_s}


class InMemory(Directory):
    """With a store of its own: directories of one process that name the same database would share one."""

    key = "cellcache.memory"
    title = "cellcache in memory"
    family = "memory"

    def _cache(self) -> dict[str, Any]:
        return {"backend": "cellcache.memory", "max_entries": self.place.room}

    def _database(self) -> str:
        """The same database to the server; to us another, as what a connection begins with may choose one."""
        url = make_url(self.place.database).update_query_dict({"init_command": f"DO {next(_numbers)}"})
        return url.render_as_string(hide_password=False)
