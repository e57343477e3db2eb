"""The tables come and go as they should, on every database, whoever else is at it and whatever breaks off."""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import os
import re
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.pool import NullPool

from cellcache import schema
from cellcache.errors import ConfigError, DatabaseUnavailable, InvalidValue, SchemaError
from cellcache.tables import cache_invalidation, cell_mapping, instance_mapping, metadata
from tests.servers import MariaDB, PostgreSQL

pytestmark = pytest.mark.slow

VERSION_TABLE = "cellcache_alembic_version"
OURS = {*metadata.tables}
FIRST = "0001_pre_instance_mapping"

_CHILD = """
import os, sys
from sqlalchemy import Engine, event
from cellcache import schema

pause_at = os.environ["PAUSE_AT"]

@event.listens_for(Engine, "before_cursor_execute")
def tell(connection, cursor, statement, *rest):
    print(" ".join(statement.split()), flush=True)
    if pause_at and pause_at in statement:
        print("PAUSED", flush=True)
        sys.stdin.readline()

schema.upgrade(os.environ["URL"])
"""


class Upgrade:
    """A process that upgrades a database, tells each statement before it executes it, and can be held up at one."""

    def __init__(self, url: str, pause_at: str = "") -> None:
        environment = os.environ | {"URL": url, "PAUSE_AT": pause_at}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=0
        )
        assert self.process.stdout is not None
        self._output = self.process.stdout

    def read_until(self, *marks: str) -> str:
        """Read to the first line that holds one of the marks."""
        while line := self._output.readline().decode():
            if any(mark in line for mark in marks):
                return line
        raise AssertionError(f"ended without {marks}")

    def says_nothing_for(self, seconds: float) -> bool:
        return not select.select([self._output], [], [], seconds)[0]

    def resume(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")

    def rest(self) -> str:
        rest = self._output.read().decode()
        assert self.process.wait(60) == 0
        return rest

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(60)


@pytest.fixture
def upgrading() -> Iterator[Any]:
    """Start upgrades in processes of their own, and leave none behind."""
    started: list[Upgrade] = []

    def start(url: str, pause_at: str = "") -> Upgrade:
        started.append(Upgrade(url, pause_at))
        return started[-1]

    yield start
    for upgrade in started:
        upgrade.kill()
        for stream in (upgrade.process.stdin, upgrade.process.stdout):
            assert stream is not None
            stream.close()


@contextlib.contextmanager
def connect(url: str) -> Iterator[sa.Connection]:
    with sa.create_engine(url, poolclass=NullPool).connect() as connection:
        yield connection


def execute(url: str, *statements: str) -> None:
    with connect(url) as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
        connection.commit()


def tables_of(url: str) -> set[str]:
    with connect(url) as connection:
        return set(sa.inspect(connection).get_table_names())


def kind_of(url: str) -> str:
    return sa.make_url(url).get_backend_name()


def mapping(number: int, project_id: str = "p", cell: int = 1) -> dict[str, Any]:
    return {
        "created_at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "instance_uuid": str(UUID(int=number)),
        "cell_uuid": str(UUID(int=cell)),
        "project_id": project_id,
    }


# -- up, down, and what is found there ---------------------------------------------------------------------------


def test_up_down_and_up_again(database_url: str) -> None:
    assert schema.current(database_url) is None
    for _ in range(2):
        schema.upgrade(database_url)
        assert schema.current(database_url) == schema.head()
        assert tables_of(database_url) >= {*OURS, VERSION_TABLE}
        schema.downgrade(database_url, "base")
        assert schema.current(database_url) is None
        assert not tables_of(database_url) & OURS


def test_upgrading_what_is_upgraded_keeps_every_row(database_url: str) -> None:
    schema.upgrade(database_url)
    with connect(database_url) as connection:
        connection.execute(sa.insert(instance_mapping).values(mapping(1)))
        connection.commit()
    schema.upgrade(database_url)
    with connect(database_url) as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(instance_mapping)) == 1


