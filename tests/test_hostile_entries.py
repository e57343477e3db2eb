"""Whoever can write to a cache runs no code: no backend that a deployment may name unpickles what stands there."""

from __future__ import annotations

import dbm
import importlib
import json
import pickle  # noqa: TID251 - an attacker does
import re
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import redis
import redis.cluster
import redis.sentinel
from dogpile.cache import make_region
from dogpile.cache.backends import _backend_loader

from cellcache import CellDirectory, ConfigError, Settings, known_backends
from cellcache.known_backends import OTHERS, OURS
from tests.caches import eventually
from tests.directories import HERE, Site, new_uuids, open_site
from tests.servers import Memcached, Redis

REFUSED = {
    "dogpile.cache.memcached",
    "dogpile.cache.pylibmc",
    "dogpile.cache.bmemcached",
    "oslo_cache.memcache_pool",
    "oslo_cache.dict",
    "oslo_cache.etcd3gw",
}
"""Whose drivers unpickle and cannot be told not to, and those of another distribution."""

_FLAGS = [0, *(1 << bit for bit in range(16)), 0xFFFF]  # of a memcached's item; to pymemcache 1 is a pickle


class LeavesATrace:
    """Loading its pickle calls `leave`."""

    traces: ClassVar[list[str]] = []

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return leave, ("loaded",)


def leave(trace: str) -> str:
    LeavesATrace.traces.append(trace)
    return HERE


HOSTILE = [
    pickle.dumps(LeavesATrace()),
    pickle.dumps(LeavesATrace(), 0),
    json.dumps({"ct": 2e9, "v": 2}).encode() + b"|" + pickle.dumps(LeavesATrace()),  # as dogpile dates an entry
]

Plant = Callable[[CellDirectory, str, bytes, int], None]


@pytest.fixture(autouse=True)
def traces() -> Iterator[list[str]]:
    LeavesATrace.traces.clear()
    yield LeavesATrace.traces
    LeavesATrace.traces.clear()


def registered() -> set[str]:
    """Every backend that dogpile registers, and every entry point of the distributions here, but for ours."""
    names = {name for name in _backend_loader._unloaded if name.startswith("dogpile.")}  # tests register others
    return (names | {each.name for each in entry_points(group="dogpile.cache")}) - set(OURS)


def test_each_backend_that_is_registered_is_known_not_to_unpickle_or_is_refused() -> None:
    """A new one of a later release of dogpile.cache is refused; look at it, try it here, and decide."""
    benchmarks_are_installed = any(name.startswith("oslo_cache.") for name in registered())
    others = REFUSED if benchmarks_are_installed else {name for name in REFUSED if name.startswith("dogpile.")}
    assert registered() == set(OTHERS) | others


@pytest.mark.parametrize("name", [*sorted(REFUSED), "our.own", "homegrown"])
def test_backend_that_may_unpickle_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"or one of dogpile\.cache's that never unpickle") as refusal:
        Settings(cache={"backend": name})
    assert str(refusal.value).startswith(f"cache.backend = '{name}': must be cellcache.memory, cellcache.memcached, ")


def test_serializer_of_the_users_own_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cache\.arguments = '\*\*\*': must hold no serde"):
        Settings(cache={"backend": "dogpile.cache.pymemcache", "arguments": {"url": "h", "serde": object()}})


# -- a hostile entry for each that is accepted ---------------------------------------------------------------------


def plant_in_memory(directory: CellDirectory, key: str, body: bytes, flags: int) -> None:
    directory.region.actual_backend._cache[key] = body


def plant_in_dbm(directory: CellDirectory, key: str, body: bytes, flags: int) -> None:
    with dbm.open(directory.region.actual_backend.filename, "w") as file:
        file[key.encode()] = body


def plant_in_redis(directory: CellDirectory, key: str, body: bytes, flags: int) -> None:
    directory.region.actual_backend.writer_client.set(key, body)


