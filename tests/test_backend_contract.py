"""What cellcache/protocol.py asks of a cache backend, sentence by sentence, over every backend and server."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from dogpile.cache import make_region
from dogpile.cache.api import NO_VALUE
from dogpile.cache.region import CacheRegion

from cellcache.codec import FENCE, LEASE, encode
from cellcache.protocol import Absent, CoherentBackend, Fence, Fill, Lease, Settlement
from tests.caches import (
    KINDS,
    Backend,
    Cache,
    MemcachedCache,
    MemoryCache,
    RedisCache,
    connected,
    eventually,
    fenced,
    leased,
    new_key,
    nodes_of,
    open_cache,
)
from tests.fake_redis import FakeRedis

WITH_SERVERS = KINDS[1:]

OLD, NEW, OTHER = encode("0" * 32), encode("1" * 32), encode(None)


@pytest.fixture(scope="module")
def fake_redis() -> Iterator[FakeRedis]:
    with FakeRedis() as server:
        yield server


@pytest.fixture(params=KINDS)
def cache(request: pytest.FixtureRequest) -> Iterator[Cache]:
    cache = open_cache(request.param, request)
    yield cache
    cache.close()


@pytest.fixture
def backend(cache: Cache) -> Backend:
    return cache.backend()


@pytest.fixture
def other(cache: Cache, backend: Backend) -> Backend:
    """Another process's backend over the same cache."""
    return cache.backend()


@pytest.fixture
def key() -> str:
    return new_key()


def fill(backend: Backend, key: str, lease: Lease, value: bytes = OLD, ttl_s: float = 60) -> bool:
    stored: list[bool] = backend.fill_multi([Fill(key, lease, value, ttl_s)])
    return stored == [True]


def settle(backend: CoherentBackend, key: str, fence: Fence, value: bytes | None, ttl_s: float = 60) -> bool:
    return backend.settle_multi([Settlement(key, fence, value, ttl_s)]) == [True]


def stored(backend: CoherentBackend, key: str, value: bytes = OLD) -> None:
    assert settle(backend, key, fenced(backend, key), value)


def test_backend_states_its_promise(backend: Backend) -> None:
    assert isinstance(backend, CoherentBackend)
    assert backend.promise
    assert "\n" not in backend.promise


# Lookup


def test_first_lookup_of_an_absent_entry_takes_the_lease(backend: Backend, key: str) -> None:
    assert isinstance(backend.lookup(key), Lease)


def test_later_lookups_see_that_another_holds_the_lease(backend: Backend, other: Backend, key: str) -> None:
    leased(backend, key)
    assert backend.lookup(key) is Absent.LEASED
    assert other.lookup(key) is Absent.LEASED


def test_lookup_returns_the_value(backend: Backend, other: Backend, key: str) -> None:
    stored(backend, key)
    assert backend.lookup(key) == OLD
    assert other.lookup(key) == OLD


def test_lookup_says_that_a_writer_is_at_it(backend: Backend, other: Backend, key: str) -> None:
    fenced(backend, key)
    assert backend.lookup(key) is Absent.FENCED
    assert other.lookup(key) is Absent.FENCED


def test_lookups_of_many_answer_each_in_its_place(backend: Backend) -> None:
    value, absent, lease, fence = keys = [new_key() for _ in range(4)]
    stored(backend, value)
    leased(backend, lease)
    fenced(backend, fence)
    answers = dict(zip(keys, backend.lookup_multi(keys), strict=True))
    assert answers[value] == OLD
    assert isinstance(answers[absent], Lease)
    assert answers[lease] is Absent.LEASED
    assert answers[fence] is Absent.FENCED


def test_the_same_key_twice_in_one_lookup_grants_one_lease(backend: Backend, key: str) -> None:
    first, second = backend.lookup_multi([key, key])
    assert isinstance(first, Lease)
    assert second is Absent.LEASED


def test_nothing_asked_is_nothing_answered(backend: Backend) -> None:
    assert backend.lookup_multi([]) == []
    assert backend.peek_multi([]) == []
    assert backend.fill_multi([]) == []
    assert backend.fence_multi([]) == []
    assert backend.settle_multi([]) == []
    assert backend.invalidate_multi([]) == []


# Peek


def test_peek_says_what_stands_there_and_takes_no_lease(cache: Cache, backend: Backend, other: Backend) -> None:
    value, absent, lease, fence, strange = keys = [new_key() for _ in range(5)]
    stored(backend, value)
    leased(backend, lease)
    fenced(backend, fence)
    cache.write(strange, b"x" * 40)
    for _ in range(2):
        assert other.peek_multi(keys) == [OLD, None, Absent.LEASED, Absent.FENCED, b"x" * 40]
    assert other.peek_multi([lease]) == [Absent.LEASED]
    assert isinstance(other.lookup(absent), Lease)


# Fill


def test_fill_stores_over_its_lease(backend: Backend, other: Backend, key: str) -> None:
    assert fill(backend, key, leased(backend, key))
    assert other.lookup(key) == OLD


def test_lease_stores_once(backend: Backend, key: str) -> None:
    lease = leased(backend, key)
    assert fill(backend, key, lease)
    assert not fill(backend, key, lease, NEW)
    assert backend.lookup(key) == OLD