def test_upgrade_leaves_the_tables_of_others_alone(database_url: str) -> None:
    """Nova's database has an Alembic version table of its own, and tables with similar names."""
    execute(
        database_url,
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)",
        "INSERT INTO alembic_version VALUES ('cdeec0c85668')",
        "CREATE TABLE instance_mappings (id INTEGER NOT NULL PRIMARY KEY)",
    )
    schema.upgrade(database_url)
    assert schema.check(database_url) == []
    schema.downgrade(database_url, "base")
    assert tables_of(database_url) == {"alembic_version", "instance_mappings", VERSION_TABLE}
    with connect(database_url) as connection:
        assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() == "cdeec0c85668"


def test_upgrade_takes_over_the_table_of_the_specification(database_url: str) -> None:
    """Somebody who created it by hand keeps the rows, and is given the indexes."""
    with connect(database_url) as connection:
        bare = sa.Table(
            "instance_mapping",
            sa.MetaData(),
            *(sa.Column(c.name, c.type, primary_key=c.primary_key, nullable=c.nullable) for c in instance_mapping.c),
            **instance_mapping.kwargs,
        )
        bare.create(connection)
        connection.execute(sa.insert(bare).values(mapping(1)))
        connection.commit()
    schema.upgrade(database_url)
    assert schema.check(database_url) == []
    with connect(database_url) as connection:
        assert connection.scalar(sa.select(instance_mapping.c.instance_uuid)) == str(UUID(int=1))


def test_upgrade_refuses_a_table_of_that_name_that_is_another(database_url: str) -> None:
    execute(database_url, "CREATE TABLE instance_mapping (something_else INTEGER)")
    with pytest.raises(SchemaError, match="instance_mapping exists already, with other columns"):
        schema.upgrade(database_url)
    assert schema.current(database_url) is None
    assert tables_of(database_url) & OURS == {"instance_mapping"}


# -- what the tables are -----------------------------------------------------------------------------------------


def test_columns_are_those_of_the_specification(database_url: str) -> None:
    schema.upgrade(database_url)
    with connect(database_url) as connection:
        inspector = sa.inspect(connection)
        columns = {table: inspector.get_columns(table) for table in OURS}
        primary_keys = {table: inspector.get_pk_constraint(table)["constrained_columns"] for table in OURS}

    def shape(table: str) -> list[tuple[str, str, int | None, bool]]:
        return [
            (column["name"], family(column["type"]), getattr(column["type"], "length", None), column["nullable"])
            for column in columns[table]
        ]

    assert shape("instance_mapping") == [
        ("created_at", "datetime", None, True),
        ("updated_at", "datetime", None, True),
        ("id", "integer", None, False),
        ("instance_uuid", "string", 36, False),
        ("cell_uuid", "string", 36, False),
        ("project_id", "string", 255, False),
    ]
    assert shape("cell_mapping") == [
        ("created_at", "datetime", None, True),
        ("updated_at", "datetime", None, True),
        ("id", "integer", None, False),
        ("uuid", "string", 36, False),
        ("name", "string", 255, True),
        ("transport_url", "text", None, False),
        ("database_connection", "text", None, False),
        ("disabled", "boolean", None, False),
    ]
    assert shape("cache_invalidation") == [
        ("created_at", "datetime", None, False),
        ("deliver_after", "datetime", None, False),
        ("id", "integer", None, False),
        ("instance_uuids", "text", None, False),
    ]
    assert shape("cache_agreement") == [
        ("name", "string", 64, False),
        ("value", "text", None, False),
        ("since", "datetime", None, False),
    ]
    assert primary_keys == {table: ["name" if table == "cache_agreement" else "id"] for table in OURS}


def family(column_type: sa.types.TypeEngine[Any]) -> str:
    families: list[tuple[Any, str]] = [
        (sa.Boolean, "boolean"),
        (sa.DateTime, "datetime"),
        (sa.Text, "text"),
        (sa.String, "string"),
        (sa.Integer, "integer"),
    ]
    if isinstance(column_type, sa.dialects.mysql.TINYINT):
        return "boolean"  # as MySQL has it
    if isinstance(column_type, sa.dialects.mysql.MEDIUMTEXT):
        return "text"
    return next(name for known, name in families if isinstance(column_type, known))


