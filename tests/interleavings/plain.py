"""The obvious design, to be walked beside ours: a plain dogpile region over memcached or Redis.

A miss reads the row and sets the entry; a write commits and then sets the entry to the new value, or deletes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

from dogpile.cache import CacheRegion, make_region
from dogpile.cache.api import NO_VALUE
from dogpile.cache.proxy import ProxyBackend

from cellcache import Settings
from cellcache.store import Store
from cellcache.transaction import Transaction
from tests.interleavings.caches import ABSENT, Entry
from tests.interleavings.operations import PROJECT
from tests.interleavings.processes import RowLock, stop_at_statements
from tests.interleavings.scheduler import Operation, stop
from tests.interleavings.world import MOST_OPERATIONS, Database, Scenario, World
from tests.servers import Memcached, Redis

After = Literal["set", "delete"]


class _Stopping(ProxyBackend):
    """Stops before each request of a region."""

    def get_serialized(self, key: str) -> Any:
        stop("cache", "get")
        return self.proxied.get_serialized(key)

    def set_serialized(self, key: str, value: bytes) -> None:
        stop("cache", "set")
        self.proxied.set_serialized(key, value)

    def delete(self, key: str) -> None:
        stop("cache", "delete")
        self.proxied.delete(key)


class _Process:
    """One process of that design."""

    def __init__(self, database: Database, lock: RowLock, region: CacheRegion, after: After) -> None:
        self.thread = ThreadPoolExecutor(1)
        self._store = Store(Settings(database={"url": database.url, "timeout_s": 20.0}).database)
        self._region = region
        self._after = after
        stop_at_statements(self._store, lock)

    def resolve(self, key: str) -> str | None:
        cell_uuid: str | None = self._region.get_or_create(key, lambda: self._store.cell_of(key))
        return cell_uuid

    def write(self, name: str, key: str, cell_uuid: str) -> bool:
        with self._store.transaction() as transaction:
            if not _change(name, transaction, key, cell_uuid):
                return False
            transaction.commit()
        if self._after == "delete":
            self._region.delete(key)
        else:
            self._region.set(key, None if name == "prune" else cell_uuid)
        return True

    def close(self) -> None:
        self.thread.submit(_close, self._region).result()  # pymemcache has a client for each thread
        self.thread.shutdown()
        self._store.close()


def _close(region: CacheRegion) -> None:
    backend: Any = region.actual_backend
    (backend.client if hasattr(backend, "client") else backend.reader_client).close()


def _change(name: str, transaction: Transaction, key: str, cell_uuid: str) -> bool:
    standing = transaction.lock_mappings([key]).get(key)
    if name == "create":
        if standing is None:
            transaction.insert_mapping(key, cell_uuid, PROJECT)
        return standing is None
    if standing is None:
        return False
    if name == "prune":
        transaction.delete_mappings([standing])
    else:
        transaction.set_cell(standing, cell_uuid, transaction.require_cells([cell_uuid]))
    return True


class PlainWorld(World):
    """That design in the place of ours."""

    def __init__(self, database: Database, backend: str, arguments: Mapping[str, Any], after: After) -> None:
        super().__init__(database)
        self._insider = _region(backend, arguments)
        self.processes = [
            _Process(database, self.lock, _region(backend, arguments, wrap=[_Stopping]), after)
            for _ in range(MOST_OPERATIONS)
        ]

    def prepare(self, scenario: Scenario) -> None:
        """Nothing is kept from one schedule to the next."""

    def warm(self, cell_uuid: str | None) -> None:
        self._insider.set(self.key, cell_uuid)

    def operation(self, name: str, process: int, thread: int, cell_uuid: str) -> Operation:
        where, key = self.processes[process], self.key
        if name == "resolve":
            return Operation(name, where.thread, lambda: where.resolve(key))
        return Operation(name, where.thread, lambda: where.write(name, key, cell_uuid))

    def peek(self) -> Entry:
        value = self._insider.get(self.key)
        return ABSENT if value is NO_VALUE else Entry("value", repr(value).encode(), value)

    def evict(self) -> None:
        self._insider.delete(self.key)

    def restart(self) -> None:
        raise NotImplementedError

    def deliver(self, dead: Sequence[Operation]) -> int:
        return 0

    def close(self) -> None:
        self.give_up()
        _close(self._insider)
        for process in self.processes:
            process.close()


def _region(backend: str, arguments: Mapping[str, Any], wrap: Sequence[type[ProxyBackend]] = ()) -> CacheRegion:
    region = make_region(serializer=lambda value: json.dumps(value).encode(), deserializer=json.loads)
    return region.configure(backend, arguments=dict(arguments), wrap=list(wrap))


@contextmanager
def plain_world(folder: Path, server: Memcached | Redis, after: After) -> Iterator[PlainWorld]:
    with ExitStack() as stack:
        database = Database(folder)
        stack.callback(database.close)
        if isinstance(server, Memcached):
            world = PlainWorld(database, "dogpile.cache.pymemcache", {"url": [server.address]}, after)
        else:
            world = PlainWorld(database, "dogpile.cache.redis", {"url": server.url}, after)
        stack.callback(world.close)
        yield world