def plant_in_memcached(address: str) -> Plant:
    host, port = address.split(":")

    def plant(directory: CellDirectory, key: str, body: bytes, flags: int) -> None:
        with socket.create_connection((host, int(port)), 10) as attacker:
            attacker.sendall(b"set %b %d 0 %d\r\n%b\r\n" % (key.encode(), flags, len(body), body))
            assert attacker.recv(100) == b"STORED\r\n"

    return plant


class Sentinel(Redis):
    """A Redis Sentinel that knows one master, itself out of nobody's way."""

    def __init__(self, master: Redis) -> None:
        super().__init__(["--sentinel"])
        self._master = master

    def _command(self) -> list[str]:
        program, *_ = super()._command()
        file = self.directory / "sentinel.conf"
        return [program, str(file), "--port", str(self.port), "--bind", self.host]

    def _prepare(self) -> None:
        monitor = f"sentinel monitor it {self._master.host} {self._master.port} 1\n"
        self.add_file("sentinel.conf", monitor.encode())


@pytest.fixture
def valkey(monkeypatch: pytest.MonkeyPatch) -> None:
    """valkey's driver is redis-py's by other names."""
    driver, cluster = ModuleType("valkey"), ModuleType("valkey.cluster")
    vars(driver).update(StrictValkey=redis.StrictRedis, ConnectionPool=redis.ConnectionPool, cluster=cluster)
    vars(driver).update(sentinel=redis.sentinel, Valkey=dict)  # the last for `valkey.Valkey[bytes]`
    vars(cluster).update(ValkeyCluster=redis.cluster.RedisCluster, ClusterNode=redis.cluster.ClusterNode)
    monkeypatch.setitem(sys.modules, "valkey", driver)
    monkeypatch.setitem(sys.modules, "valkey.cluster", cluster)
    monkeypatch.setitem(sys.modules, "valkey.sentinel", redis.sentinel)


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], tuple[dict[str, Any], Plant]]]:
    """Where a backend keeps its entries: its arguments, and how somebody else writes there."""
    with ExitStack() as stack:

        def place(name: str) -> tuple[dict[str, Any], Plant]:
            kind = name.removeprefix("dogpile.cache.").replace("valkey", "redis")
            if kind == "dbm":
                return {"filename": str(tmp_path / "cache.dbm")}, plant_in_dbm
            if kind == "pymemcache":
                server = request.getfixturevalue("memcached")
                assert isinstance(server, Memcached)
                return {"url": server.address}, plant_in_memcached(server.address)
            if kind == "redis_cluster":
                node = stack.enter_context(Redis(["--cluster-enabled", "yes"]))
                with redis.Redis(node.host, node.port) as client:
                    client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
                    assert eventually(lambda: "ok" in str(client.execute_command("CLUSTER INFO")))
                return {"startup_nodes": [redis.cluster.ClusterNode(node.host, node.port)]}, plant_in_redis
            if kind.startswith("redis"):
                master = request.getfixturevalue("redis_server")
                assert isinstance(master, Redis)
                if kind == "redis":
                    return {"host": master.host, "port": master.port}, plant_in_redis
                sentinel = stack.enter_context(Sentinel(master))
                return {"sentinels": [(sentinel.host, sentinel.port)], "service_name": "it"}, plant_in_redis
            return {}, plant_in_memory

        yield place


@pytest.fixture
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, "memory") as site:
        yield site


def close(directory: CellDirectory) -> None:
    """Close what dogpile's interface cannot: the driver's connections."""
    directory.close()
    for client in ("writer_client", "reader_client", "client"):
        if hasattr(directory.region.actual_backend, client):
            getattr(directory.region.actual_backend, client).close()


def _needs(name: str) -> list[Any]:
    servers = [server for server in ("redis", "memcached") if server[:5] in name.replace("valkey", "redis")]
    return [pytest.mark.needs(*servers), pytest.mark.slow] if servers else []


KEPT = [pytest.param(name, marks=_needs(name)) for name in OTHERS if name != "dogpile.cache.null"]