def test_mariadb_keeps_sixteen_megabytes_of_url_and_tells_cases_apart(mariadb: MariaDB) -> None:
    url = mariadb.create_database("storage")
    schema.upgrade(url)
    with connect(url) as connection:
        found = connection.exec_driver_sql(
            "SELECT table_name, engine, table_collation FROM information_schema.tables WHERE table_schema = DATABASE()"
        )
        assert {tuple(row) for row in found if row[0] != VERSION_TABLE} == {
            (table, "InnoDB", "utf8mb4_bin") for table in OURS
        }
        connection.execute(
            sa.insert(cell_mapping).values(uuid="u", transport_url="t" * 70_000, database_connection="d" * 70_000)
        )
        assert connection.execute(sa.select(cell_mapping.c.disabled)).scalar_one() is False


def test_the_tables_are_the_same_under_a_mariadb_url(mariadb: MariaDB) -> None:
    url = mariadb.create_database("other_dialect").replace("mysql+", "mariadb+")
    schema.upgrade(url)
    assert schema.check(url) == []
    assert schema.check(url.replace("mariadb+", "mysql+")) == []


def test_an_instance_is_mapped_once(database_url: str) -> None:
    schema.upgrade(database_url)
    with connect(database_url) as connection:
        connection.execute(sa.insert(instance_mapping).values(mapping(1, cell=1)))
        with pytest.raises(IntegrityError):
            connection.execute(sa.insert(instance_mapping).values(mapping(1, cell=2)))


def test_a_cell_has_its_uuid_alone(database_url: str) -> None:
    schema.upgrade(database_url)
    cell = {"uuid": str(UUID(int=1)), "transport_url": "t", "database_connection": "d"}
    with connect(database_url) as connection:
        connection.execute(sa.insert(cell_mapping).values(cell))
        with pytest.raises(IntegrityError):
            connection.execute(sa.insert(cell_mapping).values(cell))


@pytest.mark.parametrize("table", sorted(OURS - {"cache_agreement"}))
def test_an_id_is_never_given_twice(database_url: str, table: str) -> None:
    """Who deletes an invalidation by its id must not hit a younger one; who pages by id must not miss a row."""
    rows: dict[str, dict[str, Any]] = {
        "instance_mapping": mapping(1),
        "cell_mapping": {"uuid": "u", "transport_url": "t", "database_connection": "d"},
        "cache_invalidation": {
            "created_at": datetime.now(UTC),
            "deliver_after": datetime.now(UTC),
            "instance_uuids": "i",
        },
    }
    schema.upgrade(database_url)
    with connect(database_url) as connection:
        chosen = metadata.tables[table]
        first = connection.execute(sa.insert(chosen).values(rows[table])).inserted_primary_key
        connection.execute(sa.delete(chosen))
        second = connection.execute(sa.insert(chosen).values(rows[table])).inserted_primary_key
        assert first is not None
        assert second is not None
        assert second[0] > first[0]


# -- the indexes serve the queries they are for --------------------------------------------------------------------


def plan(connection: sa.Connection, statement: sa.Select[Any]) -> str:
    text = str(statement.compile(dialect=connection.dialect, compile_kwargs={"literal_binds": True}))
    explain = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
    rows = connection.execute(sa.text(f"{explain} {text}"))
    return "\n".join(" ".join(str(value) for value in row) for row in rows)


@pytest.fixture
def filled(database_url: str) -> Iterator[sa.Connection]:
    """Five thousand mappings in 250 projects and 250 cells."""
    schema.upgrade(database_url)
    with connect(database_url) as connection:
        rows = [mapping(number, f"project-{number % 250}", number * 7 % 250) for number in range(5000)]
        connection.execute(sa.insert(instance_mapping), rows)
        connection.commit()
        if connection.dialect.name == "mysql":
            connection.exec_driver_sql("ANALYZE TABLE instance_mapping").all()
        else:
            connection.exec_driver_sql("ANALYZE instance_mapping")
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET enable_bitmapscan = off")  # so few rows it would gladly sort
        yield connection


