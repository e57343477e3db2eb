"""What a schedule runs in: a database with one instance in it, a cache, and processes that share the two."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import create_engine, delete, func, insert, select

from cellcache import CellMapping, Settings
from cellcache.codec import encode
from cellcache.database_clock import DatabaseTime
from cellcache.store import Store
from cellcache.tables import cache_invalidation, instance_mapping, metadata
from tests.interleavings.caches import Cache, Entry, MemcachedCache, MemoryCache, QuickMemcached, RedisCache
from tests.interleavings.operations import OPERATIONS, PROJECT
from tests.interleavings.processes import Process, RowLock, land_late, stops_in_flights
from tests.interleavings.scheduler import Operation
from tests.servers import Redis

MOST_OPERATIONS = 4


@dataclass(frozen=True)
class Scenario:
    """Which operations, and what they find. `processes` says where each runs; by default in one of its own."""

    operations: tuple[str, ...]
    mapped: bool = True
    warm: bool = False  # the cache holds the answer from the beginning
    left_over: bool = False  # an earlier writer has died and left its row of invalidations
    processes: tuple[int, ...] = ()
    faults: frozenset[str] = frozenset()

    def __str__(self) -> str:
        begins = f"{'mapped' if self.mapped else 'unmapped'}, {'warm' if self.warm else 'cold'}"
        return f"{' | '.join(self.operations)} ({begins}{', row left over' if self.left_over else ''})"


class Database:
    """A database file with cells, and the row as anybody else would read it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "interleavings.db"
        self.url = f"sqlite:///{self.path}"
        self.engine = create_engine(self.url, isolation_level="AUTOCOMMIT")
        metadata.create_all(self.engine)
        store = Store(Settings(database={"url": self.url}).database)
        self.cells = [str(uuid4()) for _ in range(MOST_OPERATIONS + 1)]
        with store.change_cells() as transaction:
            for cell in self.cells:
                transaction.insert_cell(_cell(cell))
            transaction.commit()
        store.close()
        self._connection = self.engine.connect()

    def prepare(self, key: str, cell_uuid: str | None, *, left_over: bool) -> None:
        if cell_uuid is not None:
            row = {"instance_uuid": key, "cell_uuid": cell_uuid, "project_id": PROJECT, "created_at": DatabaseTime()}
            self._connection.execute(insert(instance_mapping).values(row))
        if left_over:
            left = {"instance_uuids": key, "created_at": DatabaseTime(), "deliver_after": DatabaseTime(-3600)}
            self._connection.execute(insert(cache_invalidation).values(left))

    def cell_of(self, key: str) -> str | None:
        query = select(instance_mapping.c.cell_uuid).where(instance_mapping.c.instance_uuid == key)
        cell_uuid: str | None = self._connection.scalar(query)
        return cell_uuid

    def rows(self) -> int:
        return self._connection.scalar(select(func.count()).select_from(cache_invalidation)) or 0

    def forget_rows(self) -> None:
        self._connection.execute(delete(cache_invalidation))

    def close(self) -> None:
        self._connection.close()
        self.engine.dispose()


def _cell(uuid: str) -> CellMapping:
    return CellMapping(uuid=uuid, name=None, database_connection="sqlite:///cell.db", transport_url="none://")