def test_fill_does_not_store_over_a_fence(backend: Backend, other: Backend, key: str) -> None:
    lease = leased(backend, key)
    fenced(other, key)
    assert not fill(backend, key, lease)
    assert backend.lookup(key) is Absent.FENCED


def test_fill_does_not_store_over_what_a_writer_settled(backend: Backend, other: Backend, key: str) -> None:
    lease = leased(backend, key)
    stored(other, key, NEW)
    assert not fill(backend, key, lease)
    assert backend.lookup(key) == NEW


def test_fill_does_not_store_where_a_writer_removed(backend: Backend, other: Backend, key: str) -> None:
    lease = leased(backend, key)
    assert settle(other, key, fenced(other, key), None)
    assert not fill(backend, key, lease)
    assert isinstance(other.lookup(key), Lease)


def test_fill_does_not_store_after_an_invalidation(backend: Backend, other: Backend, key: str) -> None:
    lease = leased(backend, key)
    assert other.invalidate_multi([key]) == [True]
    assert not fill(backend, key, lease)
    assert isinstance(other.lookup(key), Lease)


def leased_among_many(backend: CoherentBackend, key: str) -> Lease:
    entry = backend.lookup_multi([new_key(), key, new_key()])[1]
    assert isinstance(entry, Lease), entry
    return entry


@pytest.mark.parametrize("take", [leased, leased_among_many])
def test_fill_does_not_store_over_the_next_readers_lease(
    cache: Cache, backend: Backend, other: Backend, key: str, take: Callable[[CoherentBackend, str], Lease]
) -> None:
    lease = take(backend, key)
    cache.evict(key)
    next_lease = take(other, key)
    assert not fill(backend, key, lease)
    assert fill(other, key, next_lease, NEW)


@pytest.mark.parametrize("take", [leased, leased_among_many])
def test_fill_does_not_store_over_ones_own_next_lease(
    cache: Cache, backend: Backend, key: str, take: Callable[[CoherentBackend, str], Lease]
) -> None:
    lease = take(backend, key)
    cache.evict(key)
    next_lease = take(backend, key)
    assert not fill(backend, key, lease)
    assert fill(backend, key, next_lease, NEW)
    assert backend.lookup(key) == NEW


def test_fill_does_not_store_once_its_lease_is_evicted(cache: Cache, backend: Backend, key: str) -> None:
    lease = leased(backend, key)
    cache.evict(key)
    assert not fill(backend, key, lease)
    assert isinstance(backend.lookup(key), Lease)


def test_lease_of_one_key_is_none_for_another(backend: Backend) -> None:
    mine, yours = new_key(), new_key()
    lease = leased(backend, mine)
    leased(backend, yours)
    assert not fill(backend, yours, lease)
    assert backend.lookup(yours) is Absent.LEASED


def test_fills_of_many_store_each_on_its_own(backend: Backend, other: Backend) -> None:
    keys = [new_key() for _ in range(3)]
    leases = [leased(backend, key) for key in keys]
    fenced(other, keys[1])
    fills = [Fill(key, lease, OLD, 60) for key, lease in zip(keys, leases, strict=True)]
    assert backend.fill_multi(fills) == [True, False, True]
    assert backend.lookup_multi(keys) == [OLD, Absent.FENCED, OLD]


# Fills whose outcome nobody waits for


def test_sent_fills_store_each_on_its_own(backend: Backend, other: Backend) -> None:
    keys, refused = [new_key() for _ in range(3)], list[int]()
    leases = [leased(backend, key) for key in keys]
    fenced(other, keys[1])
    fills = [Fill(key, lease, OLD, 60) for key, lease in zip(keys, leases, strict=True)]
    backend.send_fills(fills, refused.append, wait=False)
    assert backend.lookup_multi(keys) == [OLD, Absent.FENCED, OLD]
    assert sum(refused) == 1


def test_a_sent_fill_is_in_nobodys_way(backend: Backend, key: str) -> None:
    """Whatever is asked next over its connection gets the answer to that."""
    present, new = new_key(), new_key()
    stored(backend, present, NEW)
    requests: list[Callable[[], object]] = [
        lambda: backend.lookup(present) == NEW,
        lambda: backend.lookup_multi([present, present]) == [NEW, NEW],
        lambda: backend.peek_multi([present]) == [NEW],
        lambda: isinstance(backend.lookup(new_key()), Lease),
        lambda: fenced(backend, new_key()).confirmed,
        lambda: settle(backend, present, fenced(backend, present), NEW),
        lambda: backend.fill_multi([Fill(new, leased(backend, new), NEW, 60)]) == [True],
        lambda: backend.invalidate_multi([new_key()]) == [True],
        lambda: backend.set_serialized(key, OLD) is None,
    ]
    for ask in requests:
        refused, filled, taken = list[int](), new_key(), new_key()
        leases = {filled: leased(backend, filled), taken: leased(backend, taken)}
        fenced(backend, taken)
        for one, lease in leases.items():  # two of them, one behind the other
            backend.send_fills([Fill(one, lease, OLD, 60)], refused.append, wait=False)
        assert ask()
        assert backend.lookup_multi([filled, taken]) == [OLD, Absent.FENCED]
        assert sum(refused) == 1
    assert backend.errors == 0


