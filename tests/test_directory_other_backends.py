"""Any other dogpile backend a deployment names: it works, with the weaker promise that its interface allows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from dogpile.cache.api import CacheBackend

from cellcache import CellDirectory, InstanceNotMapped, config_values, known_backends
from cellcache.known_backends import OTHERS
from tests.caches import eventually
from tests.directories import HERE, THERE, Site, new_uuids, open_site
from tests.servers import Redis

PROJECT = "project-1"

KINDS = [
    "dogpile.cache.null",
    "dogpile.cache.memory",
    "dogpile.cache.memory_pickle",
    "dogpile.cache.dbm",
    pytest.param("dogpile.cache.pymemcache", marks=pytest.mark.needs("memcached")),
    pytest.param("dogpile.cache.redis", marks=pytest.mark.needs("redis")),
]


class Broken(CacheBackend):
    """A backend whose every call fails, as a driver does whose server is away."""

    def __init__(self, arguments: Any) -> None:
        del arguments

    def _fail(self, *_: Any) -> Any:
        raise ConnectionError("nobody is there")

    get: Any = _fail
    get_multi: Any = _fail
    set: Any = _fail
    set_multi: Any = _fail
    delete: Any = _fail
    delete_multi: Any = _fail


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def cache(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The settings that name the backend."""
    arguments: dict[str, Any] = {}
    if kind == "dogpile.cache.dbm":
        arguments = {"filename": str(tmp_path / "cache.dbm")}
    elif kind == "dogpile.cache.redis":
        server = request.getfixturevalue("redis_server")
        assert isinstance(server, Redis)
        arguments = {"host": server.host, "port": server.port}
    elif kind == "dogpile.cache.pymemcache":
        arguments = {"url": request.getfixturevalue("memcached").address}
    return {"backend": kind, "arguments": arguments}


@pytest.fixture
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, "memory") as site:
        yield site


Opener = Callable[..., CellDirectory]


@pytest.fixture
def open_directory(site: Site, cache: dict[str, Any]) -> Iterator[Opener]:
    """Open a directory; close its driver's connections at the end, which dogpile's interface cannot."""
    opened: list[CellDirectory] = []

    def open_one(**settings: Any) -> CellDirectory:
        opened.append(site.open(**cache, **settings))
        return opened[-1]

    yield open_one
    for directory in opened:
        directory.close()
        for client in ("writer_client", "reader_client", "client"):
            if hasattr(directory.region.actual_backend, client):
                getattr(directory.region.actual_backend, client).close()


@pytest.fixture
def directory(open_directory: Opener) -> CellDirectory:
    return open_directory()


def cell_of(directory: CellDirectory, key: str) -> str | None:
    try:
        return directory.resolve_cell(key).uuid
    except InstanceNotMapped:
        return None


def keeps(kind: str) -> bool:
    return kind != "dogpile.cache.null"


def test_lookups_and_writes_work(directory: CellDirectory) -> None:
    key = str(uuid4())
    assert cell_of(directory, key) is None
    directory.map_instance(key, HERE, PROJECT)
    assert [cell_of(directory, key) for _ in range(3)] == [HERE] * 3
    directory.move_instance(key, THERE)
    assert [cell_of(directory, key) for _ in range(3)] == [THERE] * 3
    directory.prune([key])
    assert [cell_of(directory, key) for _ in range(3)] == [None] * 3


@pytest.mark.slow
def test_bulk_lookups_and_writes_work(kind: str, directory: CellDirectory) -> None:
    n = 20 if kind == "dogpile.cache.dbm" else 1200  # it waits for the disk each time
    keys, absent = new_uuids(n), new_uuids(5)
    assert directory.map_instances((key, HERE, PROJECT) for key in keys) == n
    for _ in range(2):
        found = directory.resolve_cells([*keys, *absent])
        assert {key: cell.uuid for key, cell in found.items()} == dict.fromkeys(keys, HERE)
    assert directory.prune(keys) == n
    assert directory.resolve_cells(keys) == {}


def test_answers_are_cached(kind: str, directory: CellDirectory) -> None:
    key = str(uuid4())
    directory.map_instance(key, HERE, PROJECT)
    for _ in range(3):
        directory.resolve_cell(key)
        directory.resolve_cells([key])
    stats = directory.stats()
    assert (stats.hits, stats.misses) == ((5, 1) if keeps(kind) else (0, 6))
    assert stats.cache_errors == 0


@pytest.mark.slow
def test_not_mapped_is_cached_for_its_own_short_time(kind: str, site: Site, open_directory: Opener) -> None:
    directory, key = open_directory(negative_ttl_s=0.5), str(uuid4())
    assert [cell_of(directory, key) for _ in range(2)] == [None, None]
    site.run(
        f"INSERT INTO instance_mapping (instance_uuid, cell_uuid, project_id) VALUES ('{key}', '{HERE}', 'project-1')"
    )
    assert eventually(lambda: cell_of(directory, key)) == HERE
    assert bool(directory.stats().negative_hits) is keeps(kind)
    assert directory.resolve_cells([key]).keys() == {key}