@pytest.mark.parametrize(
    ("column", "value", "index"),
    [
        ("project_id", "project-7", "ix_instance_mapping_project_id_id"),
        ("cell_uuid", str(UUID(int=7)), "ix_instance_mapping_cell_uuid_id"),
    ],
)
def test_a_page_of_a_listing_is_read_from_its_index_in_order(
    filled: sa.Connection, column: str, value: str, index: str
) -> None:
    table = instance_mapping
    page = sa.select(table).where(table.c[column] == value, table.c.id > 1000).order_by(table.c.id).limit(20)
    how = plan(filled, page)
    assert index in how
    assert not re.search("sort|temp b-tree|temporary", how, re.IGNORECASE), how
    if filled.dialect.name == "postgresql":
        assert re.search(rf"Index Cond: .*{column}.* AND .*id > 1000", how), how
    elif filled.dialect.name == "sqlite":
        assert f"({column}=? AND id>?)" in how or f"({column}=? AND rowid>?)" in how


def test_a_lookup_reads_one_row_by_the_unique_index(filled: sa.Connection) -> None:
    table = instance_mapping
    how = plan(filled, sa.select(table.c.cell_uuid).where(table.c.instance_uuid == str(UUID(int=7))))
    assert "uniq_instance_mapping_instance_uuid" in how
    if filled.dialect.name == "mysql":
        assert "const" in how


# -- what docs/tables.md lets an operator do -----------------------------------------------------------------------


def test_an_invalidation_recorded_by_hand_is_found_due(database_url: str) -> None:
    now = {
        "mysql": "UTC_TIMESTAMP()",
        "postgresql": "date_trunc('second', now() AT TIME ZONE 'UTC')",
        "sqlite": "datetime('now')",
    }[kind_of(database_url)]
    text = (Path(__file__).parent.parent / "docs" / "tables.md").read_text()
    assert now in text
    statement = re.search(r"^INSERT INTO cache_invalidation .*?;", text, re.MULTILINE | re.DOTALL)
    assert statement is not None
    schema.upgrade(database_url)
    execute(database_url, statement[0].replace("UTC_TIMESTAMP()", now))
    due = sa.select(cache_invalidation).where(cache_invalidation.c.deliver_after <= datetime.now(UTC))
    with connect(database_url) as connection:
        found = connection.execute(due).one()
    assert found.instance_uuids == "<instance>,<another instance>"
    assert abs((datetime.now(UTC) - found.created_at).total_seconds()) < 60


# -- what differs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (
            "ALTER TABLE instance_mapping ADD COLUMN deleted INTEGER",
            "column instance_mapping.deleted is not cellcache's",
        ),
        ("DROP TABLE cache_invalidation", "table cache_invalidation is missing"),
        ("CREATE INDEX of_mine ON cell_mapping (name)", "index of_mine on cell_mapping is not cellcache's"),
        ("ALTER TABLE cell_mapping RENAME COLUMN name TO label", "column cell_mapping.name is missing"),
    ],
)
def test_check_finds_what_was_changed_by_hand(database_url: str, change: str, finding: str) -> None:
    schema.upgrade(database_url)
    assert schema.check(database_url) == []
    execute(database_url, change)
    assert any(finding in line for line in schema.check(database_url))


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (
            "DROP INDEX ix_instance_mapping_cell_uuid_id ON instance_mapping",
            "index ix_instance_mapping_cell_uuid_id on",
        ),
        ("ALTER TABLE instance_mapping MODIFY project_id VARCHAR(40) NOT NULL", "project_id has type VARCHAR(40), not"),
        ("ALTER TABLE instance_mapping MODIFY project_id VARCHAR(255) NULL", "project_id has nullable True, not False"),
        ("ALTER TABLE cell_mapping MODIFY disabled BOOL NOT NULL", "disabled has default None, not false"),
        ("ALTER TABLE cell_mapping MODIFY disabled BOOL NOT NULL DEFAULT 1", "disabled has default 1, not false"),
        ("ALTER TABLE cache_invalidation ENGINE=MyISAM", "cache_invalidation has the engine MyISAM, not InnoDB"),
        ("ALTER TABLE cell_mapping COLLATE utf8mb4_general_ci", "has the collate utf8mb4_general_ci, not utf8mb4_bin"),
    ],
)
def test_check_finds_what_was_changed_in_mariadb(mariadb: MariaDB, change: str, finding: str) -> None:
    mariadb.execute("DROP DATABASE IF EXISTS changed_by_hand")
    url = mariadb.create_database("changed_by_hand")
    schema.upgrade(url)
    execute(url, change)
    assert any(finding in line for line in schema.check(url)), schema.check(url)