@pytest.mark.parametrize("count", [1, 1000, 1001])
def test_many_fills_are_sent(backend: Backend, count: int) -> None:
    keys, refused = [new_key() for _ in range(count)], list[int]()
    leases = [entry for entry in backend.lookup_multi(keys) if isinstance(entry, Lease)]
    values = [b"\x01%016d" % number for number in range(count)]
    fills = [Fill(*one, 60) for one in zip(keys, leases, values, strict=True)]
    backend.send_fills(fills, refused.append, wait=False)
    assert backend.lookup_multi(keys) == values
    assert sum(refused) == 0


def test_more_fills_than_fit_a_socket_are_not_sent_unread(backend: Backend, other: Backend) -> None:
    """Beyond that the server would wait for us to read its replies, and we for it to read our requests."""
    keys, refused = [new_key() for _ in range(1001)], list[int]()
    leases = [entry for entry in backend.lookup_multi(keys) if isinstance(entry, Lease)]
    fenced(other, keys[500])
    backend.send_fills([Fill(*one, OLD, 60) for one in zip(keys, leases, strict=True)], refused.append, wait=False)
    assert sum(refused) == 1, "it is known by now: the replies have been read"


# Fence


def test_fence_overwrites_value_lease_and_fence(backend: Backend, other: Backend) -> None:
    value, lease, fence = keys = [new_key() for _ in range(3)]
    stored(other, value)
    leased(other, lease)
    theirs = fenced(other, fence)
    fences = backend.fence_multi(keys)
    assert all(fence.confirmed for fence in fences)
    assert other.lookup_multi(keys) == [Absent.FENCED] * 3
    assert fences[2].mark != theirs.mark


def test_every_fence_is_unlike_all_others(backend: Backend, other: Backend, key: str) -> None:
    fences = [fenced(each, key) for each in (backend, other, backend)]
    assert len({fence.mark for fence in fences}) == 3
    assert all(fence.mark.startswith(FENCE) for fence in fences)


# Settle


@pytest.mark.slow
def test_settling_puts_the_value_in_the_fences_place(backend: Backend, other: Backend, key: str) -> None:
    assert settle(backend, key, fenced(backend, key), NEW)
    assert other.lookup(key) == NEW


def test_settling_without_a_value_removes_the_fence(backend: Backend, other: Backend, key: str) -> None:
    assert settle(backend, key, fenced(backend, key), None)
    assert isinstance(other.lookup(key), Lease)


def test_fence_is_settled_by_another_thread(backend: Backend, key: str) -> None:
    fence = fenced(backend, key)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(settle, backend, key, fence, NEW).result()
    # Not the fence's connection, so it may not store the value; nothing older is left in any case.
    assert backend.lookup(key) != Absent.FENCED


@pytest.mark.parametrize("value", [NEW, None])
def test_settling_a_lost_fence_removes_a_value(
    cache: Cache, backend: Backend, other: Backend, key: str, value: bytes | None
) -> None:
    fence = fenced(backend, key)
    cache.evict(key)
    assert fill(other, key, leased(other, key), OLD)
    assert settle(backend, key, fence, value)
    assert isinstance(other.lookup(key), Lease)


@pytest.mark.parametrize("value", [NEW, None])
def test_settling_a_lost_fence_removes_a_lease(
    cache: Cache, backend: Backend, other: Backend, key: str, value: bytes | None
) -> None:
    fence = fenced(backend, key)
    cache.evict(key)
    lease = leased(other, key)
    assert settle(backend, key, fence, value)
    assert not fill(other, key, lease, OLD)


@pytest.mark.parametrize("value", [NEW, None])
def test_settling_a_lost_fence_spares_another_writers(
    backend: Backend, other: Backend, key: str, value: bytes | None
) -> None:
    fence = fenced(backend, key)
    theirs = fenced(other, key)
    assert settle(backend, key, fence, value)
    assert backend.lookup(key) is Absent.FENCED
    assert settle(other, key, theirs, OTHER)
    assert backend.lookup(key) == OTHER


@pytest.mark.parametrize("value", [NEW, None])
def test_settling_a_lost_fence_stores_nothing_where_nothing_stands(
    cache: Cache, backend: Backend, key: str, value: bytes | None
) -> None:
    fence = fenced(backend, key)
    cache.evict(key)
    assert settle(backend, key, fence, value)
    assert isinstance(backend.lookup(key), Lease)


def test_settling_twice_does_not_bring_back_the_older_value(backend: Backend, other: Backend, key: str) -> None:
    fence = fenced(backend, key)
    assert settle(backend, key, fence, OLD)
    stored(other, key, NEW)
    assert settle(backend, key, fence, OLD)
    assert backend.lookup(key) != OLD


def test_settlements_of_many_are_each_on_their_own(cache: Cache, backend: Backend, other: Backend) -> None:
    moved, pruned, lost, taken = keys = [new_key() for _ in range(4)]
    fences = dict(zip(keys, backend.fence_multi(keys), strict=True))
    cache.evict(lost)
    fenced(other, taken)
    values = {moved: NEW, pruned: None, lost: NEW, taken: NEW}
    settlements = [Settlement(key, fence, values[key], 60) for key, fence in fences.items() if fence.confirmed]
    assert backend.settle_multi(settlements) == [True] * 4
    answers = dict(zip(keys, backend.lookup_multi(keys), strict=True))
    assert answers[moved] == NEW
    assert isinstance(answers[pruned], Lease)
    assert isinstance(answers[lost], Lease)
    assert answers[taken] is Absent.FENCED


# Invalidate