@pytest.mark.slow
def test_answer_is_forgotten_after_its_time(site: Site, open_directory: Opener) -> None:
    directory, key = open_directory(ttl_s=0.5), str(uuid4())
    directory.map_instance(key, HERE, PROJECT)
    directory.resolve_cell(key)
    site.run(f"UPDATE instance_mapping SET cell_uuid = '{THERE}'")
    assert eventually(lambda: cell_of(directory, key) == THERE)


def test_weaker_promise_is_logged(kind: str, open_directory: Opener, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="cellcache")
    directory = open_directory()
    assert directory.promise.startswith("not coherent: this backend has no compare-and-swap")
    assert f"cache backend {kind}: {directory.promise}" in caplog.messages


def test_stronger_promise_is_logged_too(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="cellcache")
    site.open()
    assert any("cellcache.memory: coherent inside this process" in message for message in caplog.messages)


def test_region_works(kind: str, directory: CellDirectory) -> None:
    key = str(uuid4())
    directory.region.set(key.upper(), HERE)
    assert (directory.region.get(key) == HERE) is keeps(kind)
    assert directory.region.get_or_create(key, lambda: HERE) == HERE
    directory.region.delete(key)
    assert cell_of(directory, key) is None


@pytest.mark.parametrize("kind", ["dogpile.cache.memory_pickle", "dogpile.cache.memory"])
def test_nothing_that_is_stored_is_a_pickle(kind: str, site: Site) -> None:
    directory, keys = site.open(backend=kind), new_uuids(3)
    directory.map_instances((key, HERE, PROJECT) for key in keys)
    directory.resolve_cells(keys)
    stored = list(directory.region.actual_backend._cache.values())
    assert len(stored) == 3
    for entry in stored:
        assert isinstance(entry, bytes)
        assert not entry.startswith(b"\x80")  # as every pickle since protocol 2 does
        assert b"cellcache" not in entry


def test_nothing_in_a_dbm_file_is_a_pickle_or_a_url(site: Site, tmp_path: Path) -> None:
    import dbm

    path = str(tmp_path / "cache.dbm")
    directory, key = site.open(backend="dogpile.cache.dbm", arguments={"filename": path}), str(uuid4())
    directory.map_instance(key, HERE, PROJECT)
    directory.resolve_cell(key)
    with dbm.open(path, "r") as file:
        entry = file[key.encode()]
    assert not entry.startswith(b"\x80")
    assert b"sqlite" not in entry
    assert b"rabbit" not in entry


def test_answer_that_a_reader_stored_while_a_write_was_under_way_goes_with_its_end(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is deleted before the commit may be read and stored again before it; so it is deleted behind it, too."""
    directory = site.open(backend="dogpile.cache.memory", arguments={})
    key, record = str(uuid4()), directory._here().invalidations.record
    directory.map_instance(key, HERE, PROJECT)

    def read_first(*arguments: Any) -> int | None:
        directory.region.set(key, HERE)
        return record(*arguments)

    monkeypatch.setattr(directory._here().invalidations, "record", read_first)
    directory.move_instance(key, THERE)
    assert cell_of(directory, key) == THERE


# -- a backend that fails ----------------------------------------------------------------------------------------


@pytest.fixture
def broken(site: Site, monkeypatch: pytest.MonkeyPatch) -> CellDirectory:
    known = {**OTHERS, "tests.broken": (__name__, "Broken")}
    for module in (known_backends, config_values):
        monkeypatch.setattr(module, "OTHERS", known)
    return site.open(backend="tests.broken")


def test_failing_backend_costs_sql_only(broken: CellDirectory) -> None:
    keys = new_uuids(3)
    broken.map_instances((key, HERE, PROJECT) for key in keys)
    assert [cell_of(broken, key) for key in keys] == [HERE] * 3
    assert broken.resolve_cells([*keys, str(uuid4())]).keys() == set(keys)
    broken.move_instance(keys[0], THERE)
    assert cell_of(broken, keys[0]) == THERE
    assert broken.prune(keys) == 3
    assert cell_of(broken, keys[0]) is None
    stats = broken.stats()
    assert stats.hits == 0
    assert stats.unreachable == stats.misses > 0
    assert stats.cache_errors > 0


def test_failing_backend_is_logged_once_and_not_each_time(
    broken: CellDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    errors = broken._here().backend.errors
    for key in new_uuids(10):
        cell_of(broken, key)
    warnings = [record for record in caplog.records if "cache backend failed" in record.message]
    assert broken._here().backend.errors >= errors + 10
    assert len(warnings) <= 1


def test_write_that_a_failing_backend_was_not_told_of_is_recorded(site: Site, broken: CellDirectory) -> None:
    key = str(uuid4())
    broken.map_instance(key, HERE, PROJECT)
    rows = site.run("SELECT instance_uuids FROM cache_invalidation")
    assert [row[0] for row in rows] == [key]


def test_doctor_is_told_that_it_fails(broken: CellDirectory) -> None:
    (node,) = broken.check_cache()
    assert node.trouble == "does not answer"
