"""`prune_purged`: mappings go whose row is gone from their cell's database, and no others."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, insert
from sqlalchemy.pool import NullPool

from cellcache import (
    CellDirectory,
    CellNotFound,
    DatabaseUnavailable,
    InstanceNotMapped,
    InvalidValue,
    PruneReport,
    SchemaError,
)
from cellcache.tables import instance_mapping
from tests.cells import PROJECT, Cell
from tests.directories import CACHES, DATABASES, HERE, THERE, Site, new_uuids, open_site


@pytest.fixture(params=DATABASES)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, "memory", request.param) as site:
        yield site


@pytest.fixture
def directory(site: Site) -> CellDirectory:
    return site.open()


@pytest.fixture
def cell(site: Site, directory: CellDirectory, tmp_path: Path) -> Cell:
    return Cell(site, directory, tmp_path)


def test_mappings_of_purged_instances_go(cell: Cell, directory: CellDirectory) -> None:
    cell.purge(*cell.keys[:4])
    report = directory.prune_purged(cell.uuid.upper())
    assert report == PruneReport(cell_uuid=cell.uuid, checked=10, removed=4, still_there=6)
    assert cell.mapped() == set(cell.keys[4:])
    assert directory.prune_purged(cell.uuid).removed == 0


@pytest.mark.parametrize("kind", CACHES)
def test_their_entries_go_too(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    with open_site(request, tmp_path, kind) as site:
        directory = site.open()
        cell = Cell(site, directory, tmp_path)
        directory.resolve_cells(cell.keys)
        cell.purge(cell.keys[0])
        assert site.open().prune_purged(cell.uuid).removed == 1
        with pytest.raises(InstanceNotMapped):
            directory.resolve_cell(cell.keys[0])
        assert directory.resolve_cells(cell.keys).keys() == set(cell.keys[1:])


def test_instance_that_is_only_marked_deleted_keeps_its_mapping(cell: Cell, directory: CellDirectory) -> None:
    cell.run("UPDATE instances SET deleted = id")
    assert directory.prune_purged(cell.uuid).removed == 0
    assert cell.mapped() == set(cell.keys)


def test_young_mappings_are_left_alone(cell: Cell, directory: CellDirectory) -> None:
    young = str(uuid4())
    directory.map_instance(young, cell.uuid, PROJECT)  # its row in the cell is still to come
    assert directory.prune_purged(cell.uuid) == PruneReport(
        cell_uuid=cell.uuid, checked=10, still_there=10, too_young=1
    )
    assert young in cell.mapped()


def test_mappings_that_were_moved_of_late_are_left_alone(cell: Cell, directory: CellDirectory) -> None:
    moved = str(uuid4())
    directory.map_instance(moved, HERE, PROJECT)
    cell.site.run(instance_mapping.update().values(created_at=datetime.now(UTC) - timedelta(days=9)))
    directory.move_instance(moved, cell.uuid)
    assert directory.prune_purged(cell.uuid).checked == 10
    assert moved in cell.mapped()


def test_mappings_of_unknown_age_are_left_alone(cell: Cell, directory: CellDirectory) -> None:
    cell.purge(*cell.keys[:4])
    cell.site.run(
        instance_mapping.update().where(instance_mapping.c.instance_uuid == cell.keys[0]).values(created_at=None)
    )
    assert directory.prune_purged(cell.uuid, older_than_s=0).removed == 3
    assert cell.keys[0] in cell.mapped()


def test_age_is_what_the_caller_says(cell: Cell, directory: CellDirectory) -> None:
    cell.purge(*cell.keys[:4])
    assert directory.prune_purged(cell.uuid, older_than_s=3 * 3600).checked == 0
    assert directory.prune_purged(cell.uuid, older_than_s=3600).removed == 4


def test_mappings_of_other_cells_are_left_alone(cell: Cell, directory: CellDirectory) -> None:
    elsewhere = str(uuid4())
    directory.map_instance(elsewhere, THERE, PROJECT)
    cell.site.run(instance_mapping.update().values(created_at=datetime.now(UTC) - timedelta(days=9)))
    directory.prune_purged(cell.uuid)
    assert elsewhere in cell.mapped()


def test_dry_run_says_what_it_would_do_and_does_nothing(cell: Cell, directory: CellDirectory) -> None:
    cell.purge(*cell.keys[:4])
    report = directory.prune_purged(cell.uuid, dry_run=True)
    assert report == PruneReport(cell_uuid=cell.uuid, checked=10, removed=4, still_there=6, dry_run=True)
    assert cell.mapped() == set(cell.keys)


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "expected"), [(3, [3, 6, 9, 10]), (10, [10]), (1000, [10]), (1, list(range(1, 11)))])
def test_progress_is_told_after_each_batch_as_all_are_compared_and_as_they_go(
    cell: Cell, directory: CellDirectory, batch: int, expected: list[int]
) -> None:
    cell.purge(*cell.keys)
    cell.run("INSERT INTO instances (uuid, deleted) VALUES ('another', 0)")
    told: list[tuple[int, int]] = []

    def tell(*progress: int) -> None:
        told.append((progress[0], progress[1]))

    report = directory.prune_purged(cell.uuid, batch=batch, allow_many=10, progress=tell)
    assert told == [(n, 0) for n in expected] + [(n, n) for n in expected]
    assert (report.checked, report.removed) == (10, 10)
    told.clear()
    directory.prune_purged(cell.uuid, batch=batch, progress=tell)
    assert told == []


@pytest.mark.slow
def test_interrupted_run_is_run_again(cell: Cell, directory: CellDirectory) -> None:
    cell.purge(*cell.keys[:8])

    def interrupt(_checked: int, removed: int) -> None:
        if removed == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        directory.prune_purged(cell.uuid, batch=2, allow_many=8, progress=interrupt)
    assert cell.mapped() == set(cell.keys[4:])
    assert directory.prune_purged(cell.uuid, batch=2, allow_many=4).removed == 4
    assert cell.mapped() == set(cell.keys[8:])


@pytest.mark.parametrize("limits", [{"batch": 0}, {"batch": -5}, {"older_than_s": -1.0}, {"allow_many": -1}])
def test_limits_that_make_no_sense_are_refused(cell: Cell, directory: CellDirectory, limits: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue, match=r"is not a (whole )?number from"):
        directory.prune_purged(cell.uuid, **limits)


def test_cell_that_is_not_there_is_an_error(cell: Cell, directory: CellDirectory) -> None:
    with pytest.raises(CellNotFound):
        directory.prune_purged(uuid4())


@pytest.mark.slow
@pytest.mark.parametrize(
    "url",
    [
        "mysql+pymysql://nova:hush@127.0.0.1:1/cell",
        "postgresql+psycopg://nova:hush@127.0.0.1:1/cell",
        "sqlite:////nowhere/cell.db",
    ],
)
def test_cell_that_cannot_be_reached_loses_nothing(cell: Cell, directory: CellDirectory, url: str) -> None:
    directory.update_cell(cell.uuid, database_connection=url)
    with pytest.raises(DatabaseUnavailable) as caught:
        directory.prune_purged(cell.uuid)
    assert "hush" not in str(caught.value)
    assert cell.mapped() == set(cell.keys)


def test_cell_that_goes_away_in_the_middle_loses_nothing_more(cell: Cell, directory: CellDirectory) -> None:
    cell.purge(*cell.keys[:8])

    def drop(_checked: int, removed: int) -> None:
        if removed == 4:
            cell.run("DROP TABLE instances")

    with pytest.raises(SchemaError):
        directory.prune_purged(cell.uuid, batch=2, allow_many=8, progress=drop)
    assert cell.mapped() == set(cell.keys[4:])


def test_database_without_the_table_is_an_error_that_names_it(cell: Cell, directory: CellDirectory) -> None:
    cell.run("DROP TABLE instances")
    with pytest.raises(SchemaError, match="is it a cell's database, with its table instances") as caught:
        directory.prune_purged(cell.uuid)
    assert "cellcache db upgrade" not in str(caught.value)
    assert cell.mapped() == set(cell.keys)


def test_instance_that_moves_between_compare_and_delete_is_spared(
    cell: Cell, directory: CellDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell.purge(*cell.keys[:3])
    remove = directory._here().purge._remove

    def move_first(keys: Any, *arguments: Any) -> int:
        directory.move_instance(keys[0], THERE)
        return remove(keys, *arguments)

    monkeypatch.setattr(directory._here().purge, "_remove", move_first)
    report = directory.prune_purged(cell.uuid)
    assert (report.removed, report.changed_meanwhile, report.still_there) == (2, 1, 7)
    assert cell.site.table()[cell.keys[0]] == THERE
    assert directory.resolve_cell(cell.keys[0]).uuid == THERE


def test_instance_that_moves_away_and_back_between_compare_and_delete_is_spared(
    cell: Cell, directory: CellDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell.purge(*cell.keys[:3])
    remove = directory._here().purge._remove

    def move_first(keys: Any, *arguments: Any) -> int:
        directory.move_instance(keys[0], THERE)
        directory.move_instance(keys[0], cell.uuid)
        return remove(keys, *arguments)

    monkeypatch.setattr(directory._here().purge, "_remove", move_first)
    assert directory.prune_purged(cell.uuid).removed == 2
    assert cell.keys[0] in cell.mapped()


def test_mapping_made_anew_between_compare_and_delete_is_spared(
    cell: Cell, directory: CellDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell.purge(*cell.keys[:3])
    remove = directory._here().purge._remove

    def make_anew(keys: Any, *arguments: Any) -> int:
        directory.prune(keys[:1])
        directory.map_instance(keys[0], cell.uuid, PROJECT)
        return remove(keys, *arguments)

    monkeypatch.setattr(directory._here().purge, "_remove", make_anew)
    assert directory.prune_purged(cell.uuid).removed == 2
    assert cell.keys[0] in cell.mapped()


def test_mapping_that_names_another_cell_by_then_is_spared_however_old_it_says_it_is(
    cell: Cell, directory: CellDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hand wrote the row, or a process whose clock was days behind: its age says nothing, its cell does."""
    cell.purge(*cell.keys[:3])
    write, moved = directory._here().write_through.write, cell.keys[0]

    def move_first(change: Any) -> Any:
        statement = instance_mapping.update().where(instance_mapping.c.instance_uuid == moved)
        cell.site.run(statement.values(cell_uuid=THERE, updated_at=datetime.now(UTC) - timedelta(days=2)))
        return write(change)

    monkeypatch.setattr(directory._here().write_through, "write", move_first)
    assert directory.prune_purged(cell.uuid).removed == 2
    assert cell.site.table()[moved] == THERE