def test_invalidation_removes_value_and_lease(backend: Backend, other: Backend) -> None:
    value, lease = keys = [new_key(), new_key()]
    stored(other, value)
    theirs = leased(other, lease)
    assert backend.invalidate_multi(keys) == [True, True]
    assert isinstance(other.lookup(value), Lease)
    assert not fill(other, lease, theirs)


def test_invalidation_spares_a_fence(backend: Backend, other: Backend, key: str) -> None:
    fence = fenced(other, key)
    assert backend.invalidate_multi([key]) == [True]
    assert backend.lookup(key) is Absent.FENCED
    assert settle(other, key, fence, NEW)
    assert backend.lookup(key) == NEW


def test_invalidation_spares_ones_own_fence(backend: Backend, key: str) -> None:
    fenced(backend, key)
    assert backend.invalidate_multi([key]) == [True]
    assert backend.lookup(key) is Absent.FENCED


def test_invalidating_again_or_what_is_absent_is_confirmed(backend: Backend, key: str) -> None:
    assert backend.invalidate_multi([key, key]) == [True, True]
    stored(backend, key)
    assert backend.invalidate_multi([key]) == [True]
    assert backend.invalidate_multi([key]) == [True]
    assert isinstance(backend.lookup(key), Lease)


# Tokens end with what granted them


def test_lease_of_before_a_restart_stores_nothing(cache: Cache, backend: Backend, key: str) -> None:
    cache.restart()
    lease = leased(backend, key)
    cache.restart()
    other = cache.backend()
    theirs = leased(other, key)
    if isinstance(cache, MemcachedCache):
        assert lease.token == theirs.token, "memcached no longer counts from 1: find another way to force it"
    assert not fill(backend, key, lease)
    assert fill(other, key, theirs, NEW)
    assert backend.lookup(key) == NEW


@pytest.mark.parametrize("value", [OLD, None])
def test_fence_of_before_a_restart_settles_no_other(
    cache: Cache, backend: Backend, key: str, value: bytes | None
) -> None:
    cache.restart()
    fence = fenced(backend, key)
    cache.restart()
    other = cache.backend()
    theirs = fenced(other, key)
    if isinstance(cache, MemcachedCache):
        assert fence.token == theirs.token, "memcached no longer counts from 1: find another way to force it"
    assert settle(backend, key, fence, value)
    assert other.lookup(key) is Absent.FENCED
    assert settle(other, key, theirs, NEW)
    assert backend.lookup(key) == NEW


def test_fence_of_before_a_restart_leaves_nothing_older(cache: Cache, backend: Backend, key: str) -> None:
    cache.restart()
    fence = fenced(backend, key)
    cache.restart()
    other = cache.backend()
    assert fill(other, key, leased(other, key), OLD)
    assert settle(backend, key, fence, NEW)
    assert other.lookup(key) != OLD


def test_token_is_good_over_any_connection_that_was_made_before_it_was_asked_for(backend: Backend, key: str) -> None:
    for node in nodes_of(backend):
        two = [node.take(time.monotonic()) for _ in range(2)]
        for connection in two:
            node.give_back(connection)
    lease = leased(backend, key)
    with granting_connections_in_use(backend):
        assert fill(backend, key, lease)
    fence = fenced(backend, key)
    with granting_connections_in_use(backend):
        assert settle(backend, key, fence, NEW)
    assert backend.lookup(key) == NEW


@pytest.mark.parametrize("cache", WITH_SERVERS, indirect=True)
def test_lease_is_good_over_no_connection_that_is_younger(backend: Backend, key: str) -> None:
    lease, refused = leased(backend, key), list[int]()
    with granting_connections_in_use(backend):
        for node in nodes_of(backend):
            connected(node)
        assert not fill(backend, key, lease)
        backend.send_fills([Fill(key, lease, OLD, 60)], refused.append, wait=False)
        assert refused == [1]
        assert backend.lookup(key) is Absent.LEASED
    assert fill(backend, key, lease)


def test_fence_that_has_no_older_connection_left_is_settled_all_the_same(backend: Backend, key: str) -> None:
    fence = fenced(backend, key)
    with granting_connections_in_use(backend):
        assert settle(backend, key, fence, NEW)
        assert backend.lookup(key) is not Absent.FENCED


@contextmanager
def granting_connections_in_use(backend: Backend) -> Iterator[None]:
    """Let somebody else have the connection of each node that was used last."""
    nodes = nodes_of(backend)
    taken = [node.take(time.monotonic()) for node in nodes]
    yield
    for node, connection in zip(nodes, taken, strict=True):
        node.give_back(connection)


def test_restart_is_no_error_and_costs_no_answer(cache: Cache, backend: Backend, key: str) -> None:
    stored(backend, key)
    cache.restart()
    assert isinstance(backend.lookup(key), Lease)
    cache.restart()
    assert isinstance(backend.lookup_multi([key])[0], Lease)
    cache.restart()
    fence = fenced(backend, key)
    cache.restart()
    assert settle(backend, key, fence, NEW)
    cache.restart()
    assert backend.invalidate_multi([key]) == [True]
    assert backend.errors == 0


# Times to live


