"""`verify`: what differs for good is found, what is under way is not, and nothing is changed unasked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cellcache import CellDirectory, InvalidValue, VerifyReport
from cellcache.cli import main
from cellcache.cli.coherence import with_nines
from tests.directories import CACHES, HERE, THERE, Site, new_uuids, open_site


@pytest.fixture(params=CACHES)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, request.param) as site:
        yield site


@pytest.fixture
def directory(site: Site) -> CellDirectory:
    return site.open()


def last(reports: Iterator[VerifyReport]) -> VerifyReport:
    *_, report = reports
    return report


@pytest.mark.slow
def test_a_cache_that_follows_the_table_is_consistent(directory: CellDirectory) -> None:
    uuids = new_uuids(1500)
    directory.map_instances((uuid, HERE, "project") for uuid in uuids)
    report = last(directory.verify())
    assert (report.checked, report.cached, report.wrong, report.consistency) == (1500, 1500, 0, 1.0)


@pytest.mark.slow
def test_wrong_cell_and_wrong_not_mapped_are_found_and_left_alone(directory: CellDirectory) -> None:
    wrong_cell, not_mapped, *_ = uuids = new_uuids(20)
    directory.map_instances((uuid, HERE, "project") for uuid in uuids)
    directory.region.set(wrong_cell, THERE)
    directory.region.set(not_mapped, None)
    for _ in range(2):
        report = last(directory.verify())
        assert (report.checked, report.wrong, report.repaired) == (20, 2, 0)
        found = {one.instance_uuid: (one.cached_cell_uuid, one.mapped_cell_uuid) for one in report.differences}
        assert found == {wrong_cell: (THERE, HERE), not_mapped: (None, HERE)}


@pytest.mark.slow
def test_what_was_wrong_is_right_after_a_repair(directory: CellDirectory) -> None:
    (uuid,) = new_uuids(1)
    directory.map_instance(uuid, HERE, "project")
    directory.region.set(uuid, THERE)
    assert directory.resolve_cell(uuid).uuid == THERE
    assert last(directory.verify(repair=True)).repaired == 1
    assert directory.resolve_cell(uuid).uuid == HERE
    assert last(directory.verify()).wrong == 0


@pytest.mark.slow
def test_absent_entries_stay_absent(site: Site, directory: CellDirectory) -> None:
    uuids = new_uuids(5)
    directory.map_instances((uuid, HERE, "project") for uuid in uuids)
    directory.region.delete_multi(uuids)
    assert last(directory.verify()).cached == 0
    before = directory.stats()
    directory.resolve_cells(uuids)
    assert directory.stats().fills - before.fills == 5  # no lease of verify's stood in the way


def test_a_change_under_way_is_not_a_difference(directory: CellDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    (uuid,) = new_uuids(1)
    directory.map_instance(uuid, HERE, "project")
    peek = directory._backend.peek_multi
    moved = threading.Event()

    def peek_then_let_it_move(keys: Any) -> list[bytes | None]:
        entries = peek(keys)
        if not moved.is_set():
            moved.set()
            directory.move_instance(uuid, THERE)
        return entries

    reports = directory.verify()
    next(reports)
    monkeypatch.setattr(directory._backend, "peek_multi", peek_then_let_it_move)
    directory.region.set(uuid, THERE)  # what it sees first differs from the row that it has read
    assert last(reports).wrong == 0
    assert moved.is_set()


@pytest.mark.slow
def test_a_sample_looks_at_about_so_many(directory: CellDirectory) -> None:
    directory.map_instances((uuid, HERE, "project") for uuid in new_uuids(1000))
    assert last(directory.verify(sample=250)).checked == 250
    assert last(directory.verify(sample=1)).checked == 1


def test_an_empty_table_is_consistent(directory: CellDirectory) -> None:
    assert last(directory.verify(sample=10)) == last(directory.verify()) == VerifyReport()


def test_nonsense_is_refused(directory: CellDirectory) -> None:
    with pytest.raises(InvalidValue):
        next(directory.verify(sample=0))
    with pytest.raises(InvalidValue):
        next(directory.verify(rate_per_s=0.0))


@pytest.fixture
def here(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[CellDirectory, Path]]:
    """A directory in this process, and the configuration by which the command line finds its very cache."""
    with open_site(request, tmp_path, "memory") as site:
        config = tmp_path / "cellcache.toml"
        config.write_text(f'[database]\nurl = "{site.database_url}"\n', encoding="utf-8")
        with CellDirectory.open(config) as directory:
            yield directory, config


@pytest.mark.slow
def test_command_says_what_is_wrong_and_repairs_on_request(
    here: tuple[CellDirectory, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    directory, config = here
    wrong, *_ = uuids = new_uuids(200)
    directory.map_instances((uuid, HERE, "project") for uuid in uuids)
    verify = ["--config", str(config), "verify"]
    assert main(verify) == 0
    assert "100 %" in capsys.readouterr().out
    directory.region.set(wrong, THERE)
    assert main([*verify, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["checked"], report["wrong"], report["consistency"]) == (200, 1, 0.995)
    assert main([*verify, "--repair"]) == 1
    out = capsys.readouterr().out
    assert wrong in out
    assert "99.5 %" in out
    assert main(verify) == 0


@pytest.mark.parametrize(
    ("checked", "wrong", "text"),
    [
        (1000, 0, "100 %"),
        (1000, 1, "99.90 % (3 nines)"),
        (10_000, 1, "99.990 % (4 nines)"),
        (10, 5, "50.0 % (0 nines)"),
    ],
)
def test_consistency_is_shown_with_its_nines(checked: int, wrong: int, text: str) -> None:
    assert with_nines(VerifyReport(checked=checked, wrong=wrong)) == text