def test_check_of_an_empty_database_names_each_table_once(database_url: str) -> None:
    found = schema.check(database_url)
    assert found[0] == f"the revision is not set, this release needs {schema.head()}"
    assert sorted(found[1:]) == sorted(f"the table {table} is missing" for table in OURS)


# -- statements for a database's administrator -----------------------------------------------------------------------


def as_script(step: Any, *arguments: str) -> str:
    output = io.StringIO()
    step(*arguments, sql=True, output=output)
    return output.getvalue()


def run_script(url: str, script: str) -> None:
    statements = [part.strip() for part in re.sub("^--.*$", "", script, flags=re.MULTILINE).split(";")]
    engine = sa.create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in filter(None, statements):
            connection.exec_driver_sql(statement)


def test_the_statements_do_what_the_upgrade_does(database_url: str) -> None:
    run_script(database_url, as_script(schema.upgrade, database_url))
    assert schema.current(database_url) == schema.head()
    assert schema.check(database_url) == []
    schema.upgrade(database_url)
    run_script(database_url, as_script(schema.downgrade, database_url, f"{schema.head()}:base"))
    assert tables_of(database_url) <= {VERSION_TABLE}  # older Alembics drop that as well
    assert schema.current(database_url) is None


@pytest.mark.parametrize("driver", ["mysql+pymysql", "mariadb+pymysql", "postgresql+psycopg"])
def test_statements_are_written_without_a_server_or_its_password(driver: str) -> None:
    script = as_script(schema.upgrade, f"{driver}://nova:hunter2@127.0.0.1:1/nova_api")
    assert script.count("CREATE TABLE") == 5
    assert script.count(FIRST) == 4  # in two comments, and as the row of the version table, which is changed again
    assert "hunter2" not in script
    assert ("ENGINE=InnoDB" in script) == (driver != "postgresql+psycopg")
    assert ("BEGIN;" in script) == (driver == "postgresql+psycopg")


def test_statements_for_sqlite_are_written_without_creating_the_file(tmp_path: Path) -> None:
    path = tmp_path / "none.db"
    assert "CREATE TABLE" in as_script(schema.upgrade, f"sqlite:///{path}")
    assert not path.exists()


def test_statements_go_to_stdout_unless_told_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    schema.upgrade("sqlite:///nowhere.db", sql=True)
    assert "CREATE TABLE instance_mapping" in capsys.readouterr().out


def test_statements_for_going_down_need_both_ends(database_url: str) -> None:
    with pytest.raises(SchemaError, match=f"give FROM:TO, such as {schema.head()}:base"):
        as_script(schema.downgrade, database_url, "base")


# -- several at once, and one that dies --------------------------------------------------------------------------


def test_many_processes_may_upgrade_at_once(database_url: str, upgrading: Any) -> None:
    everyone = [upgrading(database_url) for _ in range(4)]
    created = [upgrade.rest().count("CREATE TABLE instance_mapping") for upgrade in everyone]
    assert sorted(created) == [0, 0, 0, 1]
    assert schema.check(database_url) == []


def test_a_second_upgrade_waits_and_then_finds_nothing_to_do(database_url: str, upgrading: Any) -> None:
    first = upgrading(database_url, pause_at="CREATE TABLE cell_mapping")
    first.read_until("PAUSED")
    second = upgrading(database_url)
    second.read_until("GET_LOCK", "pg_advisory_xact_lock", "BEGIN IMMEDIATE")
    assert second.says_nothing_for(0.5)
    first.resume()
    first.rest()
    assert "CREATE" not in second.rest()
    assert schema.check(database_url) == []


def test_what_others_did_while_it_waited_is_seen_also_where_transactions_keep_their_first_snapshot(
    postgresql: PostgreSQL, upgrading: Any
) -> None:
    url = postgresql.create_database("repeatable")
    postgresql.execute("ALTER DATABASE repeatable SET default_transaction_isolation = 'repeatable read'")
    first = upgrading(url, pause_at="CREATE TABLE cell_mapping")
    first.read_until("PAUSED")
    second = upgrading(url)
    second.read_until("pg_advisory_xact_lock")
    assert second.says_nothing_for(0.5)
    first.resume()
    first.rest()
    assert "CREATE" not in second.rest()
    postgresql.drop_database("repeatable")


