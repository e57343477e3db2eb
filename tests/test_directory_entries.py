"""What the directory makes of what stands in the cache: garbage, "not mapped", and what has expired."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from cellcache import CellDirectory, InstanceNotMapped, marks
from cellcache.codec import FENCE, LEASE, encode
from cellcache.protocol import Absent
from cellcache.read_through import jittered
from tests.caches import MemcachedCache, RedisCache, eventually
from tests.directories import CACHES, HERE, SHARED_CACHES, THERE, Site, new_uuids, open_site

PROJECT = "project-1"
PICKLE = b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93\x94\x8c\x04true\x94\x85\x94R\x94."
ENTRY = encode(HERE)

FOREIGN = {
    "cut off": ENTRY[:-1],
    "cut off early": ENTRY[:2],
    "too long by a byte": ENTRY + b"\0",
    "too long by far": ENTRY * 6000,
    "of another version": b"\x02" + ENTRY[1:],
    "of another version, not mapped": b"\x02",
    "random": b"\xff" * 17,
    "text": b"cell1",
    "our own UUID as text": HERE.encode(),
    "a URL": b"mysql+pymysql://nova:secret@db/nova",
    "dogpile's JSON": json.dumps({"ct": 1.0, "v": 2}).encode() + b"|" + ENTRY,
    "a pickle": PICKLE,
    "the protocol's own words": b"HD\r\nEN\r\nVA 17 s17 c1\r\n$-1\r\n",
    "a cell that is no more": encode(str(UUID(int=0xDEAD))),
}
FOREIGN_ON_SERVERS = {
    "empty": b"",
    "a zero byte": b"\0",
    "zero bytes": bytes(17),
    "a zero byte and text": b"\0foreign",
}


@pytest.fixture(params=CACHES)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, request.param) as site:
        yield site


@pytest.fixture(params=SHARED_CACHES)
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, request.param) as site:
        yield site


def shortest_s(site: Site) -> float:
    """The shortest time-to-live that the cache knows: memcached counts whole seconds."""
    return 1.0 if isinstance(site.cache, MemcachedCache) else 0.25


@pytest.fixture
def directory(site: Site) -> CellDirectory:
    return site.open()


@pytest.fixture
def key() -> str:
    return str(uuid4())


# -- garbage -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("bulk", [False, True], ids=["single", "bulk"])
@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_entry_is_a_counted_miss_and_then_replaced(site: Site, name: str, bulk: bool) -> None:
    _is_replaced(site, FOREIGN[name], bulk)


@pytest.mark.slow
@pytest.mark.parametrize("bulk", [False, True], ids=["single", "bulk"])
@pytest.mark.parametrize("name", FOREIGN_ON_SERVERS)
def test_foreign_entry_like_a_mark_is_a_counted_miss_and_then_replaced(shared: Site, name: str, bulk: bool) -> None:
    _is_replaced(shared, FOREIGN_ON_SERVERS[name], bulk)


def _is_replaced(site: Site, entry: bytes, bulk: bool) -> None:
    directory, key = site.open(), str(uuid4())

    def cell() -> str:
        return (directory.resolve_cells([key])[key] if bulk else directory.resolve_cell(key)).uuid

    directory.map_instance(key, THERE, PROJECT)
    assert cell() == THERE
    site.cache.write(key, entry)
    before = directory.stats()
    assert cell() == THERE
    assert cell() == THERE
    after = directory.stats()
    assert after.undecodable == before.undecodable + 1
    assert after.misses == before.misses + 1
    assert after.fills == before.fills + 1
    assert cell() == THERE
    assert directory.stats().hits == after.hits + 1


@pytest.mark.slow
@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_entry_is_overwritten_by_a_write(site: Site, directory: CellDirectory, key: str, name: str) -> None:
    site.cache.write(key, FOREIGN[name])
    directory.map_instance(key, HERE, PROJECT)
    site.cache.write(key, FOREIGN[name])
    directory.move_instance(key, THERE)
    assert directory.resolve_cell(key).uuid == THERE
    assert directory.stats().hits == 1
    site.cache.write(key, FOREIGN[name])
    directory.prune([key])
    with pytest.raises(InstanceNotMapped):
        directory.resolve_cell(key)
    assert directory.stats().undecodable == 0


@pytest.mark.parametrize("bulk", [False, True], ids=["single", "bulk"])
@pytest.mark.parametrize("name", ["random", "a cell that is no more"])
def test_so_is_one_that_takes_the_place_of_a_lease_that_was_waited_for(
    site: Site, directory: CellDirectory, key: str, name: str, bulk: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.map_instance(key, THERE, PROJECT)
    site.cache.write(key, FOREIGN[name])
    method = "lookup_multi" if bulk else "lookup"
    backend, look, looks = directory._here().backend, getattr(directory._here().backend, method), count()

    def lookup(what: Any) -> Any:
        """Another reader's lease at first; the entry has been there ever since."""
        return look(what) if next(looks) else ([Absent.LEASED] if bulk else Absent.LEASED)

    monkeypatch.setattr(backend, method, lookup)
    monkeypatch.setattr(directory._here(), "lookup", backend.lookup)
    for counted in (0, 1):  # a lookup that has waited removes nothing more
        cell = directory.resolve_cells([key])[key] if bulk else directory.resolve_cell(key)
        assert cell.uuid == THERE
        assert (directory.stats().undecodable, directory.stats().hits) == (counted, 0)
    assert directory.resolve_cell(key).uuid == THERE
    assert directory.stats().hits == 1


