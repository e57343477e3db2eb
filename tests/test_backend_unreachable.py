"""A cache node that is down, stopped, cut off or talking nonsense: nothing raises, nothing waits for long, nothing
is taken for an answer, and the node is back soon after its trouble ends."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from dogpile.cache.api import NO_VALUE

from cellcache.codec import FENCE, encode
from cellcache.protocol import Absent, Fence, Fill, Lease, Settlement
from tests.caches import Backend, MemcachedCache, RedisCache, cache_on, eventually, fenced, leased, new_key
from tests.relay import Relay
from tests.servers import Memcached, Redis

VALUE, NEWER = encode("0" * 32), encode("1" * 32)

# A node in trouble costs one such limit; the machine that runs the tests may be slow, so it is not a short one.
HASTY: dict[str, Any] = {"timeout_s": 0.4, "retry_s": 0.3}
ONCE: dict[str, Any] = {"timeout_s": 0.4, "retry_s": 3600.0}


@pytest.fixture
def server(cache_server: Memcached | Redis) -> Memcached | Redis:
    return cache_server


@pytest.fixture
def cache(server: Memcached | Redis) -> Iterator[MemcachedCache | RedisCache]:
    cache = cache_on(server)
    yield cache
    cache.close()


def through(relay: Relay, server: Memcached | Redis) -> dict[str, Any]:
    """The arguments of a backend that reaches the server through a relay."""
    if isinstance(server, Memcached):
        return {"servers": [f"{relay.host}:{relay.port}"]}
    return {"url": f"redis://{relay.host}:{relay.port}/0"}


def store(backend: Backend, key: str, value: bytes) -> None:
    assert backend.settle_multi([Settlement(key, fenced(backend, key), value, 600)]) == [True]


def use_everything(backend: Backend) -> None:
    """Call every method; assert that each says the node did not do it."""
    keys = [new_key(), new_key()]
    lease, fence = Lease(b"1", time.monotonic()), Fence(FENCE + b"12345678", b"1", time.monotonic())
    assert backend.lookup(keys[0]) is Absent.UNREACHABLE
    assert backend.lookup_multi(keys) == [Absent.UNREACHABLE] * 2
    assert backend.peek_multi(keys) == [Absent.UNREACHABLE] * 2
    fills, refused = [Fill(key, lease, VALUE, 60) for key in keys], list[int]()
    assert backend.fill_multi(fills) == [False] * 2
    backend.send_fills(fills, refused.append, wait=False)
    assert sum(refused) == 2
    assert not any(fence.confirmed for fence in backend.fence_multi(keys))
    assert backend.settle_multi([Settlement(key, fence, VALUE, 60) for key in keys]) == [False] * 2
    assert backend.settle_multi([Settlement(key, fence, None) for key in keys]) == [False] * 2
    assert backend.invalidate_multi(keys) == [False] * 2
    assert backend.get_serialized(keys[0]) is NO_VALUE
    assert backend.get_serialized_multi(keys) == [NO_VALUE] * 2
    backend.set_serialized(keys[0], VALUE)
    backend.set_serialized_multi(dict.fromkeys(keys, VALUE))
    backend.delete(keys[0])
    backend.delete_multi(keys)


def answers(backend: Backend, key: str) -> bool:
    return backend.lookup(key) is not Absent.UNREACHABLE


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.needs(kind)) for kind in ("memcached", "redis")])
def test_server_that_was_never_there(kind: str) -> None:
    server = Memcached() if kind == "memcached" else Redis()
    cache = cache_on(server)
    try:
        backend = cache.backend(**HASTY)
        use_everything(backend)
        assert backend.errors > 0
        (status,) = backend.check()
        assert status.version is None
        assert status.supported
        assert status.trouble is not None
        assert "refused" in status.trouble
        server.start()
        assert eventually(lambda: answers(backend, new_key()))
        assert backend.check()[0].trouble is None
    finally:
        cache.close()
        server.close()


def test_stopped_server_costs_a_time_out_and_is_back_when_it_goes_on(
    server: Memcached | Redis, cache: MemcachedCache | RedisCache
) -> None:
    backend, key = cache.backend(**HASTY), new_key()
    store(backend, key, VALUE)
    server.suspend()
    began = time.monotonic()
    use_everything(backend)
    assert time.monotonic() - began < 30
    assert backend.errors > 0
    (status,) = backend.check()
    assert status.trouble is not None
    server.resume()
    assert eventually(lambda: answers(backend, key))
    assert backend.lookup(key) == VALUE


def test_killed_server_is_back_after_its_start(server: Memcached | Redis, cache: MemcachedCache | RedisCache) -> None:
    backend, key = cache.backend(**HASTY), new_key()
    store(backend, key, VALUE)
    server.kill()
    use_everything(backend)
    server.start()
    assert eventually(lambda: answers(backend, key))
    backend.invalidate_multi([key])
    assert isinstance(backend.lookup(key), Lease)


def test_nobody_waits_for_a_stopped_server_to_take_a_fill(
    server: Memcached | Redis, cache: MemcachedCache | RedisCache
) -> None:
    backend, key = cache.backend(), new_key()
    lease = leased(backend, key)
    server.suspend()
    backend.send_fills([Fill(key, lease, VALUE, 60)], lambda _: None, wait=False)
    assert backend.errors == 0  # to wait would have ended in a time-out
    server.resume()
    assert backend.lookup(key) == VALUE


def test_a_server_that_has_started_again_is_not_blamed_for_a_fill_that_it_cannot_take(
    server: Memcached | Redis, cache: MemcachedCache | RedisCache
) -> None:
    backend, refused = cache.backend(), list[int]()
    for _ in range(2):  # of two fills over a connection that is gone, the second would be an error
        key = new_key()
        lease = leased(backend, key)
        server.kill()
        server.start()
        for _ in range(2):
            backend.send_fills([Fill(key, lease, VALUE, 60)], refused.append, wait=False)
        assert isinstance(backend.lookup(key), Lease)
    assert (backend.errors, sum(refused)) == (0, 4)


@pytest.mark.parametrize("next_request", ["lookup", "fence"])
def test_a_fill_that_was_lost_with_its_server_costs_no_later_request_anything(
    server: Memcached | Redis, cache: MemcachedCache | RedisCache, next_request: str
) -> None:
    backend, key, refused = cache.backend(), new_key(), list[int]()
    lease = leased(backend, key)
    server.suspend()
    backend.send_fills([Fill(key, lease, VALUE, 60)], refused.append, wait=False)
    server.kill()
    server.start()
    if next_request == "lookup":
        assert isinstance(backend.lookup(key), Lease)
    else:
        assert fenced(backend, key).confirmed
    assert (backend.errors, sum(refused)) == (0, 0)


def test_a_run_of_failures_pays_the_time_limit_once(
    server: Memcached | Redis, cache: MemcachedCache | RedisCache
) -> None:
    backend = cache.backend(**ONCE)
    assert answers(backend, new_key())
    server.suspend()
    began = time.monotonic()
    for _ in range(200):
        assert backend.lookup(new_key()) is Absent.UNREACHABLE
        assert backend.lookup_multi([new_key()] * 2000) == [Absent.UNREACHABLE] * 2000
    assert backend.errors == 1
    assert time.monotonic() - began < 20


def test_failure_of_one_thread_spares_the_others_theirs(
    server: Memcached | Redis, cache: MemcachedCache | RedisCache
) -> None:
    backend = cache.backend(**ONCE)
    connected, failed = threading.Barrier(5), threading.Event()

    def look_again() -> bool:
        assert answers(backend, new_key())
        connected.wait()
        failed.wait()
        return answers(backend, new_key())

    with ThreadPoolExecutor(4) as pool:
        looks = [pool.submit(look_again) for _ in range(4)]
        assert answers(backend, new_key())
        connected.wait()
        server.suspend()
        assert not answers(backend, new_key())
        failed.set()
        assert not any(look.result() for look in looks)
    assert backend.errors == 1


def test_threads_whose_connections_died_with_a_restart_notice_no_error(
    server: Memcached | Redis, cache: MemcachedCache | RedisCache
) -> None:
    backend = cache.backend(timeout_s=10.0, retry_s=3600.0)
    connected, restarted = threading.Barrier(9), threading.Event()

    def look_again() -> bool:
        assert answers(backend, new_key())
        connected.wait()
        restarted.wait()
        return answers(backend, new_key()) and backend.fence_multi([new_key()])[0].confirmed

    with ThreadPoolExecutor(8) as pool:
        looks = [pool.submit(look_again) for _ in range(8)]
        connected.wait()
        server.kill()
        server.start()
        restarted.set()
        assert all(look.result() for look in looks)
    assert backend.errors == 0


def test_check_looks_past_the_breaker(server: Memcached | Redis, cache: MemcachedCache | RedisCache) -> None:
    backend = cache.backend(**ONCE)
    server.kill()
    assert not answers(backend, new_key())
    server.start()
    assert not answers(backend, new_key())
    (status,) = backend.check()
    assert status.trouble is None
    assert status.version
    assert status.round_trip_s is not None


def test_late_reply_is_nobody_elses(server: Memcached | Redis, cache: MemcachedCache | RedisCache) -> None:
    slow, fast = new_key(), new_key()
    with Relay(server.port) as relay:
        backend = cache.backend(**HASTY, **through(relay, server))
        store(backend, slow, VALUE)
        store(backend, fast, NEWER)

        def late(reply: bytes) -> bytes:
            time.sleep(1.0)
            return reply

        relay.tamper = late
        assert backend.lookup(slow) is Absent.UNREACHABLE
        relay.tamper = _untouched
        assert eventually(lambda: answers(backend, fast))
        for _ in range(20):
            assert backend.lookup(fast) == NEWER
        backend.close()


def _untouched(reply: bytes) -> bytes | None:
    return reply


def _silent(_: bytes) -> bytes | None:
    return b""


def _cut(_: bytes) -> bytes | None:
    return None


def _twice(reply: bytes) -> bytes | None:
    return reply + reply


def _short(reply: bytes) -> bytes | None:
    return reply[:-3]


class _CutInside:
    """Half of the first reply, then the end."""

    def __init__(self) -> None:
        self.cut = False

    def __call__(self, reply: bytes) -> bytes | None:
        if self.cut:
            return None
        self.cut = True
        return reply[: len(reply) // 2]


def _always(text: bytes) -> Callable[[bytes], bytes | None]:
    return lambda _: text


NONSENSE: dict[str, Callable[[], Callable[[bytes], bytes | None]]] = {
    "silence": lambda: _silent,
    "cut": lambda: _cut,
    "cut inside a reply": _CutInside,
    "reply twice": lambda: _twice,
    "reply cut short": lambda: _short,
    "HTTP": lambda: _always(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
    "empty line": lambda: _always(b"\r\n"),
    "zeros": lambda: _always(bytes(100)),
    "no end of line": lambda: _always(b"x" * 100_000),
    "a size that is none": lambda: _always(b"$x\r\n"),
    "a negative size": lambda: _always(b"$-7\r\n\r\n"),
    "a number": lambda: _always(b":1\r\n"),
    "a huge size": lambda: _always(b"$99999999999\r\n"),
    "a value without a size": lambda: _always(b"VA\r\n"),
    "a value of no size": lambda: _always(b"VA x c1\r\n"),
    "a value with a wrong size": lambda: _always(b"VA 3 O1 c1\r\nabcdef\r\n"),
    "a value that was not asked for": lambda: _always(b"VA 3 O999999 c1\r\nabc\r\n"),
    "an error": lambda: _always(b"ERROR\r\n"),
    "a client's error": lambda: _always(b"CLIENT_ERROR bad command line format\r\n"),
    "a server's error": lambda: _always(b"SERVER_ERROR out of memory storing object\r\n"),
    "another error": lambda: _always(b"-ERR what\r\n"),
    "out of memory": lambda: _always(b"-OOM command not allowed when used memory > 'maxmemory'.\r\n"),
    "loading": lambda: _always(b"-LOADING Redis is loading the dataset in memory\r\n"),
    "a replica": lambda: _always(b"-READONLY You can't write against a read only replica.\r\n"),
    "moved": lambda: _always(b"-MOVED 3999 127.0.0.1:6381\r\n"),
    "no login": lambda: _always(b"-NOAUTH Authentication required.\r\n"),
    "no permission": lambda: _always(b"-NOPERM User default has no permissions to run the 'set' command\r\n"),
}


@pytest.mark.parametrize("what", NONSENSE)
def test_nonsense_is_no_answer(what: str, server: Memcached | Redis, cache: MemcachedCache | RedisCache) -> None:
    key, another = new_key(), new_key()
    with Relay(server.port) as relay:
        backend = cache.backend(timeout_s=0.4, retry_s=0.0, **through(relay, server))
        store(backend, key, VALUE)
        store(backend, another, NEWER)
        relay.tamper = NONSENSE[what]()
        assert backend.lookup(key) in {VALUE, Absent.UNREACHABLE}
        for entry in backend.lookup_multi([key, another]):
            assert entry in {VALUE, NEWER, Absent.UNREACHABLE}
        settled = backend.settle_multi([Settlement(key, Fence(FENCE + b"12345678", b"1", time.monotonic()), VALUE, 60)])
        assert len(settled) == len(backend.invalidate_multi([new_key()])) == len(backend.fence_multi([new_key()])) == 1
        backend.set_serialized(new_key(), VALUE)
        assert backend.errors > 0
        relay.tamper = _untouched
        assert eventually(lambda: answers(backend, another))
        for _ in range(5):
            assert backend.lookup(another) == NEWER
        backend.close()


@pytest.mark.needs("memcached", "redis")
def test_server_of_another_protocol(memcached: Memcached, redis_server: Redis) -> None:
    as_memcached = MemcachedCache([]).backend(**HASTY, servers=[redis_server.address])
    as_redis = RedisCache(redis_server).backend(**HASTY, url=f"redis://{memcached.address}/0")
    for backend in (as_memcached, as_redis):
        use_everything(backend)
        (status,) = backend.check()
        assert status.trouble is not None
        backend.close()


def test_going_down_is_logged_once_and_so_is_coming_back(
    server: Memcached | Redis, cache: MemcachedCache | RedisCache, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="cellcache")
    backend = cache.backend(timeout_s=0.4, retry_s=0.0)
    assert answers(backend, new_key())
    server.kill()
    for _ in range(50):
        assert not answers(backend, new_key())
    assert backend.errors >= 50
    server.start()
    assert eventually(lambda: answers(backend, new_key()))
    ours = [record for record in caplog.records if record.name.startswith("cellcache")]
    assert [record.levelname for record in ours] == ["WARNING", "INFO"]
    assert all(server.address in record.getMessage() for record in ours)


@pytest.mark.needs("memcached")
def test_node_that_is_down_keeps_its_keys(memcacheds: list[Memcached]) -> None:
    cache = MemcachedCache(memcacheds)
    backend = cache.backend(timeout_s=0.4, retry_s=0.0)
    keys = [new_key() for _ in range(300)]
    backend.store_multi(dict.fromkeys(keys, VALUE))
    memcacheds[1].suspend()
    entries = dict(zip(keys, backend.lookup_multi(keys), strict=True))
    lost = [key for key, entry in entries.items() if entry is Absent.UNREACHABLE]
    kept = [key for key, entry in entries.items() if entry == VALUE]
    assert 50 < len(lost) < 150
    assert len(lost) + len(kept) == 300
    assert not any(fence.confirmed for fence in backend.fence_multi(lost))
    assert backend.invalidate_multi(lost[:3]) == [False] * 3
    fences = dict(zip(kept, backend.fence_multi(kept), strict=True))
    settlements = [Settlement(key, fence, NEWER, 600) for key, fence in fences.items() if fence.confirmed]
    assert backend.settle_multi(settlements) == [True] * len(kept)
    memcacheds[1].resume()
    assert eventually(lambda: answers(backend, lost[0]))
    # What the node held, and no other node's copy of it: its keys were nowhere else in between.
    assert all(entry in {VALUE, Absent.FENCED} for entry in backend.lookup_multi(lost))
    assert backend.lookup_multi(kept) == [NEWER] * len(kept)
    cache.close()


@pytest.mark.needs("memcached")
def test_full_memcached_refuses_and_goes_on() -> None:
    with Memcached(memory_mb=4, options=["-M"]) as server:
        cache = MemcachedCache([server])
        backend, key = cache.backend(), new_key()
        store(backend, key, VALUE)
        full = False
        for _ in range(50):
            backend.store_multi({new_key(): b"x" * 500_000 for _ in range(4)})
            full = full or backend.errors > 0
        assert full
        assert backend.lookup(key) == VALUE
        assert backend.invalidate_multi([key]) == [True]
        cache.close()


def test_leases_are_not_granted_by_a_node_that_does_not_answer(
    server: Memcached | Redis, cache: MemcachedCache | RedisCache
) -> None:
    """A reader that was cut off after its lease was granted stores nothing; the next one after the lease's time."""
    key = new_key()
    with Relay(server.port) as relay:
        backend = cache.backend(timeout_s=0.4, retry_s=0.0, lease_ttl_s=1, **through(relay, server))
        assert isinstance(leased(backend, new_key()), Lease)
        relay.tamper = _silent
        assert backend.lookup(key) is Absent.UNREACHABLE
        relay.tamper = _untouched
        assert eventually(lambda: isinstance(backend.lookup(key), Lease))
        backend.close()