def test_an_upgrade_does_not_wait_for_ever(database_url: str, upgrading: Any) -> None:
    upgrading(database_url, pause_at="CREATE TABLE cell_mapping").read_until("PAUSED")
    with pytest.raises(DatabaseUnavailable, match=r"another process .* for 1 s; try again") as caught:
        schema.upgrade(database_url, lock_timeout_s=1)
    assert_one_line_without_password(caught.value, database_url)


def test_a_table_in_use_is_not_waited_for_for_ever(database_url: str) -> None:
    schema.upgrade(database_url)
    with connect(database_url) as reader:
        reader.exec_driver_sql("BEGIN")
        assert reader.execute(sa.select(instance_mapping)).all() == []
        with pytest.raises(DatabaseUnavailable, match=r"another process has kept the tables locked for 1 s"):
            schema.downgrade(database_url, "base", lock_timeout_s=1)
        assert "instance_mapping" in tables_of(database_url)
    schema.downgrade(database_url, "base")
    assert not tables_of(database_url) & OURS


def test_an_upgrade_killed_half_way_is_finished_by_the_next(database_url: str, upgrading: Any) -> None:
    """Where a statement about a table commits by itself, half of the work stays; the next upgrade does the rest."""
    first = upgrading(database_url, pause_at="CREATE INDEX ix_instance_mapping_cell_uuid_id")
    first.read_until("PAUSED")
    first.kill()
    schema_before = tables_of(database_url) & OURS
    assert schema_before == ({"instance_mapping"} if kind_of(database_url) == "mysql" else set())
    assert schema.current(database_url) is None
    schema.upgrade(database_url)
    assert schema.current(database_url) == schema.head()
    assert schema.check(database_url) == []


def test_a_downgrade_half_done_is_finished_by_the_next(database_url: str) -> None:
    schema.upgrade(database_url)
    execute(database_url, "DROP TABLE cache_invalidation")
    schema.downgrade(database_url, "base")
    assert not tables_of(database_url) & OURS