def test_garbage_among_many_costs_only_itself(site: Site, directory: CellDirectory) -> None:
    keys = new_uuids(30)
    directory.map_instances((key, HERE, PROJECT) for key in keys)
    for key in keys[::3]:
        site.cache.write(key, b"garbage")
    assert directory.resolve_cells(keys).keys() == set(keys)
    stats = directory.stats()
    assert (stats.hits, stats.undecodable, stats.sql_reads) == (20, 10, 1)


def test_many_that_are_too_long_cost_the_other_hits_nothing(shared: Site) -> None:
    directory, keys = shared.open(), new_uuids(60)
    directory.map_instances((key, HERE, PROJECT) for key in keys)
    for key in keys[:30]:
        shared.cache.write(key, bytes(range(1, 251)) * 3000)
    assert directory.resolve_cells(keys).keys() == set(keys)
    assert (directory.stats().hits, directory.stats().undecodable) == (30, 30)
    for _ in range(2):
        assert directory.resolve_cells(keys).keys() == set(keys)
    assert (directory.stats().hits, directory.stats().undecodable) == (30 + 60 + 60, 30)
    assert (directory.stats().unreachable, directory.stats().cache_errors) == (0, 0)


@pytest.mark.parametrize("mark", [LEASE + b"12345678", FENCE + b"12345678"], ids=["lease", "fence"])
@pytest.mark.parametrize("bulk", [False, True], ids=["single", "bulk"])
def test_a_mark_without_an_end_is_removed_by_who_meets_it_twice(
    shared: Site, key: str, mark: bytes, bulk: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = shared.open()
    directory.map_instance(key, HERE, PROJECT)
    shared.cache.evict(key)
    shared.cache.place_mark(key, mark, 0)
    seen = []
    for again_after_s in (1000.0, 1000.0, 0.0, 0.0, 0.0):
        monkeypatch.setattr(marks, "_AGAIN_AFTER_S", again_after_s)
        cell = directory.resolve_cells([key])[key] if bulk else directory.resolve_cell(key)
        assert cell.uuid == HERE
        seen.append((directory.stats().misses, directory.stats().undecodable, directory.stats().hits))
    assert seen == [(1, 0, 0), (2, 0, 0), (3, 1, 0), (3, 1, 1), (3, 1, 2)]


@pytest.mark.parametrize("kind", ["lease", "fence"])
def test_a_mark_that_ends_in_time_is_left_alone_however_often_it_is_met(
    shared: Site, key: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(marks, "_AGAIN_AFTER_S", 0.0)
    directory, other = shared.open(), shared.open()
    directory.map_instance(key, HERE, PROJECT)
    shared.cache.evict(key)
    place: Any = other._here().backend.lookup if kind == "lease" else other._here().backend.fence_multi
    place(key if kind == "lease" else [key])
    for _ in range(3):
        assert directory.resolve_cell(key).uuid == HERE
    assert directory.stats().undecodable == 0
    assert other._here().backend.lookup(key) is (Absent.LEASED if kind == "lease" else Absent.FENCED)


def test_marks_that_were_met_are_few_and_told_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(marks, "monotonic", lambda: now)
    met = marks.Marks()
    assert met.met_again(["a", "b"]) == met.met_again(["a"]) == []
    now += marks._AGAIN_AFTER_S
    assert met.met_again(["a", "c"]) == ["a"]
    assert met.met_again(["a"]) == [], "it was told, and begins anew"
    met.met_again(map(str, range(25_000)))
    assert len(met._met_at) <= marks._MOST


def test_value_of_another_type_is_a_counted_miss_and_then_replaced(
    request: pytest.FixtureRequest, tmp_path: Path, key: str
) -> None:
    with open_site(request, tmp_path, "fakeredis") as site:
        _survives_a_list(site, key)


@pytest.mark.needs("redis")
def test_value_of_another_type_in_a_real_redis_is_too(request: pytest.FixtureRequest, tmp_path: Path, key: str) -> None:
    with open_site(request, tmp_path, "redis") as site:
        assert _survives_a_list(site, key).stats().hits == 2


def _survives_a_list(site: Site, key: str) -> CellDirectory:
    assert isinstance(site.cache, RedisCache)
    directory = site.open()
    directory.map_instance(key, HERE, PROJECT)
    site.cache.evict(key)
    site.cache.do(b"RPUSH", key, b"a list")
    assert [directory.resolve_cell(key).uuid for _ in range(3)] == [HERE] * 3
    assert directory.stats().undecodable == 1
    return directory


@pytest.mark.slow
def test_garbage_never_becomes_another_cell(site: Site, directory: CellDirectory) -> None:
    """A version byte and 16 random bytes are well formed, but name no cell."""
    keys = new_uuids(20)
    directory.map_instances((key, HERE, PROJECT) for key in keys)
    for key in keys:
        site.cache.write(key, encode(str(uuid4())))
    assert {cell.uuid for cell in directory.resolve_cells(keys).values()} == {HERE}


# -- "not mapped" ------------------------------------------------------------------------------------------------


def test_not_mapped_is_cached_and_counted(site: Site, directory: CellDirectory, key: str) -> None:
    for _ in range(3):
        with pytest.raises(InstanceNotMapped):
            directory.resolve_cell(key)
        assert directory.resolve_cells([key]) == {}
    stats = directory.stats()
    assert (stats.negative_hits, stats.misses, stats.sql_reads, stats.hits) == (5, 1, 1, 0)


def test_create_wins_over_not_mapped_at_once(site: Site, directory: CellDirectory) -> None:
    keys = new_uuids(20)
    assert directory.resolve_cells(keys) == {}
    directory.map_instance(keys[0], HERE, PROJECT)
    assert directory.resolve_cell(keys[0]).uuid == HERE
    directory.map_instances((key, HERE, PROJECT) for key in keys)
    assert directory.resolve_cells(keys).keys() == set(keys)
    assert directory.stats().misses == 20


@pytest.mark.slow
def test_not_mapped_is_forgotten_after_its_own_short_time(site: Site, key: str) -> None:
    # memcached counts in whole seconds: one of them may be over at once.
    directory = site.open(negative_ttl_s=2 * shortest_s(site), ttl_s=600)
    assert directory.resolve_cells([key]) == {}
    _insert_behind_the_back(site, key)
    assert eventually(lambda: directory.resolve_cells([key]))
    assert directory.stats().negative_hits >= 1  # it was believed for a while
    assert directory.stats().sql_reads == 2


def _insert_behind_the_back(site: Site, key: str) -> None:
    site.run(
        f"INSERT INTO instance_mapping (instance_uuid, cell_uuid, project_id) VALUES ('{key}', '{HERE}', 'project-1')"
    )


# -- time to live ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("stored_by", ["a reader", "a writer"])
def test_answer_is_forgotten_after_its_time(site: Site, key: str, stored_by: str) -> None:
    directory = site.open(ttl_s=shortest_s(site))
    directory.map_instance(key, HERE, PROJECT)
    if stored_by == "a reader":
        site.cache.evict(key)
        directory.resolve_cell(key)
    misses = directory.stats().misses
    site.run(f"UPDATE instance_mapping SET cell_uuid = '{THERE}' WHERE instance_uuid = '{key}'")
    assert eventually(lambda: directory.resolve_cell(key).uuid == THERE)
    assert directory.stats().misses == misses + 1


@pytest.mark.slow
def test_answer_outlasts_the_time_of_not_mapped(site: Site, key: str) -> None:
    directory = site.open(negative_ttl_s=shortest_s(site), ttl_s=600)
    directory.map_instance(key, HERE, PROJECT)
    absent = str(uuid4())
    assert directory.resolve_cells([absent]) == {}
    _insert_behind_the_back(site, absent)
    assert eventually(lambda: directory.resolve_cells([absent]))
    misses = directory.stats().misses
    assert directory.resolve_cell(key).uuid == HERE
    assert directory.stats().misses == misses


def test_times_to_live_are_spread() -> None:
    times = [jittered(100) for _ in range(1000)]
    assert all(90 <= time <= 100 for time in times)
    assert min(times) < 92
    assert max(times) > 98