@pytest.mark.slow
def test_batch_larger_than_a_statement_is_taken_apart(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    with open_site(request, tmp_path, "memory") as site:
        directory = site.open()
        cell = Cell(site, directory, tmp_path, instances=2300)
        cell.run("DELETE FROM instances WHERE id % 2 = 0")
        assert directory.prune_purged(cell.uuid, batch=100_000).removed == 1150
        assert len(cell.mapped()) == 1150


@pytest.mark.slow
def test_memory_does_not_grow_with_the_table(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    with open_site(request, tmp_path, "memory") as site:
        directory = site.open()
        small, large = _peak(site, directory, tmp_path, 5_000), _peak(site, directory, tmp_path, 50_000)
        assert large < small * 2 + 1_000_000, (small, large)


def _peak(site: Site, directory: CellDirectory, path: Path, instances: int) -> int:
    """Return the most memory, in bytes, that a dry run over so many mappings took."""
    cell = Cell(site, directory, path, instances=0)
    row = {"created_at": datetime(2020, 1, 1, tzinfo=UTC), "cell_uuid": cell.uuid, "project_id": PROJECT}
    site.run(insert(instance_mapping).values({**row, "instance_uuid": str(uuid4())}))
    engine = create_engine(site.database_url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(insert(instance_mapping), [{**row, "instance_uuid": key} for key in new_uuids(instances)])
    cell.run("INSERT INTO instances (uuid, deleted) VALUES ('another', 0)")
    directory.prune_purged(cell.uuid, dry_run=True, allow_many=instances + 1)
    tracemalloc.start()
    try:
        report = directory.prune_purged(cell.uuid, dry_run=True, allow_many=instances + 1)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        assert report.checked == report.removed == instances + 1
