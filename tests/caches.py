"""The caches that the backends' suites run over: each kind with its servers, and what can happen behind its back."""

from __future__ import annotations

import abc
import time
import uuid
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, Protocol, TypeVar

import pytest

from cellcache.backends.keys import raw_key
from cellcache.backends.memcached import MemcachedBackend
from cellcache.backends.memory import MemoryBackend
from cellcache.backends.node import Node
from cellcache.backends.redis import RedisBackend
from cellcache.backends.resp import command
from cellcache.codec import FENCE
from cellcache.protocol import CoherentBackend, Fence, Lease
from tests.fake_redis import FakeRedis
from tests.servers import Memcached, Redis

T = TypeVar("T")

# Far more than any reply takes: a test that does not want a time-out never meets one, whatever the machine is doing.
PATIENT: dict[str, Any] = {"timeout_s": 10.0, "retry_s": 0.2}


class Backend(CoherentBackend, Protocol):
    """A backend as both dogpile and the directory see it; all of ours are LeasingBackend as well."""

    fill_multi: Any
    get_serialized: Any
    get_serialized_multi: Any
    set_serialized: Any
    set_serialized_multi: Any
    delete: Any
    delete_multi: Any
    store_multi: Any


class Cache(abc.ABC):
    """One kind of cache."""

    entry_point: str
    shortest_ttl_s = 0.3

    def __init__(self) -> None:
        self._backends: list[Backend] = []

    def backend(self, **arguments: Any) -> Backend:
        """A backend over this cache, as another process would have it."""
        backend = self._new({**PATIENT, **self.arguments(), **arguments})
        self._backends.append(backend)
        return backend

    def close(self) -> None:
        for backend in self._backends:
            backend.close()

    @abc.abstractmethod
    def arguments(self) -> dict[str, Any]:
        """What a region's `arguments` need to reach it."""

    @abc.abstractmethod
    def write(self, key: str, value: bytes) -> None:
        """Put any bytes there."""

    @abc.abstractmethod
    def place_mark(self, key: str, mark: bytes, ttl_s: int) -> None:
        """Put a lease or a fence there as somebody else would; 0: without an end."""

    @abc.abstractmethod
    def evict(self, key: str) -> None: ...

    @abc.abstractmethod
    def restart(self) -> None:
        """Lose everything, and every connection."""

    @abc.abstractmethod
    def _new(self, arguments: dict[str, Any]) -> Backend: ...


class MemoryCache(Cache):
    entry_point = "cellcache.memory"

    def __init__(self, name: str | None = None) -> None:
        super().__init__()
        self._name = name or str(uuid.uuid4())
        self._insider = MemoryBackend(self.arguments())

    def arguments(self) -> dict[str, Any]:
        return {"name": self._name}

    def write(self, key: str, value: bytes) -> None:
        self._insider._put(key, value, inf)

    def place_mark(self, key: str, mark: bytes, ttl_s: int) -> None:
        self._insider._put(key, mark, time.monotonic() + ttl_s if ttl_s else inf)

    def evict(self, key: str) -> None:
        self._insider._stores.get().entries.pop(key, None)

    def restart(self) -> None:
        self._insider._stores.get().entries.clear()

    def _new(self, arguments: dict[str, Any]) -> MemoryBackend:
        return MemoryBackend(arguments)


class MemcachedCache(Cache):
    entry_point = "cellcache.memcached"
    shortest_ttl_s = 1.0  # memcached counts in whole seconds

    def __init__(self, servers: Sequence[Memcached]) -> None:
        super().__init__()
        self.servers = servers
        self._insider = MemcachedBackend({**PATIENT, **self.arguments()})

    def arguments(self) -> dict[str, Any]:
        return {"servers": [server.address for server in self.servers]}

    def write(self, key: str, value: bytes) -> None:
        self._do(key, b"ms %b %d b T0\r\n%b\r\n", len(value), value)

    def place_mark(self, key: str, mark: bytes, ttl_s: int) -> None:
        if mark.startswith(FENCE):
            self._do(key, b"ms %b %d b T%d\r\n%b\r\n", len(mark), ttl_s, mark)
        else:  # a lease is an empty item that whoever looks it up makes
            self._do(key, b"mg %b b c N%d\r\n", ttl_s)

    def evict(self, key: str) -> None:
        self._do(key, b"md %b b\r\n")

    def restart(self) -> None:
        for server in self.servers:
            server.kill()  # an orderly end takes memcached a second
            server.start()

    def _do(self, key: str, request: bytes, *arguments: object) -> None:
        wire, node = self._insider._wire(key)
        connection = node.check()
        connection.ask(request % (wire, *arguments))
        connection.close()

    def _new(self, arguments: dict[str, Any]) -> MemcachedBackend:
        return MemcachedBackend(arguments)