def test_threads_may_upgrade_different_databases_at_once(tmp_path: Path) -> None:
    urls = [f"sqlite:///{tmp_path / str(number)}.db" for number in range(4)]
    threads = [threading.Thread(target=schema.upgrade, args=(url,)) for url in urls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [schema.check(url) for url in urls] == [[]] * 4


# -- what goes wrong ---------------------------------------------------------------------------------------------


def assert_one_line_without_password(error: Exception, url: str) -> None:
    assert "\n" not in str(error)
    password = sa.make_url(url).password
    if password is not None:
        assert str(password) not in f"{error} {error!r}"


def test_a_revision_of_a_newer_release_is_refused(database_url: str) -> None:
    schema.upgrade(database_url)
    execute(database_url, f"UPDATE {VERSION_TABLE} SET version_num = '9999_pre_the_future'")
    assert schema.current(database_url) == "9999_pre_the_future"
    for step, revision in ((schema.upgrade, "head"), (schema.downgrade, "base")):
        with pytest.raises(
            SchemaError, match=r"9999_pre_the_future, which this release does not know.*newer"
        ) as caught:
            step(database_url, revision)
        assert_one_line_without_password(caught.value, database_url)
    assert tables_of(database_url) >= OURS


@pytest.mark.parametrize("revision", ["0815", "head+1", "heads:base:head"])
def test_an_unknown_revision_is_refused(database_url: str, revision: str) -> None:
    with pytest.raises(SchemaError):
        schema.upgrade(database_url, revision)
    assert not tables_of(database_url) & OURS


@pytest.mark.parametrize("step", [schema.upgrade, schema.downgrade])
def test_what_is_more_than_from_and_to_is_refused(step: Any) -> None:
    with pytest.raises(SchemaError, match="'base:head:head' is neither a revision nor FROM:TO"):
        step("sqlite:///mappings.db", "base:head:head", sql=True)


@pytest.mark.parametrize("step", [schema.upgrade, schema.downgrade])
def test_a_blank_revision_is_refused(database_url: str, step: Any) -> None:
    with pytest.raises(InvalidValue, match="revision"):
        step(database_url, "")
    assert not tables_of(database_url) & OURS


@pytest.mark.parametrize("driver", ["mysql+pymysql", "mariadb+pymysql", "postgresql+psycopg"])
@pytest.mark.parametrize("act", [schema.current, schema.check, schema.upgrade])
def test_an_unreachable_database_is_said_in_one_line(driver: str, act: Any) -> None:
    url = f"{driver}://nova:hunter2@127.0.0.1:1/nova_api"
    if driver == "postgresql+psycopg":
        url += "?sslpassword=hunter2"
    with pytest.raises(
        DatabaseUnavailable, match=r"cannot reach the database .*nova:\*\*\*@127.0.0.1:1/nova_api"
    ) as caught:
        act(url)
    assert_one_line_without_password(caught.value, url)


def test_a_refused_password_is_not_repeated(mariadb: MariaDB, postgresql: PostgreSQL) -> None:
    for server in (mariadb, postgresql):
        url = sa.make_url(server.url).set(password="hunter2", database="whatever")
        with pytest.raises(DatabaseUnavailable) as caught:
            schema.upgrade(url)
        assert_one_line_without_password(caught.value, url.render_as_string(hide_password=False))


def test_a_server_that_has_stopped_answering_does_not_hold_us_up(
    mariadb: MariaDB, postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "_ANSWER_S", 2)
    for server in (mariadb, postgresql):
        url = server.create_database("stops_answering")
        server.suspend()
        try:
            with pytest.raises(DatabaseUnavailable):
                schema.upgrade(url)
        finally:
            server.resume()
        schema.upgrade(url)


def test_what_the_database_forbids_is_said_in_one_line(mariadb: MariaDB) -> None:
    url = sa.make_url(mariadb.create_database("forbidden"))
    mariadb.execute(f"CREATE USER reader@{mariadb.host} IDENTIFIED BY 'hunter2'")
    mariadb.execute(f"GRANT SELECT ON forbidden.* TO reader@{mariadb.host}")
    with pytest.raises(SchemaError, match=r"CREATE command denied to user 'reader'") as caught:
        schema.upgrade(url.set(username="reader", password="hunter2"))
    assert_one_line_without_password(caught.value, "mysql://reader:hunter2@host/db")


def test_rows_that_contradict_an_index_are_said_in_one_line(database_url: str) -> None:
    schema.upgrade(database_url)
    on_table = " ON instance_mapping" if kind_of(database_url) == "mysql" else ""
    execute(database_url, f"DELETE FROM {VERSION_TABLE}", f"DROP INDEX uniq_instance_mapping_instance_uuid{on_table}")
    with connect(database_url) as connection:
        connection.execute(sa.insert(instance_mapping), [mapping(1), mapping(1)])
        connection.commit()
    with pytest.raises(SchemaError, match=r"(?i)duplicat|unique") as caught:
        schema.upgrade(database_url)
    assert_one_line_without_password(caught.value, database_url)


@pytest.mark.parametrize("url", ["", "nova:hunter2@host/db", "oracle://nova:hunter2@host/db", "sqlite://"])
def test_a_url_that_cannot_be_used_is_refused_without_showing_it(url: str) -> None:
    for act in (schema.current, schema.check, schema.upgrade):
        with pytest.raises(ConfigError, match="the database's URL") as caught:
            act(url)
        assert "hunter2" not in str(caught.value)


def test_a_driver_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymysql", None)
    with pytest.raises(ConfigError, match=r"nova:\*\*\*@.* cannot be used with what is installed: .*pymysql"):
        schema.current("mysql+pymysql://nova:hunter2@127.0.0.1:1/nova_api")


def test_an_option_that_the_driver_does_not_know_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cannot be used with what is installed: .*colour"):
        schema.current("mysql+pymysql://nova:hunter2@127.0.0.1:1/nova_api?colour=blue")


def test_a_database_file_in_no_directory_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="unable to open database file"):
        schema.upgrade(f"sqlite:///{tmp_path}/not/there.db")


# -- manners -----------------------------------------------------------------------------------------------------


