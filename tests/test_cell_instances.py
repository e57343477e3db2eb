"""The `instances` table of a cell's database: a UUID is found there in whatever case and form it is written."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, make_url, text
from sqlalchemy.pool import NullPool

from cellcache import CellDirectory, DatabaseUnavailable, Settings, cell_instances, schema
from cellcache.cell_instances import CellInstances
from cellcache.database import LONGEST_ANSWER, open_engine
from tests.directories import DATABASES, new_uuids
from tests.faults.proxy import Proxy
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


# -- a database that keeps whoever asks it busy ----------------------------------------------------------------------


def asked(url: str, timeout_s: float = 5.0) -> Engine:
    return open_engine(
        url, pool_size=1, timeout_s=timeout_s, connect_timeout_s=5.0, use="cell", most_bytes=LONGEST_ANSWER
    )


def cell_database(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if kind == "sqlite":
        return f"sqlite:///{tmp_path / 'cell.db'}"
    server = request.getfixturevalue(kind)
    assert isinstance(server, MariaDB | PostgreSQL)
    return server.create_database(next(_names))


@pytest.mark.parametrize("kind", DATABASES)
def test_an_answer_of_too_many_bytes_is_read_no_further(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Rows of 200 KB, as somebody may have written them into a cell's database."""
    url = cell_database(kind, request, tmp_path)
    long = "MEDIUMTEXT" if kind == "mariadb" else "TEXT"
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE TABLE instances (uuid {long})"))
    (uuid,) = new_uuids(1)
    insert(engine, uuid)
    limited = asked(url)
    instances = CellInstances(limited, url)
    assert instances.sample().uuids == [uuid]
    insert(engine, *["x" * 200_000] * 60)
    with pytest.raises(DatabaseUnavailable, match=rf"(more|longer) than {LONGEST_ANSWER:,} bytes"):
        instances.sample()
    assert instances.those_there([uuid]) == {uuid}, "over another connection"
    limited.dispose()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [each for each in DATABASES if each != "sqlite"])
def test_an_answer_that_comes_byte_by_byte_is_waited_for_as_one(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = cell_database(kind, request, tmp_path)
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE instances (uuid VARCHAR(36))"))
    insert(engine, *new_uuids(100))
    server = make_url(url)
    with Proxy(str(server.host), int(server.port or 0)) as proxy:
        through = server.set(host=proxy.host, port=proxy.port).render_as_string(hide_password=False)
        limited = asked(through, timeout_s=1.0)
        assert len(CellInstances(limited, through).sample().uuids) == 100

        def drip(link: Any, reply: bytes) -> None:
            for at in range(len(reply)):
                link.to_client(reply[at : at + 1], 0.05 * (at + 1))  # ten minutes of it

        proxy.on_reply = drip
        with pytest.raises(DatabaseUnavailable, match=r"timed out|not complete within 2 s|did not answer in time"):
            CellInstances(limited, through).sample()
        limited.dispose()


def test_a_view_without_an_end_is_interrupted(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'cell.db'}"
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT CAST(i AS TEXT) AS uuid FROM n"
    with create_engine(url, poolclass=NullPool).begin() as connection:
        connection.execute(text(f"CREATE VIEW instances AS {endless}"))
    limited = asked(url, timeout_s=0.05)
    with pytest.raises(DatabaseUnavailable, match="interrupted"):
        CellInstances(limited, url).sample()
    limited.dispose()


def test_a_look_at_every_row_ends_where_there_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'cell.db'}"
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE instances (uuid VARCHAR(40))"))
    insert(engine, *(f" {uuid}" for uuid in new_uuids(12)))
    monkeypatch.setattr(cell_instances, "_PAGE", 5)
    monkeypatch.setattr(cell_instances, "_MOST_ODD", 10)
    with pytest.raises(DatabaseUnavailable, match="more than 10 UUIDs that are written oddly"):
        CellInstances(engine, url).those_there(new_uuids(1))
    monkeypatch.setattr(cell_instances, "_MOST_ODD", 100)
    assert CellInstances(engine, url).those_there(new_uuids(1)) == set()
    monkeypatch.setattr(cell_instances, "_LONGEST_SCAN_S", -1.0)
    with pytest.raises(DatabaseUnavailable, match="more rows than can be looked at"):
        CellInstances(engine, url).those_there(new_uuids(1))
