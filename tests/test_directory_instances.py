"""The directory's methods about instances, over every cache and every database."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy.exc import IntegrityError

from cellcache import (
    CellCacheError,
    CellDirectory,
    CellDisabled,
    CellNotFound,
    DatabaseUnavailable,
    InstanceNotMapped,
    InvalidUUID,
    InvalidValue,
    MappingExists,
)
from cellcache.protocol import Fence
from cellcache.transaction import Transaction, TransactionBroken
from cellcache.write_through import WriteThrough
from tests.directories import CACHES, CLOSED, DATABASES, HERE, SHARED_CACHES, THERE, Site, new_uuids, open_site
from tests.hostile import BLANKS

PROJECT = "project-1"
NOWHERE = str(UUID(int=0xDEAD))


@pytest.fixture(params=CACHES)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, request.param) as site:
        yield site


@pytest.fixture(params=DATABASES)
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """A site on each database, for what the cache has no part in."""
    with open_site(request, tmp_path, "memory", request.param) as site:
        yield site


@pytest.fixture
def directory(site: Site) -> CellDirectory:
    return site.open()


@pytest.fixture
def stored_directory(stored: Site) -> CellDirectory:
    return stored.open()


@pytest.fixture
def key() -> str:
    return str(uuid4())


def cell_of(directory: CellDirectory, key: str) -> str | None:
    try:
        return directory.resolve_cell(key).uuid
    except InstanceNotMapped:
        return None


# -- create, move, prune, and what is answered then --------------------------------------------------------------


def test_mapped_instance_resolves(directory: CellDirectory, key: str) -> None:
    directory.map_instance(key, HERE, PROJECT)
    assert directory.resolve_cell(key) == directory.get_cell(HERE)


def test_instance_of_the_table_resolves_from_sql_and_then_from_the_cache(site: Site, key: str) -> None:
    site.open().map_instance(key, HERE, PROJECT)
    site.cache.evict(key)
    directory = site.open()
    assert [cell_of(directory, key) for _ in range(3)] == [HERE] * 3
    assert (directory.stats().misses, directory.stats().hits, directory.stats().sql_reads) == (1, 2, 1)


def test_move_is_seen_at_once(directory: CellDirectory, key: str) -> None:
    directory.map_instance(key, HERE, PROJECT)
    assert cell_of(directory, key) == HERE
    directory.move_instance(key, THERE)
    assert cell_of(directory, key) == THERE


def test_prune_is_seen_at_once(directory: CellDirectory, key: str) -> None:
    directory.map_instance(key, HERE, PROJECT)
    assert directory.prune([key]) == 1
    assert cell_of(directory, key) is None


def test_instance_can_be_mapped_again_after_its_prune(directory: CellDirectory, key: str) -> None:
    directory.map_instance(key, HERE, PROJECT)
    directory.prune([key])
    assert cell_of(directory, key) is None
    directory.map_instance(key, THERE, PROJECT)
    assert cell_of(directory, key) == THERE


@pytest.mark.parametrize("kind", SHARED_CACHES)
def test_other_process_sees_each_write_at_once(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    with open_site(request, tmp_path, kind) as site:
        writer, reader = site.open(), site.open()
        key = str(uuid4())
        assert cell_of(reader, key) is None
        writer.map_instance(key, HERE, PROJECT)
        assert cell_of(reader, key) == HERE
        writer.move_instance(key, THERE)
        assert cell_of(reader, key) == THERE
        writer.prune([key])
        assert cell_of(reader, key) is None
        assert reader.map_instances([(key, HERE, PROJECT)]) == 1
        assert cell_of(writer, key) == HERE


def test_mapping_is_the_row(stored: Site, stored_directory: CellDirectory, key: str) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)
    mapping = stored_directory.map_instance(key.upper(), UUID(HERE), PROJECT)
    assert (mapping.instance_uuid, mapping.cell_uuid, mapping.project_id) == (key, HERE, PROJECT)
    assert mapping.updated_at is None
    assert mapping.created_at is not None
    assert before <= mapping.created_at <= datetime.now(UTC)
    assert stored_directory.get_instance(key) == mapping
    assert stored.table() == {key: HERE}


def test_move_returns_the_row_with_its_time(stored_directory: CellDirectory, key: str) -> None:
    created = stored_directory.map_instance(key, HERE, PROJECT)
    moved = stored_directory.move_instance(key, THERE)
    assert (moved.id, moved.cell_uuid, moved.created_at) == (created.id, THERE, created.created_at)
    assert moved.updated_at is not None
    assert stored_directory.get_instance(key) == moved


def test_move_to_where_it_is_changes_nothing(stored_directory: CellDirectory, key: str) -> None:
    created = stored_directory.map_instance(key, HERE, PROJECT)
    assert stored_directory.move_instance(key, HERE) == created
    assert stored_directory.stats().fences == 1  # the create's


def test_get_instance_asks_the_table_and_not_the_cache(site: Site, directory: CellDirectory, key: str) -> None:
    directory.map_instance(key, HERE, PROJECT)
    site.run(f"UPDATE instance_mapping SET cell_uuid = '{THERE}'")  # behind everyone's back
    assert directory.get_instance(key).cell_uuid == THERE
    assert cell_of(directory, key) == HERE


# -- errors ------------------------------------------------------------------------------------------------------


def test_instance_that_is_not_mapped_is_a_lookup_error(directory: CellDirectory, key: str) -> None:
    for call in (directory.resolve_cell, directory.get_instance, lambda it: directory.move_instance(it, HERE)):
        with pytest.raises(InstanceNotMapped, match=f"^instance {key} is not mapped to any cell$") as caught:
            call(key.upper())
        assert caught.value.instance_uuid == key
        assert isinstance(caught.value, LookupError)
        assert isinstance(caught.value, CellCacheError)


def test_repeat_of_the_same_mapping_is_told_apart(stored_directory: CellDirectory, key: str) -> None:
    created = stored_directory.map_instance(key, HERE, PROJECT)
    with pytest.raises(MappingExists, match="nothing needs to be done") as caught:
        stored_directory.map_instance(key, HERE, PROJECT)
    assert caught.value.identical
    assert caught.value.existing == created
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(("cell", "project"), [(THERE, PROJECT), (HERE, "another"), (THERE, "another")])
def test_conflicting_mapping_is_refused(stored_directory: CellDirectory, key: str, cell: str, project: str) -> None:
    created = stored_directory.map_instance(key, HERE, PROJECT)
    with pytest.raises(MappingExists, match=f"already mapped to cell {HERE} in project {PROJECT}") as caught:
        stored_directory.map_instance(key, cell, project)
    assert not caught.value.identical
    assert caught.value.existing == created
    assert stored_directory.get_instance(key) == created


@pytest.mark.parametrize("project", [PROJECT, "another"])
def test_repeat_is_told_apart_in_a_disabled_cell_too_alone_and_in_bulk(
    stored_directory: CellDirectory, key: str, project: str
) -> None:
    stored_directory.map_instance(key, HERE, PROJECT)
    stored_directory.update_cell(HERE, disabled=True)
    with pytest.raises(MappingExists) as caught:
        stored_directory.map_instance(key, HERE, project)
    assert caught.value.identical is (project == PROJECT)
    if project == PROJECT:
        assert stored_directory.map_instances([(key, HERE, project)]) == 0
    else:
        with pytest.raises(MappingExists):
            stored_directory.map_instances([(key, HERE, project)])


def test_repeats_take_no_id(stored_directory: CellDirectory) -> None:
    """There are 2^31 of them, and whoever repeats a create for safety does so for each instance."""
    first, second, third = new_uuids(3)
    before = stored_directory.map_instance(first, HERE, PROJECT).id
    for number in range(100):
        with pytest.raises(MappingExists):
            stored_directory.map_instance(first, HERE, ("another", PROJECT)[number % 2])
    assert stored_directory.map_instances([(first, HERE, PROJECT)] * 2) == 0
    assert stored_directory.map_instances([(first, HERE, PROJECT), (second, HERE, PROJECT)]) == 1
    with pytest.raises(CellDisabled):
        stored_directory.map_instance(third, CLOSED, PROJECT)
    assert stored_directory.map_instance(third, HERE, PROJECT).id == before + 2


def test_refused_mapping_leaves_the_cache_right(site: Site, directory: CellDirectory, key: str) -> None:
    directory.map_instance(key, HERE, PROJECT)
    with pytest.raises(MappingExists):
        directory.map_instance(key, THERE, PROJECT)
    assert cell_of(directory, key) == HERE
    assert cell_of(site.open(), key) == HERE


def test_constraint_of_somebody_elses_is_an_error_of_ours(stored: Site, key: str) -> None:
    directory, other = stored.open(), str(uuid4())
    stored.run("CREATE UNIQUE INDEX of_another ON instance_mapping (project_id)")
    directory.map_instance(key, HERE, PROJECT)
    with pytest.raises(DatabaseUnavailable, match="nothing was written"):
        directory.map_instance(other, HERE, PROJECT)
    with pytest.raises(DatabaseUnavailable, match="nothing was written"):
        directory.map_instances([(other, HERE, PROJECT)])
    assert stored.table() == {key: HERE}


@pytest.mark.parametrize("write", ["map_instance", "map_instances", "move_instance"])
def test_cell_that_is_not_there_takes_nothing(stored: Site, key: str, write: str) -> None:
    directory, mapped = stored.open(), str(uuid4())
    directory.map_instance(mapped, HERE, PROJECT)
    with pytest.raises(CellNotFound, match=f"there is no cell {NOWHERE}") as caught:
        _write_into(directory, write, NOWHERE, key=key, mapped=mapped)
    assert caught.value.cell_uuid == NOWHERE
    assert isinstance(caught.value, LookupError)
    assert stored.table() == {mapped: HERE}
    assert cell_of(directory, key) is None


@pytest.mark.parametrize("write", ["map_instance", "map_instances", "move_instance"])
def test_disabled_cell_takes_nothing(stored: Site, key: str, write: str) -> None:
    directory, mapped = stored.open(), str(uuid4())
    directory.map_instance(mapped, HERE, PROJECT)
    with pytest.raises(CellDisabled, match=f"cell {CLOSED} is disabled") as caught:
        _write_into(directory, write, CLOSED, key=key, mapped=mapped)
    assert caught.value.cell_uuid == CLOSED
    assert stored.table() == {mapped: HERE}
    assert cell_of(directory, key) is None


def _write_into(directory: CellDirectory, write: str, cell: str, *, key: str, mapped: str) -> None:
    if write == "map_instance":
        directory.map_instance(key, cell, PROJECT)
    elif write == "map_instances":
        directory.map_instances([(str(uuid4()), HERE, PROJECT), (key, cell, PROJECT)])
    else:
        directory.move_instance(mapped, cell)


def test_instances_of_a_disabled_cell_resolve(site: Site, directory: CellDirectory, key: str) -> None:
    directory.map_instance(key, HERE, PROJECT)
    directory.update_cell(HERE, disabled=True)
    for reader in (directory, site.open()):
        assert reader.resolve_cell(key).disabled
        assert reader.resolve_cells([key])[key].disabled
    site.cache.evict(key)
    assert directory.resolve_cell(key).uuid == HERE


def test_instance_can_leave_a_disabled_cell(stored_directory: CellDirectory, key: str) -> None:
    stored_directory.map_instance(key, HERE, PROJECT)
    stored_directory.update_cell(HERE, disabled=True)
    assert stored_directory.move_instance(key, HERE).cell_uuid == HERE  # changes nothing
    assert stored_directory.move_instance(key, THERE).cell_uuid == THERE


@pytest.mark.parametrize("project", ["p", "p" * 255, "Ünïcödé \N{SNOWMAN} \N{PILE OF POO}", "a b'c\"d;--", "\t.\r\n"])
def test_project_may_be_any_text_of_up_to_255_characters(stored: Site, key: str, project: str) -> None:
    directory = stored.open()
    assert directory.map_instance(key, HERE, project).project_id == project
    assert directory.get_instance(key).project_id == project
    assert [mapping.instance_uuid for mapping in directory.list_instances(project_id=project)] == [key]


NO_PROJECTS = [*BLANKS, "p" * 256, "p" * 100_000, None, 5, b"project", ["p"], "a\0b", "\ud800"]


@pytest.mark.parametrize("project", NO_PROJECTS, ids=lambda value: repr(value)[:20])
def test_what_is_no_project_is_refused(stored: Site, key: str, project: Any) -> None:
    directory = stored.open()
    with pytest.raises(InvalidValue, match=r"project_id .* is not a text of 1 to 255 characters") as caught:
        directory.map_instance(key, HERE, project)
    assert isinstance(caught.value, ValueError)
    assert len(str(caught.value)) < 200
    with pytest.raises(InvalidValue):
        directory.map_instances([(str(uuid4()), HERE, PROJECT), (key, HERE, project)])
    assert stored.table() == {}


# -- in bulk -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_many_are_mapped_and_resolved(site: Site, directory: CellDirectory) -> None:
    expected = {key: (HERE, THERE)[number % 2] for number, key in enumerate(new_uuids(2500))}
    rows = ((key, cell, PROJECT) for key, cell in expected.items())  # a generator
    assert directory.map_instances(rows) == 2500
    assert site.table() == expected
    for reader in (directory, site.open()):
        found = reader.resolve_cells(key for key in expected)
        assert {key: cell.uuid for key, cell in found.items()} == expected
    assert directory.stats().sql_reads == 0


def test_unmapped_ones_are_absent_from_the_answer(site: Site, directory: CellDirectory) -> None:
    mapped, unmapped = new_uuids(3), new_uuids(3)
    directory.map_instances((key, HERE, PROJECT) for key in mapped)
    for _ in range(2):
        assert directory.resolve_cells([*unmapped, *mapped]).keys() == set(mapped)
    assert directory.stats().negative_hits == 3


def test_answer_is_keyed_by_canonical_uuid_whatever_was_asked(directory: CellDirectory, key: str) -> None:
    directory.map_instance(key, HERE, PROJECT)
    forms: list[str | UUID] = [key.upper(), UUID(key), key.replace("-", ""), key]
    assert list(directory.resolve_cells(forms)) == [key]
    assert directory.stats().hits == 1


def test_nothing_asked_is_nothing_answered(directory: CellDirectory) -> None:
    assert directory.resolve_cells([]) == {}
    assert directory.map_instances([]) == 0
    assert directory.prune([]) == 0


@pytest.mark.slow
def test_some_in_the_cache_and_some_not_are_all_found(site: Site, directory: CellDirectory) -> None:
    keys = new_uuids(40)
    directory.map_instances((key, HERE, PROJECT) for key in keys)
    for key in keys[::2]:
        site.cache.evict(key)
    assert directory.resolve_cells(keys).keys() == set(keys)
    assert (directory.stats().hits, directory.stats().misses, directory.stats().sql_reads) == (20, 20, 1)
    assert directory.resolve_cells(keys).keys() == set(keys)
    assert directory.stats().sql_reads == 1


def test_repeated_rows_count_once(stored: Site) -> None:
    directory, keys = stored.open(), new_uuids(2)
    rows = [(key, HERE, PROJECT) for key in keys]
    assert directory.map_instances([*rows, *rows, (UUID(keys[0]), HERE.upper(), PROJECT)]) == 2
    assert directory.map_instances(rows) == 0
    assert stored.table() == dict.fromkeys(keys, HERE)


def test_rows_that_contradict_each_other_are_refused(stored: Site, key: str) -> None:
    directory = stored.open()
    with pytest.raises(InvalidValue, match=f"instance {key} stands twice in these rows"):
        directory.map_instances([(key, HERE, PROJECT), (key.upper(), THERE, PROJECT)])
    assert stored.table() == {}


def test_each_thousand_is_all_or_nothing(stored: Site) -> None:
    directory, keys = stored.open(), new_uuids(2500)
    directory.map_instance(keys[1999], THERE, PROJECT)
    with pytest.raises(MappingExists) as caught:
        directory.map_instances((key, HERE, PROJECT) for key in keys)
    assert caught.value.existing.instance_uuid == keys[1999]
    assert not caught.value.identical
    assert stored.table() == {**dict.fromkeys(keys[:1000], HERE), keys[1999]: THERE}


def test_refused_thousand_leaves_no_answer_behind(site: Site, directory: CellDirectory) -> None:
    keys = new_uuids(10)
    directory.map_instance(keys[-1], THERE, PROJECT)
    with pytest.raises(MappingExists):
        directory.map_instances((key, HERE, PROJECT) for key in keys)
    assert directory.resolve_cells(keys).keys() == {keys[-1]}
    assert directory.map_instances((key, HERE, PROJECT) for key in keys[:-1]) == 9
    assert directory.resolve_cells(keys).keys() == set(keys)


def test_bad_row_stops_only_its_own_thousand_and_those_behind(stored: Site) -> None:
    directory, keys = stored.open(), new_uuids(1500)
    rows: list[Any] = [(key, HERE, PROJECT) for key in keys]
    rows[1200] = ("not a uuid", HERE, PROJECT)
    with pytest.raises(InvalidUUID):
        directory.map_instances(rows)
    assert stored.table().keys() == set(keys[:1000])


def test_prune_takes_many_repeated_and_unknown(stored: Site) -> None:
    directory, keys = stored.open(), new_uuids(1500)
    directory.map_instances((key, HERE, PROJECT) for key in keys)
    assert directory.prune(key.upper() for key in [*keys[:1200], *new_uuids(5), *keys[:10]]) == 1200
    assert stored.table().keys() == set(keys[1200:])


def test_prune_with_one_bad_uuid_removes_nothing(stored: Site, key: str) -> None:
    directory = stored.open()
    directory.map_instance(key, HERE, PROJECT)
    with pytest.raises(InvalidUUID):
        directory.prune([key, f"{key}\n{key}"])
    assert stored.table() == {key: HERE}


# -- listing -----------------------------------------------------------------------------------------------------


def test_listing_by_pages_gives_each_row_once_in_order(stored_directory: CellDirectory) -> None:
    keys = new_uuids(25)
    stored_directory.map_instances((key, HERE, PROJECT) for key in keys)
    seen, after = [], None
    while page := stored_directory.list_instances(after=after, limit=10):
        seen += page
        after = page[-1].id
    assert {mapping.instance_uuid for mapping in seen} == set(keys)
    assert [mapping.id for mapping in seen] == sorted({mapping.id for mapping in seen})
    assert len(seen) == 25


def test_pages_follow_the_ids_wherever_the_database_keeps_the_rows(
    stored: Site, stored_directory: CellDirectory
) -> None:
    """PostgreSQL puts a row that is changed behind all others, and unless it is told otherwise reads it there."""
    keys = new_uuids(12)
    stored_directory.map_instances((key, HERE, PROJECT) for key in keys)
    ids = [mapping.id for mapping in stored_directory.list_instances()]
    for changed in ids[:7]:
        stored.run(f"UPDATE instance_mapping SET project_id = 'another' WHERE id = {changed}")
    seen: list[int] = []
    while page := stored_directory.list_instances(after=seen[-1] if seen else None, limit=5):
        seen += [mapping.id for mapping in page]
    assert seen == ids


def test_page_is_not_shifted_by_what_goes_meanwhile(stored_directory: CellDirectory) -> None:
    stored_directory.map_instances((key, HERE, PROJECT) for key in new_uuids(20))
    first = stored_directory.list_instances(limit=10)
    everything = stored_directory.list_instances()
    stored_directory.prune(mapping.instance_uuid for mapping in first[:5])
    assert stored_directory.list_instances(after=first[-1].id, limit=10) == everything[10:]


def test_listing_by_project_and_by_cell(stored_directory: CellDirectory) -> None:
    rows = {(cell, project): new_uuids(3) for cell in (HERE, THERE) for project in ("p1", "p2")}
    for (cell, project), keys in rows.items():
        stored_directory.map_instances((key, cell, project) for key in keys)

    def listed(**chosen: Any) -> set[str]:
        return {mapping.instance_uuid for mapping in stored_directory.list_instances(**chosen)}

    assert listed(project_id="p1") == {*rows[HERE, "p1"], *rows[THERE, "p1"]}
    assert listed(cell_uuid=THERE) == {*rows[THERE, "p1"], *rows[THERE, "p2"]}
    assert listed(cell_uuid=UUID(THERE), project_id="p2") == set(rows[THERE, "p2"])
    assert listed(cell_uuid=NOWHERE) == listed(project_id="p3") == listed(project_id="P1") == set()


@pytest.mark.parametrize("limit", [0, -1, 100_001])
def test_limit_of_a_listing_is_bounded(stored_directory: CellDirectory, limit: int) -> None:
    with pytest.raises(InvalidValue, match=f"limit {limit} is not a whole number from 1 to 100,000"):
        stored_directory.list_instances(limit=limit)


def test_count_by_cell(stored_directory: CellDirectory) -> None:
    stored_directory.map_instances([(key, HERE, PROJECT) for key in new_uuids(3)])
    stored_directory.map_instances([(key, THERE, PROJECT) for key in new_uuids(2)])
    assert stored_directory.count_by_cell() == {HERE: 3, THERE: 2}


# -- two writers -------------------------------------------------------------------------------------------------


def test_of_two_who_map_the_same_instance_one_wins(stored: Site) -> None:
    directories = [stored.open(), stored.open()]
    for key in new_uuids(10):
        together = threading.Barrier(2)

        def create(number: int, key: str = key, together: threading.Barrier = together) -> str:
            together.wait(30)
            try:
                return directories[number].map_instance(key, (HERE, THERE)[number], PROJECT).cell_uuid
            except MappingExists as error:
                return "identical" if error.identical else error.existing.cell_uuid

        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(create, range(2))
        assert first == second == stored.table()[key]


def test_bulk_writers_of_the_same_instances_in_any_order_both_succeed(stored: Site) -> None:
    directories, keys = [stored.open(), stored.open()], new_uuids(300)
    together = threading.Barrier(2)

    def create(number: int) -> int:
        together.wait(30)
        return directories[number].map_instances((key, HERE, PROJECT) for key in (keys, keys[::-1])[number])

    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(create, range(2))) == 300
    assert stored.table() == dict.fromkeys(keys, HERE)


@pytest.mark.slow
@pytest.mark.parametrize("alone", [False, True])
def test_creators_of_overlapping_instances_in_any_order_never_break_each_others_transactions(
    stored: Site, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    """Neither by a deadlock nor, in bulk, by mapping an instance first."""
    broken = count_broken(monkeypatch)
    directory = stored.open(database={"pool_size": 8, "timeout_s": 20.0})
    rounds = [new_uuids(60) for _ in range(10)]

    def create(number: int) -> int:
        shuffled, created = random.Random(number), 0
        for keys in rounds:
            rows = [(key, HERE, PROJECT) for key in shuffled.sample(keys, 40)]
            if not alone:
                created += directory.map_instances(rows)
                continue
            for row in rows:
                with contextlib.suppress(MappingExists):
                    directory.map_instance(*row)
                    created += 1
        return created

    with ThreadPoolExecutor(8) as pool:
        created = sum(pool.map(create, range(8)))
    assert created == len(stored.table())
    assert [error for error in broken if not (alone and isinstance(error.__cause__, IntegrityError))] == []


def count_broken(monkeypatch: pytest.MonkeyPatch) -> list[TransactionBroken]:
    """Return a list that grows with each transaction that breaks, and will be tried again."""
    broken: list[TransactionBroken] = []
    write = WriteThrough._write

    def counted(self: WriteThrough, change: Any) -> Any:
        try:
            return write(self, change)
        except TransactionBroken as error:
            broken.append(error)
            raise

    monkeypatch.setattr(WriteThrough, "_write", counted)
    return broken


def just_before(monkeypatch: pytest.MonkeyPatch, step: str, work: Callable[[], object]) -> None:
    """Let another do something just before the next such step of a transaction."""
    method = getattr(Transaction, step)

    def after_work(*arguments: Any, **more: Any) -> Any:
        monkeypatch.setattr(Transaction, step, method)
        work()
        return method(*arguments, **more)

    monkeypatch.setattr(Transaction, step, after_work)


@pytest.fixture(params=DATABASES[1:])
def concurrent(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """A site whose database lets two write at once, over a cache that they share."""
    with open_site(request, tmp_path, "fakeredis", request.param) as site:
        yield site


def test_what_another_has_mapped_meanwhile_is_passed_over(concurrent: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, other, keys = concurrent.open(), concurrent.open(), sorted(new_uuids(3))
    broken = count_broken(monkeypatch)
    just_before(monkeypatch, "require_cells", lambda: other.map_instance(keys[1], HERE, PROJECT))
    assert directory.map_instances((key, HERE, PROJECT) for key in keys) == 2
    assert concurrent.table() == dict.fromkeys(keys, HERE)
    assert {cell.uuid for cell in other.resolve_cells(keys).values()} == {HERE}
    assert broken == []


def test_what_another_has_mapped_elsewhere_meanwhile_is_a_contradiction(
    concurrent: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, other, keys = concurrent.open(), concurrent.open(), sorted(new_uuids(3))
    just_before(monkeypatch, "require_cells", lambda: other.map_instance(keys[1], THERE, PROJECT))
    with pytest.raises(MappingExists) as caught:
        directory.map_instances((key, HERE, PROJECT) for key in keys)
    assert caught.value.existing.cell_uuid == THERE
    assert concurrent.table() == {keys[1]: THERE}
    assert list(directory.resolve_cells(keys)) == [keys[1]]


@pytest.mark.slow
def test_what_another_has_mapped_meanwhile_cannot_move_before_our_entry_of_it_stands(
    concurrent: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """We put our value over our own fence: a move that is committed in between would be forgotten."""
    directory, other, keys = concurrent.open(), concurrent.open(), sorted(new_uuids(3))
    mover, refused = concurrent.open(database={"timeout_s": 1.0}), []

    def fence_and_let_move(keys: Sequence[str]) -> list[Fence]:
        try:
            mover.move_instance(keys[1], THERE)
        except DatabaseUnavailable as error:
            refused.append(error)
        return fence(keys)

    fence = directory._here().backend.fence_multi
    monkeypatch.setattr(directory._here().backend, "fence_multi", fence_and_let_move)
    just_before(monkeypatch, "require_cells", lambda: other.map_instance(keys[1], HERE, PROJECT))
    assert directory.map_instances((key, HERE, PROJECT) for key in keys) == 2
    assert len(refused) == 1
    assert {key: cell.uuid for key, cell in other.resolve_cells(keys).items()} == concurrent.table()


@pytest.mark.needs("postgresql")
@pytest.mark.parametrize("step", ["mappings", "passed_over_mappings"])
def test_create_that_finds_a_mapping_which_is_pruned_then_is_tried_again(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Alone it looks for what stood in its way, in bulk it locks that; MariaDB holds it from the INSERT on."""
    with open_site(request, tmp_path, "fakeredis", "postgresql") as site:
        directory, other, keys = site.open(), site.open(), sorted(new_uuids(3))
        broken = count_broken(monkeypatch)
        if step == "mappings":
            other.map_instance(keys[1], THERE, PROJECT)
            just_before(monkeypatch, step, lambda: other.prune(keys[1:2]))
            assert directory.map_instance(keys[1], HERE, PROJECT).cell_uuid == HERE
        else:
            just_before(monkeypatch, "require_cells", lambda: other.map_instance(keys[1], THERE, PROJECT))
            just_before(monkeypatch, step, lambda: other.prune(keys[1:2]))
            assert directory.map_instances((key, HERE, PROJECT) for key in keys) == 3
        assert set(site.table().values()) == {HERE}
        assert len(broken) == 1


@pytest.mark.slow
def test_movers_and_pruners_of_the_same_instances_do_not_block_each_other_for_ever(stored: Site) -> None:
    keys = new_uuids(50)
    directories = [stored.open() for _ in range(3)]
    directories[0].map_instances((key, HERE, PROJECT) for key in keys)
    together = threading.Barrier(3)

    def work(number: int) -> int:
        together.wait(30)
        if number == 2:
            return directories[2].prune(keys[::-1])
        moved = 0
        for key in (keys, keys[::-1])[number]:
            try:
                directories[number].move_instance(key, (THERE, HERE)[number])
                moved += 1
            except InstanceNotMapped:
                continue
        return moved

    with ThreadPoolExecutor(3) as pool:
        *_, pruned = pool.map(work, range(3))
    assert pruned == 50
    assert stored.table() == {}
    assert all(directory.resolve_cells(keys) == {} for directory in directories)