def test_nothing_is_written_and_logging_is_left_alone(database_url: str, capfd: pytest.CaptureFixture[str]) -> None:
    def state() -> Any:
        loggers = [logging.getLogger(name) for name in (None, "alembic", "alembic.runtime.migration", "sqlalchemy")]
        return [(logger.level, list(logger.handlers), logger.disabled, logger.propagate) for logger in loggers]

    before = state()
    schema.upgrade(database_url)
    schema.check(database_url)
    schema.history()
    schema.downgrade(database_url, "base")
    assert state() == before
    assert capfd.readouterr() == ("", "")


def test_importing_cellcache_does_not_import_alembic() -> None:
    code = "import sys, cellcache; sys.exit('alembic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_history_tells_when_to_run_what() -> None:
    history = schema.history()
    assert history[0] == schema.Revision(
        FIRST, None, "Create instance_mapping, cell_mapping and cache_invalidation.", "pre"
    )
    assert history[-1].revision == schema.head()
    assert [revision.down_revision for revision in history[1:]] == [revision.revision for revision in history[:-1]]


def revision_files() -> list[Any]:
    versions = files("cellcache.migrations") / "versions"
    return [file for file in versions.iterdir() if file.name.endswith(".py") and file.name != "__init__.py"]


def test_a_revision_is_named_as_its_file_and_says_when_it_is_run() -> None:
    assert {file.name for file in revision_files()} == {f"{revision.revision}.py" for revision in schema.history()}
    for revision in schema.history():
        assert re.fullmatch(r"\d{4}_(pre|post)_[a-z0-9_]+", revision.revision)
        assert len(revision.revision) <= 32, "the version table has no room for more"


def test_a_revision_imports_nothing_of_today() -> None:
    imported = {
        name.name if isinstance(node, ast.Import) else str(node.module)
        for file in revision_files()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    assert {name.split(".")[0] for name in imported} <= {"__future__", "typing", "sqlalchemy", "alembic"}


# -- plain alembic -----------------------------------------------------------------------------------------------


def alembic(url: str, folder: Path, *arguments: str) -> str:
    """Run Alembic's own command, as somebody would who has tools around it."""
    (folder / "alembic.ini").write_text(f"[alembic]\nscript_location = {files('cellcache.migrations')}\n")
    environment = os.environ | {"CELLCACHE_DATABASE__URL": url}
    result = subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=folder,
        env=environment,
        check=True,
        text=True,
        stdout=subprocess.PIPE,
    )
    return result.stdout


def test_plain_alembic_works_with_the_settings(database_url: str, tmp_path: Path) -> None:
    alembic(database_url, tmp_path, "upgrade", "head")
    assert schema.check(database_url) == []
    assert "No new upgrade operations detected" in alembic(database_url, tmp_path, "check")
    alembic(database_url, tmp_path, "downgrade", "base")
    assert not tables_of(database_url) & OURS


def test_plain_alembic_writes_statements_without_a_server(tmp_path: Path) -> None:
    url = "mysql+pymysql://nova:hunter2@127.0.0.1:1/nova_api"
    script = alembic(url, tmp_path, "upgrade", "head", "--sql")
    assert script == as_script(schema.upgrade, url)


def test_a_new_revision_is_drawn_from_the_template(tmp_path: Path) -> None:
    """A developer's next revision begins as code that runs."""
    versions = tmp_path / "versions"
    versions.mkdir()
    url = f"sqlite:///{tmp_path / 'cellcache.db'}"
    for name in ("env.py", "script.py.mako"):
        (tmp_path / name).write_text((files("cellcache.migrations") / name).read_text())
    (tmp_path / "alembic.ini").write_text(f"[alembic]\nscript_location = {tmp_path}\nfile_template = %%(rev)s\n")
    arguments = ["revision", "-m", "Create everything", "--autogenerate", "--rev-id", "0001_pre_everything"]
    subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=tmp_path,
        env=os.environ | {"CELLCACHE_DATABASE__URL": url},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    text = (versions / "0001_pre_everything.py").read_text()
    assert text.startswith('"""Create everything.\n\nRun before the deployment')
    assert "op.create_table('cell_mapping'" in text
    compile(text, "revision", "exec")
