"""No text of a caller reaches the cache or the database before it has proved to be a UUID."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from cellcache import CellDirectory, InvalidUUID
from tests.costs import Meter
from tests.directories import CACHES, HERE, Site, new_uuids, open_site
from tests.hostile import HOSTILE_VALUES

PROJECT = "project-1"


def region(directory: CellDirectory) -> Any:
    """Its region, whose types know texts alone as keys."""
    return directory.region


Call = Callable[[CellDirectory, Any], object]

CALLS: dict[str, Call] = {
    "resolve_cell": lambda directory, value: directory.resolve_cell(value),
    "resolve_cells": lambda directory, value: directory.resolve_cells([value]),
    "resolve_cells, among others": lambda directory, value: directory.resolve_cells([str(uuid4()), value, uuid4()]),
    "resolve_cells, from a generator": lambda directory, value: directory.resolve_cells(it for it in [value]),
    "map_instance": lambda directory, value: directory.map_instance(value, HERE, PROJECT),
    "map_instance, the cell": lambda directory, value: directory.map_instance(uuid4(), value, PROJECT),
    "map_instances": lambda directory, value: directory.map_instances(
        [(str(uuid4()), HERE, PROJECT), (value, HERE, PROJECT)]
    ),
    "move_instance": lambda directory, value: directory.move_instance(value, HERE),
    "move_instance, the cell": lambda directory, value: directory.move_instance(uuid4(), value),
    "prune": lambda directory, value: directory.prune([uuid4(), value]),
    "get_instance": lambda directory, value: directory.get_instance(value),
    "explain": lambda directory, value: directory.explain(value),
    "connect_cell": lambda directory, value: directory.connect_cell(value).__enter__(),
    "region.get": lambda directory, value: directory.region.get(value),
    "region.get_multi": lambda directory, value: region(directory).get_multi([str(uuid4()), value]),
    "region.set": lambda directory, value: directory.region.set(value, HERE),
    "region.delete": lambda directory, value: directory.region.delete(value),
    "region.get_or_create": lambda directory, value: directory.region.get_or_create(value, lambda: HERE),
}


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Meter:
    return Meter(monkeypatch)


@pytest.fixture(params=CACHES)
def site(request: pytest.FixtureRequest, tmp_path: Path, meter: Meter) -> Iterator[Site]:
    with open_site(request, tmp_path, request.param) as site:
        yield site


@pytest.mark.parametrize("name", CALLS)
def test_what_is_no_uuid_costs_neither_sql_nor_a_round_trip(site: Site, meter: Meter, name: str) -> None:
    directory = site.open()
    directory.map_instances((key, HERE, PROJECT) for key in new_uuids(3))
    held = len(directory._here().backend.held)
    with meter.count(site.ports()) as costs:
        for value in HOSTILE_VALUES:
            with pytest.raises(InvalidUUID):
                CALLS[name](directory, value)
    assert (costs.statements, costs.requests) == ([], [])
    assert len(directory._here().backend.held) == held


def test_commands_in_a_uuid_are_not_carried_out(site: Site) -> None:
    directory, key = site.open(), str(uuid4())
    directory.map_instance(key, HERE, PROJECT)
    directory.resolve_cell(key)
    for value in HOSTILE_VALUES:
        for call in CALLS.values():
            with pytest.raises(InvalidUUID):
                call(directory, value)
    before = directory.stats()
    assert directory.resolve_cell(key).uuid == HERE
    assert directory.stats().hits == before.hits + 1
    assert directory.stats().cache_errors == 0


def test_every_form_of_a_uuid_finds_the_same_entry(site: Site) -> None:
    directory, key = site.open(), str(uuid4())
    directory.map_instance(key.upper().replace("-", ""), HERE, PROJECT)
    forms: list[str | UUID] = [key, key.upper(), key.replace("-", ""), UUID(key), key.title()]
    for form in forms:
        assert directory.resolve_cell(form).uuid == HERE
        assert directory.resolve_cells([form]).keys() == {key}
        assert region(directory).get(form) == HERE
        assert directory.get_instance(form).instance_uuid == key
    assert directory.stats().misses == 0


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize("piece", ["a", b"a", "\N{SNOWMAN}"], ids=["text", "bytes", "wide text"])
def test_a_uuid_of_megabytes_is_refused_without_a_copy_of_it(
    tmp_path: Path, request: pytest.FixtureRequest, call: Call, piece: Any
) -> None:
    with open_site(request, tmp_path, "memory") as site:
        directory, value = site.open(), piece * 10_000_000
        tracemalloc.start()
        try:
            with pytest.raises(InvalidUUID) as refused:
                call(directory, value)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert most < 3_000_000
    assert len(str(refused.value)) < 200


def test_many_are_looked_up_in_parts(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cellcache.directory._AT_ONCE", 4)
    directory, keys, parts = site.open(), new_uuids(10), list[int]()
    directory.map_instances((key, HERE, PROJECT) for key in keys)
    lookup_multi = directory._here().backend.lookup_multi

    def counted(part: Sequence[str]) -> Any:
        parts.append(len(part))
        return lookup_multi(part)

    monkeypatch.setattr(directory._here().backend, "lookup_multi", counted)
    for _ in range(2):
        assert directory.resolve_cells([*keys, *keys, str(uuid4())]).keys() == set(keys)
    assert parts == [4, 4, 3] * 2
    parts.clear()
    with pytest.raises(InvalidUUID):
        directory.resolve_cells([*keys, "none"])
    assert parts == [], "all are checked before the first is looked up"