def test_lease_expires(cache: Cache, key: str) -> None:
    backend = cache.backend(lease_ttl_s=cache.shortest_ttl_s)
    lease = leased(backend, key)
    next_lease = eventually(lambda: (entry := backend.lookup(key)) is not Absent.LEASED and entry)
    assert isinstance(next_lease, Lease)
    assert not fill(backend, key, lease)
    assert fill(backend, key, next_lease)


def test_fence_outlives_the_lease(cache: Cache) -> None:
    """A commit may take longer than a read."""
    backend = cache.backend(lease_ttl_s=cache.shortest_ttl_s)
    written, read = new_key(), new_key()
    fenced(backend, written)
    leased(backend, read)
    assert eventually(lambda: backend.lookup(read) is not Absent.LEASED)
    assert backend.lookup(written) is Absent.FENCED


def test_fence_expires(cache: Cache, key: str) -> None:
    backend = cache.backend(fence_ttl_s=cache.shortest_ttl_s)
    fence = fenced(backend, key)
    lease = eventually(lambda: (entry := backend.lookup(key)) is not Absent.FENCED and entry)
    assert isinstance(lease, Lease)
    assert settle(backend, key, fence, NEW)
    assert not fill(backend, key, lease)


def test_filled_value_expires(cache: Cache, backend: Backend, key: str) -> None:
    assert fill(backend, key, leased(backend, key), OLD, ttl_s=cache.shortest_ttl_s)
    assert eventually(lambda: isinstance(backend.lookup(key), Lease))


def test_settled_value_expires(cache: Cache, backend: Backend, key: str) -> None:
    assert settle(backend, key, fenced(backend, key), NEW, ttl_s=cache.shortest_ttl_s)
    assert eventually(lambda: isinstance(backend.lookup(key), Lease))


def test_value_of_a_region_expires(cache: Cache, key: str) -> None:
    backend = cache.backend(ttl_s=cache.shortest_ttl_s)
    backend.set_serialized(key, OLD)
    assert eventually(lambda: backend.get_serialized(key) is NO_VALUE)


@pytest.mark.slow
def test_value_outlives_the_lease_and_the_fence_it_replaced(cache: Cache) -> None:
    read, written = new_key(), new_key()
    backend = cache.backend(lease_ttl_s=cache.shortest_ttl_s, fence_ttl_s=cache.shortest_ttl_s)
    assert fill(backend, read, leased(backend, read), OLD, ttl_s=60)
    assert settle(backend, written, fenced(backend, written), NEW, ttl_s=60)
    time.sleep(2.5 * cache.shortest_ttl_s)
    assert backend.lookup_multi([read, written]) == [OLD, NEW]


# Bytes that are not ours


@pytest.mark.parametrize("value", [b"x", b"\x02" + bytes(16), b"garbage\r\nEN\r\n", b"\xff" * 17, bytes([1]) * 100_000])
def test_foreign_bytes_are_returned_and_can_be_removed(cache: Cache, backend: Backend, key: str, value: bytes) -> None:
    cache.write(key, value)
    assert backend.lookup(key) == value
    assert backend.lookup_multi([key]) == [value]
    assert backend.invalidate_multi([key]) == [True]
    assert isinstance(backend.lookup(key), Lease)
    assert backend.errors == 0


@pytest.mark.parametrize("size", [1000, 900_000])
@pytest.mark.parametrize("at", [[0], [2, 5, 7], list(range(8))], ids=["the first", "some", "all"])
def test_what_is_too_long_is_not_read_and_blames_nobody(cache: Cache, size: int, at: list[int]) -> None:
    if isinstance(cache, MemoryCache):
        return  # nobody else can write there
    keys = [new_key() for _ in range(8)]
    backend = cache.backend(longest_value=100)
    for key in keys:
        stored(backend, key)
    for position in at:
        cache.write(keys[position], b"x" * size)
    expected = [b"" if position in at else OLD for position in range(8)]
    assert backend.lookup_multi(keys) == expected
    assert [backend.lookup(key) for key in keys] == expected
    assert backend.peek_multi(keys) == expected
    assert backend.invalidate_multi([keys[position] for position in at], deadline=time.monotonic() + 5) == [True] * len(
        at
    )
    assert [isinstance(entry, Lease) for entry in backend.lookup_multi(keys)] == [entry == b"" for entry in expected]
    assert backend.errors == 0


def test_as_long_as_a_value_may_be_is_read(cache: Cache, key: str) -> None:
    backend = cache.backend(longest_value=100)
    cache.write(key, b"x" * 100)
    assert backend.lookup(key) == b"x" * 100
    assert backend.lookup_multi([key, new_key()])[0] == b"x" * 100
    assert backend.peek_multi([key]) == [b"x" * 100]
    with pytest.raises(ValueError, match="too large: at most 100"):
        backend.set_serialized(key, b"x" * 101)


def test_writers_pass_over_what_is_too_long(cache: Cache) -> None:
    backend = cache.backend(longest_value=100)
    lost, late = new_key(), new_key()
    fence, another = fenced(backend, lost), fenced(backend, late)
    cache.write(lost, b"x" * 900_000)
    cache.write(late, b"x" * 900_000)
    assert settle(backend, lost, fence, NEW), "what stands in the place of a lost fence is removed"
    assert settle(backend, late, Fence(another.mark), None)
    assert all(isinstance(entry, Lease) for entry in backend.lookup_multi([lost, late]))
    assert fenced(backend, lost)
    assert backend.errors == 0


