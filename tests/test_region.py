"""`directory.region`: a dogpile.cache region keyed by instance UUID, over the same entries as `resolve_cell`."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from dogpile.cache import CacheRegion
from dogpile.cache.api import NO_VALUE

from cellcache import CellCacheError, CellDirectory, ConfigError, InstanceNotMapped, InvalidUUID
from cellcache.codec import decode, encode
from tests.directories import CACHES, HERE, SHARED_CACHES, THERE, Site, new_uuids, open_site

PROJECT = "project-1"


@pytest.fixture(params=CACHES)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, request.param) as site:
        yield site


@pytest.fixture(params=SHARED_CACHES)
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, request.param) as site:
        yield site


@pytest.fixture
def directory(site: Site) -> CellDirectory:
    return site.open()


@pytest.fixture
def region(directory: CellDirectory) -> Any:
    """The region; as Any, since dogpile's types know texts alone as keys."""
    return directory.region


@pytest.fixture
def key() -> str:
    return str(uuid4())


def test_it_is_a_dogpile_region(directory: CellDirectory) -> None:
    assert isinstance(directory.region, CacheRegion)
    assert directory.region.name == "cellcache"


def test_absent_is_no_value(region: Any, key: str) -> None:
    assert region.get(key) is NO_VALUE
    assert region.get_multi([key, str(uuid4())]) == [NO_VALUE, NO_VALUE]


def test_what_resolve_cell_stored_is_there(region: Any, directory: CellDirectory, key: str) -> None:
    directory.map_instance(key, HERE, PROJECT)
    assert region.get(key) == HERE
    absent = str(uuid4())
    with pytest.raises(InstanceNotMapped):
        directory.resolve_cell(absent)
    assert region.get(absent) is None  # "not mapped", which is an answer
    assert region.get_multi([absent, key, str(uuid4())]) == [None, HERE, NO_VALUE]


def test_what_it_is_given_resolve_cell_finds(region: Any, directory: CellDirectory, key: str) -> None:
    region.set(key, THERE)
    assert directory.resolve_cell(key).uuid == THERE
    more = new_uuids(3)
    region.set_multi(dict.fromkeys(more, HERE))
    assert {cell.uuid for cell in directory.resolve_cells(more).values()} == {HERE}
    region.set(key, None)
    with pytest.raises(InstanceNotMapped):
        directory.resolve_cell(key)
    assert directory.stats().sql_reads == 0


def test_key_may_have_any_form(region: Any, key: str) -> None:
    region.set(key.upper(), HERE)
    for form in (key, key.upper(), key.replace("-", ""), UUID(key)):
        assert region.get(form) == HERE
        assert region.get_multi([form]) == [HERE]
        assert region.get_or_create(form, lambda: pytest.fail("called")) == HERE
    region.delete(UUID(key))
    assert region.get(key) is NO_VALUE


def test_delete_makes_the_next_lookup_read_the_table(
    site: Site, region: Any, directory: CellDirectory, key: str
) -> None:
    directory.map_instance(key, HERE, PROJECT)
    site.run(f"UPDATE instance_mapping SET cell_uuid = '{THERE}'")
    region.delete(key)
    assert directory.resolve_cell(key).uuid == THERE
    region.delete_multi([key, str(uuid4())])
    assert directory.resolve_cell(key).uuid == THERE
    assert directory.stats().sql_reads == 2


def test_get_or_create_creates_once(region: Any, key: str) -> None:
    created = []

    def create() -> str:
        created.append(key)
        return HERE

    assert [region.get_or_create(key, create) for _ in range(3)] == [HERE] * 3
    assert created == [key]


def test_get_or_create_keeps_not_mapped_too(region: Any, key: str) -> None:
    assert region.get_or_create(key, lambda: None) is None
    assert region.get_or_create(key, lambda: pytest.fail("called")) is None


def test_get_or_create_multi_asks_for_what_is_absent(region: Any) -> None:
    keys = new_uuids(4)
    region.set(keys[0], HERE)
    asked: list[str] = []

    def create(*absent: str) -> list[str]:
        asked.extend(absent)
        return [THERE] * len(absent)

    assert region.get_or_create_multi(keys, create) == [HERE, THERE, THERE, THERE]
    assert sorted(asked) == sorted(keys[1:])
    assert region.get_multi(keys) == [HERE, THERE, THERE, THERE]