class RedisCache(Cache):
    entry_point = "cellcache.redis"

    def __init__(self, server: Redis | FakeRedis) -> None:
        super().__init__()
        self.server = server

    def arguments(self) -> dict[str, Any]:
        return {"url": self.server.url}

    def write(self, key: str, value: bytes) -> None:
        self.do(b"SET", key, value)

    def place_mark(self, key: str, mark: bytes, ttl_s: int) -> None:
        self.do(b"SET", key, mark, *([b"EX", b"%d" % ttl_s] if ttl_s else []))

    def evict(self, key: str) -> None:
        self.do(b"DEL", key)

    def restart(self) -> None:
        self.server.restart()

    def do(self, verb: bytes, key: str, *arguments: bytes) -> None:
        """Send any command about a key."""
        connection = RedisBackend({**PATIENT, **self.arguments()})._node.check()
        connection.ask(command(verb, connection.prefix + raw_key(key), *arguments))
        connection.close()

    def _new(self, arguments: dict[str, Any]) -> RedisBackend:
        return RedisBackend(arguments)


KINDS = [
    "memory",
    "fakeredis",
    pytest.param("memcached", marks=pytest.mark.needs("memcached")),
    pytest.param("three memcacheds", marks=pytest.mark.needs("memcached")),
    pytest.param("redis", marks=pytest.mark.needs("redis")),
]


def open_cache(kind: str, request: pytest.FixtureRequest) -> Cache:
    """Return the kind that a test asks for by name, over the run's shared servers; its caller closes it."""
    if kind == "memory":
        return MemoryCache()
    if kind == "fakeredis":
        return RedisCache(request.getfixturevalue("fake_redis"))
    if kind == "redis":
        return RedisCache(request.getfixturevalue("redis_server"))
    if kind == "memcached":
        return MemcachedCache([request.getfixturevalue("memcached")])
    return MemcachedCache(request.getfixturevalue("memcacheds"))


def new_key() -> str:
    return str(uuid.uuid4())


def nodes_of(backend: Any) -> list[Node[Any]]:
    """Return the servers that a backend talks to: none for the memory backend."""
    nodes: list[Node[Any]] = getattr(backend, "_nodes", None) or [getattr(backend, "_node", None)]
    return [node for node in nodes if node is not None]


def connected(node: Node[Any]) -> float:
    """Let a node have a free connection; return a moment by which it was made: a token of then may use it."""
    connection = node.take(time.monotonic())
    assert connection is not None
    node.give_back(connection)
    return time.monotonic()


def cache_on(server: Memcached | Redis) -> MemcachedCache | RedisCache:
    return MemcachedCache([server]) if isinstance(server, Memcached) else RedisCache(server)


def leased(backend: CoherentBackend, key: str) -> Lease:
    """Look up what is absent; return the lease that this wins."""
    entry = backend.lookup(key)
    assert isinstance(entry, Lease), entry
    return entry


def fenced(backend: CoherentBackend, key: str) -> Fence:
    (fence,) = backend.fence_multi([key])
    assert fence.confirmed
    return fence


def eventually(condition: Callable[[], T], within_s: float = 20.0) -> T:
    """Ask until the answer is true; return it."""
    deadline = time.monotonic() + within_s
    while True:
        answer = condition()
        if answer or time.monotonic() > deadline:
            return answer
        time.sleep(0.02)
