"""What is Redis's own about the Redis backend: its disk, its replicas, its users, its memory, its protocol."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from cellcache.backends.keys import raw_key
from cellcache.backends.redis import RedisBackend
from cellcache.backends.resp import ACL_RULES, Connection, Refusal, Refused
from cellcache.codec import FENCE, LEASE, encode
from cellcache.errors import ConfigError
from cellcache.protocol import Absent, Fill, Lease, Settlement
from tests import scripted
from tests.caches import PATIENT, Backend, RedisCache, eventually, fenced, leased, new_key, nodes_of
from tests.certificates import Authority
from tests.fake_redis import FakeRedis
from tests.server_process import reserve_port
from tests.servers import Redis

OLD, NEW = encode("0" * 32), encode("1" * 32)

needs_redis = pytest.mark.needs("redis")


@pytest.fixture
def cache(redis_server: Redis) -> Iterator[RedisCache]:
    cache = RedisCache(redis_server)
    yield cache
    cache.close()


@pytest.fixture
def backend(cache: RedisCache) -> Backend:
    return cache.backend()


@pytest.fixture
def own_server() -> Iterator[Redis]:
    """A Redis whose settings a test may change."""
    with Redis() as server:
        yield server


@pytest.fixture
def own_cache(own_server: Redis) -> Iterator[RedisCache]:
    cache = RedisCache(own_server)
    yield cache
    cache.close()


def command(server: Redis, *parts: str | bytes | int) -> Any:
    """Do as an administrator does."""
    with redis.Redis(host=server.host, port=server.port, protocol=2) as client:
        return client.execute_command(*parts)


def store(backend: Backend, key: str, value: bytes) -> None:
    assert backend.settle_multi([Settlement(key, fenced(backend, key), value, 600)]) == [True]


# What a restart brings back


@needs_redis
@pytest.mark.parametrize("persistence", ["snapshot", "append-only file"])
def test_older_values_that_a_restart_brings_back_are_not_seen(persistence: str, key: str) -> None:
    options = ["--appendonly", "yes", "--appendfsync", "always"] if persistence == "append-only file" else []
    with Redis(options=options) as server:
        cache, backup = RedisCache(server), server.directory / "backup"
        backend, other = cache.backend(), cache.backend()
        store(backend, key, OLD)
        if persistence == "snapshot":
            command(server, "SAVE")
        else:
            shutil.copytree(server.directory / "appendonlydir", backup, copy_function=_copy_with_owner)
        store(backend, key, NEW)
        assert other.lookup(key) == NEW
        server.kill()
        if backup.exists():
            shutil.rmtree(server.directory / "appendonlydir")
            backup.rename(server.directory / "appendonlydir")
            shutil.chown(server.directory / "appendonlydir", *_owner(server.directory))
        server.start()
        (name,) = command(server, "KEYS", "*")
        assert command(server, "GET", name) == OLD, "the trap is not set"
        for each in (backend, other, cache.backend()):
            assert each.lookup(key) != OLD
        cache.close()


def _copy_with_owner(source: str, target: str) -> None:
    shutil.copy2(source, target)
    shutil.chown(target, *_owner(Path(source)))


def _owner(path: Path) -> tuple[int, int]:
    return path.stat().st_uid, path.stat().st_gid


@needs_redis
def test_older_values_that_a_promoted_replica_holds_are_not_seen(own_server: Redis, key: str) -> None:
    command(own_server, "CONFIG", "SET", "repl-diskless-sync-delay", "0")
    with Redis(options=["--replicaof", own_server.host, str(own_server.port)]) as replica:
        store(RedisCache(own_server).backend(), key, OLD)
        assert eventually(lambda: command(replica, "DBSIZE") == 1)
        command(replica, "REPLICAOF", "NO", "ONE")
        promoted = RedisCache(replica).backend()
        assert isinstance(promoted.lookup(key), Lease)
        promoted.close()


@needs_redis
def test_replica_is_not_believed(own_server: Redis, own_cache: RedisCache, key: str) -> None:
    backend = own_cache.backend(retry_s=0.0)
    store(backend, key, OLD)
    absent, theirs = new_key(), new_key()
    fence = fenced(backend, theirs)
    fenced(backend, theirs)
    command(own_server, "REPLICAOF", "127.0.0.1", "1")
    assert command(own_server, "DBSIZE") == 2, "it holds what it held"
    assert backend.lookup(key) is Absent.UNREACHABLE
    assert backend.lookup_multi([key]) == [Absent.UNREACHABLE]
    assert not any(fence.confirmed for fence in backend.fence_multi([key]))
    for each in (key, absent, theirs):
        assert backend.invalidate_multi([each]) == [False], "nothing is changed there, so nothing is confirmed"
        assert backend.settle_multi([Settlement(each, fence, None)]) == [False]
    assert backend.errors > 0
    (status,) = backend.check()
    assert status.trouble is not None
    assert "replica" in status.trouble
    command(own_server, "REPLICAOF", "NO", "ONE")
    assert eventually(lambda: backend.lookup(key) is not Absent.UNREACHABLE)


@needs_redis
def test_flushed_scripts_are_loaded_again(redis_server: Redis, backend: Backend, key: str) -> None:
    fence, lease = fenced(backend, key), leased(backend, other := new_key())
    command(redis_server, "SCRIPT", "FLUSH")
    assert backend.settle_multi([Settlement(key, fence, NEW, 60)]) == [True]
    assert backend.lookup(key) == NEW
    command(redis_server, "SCRIPT", "FLUSH")
    backend.fill_multi([Fill(other, lease, OLD, 60)])
    assert backend.invalidate_multi([other]) == [True]
    assert backend.errors == 0


# Round trips and bytes


class _CountingSocket:
    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self.requests = 0

    def sendall(self, request: bytes) -> None:
        self.requests += 1
        self._sock.sendall(request)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


@pytest.fixture
def requests(backend: Backend) -> _CountingSocket:
    """Counts the requests that go over its one connection: each is one round trip."""
    (node,) = nodes_of(backend)
    connection = node.take(time.monotonic())
    assert connection is not None
    counting = connection._sock = _CountingSocket(connection._sock)
    connection.send = counting.sendall
    node.give_back(connection)
    return counting


def test_hit_is_one_round_trip(backend: Backend, requests: _CountingSocket, key: str) -> None:
    store(backend, key, OLD)
    requests.requests = 0
    assert backend.lookup(key) == OLD
    assert requests.requests == 1


def test_miss_is_two_round_trips(backend: Backend, requests: _CountingSocket, key: str) -> None:
    assert backend.fill_multi([Fill(key, leased(backend, key), OLD, 60)]) == [True]
    assert requests.requests == 2


def test_write_is_two_round_trips(backend: Backend, requests: _CountingSocket, key: str) -> None:
    store(backend, key, NEW)
    assert requests.requests == 2


@pytest.mark.parametrize(("count", "round_trips"), [(1, 1), (1000, 1), (1001, 2), (2500, 3)])
def test_a_thousand_keys_are_one_round_trip(
    backend: Backend, requests: _CountingSocket, count: int, round_trips: int
) -> None:
    keys = [new_key() for _ in range(count)]
    leases = backend.lookup_multi(keys)
    assert requests.requests == round_trips
    fills = [Fill(key, lease, OLD, 60) for key, lease in zip(keys, leases, strict=True) if isinstance(lease, Lease)]
    assert all(backend.fill_multi(fills))
    assert requests.requests == 2 * round_trips
    fences = backend.fence_multi(keys)
    assert requests.requests == 3 * round_trips
    settlements = [Settlement(key, fence, NEW, 60) for key, fence in zip(keys, fences, strict=True)]
    assert all(backend.settle_multi(settlements))
    assert requests.requests == 4 * round_trips
    assert all(backend.invalidate_multi(keys))
    assert requests.requests == 5 * round_trips


@needs_redis
def test_entry_is_small(own_server: Redis, own_cache: RedisCache, key: str) -> None:
    store(own_cache.backend(), key, OLD)
    (name,) = command(own_server, "KEYS", "*")
    assert len(name) == 6 + 16
    assert name.endswith(uuid.UUID(key).bytes)
    assert len(command(own_server, "GET", name)) == 17


@needs_redis
def test_prefix_the_start_of_the_run_id_and_the_uuid_are_the_key(own_server: Redis, own_cache: RedisCache) -> None:
    key = "0d4ed1d2-8b8c-4e0a-9a43-3b1f3ad1e4ab"
    store(own_cache.backend(key_prefix="cells:"), key, OLD)
    client = redis.Redis.from_url(own_server.url)
    run = bytes.fromhex(client.info("server")["run_id"])[:6]
    assert client.get(b"cells:" + run + bytes.fromhex("0d4ed1d28b8c4e0a9a433b1f3ad1e4ab")) == OLD
    client.close()


def test_prefix_stands_first(own_server: Redis, own_cache: RedisCache, key: str) -> None:
    store(own_cache.backend(key_prefix="cells:é:"), key, OLD)
    (name,) = command(own_server, "KEYS", "*")
    assert name.startswith("cells:é:".encode())


@needs_redis
@pytest.mark.parametrize(("ttl_s", "milliseconds"), [(0.5, 500), (60, 60_000), (0.0001, 1)])
def test_time_to_live_is_in_milliseconds(
    own_server: Redis, own_cache: RedisCache, ttl_s: float, milliseconds: int
) -> None:
    backend = own_cache.backend(ttl_s=ttl_s, lease_ttl_s=ttl_s, fence_ttl_s=ttl_s)
    put: list[Any] = [
        backend.lookup,
        lambda key: backend.fence_multi([key]),
        lambda key: backend.set_serialized(key, OLD),
        lambda key: backend.settle_multi([Settlement(key, fenced(own_cache.backend(), key), OLD, ttl_s)]),
    ]
    for one in put:
        one(new_key())
        names = command(own_server, "KEYS", "*")
        remaining = [command(own_server, "PTTL", name) for name in names]
        assert all(left == -2 or 0 <= left <= milliseconds for left in remaining)
        command(own_server, "FLUSHALL")


@needs_redis
def test_no_time_to_live_is_for_ever(own_server: Redis, own_cache: RedisCache) -> None:
    backend = own_cache.backend(ttl_s=None)
    filled, settled, region = keys = [new_key() for _ in range(3)]
    backend.fill_multi([Fill(filled, leased(backend, filled), OLD, 0.0)])
    backend.settle_multi([Settlement(settled, fenced(backend, settled), OLD)])
    backend.set_serialized(region, OLD)
    assert backend.lookup_multi(keys) == [OLD] * 3
    assert [command(own_server, "PTTL", name) for name in command(own_server, "KEYS", "*")] == [-1] * 3


# Entries of another type


@pytest.mark.parametrize("verb", [b"RPUSH", b"SADD", b"PFADD"])
def test_entry_of_another_type_is_undecodable_and_removable(
    cache: RedisCache, backend: Backend, key: str, verb: bytes
) -> None:
    cache.do(verb, key, b"element")
    if verb != b"PFADD":  # that is a string, of a form of its own
        assert backend.lookup(key) == b""
        assert backend.lookup_multi([key]) == [b""]
    assert backend.invalidate_multi([key]) == [True]
    assert isinstance(backend.lookup(key), Lease)


def test_writer_replaces_an_entry_of_another_type(cache: RedisCache, backend: Backend, key: str) -> None:
    cache.do(b"RPUSH", key, b"element")
    store(backend, key, NEW)
    assert backend.lookup(key) == NEW


def test_lost_fence_with_an_entry_of_another_type_in_its_place(cache: RedisCache, backend: Backend, key: str) -> None:
    fence, lease = fenced(backend, key), leased(backend, other := new_key())
    for each in (key, other):
        cache.evict(each)
        cache.do(b"RPUSH", each, b"element")
    assert backend.settle_multi([Settlement(key, fence, NEW, 60)]) == [True]
    assert isinstance(backend.lookup(key), Lease)
    assert backend.fill_multi([Fill(other, lease, OLD, 60)]) == [False]


# Memory


@needs_redis
def test_full_redis_stores_nothing_and_still_removes(own_server: Redis, own_cache: RedisCache, key: str) -> None:
    backend = own_cache.backend(retry_s=3600.0)
    store(backend, key, OLD)
    pruned, moved = new_key(), new_key()
    store(backend, pruned, OLD)
    fence = fenced(backend, moved)
    (node,) = nodes_of(backend)
    (connection,) = node._pool().free
    command(own_server, "CONFIG", "SET", "maxmemory", "1")
    assert backend.lookup(key) is Absent.UNREACHABLE, "what takes no fence is not believed"
    assert backend.lookup_multi([key, new_key()]) == [Absent.UNREACHABLE] * 2
    assert backend.errors == 3
    assert not any(fence.confirmed for fence in backend.fence_multi([key]))
    backend.set_serialized(new_key(), OLD)
    assert backend.errors == 5
    assert backend.invalidate_multi([pruned]) == [True]
    assert backend.settle_multi([Settlement(moved, fence, NEW, 60)]) == [True]
    (status,) = backend.check()
    assert status.trouble is not None
    assert "allkeys-lru" in status.trouble
    command(own_server, "CONFIG", "SET", "maxmemory", "0")
    assert list(node._pool().free) == [connection], "that is no reason to hang up"
    assert backend.lookup(key) == OLD
    assert isinstance(backend.lookup(pruned), Lease)
    assert backend.lookup(moved) == NEW


@pytest.mark.parametrize("refused", [0, 3], ids=["the lookup", "the removal"])
def test_check_says_that_it_is_full(refused: int) -> None:
    replies = [b"+OK\r\n", b"$2\r\n\0L\r\n", b":-2\r\n", b":1\r\n"]
    replies[refused] = b"-OOM command not allowed when used memory > 'maxmemory'.\r\n"
    backend, _ = scripted.redis([b"".join(replies), b"$0\r\n\r\n"])
    (status,) = backend.check()
    assert status.trouble is not None
    assert "it is full: set its maxmemory-policy to allkeys-lru" in status.trouble


def test_a_redis_that_frees_what_was_too_long_is_not_blamed_for_being_late(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("cellcache.backends.node.time", SimpleNamespace(monotonic=lambda: now))
    long = b"$-1\r\n$101\r\n%b\r\n" % (b"x" * 101)
    backend, made = scripted.redis([long], [long])
    backend.longest_value = 100
    node = backend._node
    assert backend.lookup(new_key()) == b""
    node.failed(made[0], TimeoutError())
    assert node._pool().breaker.closed
    assert backend.lookup_multi([new_key()]) == [b""], "over another connection, at once"
    now += 10.0
    node.failed(made[1], TimeoutError())
    assert not node._pool().breaker.closed
    assert backend.errors == 2
    backend.close()


@needs_redis
def test_check_warns_of_memory_that_will_fill_up(own_server: Redis, own_cache: RedisCache) -> None:
    backend = own_cache.backend()
    command(own_server, "CONFIG", "SET", "maxmemory", "100mb")
    (status,) = backend.check()
    assert status.trouble is not None
    assert "noeviction" in status.trouble
    assert status.supported
    command(own_server, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    assert backend.check()[0].trouble is None
    assert command(own_server, "DBSIZE") == 0, "the check leaves nothing behind"


# Servers that cannot keep the promise


@pytest.mark.parametrize(
    ("says", "named"),
    [
        ({"redis_version": "6.2.14"}, "6.2.14"),
        ({"redis_version": "255.255.255", "redis_mode": "cluster"}, "cluster"),
        ({"redis_mode": "sentinel"}, "sentinel"),
        ({"run_id": ""}, "run_id"),
        ({"run_id": "none of your business"}, "run_id"),
        ({"redis_version": "new"}, "new"),
        ({"redis_version": ""}, "7.0"),
    ],
)
def test_server_that_cannot_keep_the_promise_is_refused(says: dict[str, str], named: str, key: str) -> None:
    with FakeRedis(**says) as server:
        cache = RedisCache(server)
        backend = cache.backend()
        (status,) = backend.check()
        assert not status.supported
        assert status.trouble is not None
        assert named in status.trouble
        assert backend.lookup(key) is Absent.UNREACHABLE
        assert not any(fence.confirmed for fence in backend.fence_multi([key]))
        assert backend.errors > 0
        cache.close()


def test_valkey_is_named_by_its_own_version() -> None:
    with FakeRedis(redis_version="7.2.4", valkey_version="8.1.0") as server:
        cache = RedisCache(server)
        (status,) = cache.backend().check()
        assert status == (status.name, "8.1.0", status.round_trip_s, None, True)
        cache.close()


# Users


@needs_redis
def test_documented_rules_are_all_that_a_user_needs(own_server: Redis, key: str) -> None:
    password = "p@ss:w/rd é%"
    command(own_server, "ACL", "SETUSER", "cells", "reset", "on", f">{password}", "~cells:*", *ACL_RULES.split())
    url = f"redis://cells:{quote(password, safe='')}@{own_server.address}/2"
    backend = RedisBackend({**PATIENT, "url": url, "key_prefix": "cells:"})
    assert backend.check()[0].trouble is None
    backend.fill_multi([Fill(key, leased(backend, key), OLD, 60)])
    assert backend.lookup(key) == OLD
    store(backend, key, NEW)
    assert backend.lookup(key) == NEW
    assert backend.invalidate_multi([key]) == [True]
    assert backend.errors == 0
    backend.close()
    beside = RedisBackend(
        {**PATIENT, "url": own_server.url, "key_prefix": "cells:", "username": "cells", "password": password}
    )
    assert isinstance(beside.lookup(new_key()), Lease)
    beside.close()


@needs_redis
@pytest.mark.parametrize(
    ("lacking", "supported"),
    [
        ("+info", False),
        ("+script|load", False),
        ("+set", True),
        ("+getrange", True),
        ("+pttl", True),
        ("+evalsha", True),
        ("+del", True),
    ],
)
def test_check_says_which_rule_a_user_lacks(own_server: Redis, lacking: str, supported: bool, key: str) -> None:
    rules = [rule for rule in ACL_RULES.split() if rule != lacking]
    command(own_server, "ACL", "SETUSER", "cells", "reset", "on", ">pl4nted", "~*", *rules)
    backend = RedisBackend({**PATIENT, "url": f"redis://cells:pl4nted@{own_server.address}"})
    (status,) = backend.check()
    assert status.supported is supported
    assert status.trouble is not None
    assert lacking in status.trouble
    assert "pl4nted" not in status.trouble
    backend.lookup(key)
    assert backend.settle_multi([]) == []
    backend.close()


@needs_redis
def test_check_says_which_keys_a_user_lacks(own_server: Redis) -> None:
    command(own_server, "ACL", "SETUSER", "cells", "reset", "on", ">pl4nted", "~cells:*", *ACL_RULES.split())
    backend = RedisBackend({**PATIENT, "url": f"redis://cells:pl4nted@{own_server.address}", "key_prefix": "other:"})
    (status,) = backend.check()
    assert status.trouble is not None
    assert "key_prefix" in status.trouble
    backend.close()


@needs_redis
@pytest.mark.parametrize("login", ["cells:pl4nted", "nobody:pl4nted", ":pl4nted", "cells:"])
def test_wrong_password_is_named_and_never_shown(
    own_server: Redis, login: str, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    command(own_server, "ACL", "SETUSER", "cells", "reset", "on", ">another", "~*", "+@all")
    command(own_server, "ACL", "SETUSER", "default", "resetpass", ">another")
    backend = RedisBackend({**PATIENT, "url": f"redis://{login}@{own_server.address}"})
    (status,) = backend.check()
    assert not status.supported
    assert status.trouble is not None
    assert "password" in status.trouble
    assert backend.lookup(key) is Absent.UNREACHABLE
    shown = [repr(status), repr(backend), repr(backend._node), repr(vars(backend._node)), caplog.text]
    assert "refuses us" in caplog.text
    assert not any("pl4nted" in text for text in shown)
    backend.close()


@needs_redis
def test_no_password_where_one_is_needed(own_server: Redis) -> None:
    command(own_server, "ACL", "SETUSER", "default", "resetpass", ">another")
    backend = RedisBackend({**PATIENT, "url": own_server.url})
    (status,) = backend.check()
    assert status.trouble is not None
    assert "NOAUTH" in status.trouble
    backend.close()


# Addresses


@needs_redis
def test_unix_socket() -> None:
    with Redis() as server:
        path = server.directory / "redis.sock"
        server.options = ("--unixsocket", str(path), "--unixsocketperm", "777")
        server.restart()
        backend = RedisBackend({**PATIENT, "url": f"unix://{path}?db=1"})
        (status,) = backend.check()
        assert status.trouble is None
        assert str(path) in status.name
        assert isinstance(backend.lookup(new_key()), Lease)
        server.suspend()
        hasty = RedisBackend({"url": f"unix://{path}", "timeout_s": 0.2})
        began = time.monotonic()
        assert hasty.lookup(new_key()) is Absent.UNREACHABLE
        assert time.monotonic() - began < 10
        server.resume()
        backend.close()
        hasty.close()


def test_databases_are_kept_apart(redis_server: Redis, key: str) -> None:
    third = RedisBackend({**PATIENT, "url": f"redis://{redis_server.address}/3"})
    fourth = RedisBackend({**PATIENT, "url": f"redis://{redis_server.address}?db=4"})
    store(third, key, OLD)
    assert isinstance(fourth.lookup(key), Lease)
    assert third.lookup(key) == OLD
    third.close()
    fourth.close()


def test_database_that_is_not_there(redis_server: Redis, key: str) -> None:
    backend = RedisBackend({**PATIENT, "url": f"redis://{redis_server.address}/99"})
    (status,) = backend.check()
    assert status.trouble is not None
    assert "DB index" in status.trouble
    assert backend.lookup(key) is Absent.UNREACHABLE
    backend.close()


@pytest.mark.parametrize(
    "url",
    [
        "http://:pl4nted@127.0.0.1",
        "127.0.0.1:6379",
        "redis://user:pl4nted@127.0.0.1:port/0",
        "redis://user:pl4/nted@127.0.0.1/0",
        "redis://:pl4nted@127.0.0.1/zero",
        "redis://:pl4nted@127.0.0.1/0?db=zero",
        "redis://:pl4nted@127.0.0.1/0?frobnicate=pl4nted",
        "redis://:pl4nted@127.0.0.1/0?ssl_ca_certs=/dev/null",
        "rediss://:pl4nted@127.0.0.1/0?ssl_ca_certs=/nowhere/pl4nted",
        "rediss://:pl4nted@127.0.0.1/0?ssl_cert_reqs=pl4nted",
        "rediss://:pl4nted@127.0.0.1/0?ssl_certfile=/nowhere/pl4nted",
    ],
)
def test_url_that_cannot_be_used_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match=r"cache\.url") as caught:
        RedisBackend({"url": url})
    assert "pl4" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


# TLS


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("cellcache tests")


@pytest.fixture
def tls_server(authority: Authority) -> Iterator[Redis]:
    """It takes plain text as well, which is how its start is noticed; `tls_port_of` says where it takes TLS."""
    server, pair, reservation = Redis(), authority.issue("redis"), reserve_port()
    server.options = (
        *("--tls-cert-file", str(server.add_file("server.pem", pair.certificate))),
        *("--tls-key-file", str(server.add_file("server.key", pair.key))),
        *("--tls-ca-cert-file", str(server.add_file("ca.pem", authority.pem))),
        *("--tls-auth-clients", "optional", "--tls-port", str(reservation.getsockname()[1])),
    )
    with reservation, server:
        yield server


def tls_port_of(server: Redis) -> int:
    return int(server.options[-1])


@needs_redis
def test_tls_with_the_authority_that_signed(tls_server: Redis, authority: Authority, tmp_path: Path, key: str) -> None:
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    certificate, private = authority.issue("client").write(tmp_path, "client")
    files = f"ssl_ca_certs={tmp_path / 'ca.pem'}&ssl_certfile={certificate}&ssl_keyfile={private}"
    backend = RedisBackend({**PATIENT, "url": f"rediss://127.0.0.1:{tls_port_of(tls_server)}/0?{files}"})
    assert backend.check()[0].trouble is None
    store(backend, key, OLD)
    assert backend.lookup(key) == OLD
    keys = [new_key() for _ in range(1000)]
    assert all(isinstance(entry, Lease) for entry in backend.lookup_multi(keys))
    tls_server.restart()
    assert isinstance(backend.lookup(key), Lease)
    assert backend.errors == 0
    backend.close()


@needs_redis
def test_tls_is_verified_unless_told_otherwise(
    tls_server: Redis, authority: Authority, tmp_path: Path, key: str
) -> None:
    (tmp_path / "other.pem").write_bytes(Authority("another").pem)
    for trusted in ("", f"?ssl_ca_certs={tmp_path / 'other.pem'}"):
        backend = RedisBackend({**PATIENT, "url": f"rediss://127.0.0.1:{tls_port_of(tls_server)}/0{trusted}"})
        (status,) = backend.check()
        assert status.trouble is not None
        assert "certificate verify failed" in status.trouble
        assert backend.lookup(key) is Absent.UNREACHABLE
        backend.close()
    trusting = RedisBackend({**PATIENT, "url": f"rediss://127.0.0.1:{tls_port_of(tls_server)}/0?ssl_cert_reqs=none"})
    assert isinstance(trusting.lookup(key), Lease)
    trusting.close()


@needs_redis
def test_tls_verifies_the_host(authority: Authority, tls_server: Redis, tmp_path: Path, key: str) -> None:
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    url = f"rediss://localhost:{tls_port_of(tls_server)}/0?ssl_ca_certs={tmp_path / 'ca.pem'}"
    strict, lenient = (RedisBackend({**PATIENT, "url": url + more}) for more in ("", "&ssl_check_hostname=no"))
    assert strict.lookup(key) is Absent.UNREACHABLE
    assert isinstance(lenient.lookup(key), Lease)
    strict.close()
    lenient.close()


@needs_redis
def test_plain_text_to_a_tls_port_and_the_other_way_round(tls_server: Redis, key: str) -> None:
    for url in (f"redis://127.0.0.1:{tls_port_of(tls_server)}", f"rediss://{tls_server.address}"):
        backend = RedisBackend({"url": url, "timeout_s": 1.0})
        assert backend.lookup(key) is Absent.UNREACHABLE
        assert backend.check()[0].trouble is not None
        backend.close()


# The protocol


class _Parser(Connection):  # type: ignore[misc]
    """The reading half of a connection, without one."""

    def __init__(self) -> None:
        """Connect to nothing."""
        self._longest = 1 << 29

    def close(self) -> None:
        """Nothing is open."""


def parsed(buffer: bytes, start: int, replies: list[Any], expected: int) -> int:
    rest: int = _Parser()._parse(buffer, start, replies, expected)
    return rest


def encoded(reply: Any) -> bytes:
    if reply is None:
        return b"$-1\r\n"
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, str):
        return f"-{reply}\r\n".encode()
    return b"$%d\r\n%b\r\n" % (len(reply), reply)


_replies = st.lists(
    st.none()
    | st.binary(max_size=40)
    | st.integers(-(2**63), 2**63 - 1)
    | st.sampled_from(["OOM command not allowed", "WRONGTYPE Operation against a key"]),
    min_size=1,
    max_size=10,
)


@pytest.mark.slow
@given(_replies, st.data())
def test_replies_may_come_in_any_pieces(replies: list[Any], data: st.DataObject) -> None:
    wire = b"".join(encoded(reply) for reply in replies)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=8)))
    received: list[Any] = []
    buffer = b""
    for begin, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        buffer += wire[begin:end]
        buffer = buffer[parsed(buffer, 0, received, len(replies)) :]
    assert received == replies
    assert buffer == b""
    assert [isinstance(reply, Refusal) for reply in received] == [isinstance(reply, str) for reply in replies]


@pytest.mark.slow
@given(
    st.binary(max_size=200)
    | st.text(alphabet="$:+-*0123456789\r\n ax", max_size=60).map(str.encode)
    | _replies.map(lambda replies: b"".join(encoded(reply) for reply in replies)[:-2] + b"xx")
)
def test_whatever_comes_is_replies_or_an_error_of_the_connection(wire: bytes) -> None:
    received: list[Any] = []
    try:
        rest = parsed(wire, 0, received, 20)
    except OSError:
        return
    assert 0 <= rest <= len(wire)
    assert all(reply is None or isinstance(reply, bytes | int | Refusal) for reply in received)


@pytest.mark.parametrize(
    "text", ["LOADING Redis is loading", "READONLY You can't write", "MOVED 1 h:1", "NOAUTH", "ERR"]
)
def test_error_that_is_not_about_one_key_ends_the_connection(text: str) -> None:
    with pytest.raises(Refused) as caught:
        parsed(f"-{text}\r\n".encode(), 0, [], 1)
    assert caught.value.code == text.partition(" ")[0]
    assert text in str(caught.value)


def test_marks_are_those_of_the_codec(cache: RedisCache, backend: Backend) -> None:
    assert leased(backend, new_key()).token.startswith(LEASE)
    assert fenced(backend, new_key()).mark.startswith(FENCE)
    assert raw_key(new_key())[:1] != b""


@pytest.fixture
def key() -> str:
    return new_key()