@pytest.mark.parametrize("mark", [LEASE + b"12345678", FENCE + b"12345678"], ids=["lease", "fence"])
@pytest.mark.parametrize("ttl_s", [0, 700], ids=["for ever", "for too long"])
def test_a_mark_that_would_outlive_any_of_ours_is_seen_and_removed(cache: Cache, mark: bytes, ttl_s: int) -> None:
    if isinstance(cache, MemoryCache):
        return  # nobody else can write there
    backend, key, own = cache.backend(lease_ttl_s=60, fence_ttl_s=600), new_key(), new_key()
    cache.place_mark(key, mark, ttl_s)
    assert backend.lookup_multi([key]) == [Absent.FENCED if mark.startswith(FENCE) else Absent.LEASED]
    leased(backend, own)
    assert backend.peek_multi([key, own]) == [Absent.ENDLESS, Absent.LEASED]
    fenced(backend, own)
    assert backend.peek_multi([key, own]) == [Absent.ENDLESS, Absent.FENCED]
    assert backend.invalidate_multi([key, own]) == [True, True]
    assert isinstance(backend.lookup(key), Lease)
    assert backend.lookup(own) is Absent.FENCED


@pytest.mark.parametrize("value", [b"", b"\x00", LEASE, FENCE, b"\x00\x00\x00\x00", FENCE + bytes(40)])
def test_what_looks_like_a_mark_is_never_a_value_and_yields_to_a_writer(
    cache: Cache, backend: Backend, key: str, value: bytes
) -> None:
    if isinstance(cache, MemoryCache) and not value:
        pytest.skip("nobody else can write there, and a backend does not write it")
    cache.write(key, value)
    entry = backend.lookup(key)
    assert not isinstance(entry, Lease), "what is not empty is not absent"
    if isinstance(entry, bytes):
        assert entry == value, "the caller decodes strictly, and refuses it"
    stored(backend, key, NEW)
    assert backend.lookup(key) == NEW


@pytest.mark.parametrize("value", [b"", b"x", bytes([1]) * 100_000])
def test_writer_overwrites_foreign_bytes(cache: Cache, backend: Backend, key: str, value: bytes) -> None:
    cache.write(key, value)
    stored(backend, key, NEW)
    assert backend.lookup(key) == NEW


@pytest.mark.parametrize("value", [b"", b"\x00", b"\x00value", FENCE + b"12345678"])
def test_region_cannot_store_what_could_be_taken_for_a_mark(backend: Backend, key: str, value: bytes) -> None:
    with pytest.raises(ValueError, match="zero byte"):
        backend.set_serialized(key, value)
    backend.get_serialized(key)
    with pytest.raises(ValueError, match="zero byte"):
        backend.set_serialized_multi({key: value})


def test_values_may_hold_any_bytes_but_a_zero_first(backend: Backend, key: str) -> None:
    for value in (b"\r\n", b"END\r\n", b"$-1\r\n", bytes(range(1, 256)) + b"\x00", b"-ERR", b"VA 0 c1 W\r\n"):
        stored(backend, key, value)
        assert backend.lookup(key) == value
        assert backend.lookup_multi([key, key]) == [value, value]


# Keys

HOSTILE_KEYS = [
    "",
    " ",
    "a key with spaces",
    "line\r\nflush_all\r\n",
    "line\nflush_all\n",
    "nul\x00nul",
    "\x00",
    "\t\x7f\x1b",
    "*1\r\n$8\r\nFLUSHALL\r\n",
    "k" * 180,
    "k" * 181,
    "k" * 500,
    "k" * 499 + "l",
    "é" * 250,
    "🐘" * 40,
    "\ud800",
    "\udfff\ud800",
    "f" * 32,
    "f" * 36,
    "g" * 36,
    "-" * 36,
    "ffffffff-ffff-ffff-ffff-fffffffffff\n",
    "61626364-6566-6768-696a-6b6c6d6e6f70",
    "6162636-45666-7686-96a6-b6c6d6e6f70-",
    "----6162636465666768696a6b6c6d6e6f70",
    "6162636465666768696a6b6c6d6e6f70",
    "abcdefghijklmnop",
    "ff616263-6465-6667-6869-6a6b6c6d6e6f",
    "abcdefghijklmno",
]


def test_any_text_is_a_key_of_its_own(cache: Cache) -> None:
    canary = new_key()
    backend, other = cache.backend(), cache.backend()
    stored(backend, canary, NEW)
    backend.invalidate_multi(HOSTILE_KEYS)
    leases = backend.lookup_multi(HOSTILE_KEYS)
    assert all(isinstance(lease, Lease) for lease in leases)
    values = [b"%d" % number for number in range(1, len(HOSTILE_KEYS) + 1)]
    for key, lease, value in zip(HOSTILE_KEYS, leases, values, strict=True):
        assert isinstance(lease, Lease)
        assert fill(backend, key, lease, value)
    assert other.lookup_multi(HOSTILE_KEYS) == values
    assert [other.lookup(key) for key in HOSTILE_KEYS] == values
    assert backend.invalidate_multi(HOSTILE_KEYS) == [True] * len(HOSTILE_KEYS)
    assert other.lookup(canary) == NEW, "nothing of a key was taken for a command"