def test_who_misses_while_another_thread_creates_waits_for_it(region: Any, key: str) -> None:
    created = []
    creating, go_on = threading.Event(), threading.Event()

    def create() -> str:
        created.append(key)
        creating.set()
        assert go_on.wait(30)
        return HERE

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(region.get_or_create, key, create)]
        assert creating.wait(30)
        futures += [pool.submit(region.get_or_create, key, create) for _ in range(7)]
        go_on.set()
        assert [future.result(30) for future in futures] == [HERE] * 8
    assert len(created) == 1


def test_get_or_create_that_a_writer_overtook_stores_nothing(site: Site, region: Any, key: str) -> None:
    """What dogpile's own backends do wrong: the creator reads, a writer moves, and the creator's answer is stored."""
    writer = site.open()
    writer.map_instance(key, HERE, PROJECT)
    site.cache.evict(key)

    def create() -> str:
        read = site.table()[key]
        writer.move_instance(key, THERE)
        return read

    assert region.get_or_create(key, create) == HERE
    assert region.get(key) == THERE
    assert writer.resolve_cell(key).uuid == THERE


def test_values_are_stored_in_the_compact_form(region: Any, directory: CellDirectory, key: str) -> None:
    region.set(key, HERE.upper())
    assert directory._here().backend.lookup(key) == encode(HERE)
    region.set_multi({key: None})
    assert directory._here().backend.lookup(key) == encode(None)


def test_value_that_is_no_cell_is_refused_and_not_stored(region: Any, key: str) -> None:
    for value in ("cell1", "", f"{HERE}\r\nflush_all"):
        with pytest.raises(ValueError):
            region.set(key, value)
        assert region.get(key) is NO_VALUE


def test_garbage_is_no_value_and_is_removed(site: Site, region: Any, directory: CellDirectory, key: str) -> None:
    for garbage in (b"garbage", b"\x02" + bytes(16), b'{"ct": 1}|"x"'):
        site.cache.write(key, garbage)
        assert region.get(key) is NO_VALUE
        site.cache.write(key, garbage)
        assert region.get_multi([key]) == [NO_VALUE]
        region.set(key, HERE)
        assert region.get(key) == HERE
    assert directory.resolve_cell(key).uuid == HERE


def test_region_of_another_process_has_the_same_entries(shared: Site, key: str) -> None:
    one, other = shared.open(), shared.open()
    one.region.set(key, HERE)
    assert other.region.get(key) == HERE
    assert other.resolve_cell(key).uuid == HERE
    other.region.delete(key)
    assert one.region.get(key) is NO_VALUE


@pytest.mark.parametrize("hard", [True, False])
def test_invalidating_it_as_a_whole_is_refused_clearly(
    region: Any, directory: CellDirectory, key: str, hard: bool
) -> None:
    directory.map_instance(key, HERE, PROJECT)
    with pytest.raises(CellCacheError, match="cannot be invalidated as a whole: delete its keys, or flush the cache"):
        region.invalidate(hard=hard)
    assert region.get(key) == HERE


def test_bad_key_is_refused(region: Any) -> None:
    for call in (region.get, region.delete, lambda it: region.set(it, HERE), lambda it: region.get_or_create(it, str)):
        with pytest.raises(InvalidUUID):
            call("x\r\nflush_all\r\n")


@pytest.mark.parametrize(
    ("backend", "told"),
    [
        (
            "nosuch",
            r"cache\.backend = 'nosuch': must be cellcache\.memory, cellcache\.memcached, cellcache\.redis, or one",
        ),
        ("dogpile.cache.valkey", "needs a package that is not installed"),
    ],
)
def test_backend_that_is_not_there_is_a_config_error(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, told: str
) -> None:
    monkeypatch.setitem(sys.modules, "valkey", None)
    with open_site(request, tmp_path, "memory") as site, pytest.raises(ConfigError, match=told):
        site.open(backend=backend, arguments={"url": "127.0.0.1"})


def test_memory_stores_of_different_databases_are_apart(
    request: pytest.FixtureRequest, tmp_path: Path, key: str
) -> None:
    with open_site(request, tmp_path, "memory") as site:
        one, same = site.open(), site.open()
        one.region.set(key, HERE)
        assert same.region.get(key) == HERE
        with open_site(request, tmp_path, "memory") as other:
            assert other.open().region.get(key) is NO_VALUE


def test_entries_hold_no_url(site: Site, directory: CellDirectory, key: str) -> None:
    cell = directory.create_cell("cell1", "mysql+pymysql://nova:hush@db/nova", "rabbit://nova:hush@mq/")
    directory.map_instance(key, cell.uuid, PROJECT)
    directory.resolve_cell(key)
    entry = site.cache.backend().lookup(key)
    assert isinstance(entry, bytes)
    assert decode(entry) == cell.uuid
    assert len(entry) < 24
