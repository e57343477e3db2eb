"""The servers of a run: started when first asked for, shared by the contenders, all stopped at the end.

A contender is told where things are by a `Place`; the same place seen through counting proxies is another one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from sqlalchemy import make_url

from benchmarks.cells import ROWS as CELL_ROWS
from benchmarks.cells import create_cell
from benchmarks.counting import CountingProxy, StatementCounter
from benchmarks.instances import Instances
from benchmarks.tables import Loaded, load
from tests.servers import MariaDB, Memcached, Redis

Loading = Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], object]]]
"""Called with a title and a total; what it gives is called with each step."""

_ON_ITS_WAY_S = 0.02  # longer than the proxies hold a request back


@dataclass(frozen=True, slots=True)
class Place:
    """Where a contender finds its servers; `timeout_s` is every client's limit."""

    database: str
    cell_database: str
    instances: Instances
    memcached: tuple[str, ...] = ()
    redis: str | None = None
    room: int = 10_000_000  # entries that a cache inside the process may hold
    timeout_s: float = 1.0  # long enough that a busy machine does not turn a hit into a time-out


class World:
    """Starts servers on loopback; the database is durable: a commit returns when it is on disk."""

    def __init__(self, seed: int, loading: Loading, *, buffer_pool_gb: int = 1) -> None:
        self.seed = seed
        self._buffer_pool_gb = buffer_pool_gb
        self._loading = loading
        self._stack = contextlib.ExitStack()
        self._mariadb: MariaDB | None = None
        self._databases: dict[int, Loaded] = {}
        self._cells: str | None = None
        self._memcached: dict[int, tuple[str, ...]] = {}
        self._redis: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def instances(self, rows: int) -> Instances:
        return Instances(rows, self.seed)

    def memcached(self, nodes: int = 1) -> tuple[str, ...]:
        """Return the addresses of so many memcached nodes, the same for every contender.

        Were each to have servers of its own, the kernel would keep some of them on the client's core and others not,
        for a whole run: a factor of two that no number of rounds evens out. For the same reason each has one thread.
        """
        if nodes not in self._memcached:
            self._memcached[nodes] = self.new_memcached(nodes)
        return self._memcached[nodes]

    def new_memcached(self, nodes: int = 1, memory_mb: int = 2048) -> tuple[str, ...]:
        """Start memcached nodes that nobody else uses."""
        servers = [self._stack.enter_context(Memcached(memory_mb, ["-t", "1"])) for _ in range(nodes)]
        return tuple(server.address for server in servers)

    def redis(self) -> str:
        """Return the URL of the Redis that all contenders share."""
        if self._redis is None:
            self._redis = self.new_redis()
        return self._redis

    def new_redis(self) -> str:
        return self._stack.enter_context(Redis()).url

    def database(self, rows: int) -> Loaded:
        """Return a database whose `instance_mapping` has that many rows; loaded once per run."""
        if rows not in self._databases:
            url = self.mariadb.create_database(f"mappings_{rows}")
            with self._loading(f"loading {rows:,} rows", rows) as on_progress:
                self._databases[rows] = load(url, self.instances(rows), self.cell_database(), on_progress)
        return self._databases[rows]

    def cell_database(self) -> str:
        """Return the URL of the database that all cells of the run share."""
        if self._cells is None:
            self._cells = self.mariadb.create_database("cell")
            create_cell(self._cells, self.instances(CELL_ROWS))
        return self._cells

    def statements(self) -> StatementCounter:
        """Count all clients' statements; to be closed."""
        return StatementCounter(self.mariadb.url)

    @property
    def mariadb(self) -> MariaDB:
        if self._mariadb is None:
            options = [
                f"--innodb-buffer-pool-size={self._buffer_pool_gb}G",
                "--innodb-log-file-size=512M",
                "--local-infile=1",
                "--max-allowed-packet=64M",
            ]
            self._mariadb = self._stack.enter_context(MariaDB(options, durable=True))
        return self._mariadb


class Counted:
    """The same place through proxies: counts the round trips to its caches, and the database's own statements."""

    def __init__(self, place: Place) -> None:
        self._stack = contextlib.ExitStack()
        self._proxies: list[CountingProxy] = []
        url = make_url(place.database)
        redis = make_url(place.redis) if place.redis else None
        through = self._through(url.host or "", url.port or 0)
        self.place = replace(
            place,
            database=url.set(host=through[0], port=through[1]).render_as_string(hide_password=False),
            timeout_s=2.0,
        )
        self._database_proxy = self._proxies.pop()
        memcached = [":".join(map(str, self._through(*split_address(address)))) for address in place.memcached]
        self.place = replace(self.place, memcached=tuple(memcached))
        if redis is not None:
            host, port = self._through(redis.host or "", redis.port or 0)
            self.place = replace(self.place, redis=f"redis://{host}:{port}/0")
        self._statements = self._stack.enter_context(StatementCounter(place.database))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def counts(self, call: Callable[[], object]) -> Counts:
        """Make one call and return what it cost, with what it sends and does not wait for."""
        time.sleep(_ON_ITS_WAY_S)
        cache = sum(proxy.round_trips for proxy in self._proxies)
        database = self._database_proxy.round_trips
        before = self._statements.read()
        call()
        time.sleep(_ON_ITS_WAY_S)
        after = self._statements.read()
        return Counts(
            cache_round_trips=sum(proxy.round_trips for proxy in self._proxies) - cache,
            database_round_trips=self._database_proxy.round_trips - database,
            statements=after.statements - before.statements,
            transaction_statements=after.transaction_statements - before.transaction_statements,
        )

    def _through(self, host: str, port: int) -> tuple[str, int]:
        proxy = self._stack.enter_context(CountingProxy(host, port))
        self._proxies.append(proxy)
        return proxy.host, proxy.port


@dataclass(frozen=True, slots=True)
class Counts:
    """What one call cost. Transaction statements are BEGIN, COMMIT, ROLLBACK and SET; a ping is a round trip alone."""

    cache_round_trips: int
    database_round_trips: int
    statements: int
    transaction_statements: int


def split_address(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)
