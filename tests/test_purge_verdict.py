"""The verdict before a prune: nothing goes by a database that is not the cell's, and no more than somebody meant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from cellcache import CellDirectory, PruneRefused, PruneReport
from tests.cells import PROJECT, Cell
from tests.directories import DATABASES, Site, new_cell_database, new_uuids, open_site


@pytest.fixture(params=DATABASES)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, "memory", request.param) as site:
        yield site


@pytest.fixture
def directory(site: Site) -> CellDirectory:
    return site.open()


@pytest.fixture
def new_cell(site: Site, directory: CellDirectory, tmp_path: Path) -> Callable[..., Cell]:
    """What makes a cell with so many mapped instances, all of them in its database or in that of a URL."""

    def new(name: str, instances: int = 10, url: str | None = None) -> Cell:
        return Cell(site, directory, tmp_path, instances, name=name, url=url)

    return new


@pytest.fixture
def cell(new_cell: Callable[..., Cell]) -> Cell:
    return new_cell("one")


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("allow_many", [None, 0, 10, 1000])
@pytest.mark.parametrize("theirs", [1, 10])
def test_the_database_of_another_cell_is_refused_and_both_are_named(
    directory: CellDirectory, new_cell: Callable[..., Cell], *, theirs: int, allow_many: int | None, dry_run: bool
) -> None:
    other = new_cell("other", theirs)
    cell = new_cell("one", url=other.url)  # the mistake
    with pytest.raises(PruneRefused, match="most likely another's") as caught:
        directory.prune_purged(cell.uuid, allow_many=allow_many, dry_run=dry_run)
    text = str(caught.value)
    assert f"of cell one ({cell.uuid})" in text
    assert f"of the {theirs} instances looked at in it, 0 are mapped to this cell and {theirs} to cell other" in text
    assert other.uuid in text
    assert cell.mapped() == {*cell.keys, *other.keys}
    assert directory.prune_purged(other.uuid).still_there == theirs  # whose database it is


def test_the_cell_that_has_most_is_named_among_several(directory: CellDirectory, new_cell: Callable[..., Cell]) -> None:
    few = new_cell("few", 3)
    many = new_cell("many", 5)
    many.boot(few.keys)
    cell = new_cell("one", url=many.url)
    with pytest.raises(PruneRefused, match="0 are mapped to this cell and 5 to cell many"):
        directory.prune_purged(cell.uuid)


def test_a_cell_that_shares_a_database_with_a_larger_one_is_refused(
    directory: CellDirectory, new_cell: Callable[..., Cell]
) -> None:
    large = new_cell("large")
    small = new_cell("small", 4, url=large.url)
    large.boot(small.keys[1:])
    with pytest.raises(PruneRefused, match="13 instances looked at in it, 3 are mapped to this cell and 10 to cell la"):
        directory.prune_purged(small.uuid)
    assert directory.prune_purged(large.uuid).still_there == 10


def test_rows_that_moved_instances_left_behind_do_not_stand_in_the_way(
    cell: Cell, directory: CellDirectory, new_cell: Callable[..., Cell]
) -> None:
    other = new_cell("other", 0)
    for key in cell.keys[:4]:
        directory.move_instance(key, other.uuid)
    cell.purge(cell.keys[4])
    report = directory.prune_purged(cell.uuid)
    assert (report.checked, report.removed, report.still_there) == (6, 1, 5)
    assert cell.mapped() == {*cell.keys} - {cell.keys[4]}


def test_more_rows_of_moved_instances_than_of_the_cells_own_are_too_many(
    cell: Cell, directory: CellDirectory, new_cell: Callable[..., Cell]
) -> None:
    other = new_cell("other", 0)
    for key in cell.keys[:6]:
        directory.move_instance(key, other.uuid)
    cell.purge(cell.keys[9])
    with pytest.raises(PruneRefused, match="3 are mapped to this cell and 6 to cell other"):
        directory.prune_purged(cell.uuid)
    cell.purge(*cell.keys[:6])  # as the refusal advises
    assert directory.prune_purged(cell.uuid).removed == 1


def test_a_cell_that_has_no_row_any_more_is_named_by_its_uuid(
    directory: CellDirectory, site: Site, new_cell: Callable[..., Cell]
) -> None:
    other = new_cell("other")
    cell = new_cell("one", url=other.url)
    site.run(f"DELETE FROM cell_mapping WHERE uuid = '{other.uuid}'")
    with pytest.raises(PruneRefused, match=f"10 to cell {other.uuid};"):
        directory.prune_purged(cell.uuid)


def test_a_database_of_strangers_is_believed_only_where_the_caller_says_how_many_may_go(
    directory: CellDirectory, new_cell: Callable[..., Cell], tmp_path: Path
) -> None:
    strangers = new_cell_database(tmp_path, dict.fromkeys(new_uuids(7), 0))
    cell = new_cell("one", url=strangers)
    with pytest.raises(PruneRefused, match=r"10 of the 10 .* none of the 7 instances looked at .*--allow-many 10\)"):
        directory.prune_purged(cell.uuid)
    assert cell.mapped() == set(cell.keys)
    assert directory.prune_purged(cell.uuid, allow_many=10).removed == 10


def test_an_empty_database_is_believed_only_where_the_caller_says_how_many_may_go(
    cell: Cell, directory: CellDirectory
) -> None:
    cell.purge(*cell.keys)
    with pytest.raises(PruneRefused, match=r"10 of the 10 .* holds no instance; .*--allow-many 10\)"):
        directory.prune_purged(cell.uuid)
    assert cell.mapped() == set(cell.keys)
    assert directory.prune_purged(cell.uuid, allow_many=10).removed == 10


def test_an_empty_database_is_nothing_odd_where_nothing_would_go(
    directory: CellDirectory, new_cell: Callable[..., Cell]
) -> None:
    cell = new_cell("one", 0)
    assert directory.prune_purged(cell.uuid) == PruneReport(cell_uuid=cell.uuid)
    directory.map_instance(uuid4(), cell.uuid, PROJECT)
    assert directory.prune_purged(cell.uuid) == PruneReport(cell_uuid=cell.uuid, too_young=1)


@pytest.mark.parametrize("dry_run", [False, True])
def test_half_may_go_and_more_only_where_the_caller_says_how_many(
    cell: Cell, directory: CellDirectory, *, dry_run: bool
) -> None:
    cell.purge(*cell.keys[:5])
    assert directory.prune_purged(cell.uuid, dry_run=True).removed == 5
    cell.purge(cell.keys[5])
    with pytest.raises(PruneRefused, match=r"6 of the 10 .* would go, more than half; .*--allow-many 6\)"):
        directory.prune_purged(cell.uuid, dry_run=dry_run)
    with pytest.raises(PruneRefused, match=r"6 of the 10 .* would go, and 5 may"):
        directory.prune_purged(cell.uuid, dry_run=dry_run, allow_many=5)
    assert cell.mapped() == set(cell.keys)
    assert directory.prune_purged(cell.uuid, dry_run=dry_run, allow_many=6).removed == 6
    assert len(cell.mapped()) == (10 if dry_run else 4)


def test_the_number_that_may_go_holds_where_half_would_be_more(cell: Cell, directory: CellDirectory) -> None:
    cell.purge(*cell.keys[:3])
    for allow_many in (0, 2):
        with pytest.raises(PruneRefused, match=f"would go, and {allow_many} may"):
            directory.prune_purged(cell.uuid, allow_many=allow_many)
    assert cell.mapped() == set(cell.keys)


def test_young_mappings_are_none_of_those_of_which_half_may_go(cell: Cell, directory: CellDirectory) -> None:
    directory.map_instances((key, cell.uuid, PROJECT) for key in new_uuids(100))
    cell.purge(*cell.keys[:6])
    with pytest.raises(PruneRefused, match="6 of the 10 mappings that are old enough would go, more than half"):
        directory.prune_purged(cell.uuid)


@pytest.mark.parametrize("batch", [2, 4])
def test_rows_that_vanish_after_the_verdict_take_no_more_mappings_along_than_may_go(
    cell: Cell, directory: CellDirectory, batch: int
) -> None:
    cell.purge(cell.keys[0])

    def purge_all(_checked: int, removed: int) -> None:
        if removed == 1:
            cell.purge(*cell.keys)

    with pytest.raises(PruneRefused, match="more than the 5 mappings that may go lack their instances now"):
        directory.prune_purged(cell.uuid, batch=batch, progress=purge_all)
    assert len(cell.mapped()) == 5


def test_a_url_that_another_process_put_right_is_the_one_that_counts(
    site: Site, directory: CellDirectory, new_cell: Callable[..., Cell], tmp_path: Path
) -> None:
    cell = new_cell("one", url=new_cell("other").url)
    with pytest.raises(PruneRefused):
        directory.prune_purged(cell.uuid)
    right = new_cell_database(tmp_path, dict.fromkeys(cell.keys, 0))
    site.open().update_cell(cell.uuid, database_connection=right)
    assert directory.prune_purged(cell.uuid).still_there == 10
