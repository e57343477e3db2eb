"""Many threads and two processes' worth of directories over one cache and one table: at the end all agree."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from cellcache import CellDirectory, DatabaseUnavailable, InstanceNotMapped, MappingExists
from cellcache.write_through import TRIES
from tests.caches import eventually
from tests.directories import CACHES, DATABASES, HERE, THERE, Site, new_uuids, open_site

PROJECT = "project-1"
THREADS = 16


@pytest.fixture(params=CACHES)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, request.param) as site:
        yield site


@pytest.mark.slow
@pytest.mark.parametrize("cache", CACHES)
def test_sixteen_threads_that_do_everything_leave_cache_and_table_agreed(
    cache: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with open_site(request, tmp_path, cache) as site:
        _do_everything(site, steps=15)


@pytest.mark.needs("memcached")
@pytest.mark.parametrize("database", [database for database in DATABASES if database != "sqlite"])
def test_so_do_they_on_a_database_server(database: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    with open_site(request, tmp_path, "memcached", database) as site:
        _do_everything(site, steps=40)


def _do_everything(site: Site, steps: int) -> None:
    database: dict[str, Any] = {"timeout_s": 25.0, "pool_size": THREADS}  # SQLite's writers take turns
    directories = [site.open(database=database, negative_ttl_s=60), site.open(database=database, negative_ttl_s=60)]
    keys = new_uuids(12)
    together = threading.Barrier(THREADS)

    def work(number: int) -> None:
        chance = random.Random(number)
        directory = directories[number % 2]
        together.wait(30)
        for _ in range(steps):
            _do_something(directory, keys, chance)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))
    table = site.table()
    for directory in directories:
        for _ in range(2):
            assert {key: cell.uuid for key, cell in directory.resolve_cells(keys).items()} == table
            for key in keys:
                try:
                    assert directory.resolve_cell(key).uuid == table[key]
                except InstanceNotMapped:
                    assert key not in table
        stats = directory.stats()
        assert stats.cache_errors == stats.fences_failed == stats.settles_failed == 0
    assert eventually(lambda: directories[0].stats().invalidations_pending == 0)


def _do_something(directory: CellDirectory, keys: list[str], chance: random.Random) -> None:
    key, cell = chance.choice(keys), chance.choice([HERE, THERE])
    some = chance.sample(keys, 4)
    what = chance.randrange(10)
    try:
        if what == 0:
            directory.map_instance(key, cell, PROJECT)
        elif what == 1:
            directory.map_instances((one, cell, PROJECT) for one in some)
        elif what in {2, 3}:
            directory.move_instance(key, cell)
        elif what == 4:
            directory.prune(some[:2])
        elif what == 5:
            directory.region.delete(key)
        elif what == 6:
            directory.list_instances(cell_uuid=cell, limit=5)
        elif what == 7:
            directory.resolve_cells([*some, str(uuid4())])
        else:
            directory.resolve_cell(key)
    except (InstanceNotMapped, MappingExists):
        return
    except DatabaseUnavailable as error:
        if f"{TRIES} tries" not in str(error):  # so many on so few rows may meet in one deadlock after the other
            raise


@pytest.mark.slow
def test_threads_see_their_own_writes(site: Site) -> None:
    directory = site.open(database={"timeout_s": 25.0, "pool_size": THREADS})

    def work(_number: int) -> None:
        key = str(uuid4())
        for cell in (HERE, THERE, HERE):
            with pytest.raises(InstanceNotMapped):
                directory.resolve_cell(key)
            directory.map_instance(key, cell, PROJECT)
            assert directory.resolve_cell(key).uuid == cell
            assert directory.prune([key]) == 1

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))


@pytest.mark.slow
def test_memory_backend_keeps_to_its_bound(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    with open_site(request, tmp_path, "memory") as site:
        directory = site.open(max_entries=100)
        keys = new_uuids(1000)
        directory.map_instances((key, HERE, PROJECT) for key in keys)
        held = directory._here().backend.held
        assert len(held) <= 100

        def look_up(number: int) -> None:
            for key in keys[number::8]:
                assert directory.resolve_cell(key).uuid == HERE
                assert len(held) <= 100

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(look_up, range(8)))
        assert directory.resolve_cells(keys).keys() == set(keys)
        assert 50 <= len(held) <= 100
        directory.resolve_cell(keys[0])
        hits = directory.stats().hits
        directory.resolve_cell(keys[0])
        assert directory.stats().hits == hits + 1


def test_counters_lose_nothing(site: Site) -> None:
    directory, key = site.open(), str(uuid4())
    directory.map_instance(key, HERE, PROJECT)
    directory.resolve_cell(key)
    before = directory.stats().hits

    def look_up(_number: int) -> None:
        for _ in range(20):
            directory.resolve_cell(key)
            directory.resolve_cells([key])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(look_up, range(8)))
    assert directory.stats().hits == before + 8 * 20 * 2
