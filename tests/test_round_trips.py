"""What each call costs: exactly so many round trips to the cache, and so many SQL statements.

A round trip is one send to one server: whatever is in it, the replies are read before the next.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from cellcache import CellDirectory, InstanceNotMapped
from cellcache.backends.keys import Placement, raw_key
from tests.caches import MemcachedCache, RedisCache
from tests.costs import Costs, Meter
from tests.directories import CACHES, HERE, THERE, Site, new_uuids, open_site
from tests.fake_redis import FakeRedis

PROJECT = "project-1"


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Meter:
    return Meter(monkeypatch)


@pytest.fixture(params=CACHES)
def site(request: pytest.FixtureRequest, tmp_path: Path, meter: Meter) -> Iterator[Site]:
    with open_site(request, tmp_path, request.param) as site:
        yield site


@pytest.fixture
def directory(site: Site) -> CellDirectory:
    """A directory that has connected to everything and knows the cells."""
    directory = site.open()
    warm(directory)
    return directory


@pytest.fixture
def trip(site: Site) -> int:
    """What one round trip counts: the memory backend has none."""
    return 1 if site.ports() else 0


def warm(directory: CellDirectory) -> None:
    keys = new_uuids(60)  # some on each node
    directory.map_instances((key, HERE, PROJECT) for key in keys)
    directory.resolve_cells(keys)
    directory.resolve_cell(keys[0])
    directory.get_instance(keys[0])


def nodes(site: Site) -> int:
    return len(site.ports())


def batches_per_node(site: Site, keys: list[str]) -> int:
    """How many round trips 1,000 keys to a node make for these keys, over all nodes."""
    if not site.ports():
        return 0
    if not isinstance(site.cache, MemcachedCache):
        return math.ceil(len(keys) / 1000)
    node_of = Placement([server.address for server in site.cache.servers]).node_of
    return sum(math.ceil(n / 1000) for n in Counter(node_of(raw_key(key)) for key in keys).values())


def verbs(costs: Costs) -> list[str]:
    """The statements by verb and table, without the BEGIN that SQLite needs."""
    found = []
    for statement in costs.statements:
        if not statement.startswith("BEGIN"):
            table = re.search(r"(?:FROM|INTO|UPDATE) (\w+)", statement)
            found.append(f"{statement.split()[0]} {table[1] if table else ''}")
    return found


# -- one instance ------------------------------------------------------------------------------------------------


def test_hit_is_one_round_trip_and_no_sql(site: Site, directory: CellDirectory, meter: Meter, trip: int) -> None:
    key = str(uuid4())
    directory.map_instance(key, HERE, PROJECT)
    for _ in range(3):
        with meter.count(site.ports()) as costs:
            directory.resolve_cell(key)
        assert (costs.round_trips, costs.sql) == (trip, 0)


def test_negative_hit_is_one_round_trip_and_no_sql(
    site: Site, directory: CellDirectory, meter: Meter, trip: int
) -> None:
    key = str(uuid4())
    with pytest.raises(InstanceNotMapped):
        directory.resolve_cell(key)
    with meter.count(site.ports()) as costs, pytest.raises(InstanceNotMapped):
        directory.resolve_cell(key)
    assert (costs.round_trips, costs.sql) == (trip, 0)


@pytest.mark.parametrize("mapped", [True, False])
def test_miss_is_two_round_trips_and_one_statement(
    site: Site, directory: CellDirectory, meter: Meter, trip: int, mapped: bool
) -> None:
    key = str(uuid4())
    if mapped:
        directory.map_instance(key, HERE, PROJECT)
        site.cache.evict(key)
    with meter.count(site.ports()) as costs:
        assert bool(directory.resolve_cells([key])) is mapped
    assert (costs.round_trips, verbs(costs)) == (2 * trip, ["SELECT instance_mapping"])
    site.cache.evict(key)
    with meter.count(site.ports()) as costs:
        try:
            assert directory.resolve_cell(key).uuid == HERE
        except InstanceNotMapped:
            assert not mapped
    assert (costs.round_trips, verbs(costs)) == (2 * trip, ["SELECT instance_mapping"])


def test_miss_without_the_lease_is_two_round_trips_and_one_statement(
    site: Site, directory: CellDirectory, meter: Meter, trip: int
) -> None:
    key = str(uuid4())
    directory.map_instance(key, HERE, PROJECT)
    site.cache.evict(key)
    site.cache.backend(ttl_s=60).lookup(key)  # another process takes the lease, and stops
    with meter.count(site.ports()) as costs:
        assert directory.resolve_cell(key).uuid == HERE
    assert (costs.round_trips, costs.sql) == (2 * trip, 1)


# -- many --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 1000])
def test_hits_at_once_are_one_round_trip_per_node(site: Site, directory: CellDirectory, meter: Meter, n: int) -> None:
    keys = new_uuids(n)
    directory.map_instances((key, HERE, PROJECT) for key in keys)
    with meter.count(site.ports()) as costs:
        assert len(directory.resolve_cells(keys)) == n
    assert (costs.round_trips, costs.sql) == (min(n, nodes(site)), 0)
    assert len(set(costs.requests)) == costs.round_trips  # each to another node


@pytest.mark.slow
def test_ten_thousand_hits_are_a_round_trip_for_each_thousand_of_a_node(
    site: Site, directory: CellDirectory, meter: Meter
) -> None:
    if isinstance(site.cache, RedisCache) and isinstance(site.cache.server, FakeRedis):
        pytest.skip("a real Redis does it in a tenth of the time")
    keys = new_uuids(10_000)
    directory.region.set_multi(dict.fromkeys(keys, HERE))
    with meter.count(site.ports()) as costs:
        assert len(directory.resolve_cells(keys)) == 10_000
    assert (costs.round_trips, costs.sql) == (batches_per_node(site, keys), 0)


@pytest.mark.slow
def test_misses_at_once_are_two_round_trips_per_node_and_one_statement_per_thousand(
    site: Site, directory: CellDirectory, meter: Meter
) -> None:
    keys = new_uuids(2500)
    expected = 2 * batches_per_node(site, keys)
    with meter.count(site.ports()) as costs:
        assert directory.resolve_cells(keys) == {}
    assert (costs.round_trips, verbs(costs)) == (expected, ["SELECT instance_mapping"] * 3)
    with meter.count(site.ports()) as costs:
        assert directory.resolve_cells(keys) == {}
    assert (costs.round_trips, costs.sql) == (expected // 2, 0)


# -- writes ------------------------------------------------------------------------------------------------------


def test_create_is_two_round_trips_and_two_statements(
    site: Site, directory: CellDirectory, meter: Meter, trip: int
) -> None:
    with meter.count(site.ports()) as costs:
        directory.map_instance(uuid4(), HERE, PROJECT)
    assert (costs.round_trips, verbs(costs)) == (
        2 * trip,
        ["INSERT instance_mapping", "INSERT cache_invalidation"],
    )


def test_create_that_records_no_invalidation_is_one_statement(site: Site, meter: Meter, trip: int) -> None:
    directory = site.open(durable="unreachable")
    warm(directory)
    with meter.count(site.ports()) as costs:
        directory.map_instance(uuid4(), HERE, PROJECT)
    assert (costs.round_trips, verbs(costs)) == (2 * trip, ["INSERT instance_mapping"])


@pytest.mark.slow
def test_thousand_creates_are_two_round_trips_per_node_and_four_statements(
    site: Site, directory: CellDirectory, meter: Meter
) -> None:
    with meter.count(site.ports()) as costs:
        directory.map_instances((key, HERE, PROJECT) for key in new_uuids(1000))
    assert (costs.round_trips, verbs(costs)) == (
        2 * nodes(site),
        ["SELECT instance_mapping", "SELECT cell_mapping", "INSERT instance_mapping", "INSERT cache_invalidation"],
    )


def test_move_is_two_round_trips_and_four_statements(
    site: Site, directory: CellDirectory, meter: Meter, trip: int
) -> None:
    key = directory.map_instance(uuid4(), HERE, PROJECT).instance_uuid
    with meter.count(site.ports()) as costs:
        directory.move_instance(key, THERE)
    assert (costs.round_trips, verbs(costs)) == (
        2 * trip,
        ["SELECT instance_mapping", "SELECT cell_mapping", "UPDATE instance_mapping", "INSERT cache_invalidation"],
    )
    with meter.count(site.ports()) as costs:
        directory.move_instance(key, THERE)
    assert (costs.round_trips, verbs(costs)) == (0, ["SELECT instance_mapping"])


@pytest.mark.slow
def test_prune_of_a_thousand_is_two_round_trips_per_node_and_three_statements(
    site: Site, directory: CellDirectory, meter: Meter
) -> None:
    keys = new_uuids(1000)
    directory.map_instances((key, HERE, PROJECT) for key in keys)
    with meter.count(site.ports()) as costs:
        assert directory.prune(keys) == 1000
    assert (costs.round_trips, verbs(costs)) == (
        2 * nodes(site),
        ["SELECT instance_mapping", "DELETE instance_mapping", "INSERT cache_invalidation"],
    )
    with meter.count(site.ports()) as costs:
        assert directory.prune(keys) == 0
    assert (costs.round_trips, verbs(costs)) == (0, ["SELECT instance_mapping"])


@pytest.mark.slow
def test_invalidations_of_a_thousand_are_two_round_trips_per_node_at_most(
    site: Site, directory: CellDirectory, meter: Meter
) -> None:
    """memcached: look, and remove exactly what was seen. Redis does both in one script."""
    keys = new_uuids(1000)
    directory.map_instances((key, HERE, PROJECT) for key in keys)
    with meter.count(site.ports()) as costs:
        assert all(directory._here().backend.invalidate_multi(keys))
    assert costs.round_trips == nodes(site) * (2 if isinstance(site.cache, MemcachedCache) else 1)
    assert directory._here().backend.peek_multi(keys) == [None] * 1000


# -- space -------------------------------------------------------------------------------------------------------


def test_entry_takes_17_bytes(site: Site, directory: CellDirectory) -> None:
    key = directory.map_instance(uuid4(), HERE, PROJECT).instance_uuid
    entry = directory._here().backend.lookup(key)
    assert isinstance(entry, bytes)
    assert len(entry) == 17


@pytest.mark.needs("memcached")
def test_entry_fits_memcacheds_smallest_slot(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    from cellcache.backends.memcached import MemcachedBackend

    with open_site(request, tmp_path, "memcached") as site:
        directory = site.open()
        keys = new_uuids(100)
        directory.map_instances((key, HERE, PROJECT) for key in keys)
        directory.resolve_cells(new_uuids(100))  # and some that are not mapped
        inside = MemcachedBackend(site.cache.arguments())
        for key in keys:
            wire, node = inside._wire(key)
            connection = node.check()
            about = b" ".join(connection.ask(b"me %b b\r\n" % wire)[0].words)
            connection.close()
            size = int(about.rpartition(b"size=")[2])
            assert size <= 96, about