def test_prefixes_keep_deployments_apart(cache: Cache, key: str) -> None:
    if "name" in cache.arguments():
        pytest.skip("the memory backend has names for that")
    ours, theirs = cache.backend(key_prefix="ours"), cache.backend(key_prefix="theirs")
    stored(ours, key, OLD)
    assert isinstance(theirs.lookup(key), Lease)
    assert ours.lookup(key) == OLD
    assert cache.backend(key_prefix="ours").lookup(key) == OLD


# Many at once


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 999, 1000, 1001, 10_000])
def test_many_keys_at_once(cache: Cache, count: int) -> None:
    if isinstance(cache, RedisCache) and isinstance(cache.server, FakeRedis) and count > 2000:
        pytest.skip("fakeredis would take ten seconds; a real Redis does it")
    backend, other = cache.backend(), cache.backend()
    keys = [new_key() for _ in range(count)]
    values = [b"\x01%016d" % number for number in range(count)]
    leases = backend.lookup_multi(keys)
    assert all(isinstance(lease, Lease) for lease in leases)
    fills = [
        Fill(key, lease, value, 60)
        for key, lease, value in zip(keys, leases, values, strict=True)
        if isinstance(lease, Lease)
    ]
    assert backend.fill_multi(fills) == [True] * count
    assert other.lookup_multi(keys) == values
    fences = other.fence_multi(keys)
    assert backend.lookup_multi(keys) == [Absent.FENCED] * count
    settlements = [
        Settlement(key, fence, value[::-1], 60)
        for key, fence, value in zip(keys, fences, values, strict=True)
        if fence.confirmed
    ]
    assert other.settle_multi(settlements) == [True] * count
    assert backend.lookup_multi(keys) == [value[::-1] for value in values]
    assert backend.invalidate_multi(keys[:1000]) == [True] * min(count, 1000)
    assert backend.errors == other.errors == 0


def test_large_values_at_once(backend: Backend) -> None:
    values = {new_key(): bytes([1 + number % 255]) * 20_000 for number in range(200)}
    backend.store_multi(values)
    assert backend.lookup_multi(list(values)) == list(values.values())


# Threads


@pytest.mark.slow
def test_threads_never_get_each_others_answers(backend: Backend) -> None:
    values = {new_key(): b"\x01%016d" % number for number in range(200)}
    backend.store_multi(values)
    keys = list(values)

    def read(seed: int) -> int:
        chance, wrong = random.Random(seed), 0
        for _ in range(200):
            one = chance.choice(keys)
            wrong += backend.lookup(one) != values[one]
            some = chance.sample(keys, 20)
            wrong += backend.lookup_multi(some) != [values[key] for key in some]
        return wrong

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(read, range(8))) == 0
    assert backend.errors == 0


def test_one_of_many_threads_gets_the_lease(backend: Backend) -> None:
    start = threading.Barrier(8)

    def look(key: str) -> bool:
        start.wait()
        return isinstance(backend.lookup(key), Lease)

    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            assert sum(pool.map(look, [new_key()] * 8)) == 1


# Fork


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_child_after_fork_uses_connections_of_its_own(backend: Backend, cache: Cache) -> None:
    values = {new_key(): b"\x01%016d" % number for number in range(300)}
    backend.store_multi(values)
    assert backend.lookup_multi(list(values)) == list(values.values())
    in_memory = "name" in cache.arguments()

    def wrong_answers(keys: list[str], *, may_miss: bool) -> int:
        answers = [(backend.lookup(key), values[key]) for key in keys]
        return sum(answer != value and not (may_miss and isinstance(answer, Lease)) for answer, value in answers)

    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = min(wrong_answers(list(values), may_miss=in_memory), 9) + 10 * min(backend.errors, 9)
        finally:
            os._exit(status)
    assert wrong_answers(list(values)[::-1], may_miss=False) == 0
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert backend.errors == 0


# Close


def test_closed_backend_answers_without_an_error(backend: Backend, other: Backend, key: str) -> None:
    stored(backend, key)
    backend.close()
    assert backend.lookup(key) != OLD
    assert backend.lookup_multi([key]) != [OLD]
    assert len(backend.fence_multi([key])) == 1
    assert backend.errors == 0
    backend.close()
    assert len(other.lookup_multi([key])) == 1


def test_closing_closes_what_is_free_at_once_and_the_rest_when_it_is_given_back(backend: Backend) -> None:
    taken = [(node, node.take(time.monotonic())) for node in nodes_of(backend) for _ in range(5)]
    free, in_use = taken[::2], taken[1::2]
    for node, connection in free:
        node.give_back(connection)
    backend.close()
    assert [_is_open(connection) for _, connection in free] == [False] * len(free)
    assert [_is_open(connection) for _, connection in in_use] == [True] * len(in_use)
    for node, connection in in_use:
        node.give_back(connection)
    assert not any(_is_open(connection) for _, connection in taken)


def test_threads_that_look_up_while_it_closes_leave_no_connection(backend: Backend, key: str) -> None:
    made, closed = list[Any](), threading.Event()
    for node in nodes_of(backend):
        node._dial = _noting(made, node._dial)

    def look_up() -> None:
        while not closed.is_set():
            backend.lookup(key)

    with ThreadPoolExecutor(4) as pool:
        looking = [pool.submit(look_up) for _ in range(4)]
        assert eventually(lambda: made or not nodes_of(backend))
        backend.close()
        closed.set()
        for future in looking:
            future.result()
    assert not any(_is_open(connection) for connection in made)