class World(abc.ABC):
    """Where schedules run, one after the other, each with an instance of its own."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.lock = RowLock()
        self.key = ""
        self._under_way: list[Operation] = []

    def begin(self, scenario: Scenario) -> list[Operation]:
        """Prepare what the operations find, and bring each to its first stop."""
        self.key = str(uuid4())
        self.lock.holder = None
        cell_uuid = self.database.cells[0] if scenario.mapped else None
        self.database.prepare(self.key, cell_uuid, left_over=scenario.left_over)
        self.prepare(scenario)
        if scenario.warm:
            self.warm(cell_uuid)
        processes = scenario.processes or tuple(range(len(scenario.operations)))
        self._under_way = [
            self.operation(name, process, processes[:at].count(process), self.database.cells[at + 1])
            for at, (name, process) in enumerate(zip(scenario.operations, processes, strict=True))
        ]
        return self._under_way

    def advance(self, operation: Operation) -> bool:
        """Let it do its next step; return whether that was a commit."""
        step = operation.next
        operation.advance()
        committed = step is not None and step.kind == "commit" and not operation.rolled_back
        if committed or operation.rolled_back or operation.next is None:
            self.release(operation)
        return committed

    def give_up(self) -> None:
        """Abandon what is still under way."""
        for operation in self._under_way:
            operation.abandon()

    def release(self, operation: Operation) -> None:
        """Its transaction is over."""
        operation.rolled_back = False
        if self.lock.holder is operation:
            self.lock.holder = None

    @abc.abstractmethod
    def prepare(self, scenario: Scenario) -> None: ...

    @abc.abstractmethod
    def warm(self, cell_uuid: str | None) -> None: ...

    @abc.abstractmethod
    def operation(self, name: str, process: int, thread: int, cell_uuid: str) -> Operation: ...

    @abc.abstractmethod
    def peek(self) -> Entry: ...

    @abc.abstractmethod
    def evict(self) -> None: ...

    @abc.abstractmethod
    def restart(self) -> None: ...

    @abc.abstractmethod
    def deliver(self, dead: Sequence[Operation]) -> int:
        """Once all have finished: deliver what waits; return how many rows wait even then."""


class CellcacheWorld(World):
    """Ours. `each` holds settings of the cache that one process alone has."""

    def __init__(self, database: Database, cache: Cache, each: Mapping[int, Mapping[str, Any]] | None = None) -> None:
        super().__init__(database)
        self.cache = cache
        # Nothing is to happen by the clock: limits far beyond any step, and a node that is tried again at once.
        limits = {"lease_ttl_s": 600.0, "fence_ttl_s": 6000.0}
        if cache.settings["backend"] != "cellcache.memory":
            limits |= {"timeout_s": 20.0, "retry_s": 1e-9}
        self.processes: list[Process] = []
        for number in range(MOST_OPERATIONS + 1):  # the last one delivers what is left in the end
            own = {
                **cache.settings,
                **limits,
                "ttl_s": 6000.0,
                "negative_ttl_s": 6000.0,
                **(each or {}).get(number, {}),
            }
            settings = Settings(database={"url": database.url, "timeout_s": 60.0}, cache=own)
            self.processes.append(Process(settings, self.lock, threads=MOST_OPERATIONS if number == 0 else 1))
        self._process_of: dict[Operation, Process] = {}

    def prepare(self, scenario: Scenario) -> None:
        self._process_of.clear()
        if "restart" in scenario.faults:
            self.cache.fresh()
        for process in self.processes:
            process.forget_invalidations()
            process.connect()

    def warm(self, cell_uuid: str | None) -> None:
        backend: Any = self.processes[-1].directory._here().backend
        backend.store_multi({self.key: encode(cell_uuid)})

    def operation(self, name: str, process: int, thread: int, cell_uuid: str) -> Operation:
        where, key, call = self.processes[process], self.key, OPERATIONS[name]

        def run() -> object:
            try:
                return call(where.directory, key, cell_uuid)
            finally:
                land_late()

        operation = Operation(name, where.threads[thread], run)
        self._process_of[operation] = where
        return operation

    def peek(self) -> Entry:
        return self.cache.peek(self.key)

    def evict(self) -> None:
        self.cache.evict(self.key)

    def restart(self) -> None:
        self.cache.restart()

    def deliver(self, dead: Sequence[Operation]) -> int:
        if not self.database.rows():
            return 0
        for operation, process in self._process_of.items():
            if operation in dead:
                process.forget_invalidations()
        for process in self.processes[:-1]:  # what has settled is forgotten, not delivered
            process.directory._here().invalidations.flush()
        self.processes[-1].directory._here().invalidations.deliver()
        rows = self.database.rows()
        self.database.forget_rows()
        return rows

    def close(self) -> None:
        self.give_up()
        for process in self.processes:
            process.close()


@contextmanager
def cellcache_world(
    folder: Path, server: QuickMemcached | Redis | None, each: Mapping[int, Mapping[str, Any]] | None = None
) -> Iterator[CellcacheWorld]:
    """Open the directories over a server; over the memory backend if there is none."""
    with ExitStack() as stack:
        database = Database(folder)
        stack.callback(database.close)
        cache: Cache
        if isinstance(server, QuickMemcached):
            cache = MemcachedCache(server)
        elif isinstance(server, Redis):
            cache = RedisCache(server)
        else:
            cache = MemoryCache(database.url)
        stack.callback(cache.close)
        stack.enter_context(stops_in_flights())
        world = CellcacheWorld(database, cache, each)
        stack.callback(world.close)
        yield world
