"""Whatever a caller sends, on real servers: what was asked for happens and nothing else, and the next answer is right.

Another client's entry stands there all the while, and what is in the server is counted: a value that is read as a
command, or a key that is cut, would show in either.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, NamedTuple, Protocol

import pytest
import redis
from dogpile.cache import make_region
from dogpile.cache.api import NO_VALUE
from hypothesis import given, settings
from hypothesis import strategies as st
from pymemcache.client.base import Client

from cellcache.backends import leasing
from cellcache.backends.keys import raw_key
from cellcache.backends.memcached import MemcachedBackend
from cellcache.backends.memory import MemoryBackend
from cellcache.backends.redis import RedisBackend
from cellcache.backends.wire import Reply
from cellcache.errors import ConfigError
from cellcache.protocol import Absent, Fill, Lease, Settlement
from tests.caches import PATIENT, Backend, Cache, MemcachedCache, RedisCache, new_key, open_cache
from tests.conftest import require
from tests.fake_redis import FakeRedis
from tests.servers import Memcached, Redis

CANARY = b"canary"
TOO_LARGE = 1 << 20  # for memcached, key and header included
lengthy = settings(max_examples=150, deadline=None)

# -- what is in a server, as another client sees it --------------------------------------------------------------------


class World(Protocol):
    @property
    def cache(self) -> Cache: ...
    def canary(self) -> bytes | None: ...
    def entries(self) -> int: ...
    def flushes(self) -> int: ...
    def remove(self, backend: Any, keys: Sequence[str]) -> None: ...


class MemcachedWorld:
    def __init__(self, server: Memcached) -> None:
        self.cache = MemcachedCache([server])
        self._client = Client((server.host, server.port))
        self._client.set(CANARY, b"stands")

    def canary(self) -> bytes | None:
        value: bytes | None = self._client.get(CANARY)
        return value

    def entries(self) -> int:
        return int(self._client.stats()[b"curr_items"])

    def flushes(self) -> int:
        return int(self._client.stats()[b"cmd_flush"])

    def remove(self, backend: MemcachedBackend, keys: Sequence[str]) -> None:
        connection = backend._nodes[0].check()
        connection.ask(b"".join([b"md %b b O1\r\n" % backend._wire(key)[0] for key in keys]), len(keys))
        connection.close()

    def close(self) -> None:
        self.cache.close()
        self._client.close()


class RedisWorld:
    def __init__(self, server: Redis) -> None:
        self.cache = RedisCache(server)
        self._client = redis.Redis.from_url(server.url)
        self._client.set(CANARY, b"stands")

    def canary(self) -> bytes | None:
        value: Any = self._client.get(CANARY)
        return bytes(value) if value is not None else None

    def entries(self) -> int:
        return int(self._client.dbsize())

    def flushes(self) -> int:
        told: Any = self._client.info("commandstats")
        return sum(told.get(f"cmdstat_{verb}", {}).get("calls", 0) for verb in ("flushall", "flushdb"))

    def remove(self, backend: RedisBackend, keys: Sequence[str]) -> None:
        connection = backend._node.check()
        self._client.delete(*[connection.prefix + raw_key(key) for key in keys])
        connection.close()

    def close(self) -> None:
        self.cache.close()
        self._client.close()


@pytest.fixture(scope="module")
def memcached_world() -> Iterator[MemcachedWorld]:
    require("memcached")
    with Memcached() as server, contextlib.closing(MemcachedWorld(server)) as world:
        yield world


@pytest.fixture(scope="module")
def redis_world() -> Iterator[RedisWorld]:
    require("redis")
    with Redis() as server, contextlib.closing(RedisWorld(server)) as world:
        yield world


# -- what a caller may send --------------------------------------------------------------------------------------------

COMMANDS = [
    "flush_all\r\n",
    "\r\nflush_all\r\n",
    "x\r\nflush_all\r\nms aW5qZWN0ZWQ= 1 b\r\nx\r\n",
    "\r\ndelete canary\r\nset injected 0 0 1\r\nx\r\n",
    "\r\nmd canary\r\n",
    "*1\r\n$8\r\nFLUSHALL\r\n",
    "\r\n*3\r\n$3\r\nSET\r\n$8\r\ninjected\r\n$1\r\nx\r\n",
    " 0 b\r\n",
    "\0",
    "\ud800",
    "",
]
texts = st.one_of(st.sampled_from(COMMANDS), st.text(max_size=20), st.text("\r\n \0b", max_size=20))
keys = st.one_of(
    st.uuids().map(str),
    texts,
    st.builds(lambda text, size: (text or "u").ljust(size, "u")[:size], texts, st.integers(100, 260)),
)
prefixes = st.one_of(st.just(""), texts, st.builds(lambda text, size: text.ljust(size, "p"), texts, st.integers(0, 60)))
sizes = st.sampled_from([TOO_LARGE - 300, TOO_LARGE - 50, TOO_LARGE, TOO_LARGE + 1, 3 * TOO_LARGE])
values = st.one_of(
    st.sampled_from(COMMANDS).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary(max_size=40),
    st.builds(bytes.ljust, st.sampled_from([b"x", b"\r\nflush_all\r\n", b"\0"]), sizes, st.just(b"flush_all\r\n"[:1])),
)
times = st.sampled_from([0, 60, 2592000, 2592001, 10**9, 1e300, float("inf")])


class Sent(NamedTuple):
    """One call of the backend: what it is given."""

    call: str
    value: bytes
    ttl_s: float


def _fills(backend: Backend, keys: Sequence[str], sent: Sent) -> list[Fill]:
    found = zip(keys, backend.lookup_multi(keys), strict=True)
    return [Fill(key, entry, sent.value, sent.ttl_s) for key, entry in found if isinstance(entry, Lease)]


def _settle(backend: Backend, keys: Sequence[str], sent: Sent, value: bytes | None) -> None:
    fences = backend.fence_multi(keys)
    backend.settle_multi([Settlement(key, fence, value, sent.ttl_s) for key, fence in zip(keys, fences, strict=True)])


CALLS: dict[str, Callable[[Backend, Any, Sequence[str], Sent], object]] = {
    "region.get": lambda _, region, keys, sent: [region.get(key) for key in keys],
    "region.get_multi": lambda _, region, keys, sent: region.get_multi(keys),
    "region.set": lambda _, region, keys, sent: [region.set(key, sent.value) for key in keys],
    "region.set_multi": lambda _, region, keys, sent: region.set_multi(dict.fromkeys(keys, sent.value)),
    "region.get_or_create": lambda _, region, keys, sent: [
        region.get_or_create(key, lambda: sent.value) for key in keys
    ],
    "region.delete": lambda _, region, keys, sent: [region.delete(key) for key in keys],
    "region.delete_multi": lambda _, region, keys, sent: region.delete_multi(keys),
    "lookup": lambda backend, _, keys, sent: [backend.lookup(key) for key in keys],
    "lookup_multi": lambda backend, _, keys, sent: backend.lookup_multi(keys),
    "peek": lambda backend, _, keys, sent: backend.peek_multi(keys),
    "fill": lambda backend, _, keys, sent: backend.fill_multi(_fills(backend, keys, sent)),
    "send": lambda backend, _, keys, sent: backend.send_fills(_fills(backend, keys, sent), lambda n: None, wait=False),
    "fence": lambda backend, _, keys, sent: backend.fence_multi(keys),
    "settle": lambda backend, _, keys, sent: _settle(backend, keys, sent, sent.value),
    "settle, removing": lambda backend, _, keys, sent: _settle(backend, keys, sent, None),
    "invalidate": lambda backend, _, keys, sent: backend.invalidate_multi(keys),
    "store": lambda backend, _, keys, sent: backend.store_multi(dict.fromkeys(keys, sent.value)),
}
# A region reads what a region has written: what dogpile makes of other bytes is its own affair.
calls = st.one_of(
    [
        st.lists(st.builds(Sent, st.sampled_from(kind), values, times), min_size=1, max_size=6)
        for kind in (
            [name for name in CALLS if name.startswith("region.")],
            [name for name in CALLS if not name.startswith("region.")],
        )
    ]
)


def check(world: World, prefix: str, keys: Sequence[str], sent: Sequence[Sent], ttl_s: float, largest: int) -> None:
    """Make the calls one by one; look, after each, at all that it must not have changed."""
    times = {"ttl_s": ttl_s, "lease_ttl_s": 600.0, "fence_ttl_s": 3600.0}
    region = make_region(serializer=bytes, deserializer=bytes).configure(
        world.cache.entry_point, arguments={**PATIENT, **world.cache.arguments(), "key_prefix": prefix, **times}
    )
    backend: Any = region.actual_backend
    witness = new_key()
    backend.store_multi({witness: b"right"})
    node: Any = getattr(backend, "_nodes", [getattr(backend, "_node", None)])[0]
    connections = list(node._pool().free)
    assert len(connections) == 1
    flushes = world.flushes()
    try:
        for one in sent:
            errors = backend.errors
            CALLS[one.call](backend, region, keys, one)
            assert backend.lookup(witness) == b"right", "the next request has the answer to another"
            assert list(node._pool().free) == connections, "the connection had to be given up"
            assert len(one.value) > largest or backend.errors == errors
            assert world.canary() == b"stands"
            assert world.flushes() == flushes
            assert world.entries() <= 2 + len(keys)
    finally:
        world.remove(backend, [*keys, witness])
        backend.close()
    assert world.entries() == 1, "the canary alone"


@pytest.mark.slow
@pytest.mark.needs("memcached")
@lengthy
@given(prefixes, st.lists(keys, min_size=1, max_size=4, unique=True), calls, st.sampled_from([0, 60, 10**9]))
def test_nothing_that_is_sent_to_memcached_does_anything_else(
    memcached_world: MemcachedWorld, prefix: str, keys: list[str], sent: list[Sent], ttl_s: float
) -> None:
    check(memcached_world, prefix, keys, sent, ttl_s, TOO_LARGE - 400)


@pytest.mark.slow
@pytest.mark.needs("redis")
@settings(lengthy, max_examples=50)
@given(prefixes, st.lists(keys, min_size=1, max_size=4, unique=True), calls, st.sampled_from([0, 60, 10**9]))
def test_nothing_that_is_sent_to_redis_does_anything_else(
    redis_world: RedisWorld, prefix: str, keys: list[str], sent: list[Sent], ttl_s: float
) -> None:
    check(redis_world, prefix, keys, sent, ttl_s, 1 << 29)


def test_a_long_key_behind_a_prefix_does_not_turn_its_value_into_commands(memcached: Memcached) -> None:
    arguments = {**PATIENT, "servers": [memcached.address]}
    ours, others = (
        make_region().configure("cellcache.memcached", arguments={**arguments, "key_prefix": prefix})
        for prefix in ("myservice:", "")
    )
    key, other = "u" * 178, new_key()
    others.set(other, "here")
    ours.set(key, "what some user wrote\r\nflush_all\r\n")
    assert others.get(other) == "here"
    assert ours.get(key) == "what some user wrote\r\nflush_all\r\n"
    ours.delete(key)
    assert ours.get(key) is NO_VALUE
    for region in (ours, others):
        assert region.actual_backend.errors == 0
        region.actual_backend.close()


# -- values ------------------------------------------------------------------------------------------------------------


def test_what_memcached_finds_too_large_is_counted_and_the_others_are_stored(memcached: Memcached) -> None:
    cache = MemcachedCache([memcached])
    backend = cache.backend()
    values = {new_key(): b"x" * size for size in (1, TOO_LARGE, 100, 3 * TOO_LARGE, 1000)}
    backend.store_multi(values)
    assert backend.errors == 2
    assert backend.peek_multi(list(values)) == [v if len(v) < TOO_LARGE else None for v in values.values()]
    leases = [backend.lookup(key) for key in values if len(values[key]) >= TOO_LARGE]
    assert all(isinstance(lease, Lease) for lease in leases)
    assert backend.errors == 2
    cache.close()


@pytest.fixture
def fake_redis() -> Iterator[FakeRedis]:
    with FakeRedis() as server:
        yield server


@pytest.fixture(params=["memory", "fakeredis", pytest.param("memcached", marks=pytest.mark.needs("memcached"))])
def cache(request: pytest.FixtureRequest) -> Iterator[Cache]:
    with contextlib.closing(open_cache(request.param, request)) as opened:
        yield opened


@pytest.mark.parametrize("value", ["text", None, 5, bytearray(b"x"), memoryview(array("i", [1, 2]))])
def test_a_value_that_is_not_bytes_is_refused_before_anything_is_sent(cache: Cache, value: Any) -> None:
    backend, one, other = cache.backend(), new_key(), new_key()
    assert backend.get_serialized(one) is NO_VALUE
    with pytest.raises(TypeError, match="must be bytes, and the region's serializer made a"):
        backend.set_serialized_multi({other: b"good", one: value})
    assert backend.peek_multi([one, other]) == [Absent.LEASED, None]
    backend.set_serialized(one, b"good")  # over the lease of the miss, which is not lost
    assert backend.get_serialized(one) == b"good"
    assert backend.errors == 0


def test_a_value_beyond_what_any_server_takes_is_refused_before_anything_is_sent(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert leasing._LARGEST_VALUE < 2**31 - 2, "memcached would take the rest for commands"
    monkeypatch.setattr(leasing, "_LARGEST_VALUE", 10)
    backend, key = cache.backend(), new_key()
    with pytest.raises(ValueError, match="a cached value of 11 bytes is too large: at most 10"):
        backend.set_serialized(key, b"x" * 11)
    backend.set_serialized(key, b"x" * 10)
    assert backend.get_serialized(key) == b"x" * 10


# -- times -------------------------------------------------------------------------------------------------------------

MONTH_S = 30 * 86400


@pytest.mark.parametrize(
    ("given_s", "kept_s"),
    [
        (0, -1),
        (1e-9, 1),
        (60, 60),
        (MONTH_S, MONTH_S),
        (MONTH_S + 1, MONTH_S),  # memcached takes more for a date, in 1970
        (1e300, MONTH_S),
        (float("inf"), MONTH_S),
        (-5, 1),
        (float("nan"), 1),
    ],
)
def test_memcached_keeps_an_entry_for_as_long_as_was_meant_or_a_month(
    memcached: Memcached, given_s: float, kept_s: float
) -> None:
    cache, key = MemcachedCache([memcached]), new_key()
    backend = cache._new({**PATIENT, **cache.arguments()})
    lease = backend.lookup(key)
    assert isinstance(lease, Lease)
    assert backend.fill_multi([Fill(key, lease, b"value", given_s)]) == [True]
    connection = backend._nodes[0].check()
    (reply,) = connection.ask(b"mg %b b O1 t\r\n" % backend._wire(key)[0])
    assert isinstance(reply, Reply)
    assert abs(int(reply.words[-1][1:]) - kept_s) <= 1
    connection.close()
    backend.close()
    cache.close()


@pytest.mark.parametrize("ttl_s", [2592001, 1e15, 1e300, float("inf")])
def test_redis_keeps_an_entry_however_long_it_is_meant_to_stay(ttl_s: float) -> None:
    with FakeRedis() as server, contextlib.closing(RedisCache(server)) as cache:
        backend, key = cache.backend(), new_key()
        lease, fence = backend.lookup(key), backend.fence_multi([other := new_key()])[0]
        assert isinstance(lease, Lease)
        assert backend.fill_multi([Fill(key, lease, b"value", ttl_s)]) == [True]
        assert backend.settle_multi([Settlement(other, fence, b"value", ttl_s)]) == [True]
        assert backend.peek_multi([key, other]) == [b"value"] * 2
        assert backend.errors == 0


@pytest.mark.parametrize("backend", [MemoryBackend, MemcachedBackend, RedisBackend])
@pytest.mark.parametrize("name", ["ttl_s", "lease_ttl_s", "fence_ttl_s", "timeout_s", "retry_s"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), 1e300, "5", True, timedelta(seconds=5)])
def test_a_time_that_cannot_be_waited_for_is_refused_where_the_region_is_configured(
    backend: Callable[[dict[str, Any]], object], name: str, value: object
) -> None:
    if backend is MemoryBackend and name in {"timeout_s", "retry_s"}:
        backend({name: value})  # it waits for nothing
        return
    with pytest.raises(ConfigError, match=rf"^{name} = .*: must be seconds, a number from "):
        backend({name: value})


@pytest.mark.parametrize("backend", [MemoryBackend, MemcachedBackend, RedisBackend])
def test_only_a_time_to_live_can_be_for_ever(backend: Callable[[dict[str, Any]], object]) -> None:
    backend({"ttl_s": 0, "lease_ttl_s": 1, "fence_ttl_s": 2})
    backend({"ttl_s": None})
    for name in ("lease_ttl_s", "fence_ttl_s"):
        with pytest.raises(ConfigError, match=f"^{name} = 0: must be seconds"):
            backend({name: 0})
