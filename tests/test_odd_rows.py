"""A row that somebody wrote by hand: what it means is an error of its own, named by the doctor; all others go on."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, insert, text
from sqlalchemy.pool import NullPool

from cellcache import (
    CellDirectory,
    CellMapping,
    CellNotFound,
    ConfigError,
    InstanceNotMapped,
    MappedCellNotFound,
    Settings,
    schema,
)
from cellcache.cli import main
from cellcache.counter import Counter
from cellcache.protocol import Absent, Lease
from cellcache.tables import cell_mapping, instance_mapping
from tests.directories import CACHES, HERE, THERE, Site, new_cell_database, new_uuids, open_site

NO_CELLS = ["cell1", "", HERE.upper(), HERE.replace("-", ""), "0d1d1428-6a12-4e83-a38c-134fe36555d1", "\N{SNOWMAN}'--"]
NO_UUIDS = ["none", "", "0D1D1428-6A12-4E83-A38C-134FE36555D1", "0d1d14286a124e83a38c134fe36555d1", "z" * 36]


def write(url: str, *statements: Any) -> None:
    """Write as a colleague does, past every directory."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(statement)


def mapping(instance: str, cell: str) -> Any:
    created_at = datetime.now(UTC) - timedelta(days=9)
    return insert(instance_mapping).values(
        instance_uuid=instance, cell_uuid=cell, project_id="project", created_at=created_at
    )


# -- an instance that is mapped to what is no cell, over every cache ---------------------------------------------------


@pytest.fixture(params=CACHES)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, request.param) as site:
        yield site


@pytest.mark.parametrize("cell", NO_CELLS)
def test_its_lookup_says_what_is_wrong_and_leaves_nothing_behind(site: Site, cell: str) -> None:
    (bad,) = new_uuids(1)
    write(site.database_url, mapping(bad, cell))
    directory = site.open()
    for again in range(3):
        with pytest.raises(MappedCellNotFound) as caught:
            directory.resolve_cell(bad)
        assert (caught.value.instance_uuid, caught.value.cell_uuid) == (bad, cell)
        assert isinstance(caught.value, CellNotFound)
        assert f"is mapped to {cell!r}" in str(caught.value)
        assert directory.stats().broken_mappings == again + 1
        assert site.cache.backend().peek_multi([bad]) == [None]
    directory.move_instance(bad, THERE)
    assert directory.resolve_cell(bad).uuid == THERE


def test_in_bulk_it_is_left_out_and_counted(site: Site) -> None:
    good, bad = new_uuids(30), new_uuids(len(NO_CELLS))
    site.open().map_instances((key, HERE, "project") for key in good)
    write(site.database_url, *(mapping(key, cell) for key, cell in zip(bad, NO_CELLS, strict=True)))
    for key in good[:10]:
        site.cache.evict(key)
    (absent,) = new_uuids(1)
    directory = site.open()
    for again in range(1, 3):
        assert set(directory.resolve_cells([*bad, *good, absent])) == set(good)
        assert directory.stats().broken_mappings == again * len(bad)
        assert site.cache.backend().peek_multi(bad) == [None] * len(bad)
        assert directory.resolve_cell(good[0]).uuid == HERE


def counted_reads_of_cells(directory: CellDirectory, monkeypatch: pytest.MonkeyPatch) -> Counter:
    reads, cells = Counter(), directory._here().store.cells

    def read() -> list[CellMapping]:
        reads.add()
        return cells()

    monkeypatch.setattr(directory._here().store, "cells", read)
    return reads


