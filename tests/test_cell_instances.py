"""The `instances` table of a cell's database: a UUID is found there in whatever case and form it is written."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.pool import NullPool

from cellcache import CellDirectory, Settings, cell_instances, schema
from cellcache.cell_instances import CellInstances
from tests.directories import new_uuids
from tests.servers import MariaDB, PostgreSQL

FORMS: dict[str, Callable[[str], str]] = {
    "canonical": str,
    "upper case": str.upper,
    "digits": lambda uuid: uuid.replace("-", ""),
    "digits in upper case": lambda uuid: uuid.replace("-", "").upper(),
}
ODD_FORMS: dict[str, Callable[[str], str]] = {
    "both cases": lambda uuid: uuid[:18] + uuid[18:].upper(),
    "both cases, digits": lambda uuid: (uuid[:18].upper() + uuid[18:]).replace("-", ""),
    "braces": lambda uuid: f"{{{uuid.upper()}}}",
    "blanks": lambda uuid: f" {uuid}",
}
TYPES = [
    ("sqlite", "VARCHAR(40)"),
    ("mariadb", "VARCHAR(40) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"),
    ("mariadb", "VARCHAR(40) CHARACTER SET latin1 COLLATE latin1_general_ci"),
    ("mariadb", "VARBINARY(40)"),
    ("mariadb", "UUID"),
    ("postgresql", "VARCHAR(40)"),
    ("postgresql", "CHAR(40)"),
    ("postgresql", "UUID"),
]

_names = (f"cell_instances_{number}" for number in itertools.count(1))

Table = tuple[Engine, str, str]
"""The engine, its URL, and the type of the column."""


@pytest.fixture(
    params=[
        pytest.param(each, marks=[] if each[0] == "sqlite" else pytest.mark.needs(each[0]), id="-".join(each))
        for each in TYPES
    ]
)
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Table]:
    """A cell's database whose `instances` have nothing but a UUID, of each type in turn."""
    kind, column = request.param
    url = f"sqlite:///{tmp_path / 'cell.db'}"
    if kind != "sqlite":
        server = request.getfixturevalue(kind)
        assert isinstance(server, MariaDB | PostgreSQL)
        url = server.create_database(next(_names))
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE TABLE instances (uuid {column} NULL)"))
    yield engine, url, column
    engine.dispose()


def insert(engine: Engine, *values: str | None) -> None:
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO instances VALUES (:uuid)"), [{"uuid": value} for value in values])


def insert_in_each_form(table: Table) -> list[str]:
    """Insert instances in each form that the type can hold; return their UUIDs."""
    engine, _, column = table
    forms = FORMS if column == "UUID" else FORMS | ODD_FORMS
    uuids = new_uuids(len(forms))
    # Of which some would be all digits, and in one case whatever is done to them.
    uuids = [f"abcdefab{uuid[8:24]}fedcbafedcba" for uuid in uuids]
    insert(engine, *(write(uuid) for write, uuid in zip(forms.values(), uuids, strict=True)))
    return uuids


def test_each_form_is_found_and_nothing_else(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell_instances, "_PAGE", 3)
    written, absent = insert_in_each_form(table), new_uuids(3)
    instances = CellInstances(*table[:2])
    assert instances.those_there([*absent, *written]) == set(written)
    assert instances.those_there(absent) == set()
    assert instances.those_there([]) == set()
    assert set(instances.sample().uuids) == set(written)


@pytest.mark.slow
def test_a_prune_spares_each_form(table: Table, tmp_path: Path) -> None:
    written, absent = insert_in_each_form(table), new_uuids(2)
    mappings = f"sqlite:///{tmp_path / 'mappings.db'}"
    schema.upgrade(mappings)
    with CellDirectory.open(Settings(database={"url": mappings})) as directory:
        cell = directory.create_cell("one", table[1], "fake://").uuid
        directory.map_instances((uuid, cell, "project-1") for uuid in [*written, *absent])
        report = directory.prune_purged(cell, older_than_s=0)
        assert (report.removed, report.still_there) == (2, len(written))
        assert directory.resolve_cells([*written, *absent]).keys() == set(written)


def test_rows_without_a_uuid_are_passed_over_and_counted(table: Table) -> None:
    engine, url, column = table
    (uuid,) = new_uuids(1)
    texts = [] if column == "UUID" else ["", "none", f"{uuid}0", "\N{LATIN SMALL LETTER E WITH ACUTE}"]
    insert(engine, None, None, uuid, *texts)
    instances = CellInstances(engine, url)
    assert instances.sample() == ([uuid], 2 + len(texts))
    assert instances.those_there([uuid, *new_uuids(1)]) == {uuid}


@pytest.mark.parametrize("rows", [0, 1, 5, 9, 10, 11, 19, 30])
def test_a_sample_is_all_of_a_small_table_and_both_ends_of_a_large_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(cell_instances, "_AT_EACH_END", 10)
    url = f"sqlite:///{tmp_path / 'cell.db'}"
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE instances (uuid VARCHAR(36) NULL)"))
    uuids = sorted(new_uuids(rows))
    insert(engine, None, *uuids)
    expected = {*uuids[:10], *uuids[-10:]}
    sample = CellInstances(engine, url).sample()
    assert (set(sample.uuids), len(sample.uuids), sample.rows_without_uuid) == (expected, len(expected), 1)


def test_what_is_found_at_once_costs_a_statement_a_thousand_and_no_look_at_every_row(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'cell.db'}"
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE instances (uuid VARCHAR(36) UNIQUE)"))
    uuids = new_uuids(2500)
    insert(engine, *uuids)
    statements: list[str] = []

    @event.listens_for(engine, "before_cursor_execute")
    def count(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    instances = CellInstances(engine, url)
    assert instances.those_there(uuids) == set(uuids)
    assert len(statements) == 3
    for _ in range(3):  # one in a thousand of the usual form, one of the others, and every row once
        instances.those_there(new_uuids(300))
    assert sum("ORDER BY" in statement for statement in statements) == 2
    assert len(statements) == 3 + 3 * 2 + 2
