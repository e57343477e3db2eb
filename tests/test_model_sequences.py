"""Random sequences of operations over every backend: a dictionary is the model, and every answer must be its."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cellcache import CellDirectory, InstanceNotMapped, MappingExists
from tests.directories import CACHES, DATABASES, HERE, THERE, Site, open_site

CELLS = [HERE, THERE]
PROJECT = "project-1"
GARBAGE = [b"garbage", b"\x02" + bytes(16), b"\x01", b"\x01" * 16, b"\xff" * 300]

which = st.integers(0, 3)
some = st.lists(which, max_size=5)
cell = st.sampled_from(CELLS)
form = st.sampled_from([str, lambda key: key.upper(), lambda key: key.replace("-", ""), UUID])

operations = st.lists(
    st.tuples(
        st.integers(0, 1),  # the directory that does it
        st.one_of(
            st.tuples(st.just("resolve"), which, form),
            st.tuples(st.just("resolve"), which, form),
            st.tuples(st.just("resolve_many"), some, form),
            st.tuples(st.just("map"), which, cell),
            st.tuples(st.just("map"), which, cell),
            st.tuples(st.just("map_many"), st.lists(st.tuples(which, cell), max_size=5)),
            st.tuples(st.just("move"), which, cell),
            st.tuples(st.just("prune"), some),
            st.tuples(st.just("region_delete"), which),
            st.tuples(st.just("region_get"), which, form),
            st.tuples(st.just("evict"), some),
            st.tuples(st.just("write_garbage"), which, st.sampled_from(GARBAGE)),
            st.tuples(st.just("lease"), which),
        ),
    ),
    min_size=1,
    max_size=25,
)

random_sequences = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)


class Play:
    """One sequence: instances of its own, the model, and two directories that must both agree with it."""

    def __init__(self, site: Site, directories: list[CellDirectory]) -> None:
        self.site = site
        self.directories = directories
        self.keys = [str(uuid4()) for _ in range(4)]
        self.model: dict[str, str] = {}

    def do(self, number: int, operation: tuple[Any, ...]) -> None:
        name, *arguments = operation
        getattr(self, name)(self.directories[number], *arguments)

    def resolve(self, directory: CellDirectory, number: int, form: Any) -> None:
        key = self.keys[number]
        try:
            found: str | None = directory.resolve_cell(form(key)).uuid
        except InstanceNotMapped:
            found = None
        assert found == self.model.get(key)

    def resolve_many(self, directory: CellDirectory, numbers: list[int], form: Any) -> None:
        keys = [self.keys[number] for number in numbers]
        found = {key: cell.uuid for key, cell in directory.resolve_cells(map(form, keys)).items()}
        assert found == {key: self.model[key] for key in keys if key in self.model}

    def map(self, directory: CellDirectory, number: int, cell: str) -> None:
        key = self.keys[number]
        try:
            directory.map_instance(key, cell, PROJECT)
        except MappingExists as error:
            assert (error.existing.cell_uuid, error.identical) == (self.model[key], self.model[key] == cell)  # noqa: PT017
            return
        assert self.model.setdefault(key, cell) is cell

    def map_many(self, directory: CellDirectory, rows: list[tuple[int, str]]) -> None:
        wanted = {self.keys[number]: cell for number, cell in rows}
        conflict = any(self.model.get(key, cell) != cell for key, cell in wanted.items())
        try:
            created = directory.map_instances((key, cell, PROJECT) for key, cell in wanted.items())
        except MappingExists as error:
            assert conflict
            assert not error.identical  # noqa: PT017
            return
        assert not conflict
        assert created == len(wanted.keys() - self.model.keys())
        self.model.update(wanted)

    def move(self, directory: CellDirectory, number: int, cell: str) -> None:
        key = self.keys[number]
        try:
            assert directory.move_instance(key, cell).cell_uuid == cell
        except InstanceNotMapped:
            assert key not in self.model
            return
        assert key in self.model
        self.model[key] = cell

    def prune(self, directory: CellDirectory, numbers: list[int]) -> None:
        keys = {self.keys[number] for number in numbers}
        assert directory.prune(keys) == len(keys & self.model.keys())
        for key in keys:
            self.model.pop(key, None)

    def region_delete(self, directory: CellDirectory, number: int) -> None:
        directory.region.delete(self.keys[number])

    def region_get(self, directory: CellDirectory, number: int, form: Any) -> None:
        key = self.keys[number]
        found = directory.region.get_or_create(form(key), lambda: self.model.get(key))
        assert found == self.model.get(key)

    def evict(self, _directory: CellDirectory, numbers: list[int]) -> None:
        for number in numbers:
            self.site.cache.evict(self.keys[number])

    def write_garbage(self, _directory: CellDirectory, number: int, garbage: bytes) -> None:
        if garbage != b"\x01":  # which is "not mapped" and no garbage
            self.site.cache.write(self.keys[number], garbage)

    def lease(self, directory: CellDirectory, number: int) -> None:
        """A reader takes the lease, if nothing stands there, and dies."""
        directory._here().backend.lookup(self.keys[number])

    def check(self) -> None:
        table = self.site.table()
        assert {key: table[key] for key in self.keys if key in table} == self.model
        for directory in self.directories:
            for number in range(4):
                self.resolve(directory, number, str)
            self.resolve_many(directory, [0, 1, 2, 3], str)


def play(site: Site, directories: list[CellDirectory], sequence: list[tuple[int, tuple[Any, ...]]]) -> None:
    game = Play(site, directories)
    for number, operation in sequence:
        game.do(number, operation)
    game.check()


@pytest.fixture(params=CACHES)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, request.param) as site:
        yield site


@pytest.fixture
def directories(site: Site) -> list[CellDirectory]:
    return [site.open(lease_ttl_s=4.5), site.open(lease_ttl_s=4.5)]


@pytest.mark.slow
@random_sequences
@given(sequence=operations)
def test_every_answer_is_the_models(
    site: Site, directories: list[CellDirectory], sequence: list[tuple[int, tuple[Any, ...]]]
) -> None:
    play(site, directories, sequence)


@pytest.fixture(params=[database for database in DATABASES if database != "sqlite"])
def on_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, "memory", request.param) as site:
        yield site


@random_sequences
@given(sequence=operations)
def test_every_answer_is_the_models_on_a_database_server(
    on_server: Site, sequence: list[tuple[int, tuple[Any, ...]]]
) -> None:
    with CellDirectory.open(on_server.settings()) as one, CellDirectory.open(on_server.settings()) as other:
        play(on_server, [one, other], sequence)