def test_cells_are_read_once_for_all_that_name_none(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, bad = site.open(), new_uuids(50)
    write(site.database_url, *(mapping(key, cell) for key, cell in zip(bad, new_uuids(50), strict=True)))
    reads = counted_reads_of_cells(directory, monkeypatch)
    assert directory.resolve_cells(bad) == {}
    assert reads.value == 1


def test_entries_that_name_no_cell_cost_one_read_of_the_cells(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, keys = site.open(), new_uuids(50)
    directory.map_instances((key, HERE, "project") for key in keys)
    directory.region.set_multi(dict(zip(keys, new_uuids(50), strict=True)))
    reads = counted_reads_of_cells(directory, monkeypatch)
    assert set(directory.resolve_cells(keys)) == set(keys)
    assert reads.value == 1


def test_others_are_told_of_a_lease_that_was_taken_for_it_by_nobody(site: Site) -> None:
    (bad,) = new_uuids(1)
    write(site.database_url, mapping(bad, "cell1"))
    with pytest.raises(MappedCellNotFound):
        site.open().resolve_cell(bad)
    entry = site.cache.backend().lookup(bad)
    assert isinstance(entry, Lease)
    assert site.cache.backend().lookup(bad) is Absent.LEASED
    with pytest.raises(MappedCellNotFound):  # also for one that came upon the lease of another
        site.open().resolve_cell(bad)


def test_what_a_bulk_lookup_leaves_out_is_logged_now_and_then(
    site: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, bad = site.open(), new_uuids(3)
    write(site.database_url, *(mapping(key, "cell1") for key in bad))
    with caplog.at_level(logging.WARNING, "cellcache.read_through"):
        for _ in range(5):
            directory.resolve_cells(bad)
        assert len(caplog.messages) == 1
        assert "is mapped to 'cell1'" in caplog.messages[0]
        monkeypatch.setattr(directory._here().read_through, "_next_warning_at", 0.0)
        directory.resolve_cells(bad)
        assert len(caplog.messages) == 2


# -- what everything else does beside odd rows, over every database ----------------------------------------------------


class Deployment:
    """Two sound cells, ten instances in each, three of them purged; a configuration file, and a directory."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self.url = database_url
        self.config = folder / "cellcache.toml"
        self.config.write_text(f'[database]\nurl = "{database_url}"\n', encoding="utf-8")
        schema.upgrade(database_url)
        self.instances = new_uuids(20)
        with self.open() as directory:
            self.cells = [
                directory.create_cell(f"cell {n}", new_cell_database(folder, dict.fromkeys(there, 0)), "none:///").uuid
                for n, there in enumerate((self.instances[3:10], self.instances[10:]))
            ]
        write(
            database_url,
            *(mapping(key, self.cells[at >= 10]) for at, key in enumerate(self.instances)),
        )

    def open(self) -> CellDirectory:
        return CellDirectory.open(Settings(database={"url": self.url}))

    def add_cell(self, uuid: str, url: str = "sqlite:////nowhere/x.db") -> None:
        row = {"uuid": uuid, "name": f"odd {uuid[:8]}", "transport_url": "none:///", "database_connection": url}
        write(self.url, insert(cell_mapping).values(row))

    def run(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[Any], str]:
        capsys.readouterr()
        code = main(["--config", str(self.config), *arguments, "--json"])
        captured = capsys.readouterr()
        return code, [json.loads(line) for line in captured.out.splitlines()], captured.err

    def problems(self, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
        """What the doctor finds wrong, by name."""
        _, findings, _ = self.run(capsys, "doctor")
        assert {one["name"]: one["level"] for one in findings if one["name"] in {"cell 0", "cell 1"}} == {
            "cell 0": "fine",
            "cell 1": "fine",
        }
        wrong = [one for one in findings if one["level"] == "problem"]
        assert all(one["advice"] for one in wrong)
        return {one["name"]: one["says"] for one in wrong}

    def goes_on(self, capsys: pytest.CaptureFixture[str]) -> None:
        """All that has nothing to do with the odd row works: alone, in bulk, in a new process, on the command line."""
        with self.open() as directory:
            assert [directory.resolve_cell(key).uuid for key in self.instances[:2]] == [self.cells[0]] * 2
            found = directory.resolve_cells(self.instances)
            assert [found[key].uuid for key in self.instances] == [self.cells[0]] * 10 + [self.cells[1]] * 10
            assert directory.explain(self.instances[0]).cell is not None
            assert len(directory.list_instances(cell_uuid=self.cells[0])) == 10
            created = directory.create_cell("new", "sqlite:////nowhere/new.db", "none:///")
            directory.update_cell(created.uuid, name="newer")
            directory.delete_cell(created.uuid)
            *_, report = directory.verify()
            assert report.checked >= 20
            assert (report.wrong, report.unreachable) == (0, 0)
            *_, report = directory.verify(sample=1000)
            assert report.checked >= 20
        code, (stats,), _ = self.run(capsys, "stats")
        assert code == 0
        assert {cell["uuid"]: cell["mappings"] for cell in stats["cells"] if cell["uuid"] in self.cells} == (
            dict.fromkeys(self.cells, 10)
        )
        code, pruned, _ = self.run(capsys, "instance", "prune", "--purged", "--dry-run")
        assert {one["cell_uuid"]: one["removed"] for one in pruned if one["cell_uuid"] in self.cells} == {
            self.cells[0]: 3,
            self.cells[1]: 0,
        }
        for listing in (("instance", "list"), ("cell", "list")):
            assert self.run(capsys, *listing)[0] == 0


@pytest.fixture
def deployment(database_url: str, tmp_path: Path) -> Deployment:
    return Deployment(tmp_path, database_url)


@pytest.mark.slow
def test_a_deployment_without_odd_rows_has_nothing_wrong(
    deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    deployment.goes_on(capsys)
    assert deployment.problems(capsys) == {}


@pytest.mark.slow
def test_instances_that_are_mapped_to_no_cell_are_named(
    deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = dict(zip(new_uuids(len(NO_CELLS)), NO_CELLS, strict=True))
    write(deployment.url, *(mapping(key, cell) for key, cell in bad.items()))
    deployment.goes_on(capsys)
    says = deployment.problems(capsys)
    assert set(says) == {"instances"}
    assert says["instances"].startswith(f"{len(bad)} name what is no cell: ")
    assert all(f"{key} {cell!r}" in says["instances"] for key, cell in bad.items())
    good, missing = deployment.instances[0], new_uuids(1)[0]
    for explain in ([], ["--explain"]):
        code, answers, err = deployment.run(capsys, "resolve", *bad, good, missing, *explain)
        assert code == 1
        assert {answer["instance_uuid"] for answer in answers if answer["cell"]} == {good}
        lines = err.splitlines()
        assert len(lines) == len(bad) + 1
        assert all(any(f"{key} is mapped to {cell!r}" in line for line in lines) for key, cell in bad.items())
        assert f"instance {missing} is not mapped to any cell" in lines[-1]
    with deployment.open() as directory:
        for key in bad:
            directory.move_instance(key, deployment.cells[1])
    assert deployment.problems(capsys) == {}


@pytest.mark.slow
def test_more_of_them_than_can_be_named_are_counted(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    write(deployment.url, *(mapping(key, f"cell{number % 7}") for number, key in enumerate(new_uuids(150))))
    assert deployment.problems(capsys)["instances"].startswith("100 and more name what is no cell: ")


@pytest.mark.slow
def test_instances_whose_own_uuid_is_none_are_named(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    write(deployment.url, *(mapping(uuid, deployment.cells[1]) for uuid in NO_UUIDS))
    with deployment.open() as directory:
        for uuid in NO_UUIDS[2:4]:  # which name an instance that is not mapped
            with pytest.raises(InstanceNotMapped):
                directory.resolve_cell(uuid)
            assert directory.resolve_cells([uuid]) == {}
        reports = list(directory.verify())
        assert (reports[-1].checked, reports[-1].wrong) == (20, 0)
    says = deployment.problems(capsys)
    assert says["instances"].startswith(f"{len(NO_UUIDS)} have a UUID that is none: ")
    assert all(repr(uuid) in says["instances"] for uuid in NO_UUIDS)


@pytest.mark.slow
def test_cells_whose_uuid_is_none_are_passed_over(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    odd = [*NO_UUIDS, "\N{SNOWMAN}"]
    bad = new_uuids(len(odd))
    for uuid in odd:
        deployment.add_cell(uuid)
    deployment.goes_on(capsys)
    _, findings, _ = deployment.run(capsys, "doctor")
    passed_over = [one for one in findings if "is none, so the row is passed over" in one["says"]]
    assert [one["level"] for one in passed_over] == ["problem"] * len(odd)
    assert all(any(repr(uuid) in one["says"] for one in passed_over) for uuid in odd)
    write(deployment.url, *(mapping(key, uuid) for key, uuid in zip(bad, odd, strict=True)))
    deployment.goes_on(capsys)
    with deployment.open() as directory:
        for key in bad:  # the text that it names is none, whether or not a row has it
            with pytest.raises(MappedCellNotFound):
                directory.resolve_cell(key)


def test_a_cell_whose_uuid_is_none_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    deployment = Deployment(tmp_path, f"sqlite:///{tmp_path / 'mappings.db'}")
    with deployment.open() as directory:
        for number in range(1, 4):
            deployment.add_cell(f"none {number}")
            for _ in range(3):
                directory._here().cells.refresh()
            assert [f"'none {number}'" in message for message in caplog.messages] == [False] * (number - 1) + [True]


UNUSABLE = [
    "hush",
    "",
    "mysql://nova:hush@db/nova",
    "oracle://nova:hush@db/nova",
    "postgresql+asyncpg://nova:hush@db/nova",
    "mysql+pymysql://nova:hush@db:port/nova",
    "{scheme}://{username}:{password}@{hostname}:{port}/nova?{query}",
    "mysql+pymysql://nova:hush@db/nova?local_infile=1",
    "postgresql+psycopg://nova:hush@db/nova?service=theirs",
]


@pytest.mark.slow
def test_a_cell_whose_url_cannot_be_used_is_an_error_of_its_own(
    deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = dict(zip(new_uuids(len(UNUSABLE)), UNUSABLE, strict=True))
    instances = dict(zip(new_uuids(len(odd)), odd, strict=True))
    for cell, url in odd.items():
        deployment.add_cell(cell, url)
    write(deployment.url, *(mapping(instance, cell) for instance, cell in instances.items()))
    deployment.goes_on(capsys)
    says = deployment.problems(capsys)
    assert set(says) == {f"odd {cell[:8]}" for cell in odd}
    assert all("cannot be used: it" in one and "hush" not in one for one in says.values())
    code, pruned, err = deployment.run(capsys, "instance", "prune", "--purged", "--dry-run")
    assert code == 2
    assert err.count("cannot be used: it") == len(odd)
    assert {one["cell_uuid"] for one in pruned if one["error"]} == set(odd)
    with deployment.open() as directory:
        for instance, cell in instances.items():
            assert directory.resolve_cell(instance).database_connection == odd[cell]
            with pytest.raises(ConfigError, match="cannot be used: it"), directory.connect_cell(instance):
                pass


@pytest.mark.slow
def test_a_cell_whose_driver_is_not_installed_is_an_error_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = Deployment(tmp_path, f"sqlite:///{tmp_path / 'mappings.db'}")
    deployment.add_cell(new_uuids(1)[0], "postgresql+psycopg://nova:hush@db/nova")
    monkeypatch.setitem(sys.modules, "psycopg", None)
    deployment.goes_on(capsys)
    (says,) = deployment.problems(capsys).values()
    assert "needs psycopg, which is not installed here" in says


@pytest.mark.slow
@pytest.mark.parametrize("table", ["instance_mapping", "cell_mapping"])
@pytest.mark.parametrize(
    ("database", "odd"),
    [
        ("sqlite", "yesterday"),
        ("sqlite", ""),
        pytest.param("mariadb", "0000-00-00 00:00:00", marks=pytest.mark.needs("mariadb")),
        pytest.param("postgresql", "infinity", marks=pytest.mark.needs("postgresql")),
        pytest.param("postgresql", "0044-03-15 12:00:00 BC", marks=pytest.mark.needs("postgresql")),
    ],
)
def test_a_time_that_is_none_stops_nothing(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    table: str,
    database: str,
    odd: str,
) -> None:
    if database == "sqlite":
        url = f"sqlite:///{tmp_path / 'mappings.db'}"
    else:
        url = request.getfixturevalue(database).create_database(f"odd_time_{new_uuids(1)[0].replace('-', '_')}")
    deployment = Deployment(tmp_path, url)
    lenient = [text("SET sql_mode = ''")] if database == "mariadb" else []
    where = "instance_uuid" if table == "instance_mapping" else "uuid"
    chosen = deployment.instances[-1] if table == "instance_mapping" else deployment.cells[1]
    write(
        url, *lenient, text(f"UPDATE {table} SET created_at = '{odd}', updated_at = '{odd}' WHERE {where} = '{chosen}'")
    )
    deployment.goes_on(capsys)