@pytest.mark.parametrize("name", KEPT)
def test_hostile_entry_is_not_run(
    name: str, site: Site, place: Callable[[str], tuple[dict[str, Any], Plant]], valkey: None, traces: list[str]
) -> None:
    arguments, plant = place(name)
    directory = site.open(backend=name, arguments=arguments)
    try:
        for flags in _FLAGS if "pymemcache" in name else [0]:
            for body in HOSTILE:
                keys = new_uuids(3)
                directory.map_instances((key, HERE, "project-1") for key in keys)
                for key in keys:
                    plant(directory, key, body, flags)
                assert directory.resolve_cell(keys[0]).uuid == HERE
                assert directory.resolve_cells(keys).keys() == set(keys)
                assert traces == []
    finally:
        close(directory)


@pytest.mark.needs("memcached")
def test_the_same_entry_is_run_where_pymemcache_unpickles(memcached: Memcached, traces: list[str]) -> None:
    """What dogpile.cache does of its own accord; were it not so, the test above would show nothing."""
    region = make_region(serializer=str.encode, deserializer=bytes.decode)
    region.configure("dogpile.cache.pymemcache", arguments={"url": memcached.address})
    (key,) = new_uuids(1)
    plant_in_memcached(memcached.address)(region, key, HOSTILE[0], 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        region.get(key)
    region.actual_backend.client.close()
    assert traces == ["loaded"]


# -- whose backend a name leads to ---------------------------------------------------------------------------------


STRANGER = """
received = []
class Stranger:
    def __init__(self, arguments):
        received.append(arguments)
"""


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Another distribution, with an entry point for each name that a deployment may use."""
    place = tmp_path / "site"
    (place / "stranger-1.0.dist-info").mkdir(parents=True)
    (place / "stranger-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    lines = [f"{name} = stranger:Stranger" for name in (*OURS, *OTHERS)]
    (place / "stranger-1.0.dist-info" / "entry_points.txt").write_text("\n".join(["[dogpile.cache]", *lines, ""]))
    (place / "stranger.py").write_text(STRANGER)
    monkeypatch.syspath_prepend(place)
    assert "stranger:Stranger" in {
        each.value for each in entry_points(group="dogpile.cache", name="cellcache.memcached")
    }
    sys.modules.pop("stranger", None)
    return importlib.import_module("stranger")


SERVERS: dict[str, dict[str, Any]] = {
    "cellcache.memcached": {"servers": ["127.0.0.1:1"]},
    "cellcache.redis": {"url": "redis://127.0.0.1:1"},
}


@pytest.mark.parametrize("name", OURS)
def test_names_of_ours_lead_to_our_own_whatever_is_installed(name: str, site: Site, stranger: ModuleType) -> None:
    directory = site.open(backend=name, **SERVERS.get(name, {}))
    assert type(directory.region.actual_backend).__module__ == OURS[name][0]
    assert stranger.received == []


@pytest.mark.parametrize("name", [*OURS, "dogpile.cache.null", "dogpile.cache.memory"])
def test_names_lead_to_whom_they_belong_whatever_is_registered_before(
    name: str, site: Site, stranger: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_backend_loader.impls, name, stranger.Stranger)
    monkeypatch.setitem(_backend_loader._unloaded, name, lambda: stranger.Stranger)
    directory = site.open(backend=name, **SERVERS.get(name, {}))
    assert type(directory.region.actual_backend).__module__ == {**OURS, **OTHERS}[name][0]
    assert stranger.received == []


@pytest.mark.parametrize("name", OTHERS)
def test_no_other_backend_is_told_of_the_database(
    name: str, site: Site, stranger: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_backends, "OTHERS", dict.fromkeys(OTHERS, ("stranger", "Stranger")))
    site.open(backend=name, arguments={"url": "its own"})
    (received,) = stranger.received
    assert {**received, "serde": None} == {"url": "its own", "serde": None}


def test_memory_backend_is_told_of_the_database_what_nobody_can_read(site: Site) -> None:
    name = site.open().region.actual_backend._name
    assert re.fullmatch("[0-9a-f]{64}", name)