def _noting(made: list[Any], dial: Callable[[float], Any]) -> Callable[[float], Any]:
    def dial_and_note(within_s: float) -> Any:
        made.append(dial(within_s))
        return made[-1]

    return dial_and_note


def _is_open(connection: Any) -> bool:
    return bool(connection._sock.fileno() != -1)


# Any dogpile region


@pytest.fixture
def regions(cache: Cache) -> Iterator[Callable[[], CacheRegion]]:
    made: list[CacheRegion] = []

    def region() -> CacheRegion:
        arguments = {"timeout_s": 10.0, **cache.arguments()}
        made.append(make_region().configure(cache.entry_point, arguments=arguments))
        return made[-1]

    yield region
    for one in made:
        one.backend.close()


@pytest.mark.slow
def test_region_stores_what_it_fetched(regions: Callable[[], CacheRegion], key: str) -> None:
    ours, theirs = regions(), regions()
    assert ours.get(key) is NO_VALUE
    ours.set(key, "value")
    assert theirs.get(key) == "value"


def test_region_stores_after_a_second_look(regions: Callable[[], CacheRegion], key: str) -> None:
    region = regions()
    assert region.get(key) is NO_VALUE
    assert region.get(key) is NO_VALUE
    region.set(key, "value")
    assert region.get(key) == "value"


def test_region_stores_after_many_looks(regions: Callable[[], CacheRegion]) -> None:
    region = regions()
    one, created, *many = [new_key() for _ in range(5)]
    for _ in range(4):
        assert region.get(one) is NO_VALUE
    region.set(one, "value")
    assert region.get(one) == "value"
    assert region.get(created) is NO_VALUE
    assert region.get_or_create(created, lambda: "value") == "value"
    assert region.get(created) == "value"
    for _ in range(3):
        assert region.get_multi(many) == [NO_VALUE] * 3  # type: ignore[no-untyped-call]
    region.set_multi(dict.fromkeys(many, "value"))
    assert region.get_multi(many) == ["value"] * 3  # type: ignore[no-untyped-call]


def test_region_stores_without_a_look(regions: Callable[[], CacheRegion], key: str) -> None:
    region = regions()
    region.set(key, "first")
    region.set(key, "second")
    assert region.get(key) == "second"


def test_region_creates_many(regions: Callable[[], CacheRegion]) -> None:
    ours, theirs = regions(), regions()
    keys = [new_key() for _ in range(5)]
    ours.set(keys[0], "there")
    assert ours.get_or_create_multi(keys, lambda *missing: [f"made {key}" for key in missing]) == [
        "there",
        *(f"made {key}" for key in keys[1:]),
    ]
    assert theirs.get_multi(keys) == ["there", *(f"made {key}" for key in keys[1:])]  # type: ignore[no-untyped-call]


def test_regions_fill_does_not_win_over_a_deletion(regions: Callable[[], CacheRegion], key: str) -> None:
    reader, writer = regions(), regions()
    assert reader.get(key) is NO_VALUE  # and reads the old row
    writer.delete(key)  # after the new row was committed
    reader.set(key, "old")
    assert writer.get(key) is NO_VALUE


def test_regions_fill_does_not_win_over_a_newer_value(regions: Callable[[], CacheRegion], key: str) -> None:
    reader, writer = regions(), regions()
    assert reader.get(key) is NO_VALUE
    writer.set(key, "new")
    reader.set(key, "old")
    assert reader.get(key) == "new"


def test_regions_fill_does_not_win_over_a_fence(regions: Callable[[], CacheRegion], backend: Backend, key: str) -> None:
    reader = regions()
    assert reader.get(key) is NO_VALUE
    fence = fenced(backend, key)
    reader.set(key, "old")
    assert backend.lookup(key) is Absent.FENCED
    assert reader.get(key) is NO_VALUE
    reader.set(key, "old")
    assert settle(backend, key, fence, None)
    assert reader.get(key) is NO_VALUE


def test_regions_fill_of_many_does_not_win_over_a_deletion(regions: Callable[[], CacheRegion]) -> None:
    reader, writer = regions(), regions()
    keys = [new_key() for _ in range(3)]

    def create(*missing: str) -> list[str]:
        writer.delete_multi(keys[:2])
        return ["old"] * len(missing)

    assert reader.get_or_create_multi(keys, create) == ["old"] * 3
    assert writer.get_multi(keys) == [NO_VALUE, NO_VALUE, "old"]  # type: ignore[no-untyped-call]


def test_region_that_won_no_lease_does_not_store(regions: Callable[[], CacheRegion], key: str) -> None:
    first, second = regions(), regions()
    assert first.get(key) is NO_VALUE
    assert second.get(key) is NO_VALUE
    second.set(key, "of the second")
    assert second.get(key) is NO_VALUE
    first.set(key, "of the first")
    assert second.get(key) == "of the first"


@pytest.mark.parametrize("name", ["dogpile.cache.memory"])
def test_plain_dogpile_backends_let_the_stale_fill_win(name: str, key: str) -> None:
    """What the tests above are about: without leases, the same calls end with the old value."""
    shared: dict[str, Any] = {}
    reader, writer = (make_region().configure(name, arguments={"cache_dict": shared}) for _ in range(2))
    assert reader.get(key) is NO_VALUE
    writer.delete(key)
    reader.set(key, "old")
    assert writer.get(key) == "old"
