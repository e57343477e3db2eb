"""What a database's URL says about its connections: it holds in each that we make, and our limits hold beside it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Connection, Engine, create_engine, make_url, text
from sqlalchemy.pool import NullPool

from cellcache import CellDirectory, Settings, schema
from cellcache.database import Use, open_engine
from tests.servers import MariaDB, PostgreSQL

USES: list[Use] = ["read", "write", "as it is", "cell"]
PATH = "?options=-csearch_path%3Dcells"
SPELLINGS = {
    "once": PATH,
    "with a space": "?options=-c%20search_path%3Dcells",
    "twice": f"{PATH}&options=-cwork_mem%3D4MB",
    "twice, the other way round": "?options=-cwork_mem%3D4MB&options=-csearch_path%3Dcells",
    "in the environment": "",
}

_names = (f"url_options_{number}" for number in itertools.count(1))


def opened(url: str, use: Use = "read") -> Engine:
    return open_engine(url, pool_size=1, timeout_s=5.0, connect_timeout_s=3.0, use=use)


def asked(url: str, ask: Callable[[Connection], Any], use: Use = "read") -> Any:
    """Return what one connection of ours answers."""
    engine = opened(url, use)
    try:
        with engine.connect() as connection:
            return ask(connection)
    finally:
        engine.dispose()


def run(url: str, *statements: str) -> None:
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


@pytest.fixture
def database(postgresql: PostgreSQL) -> str:
    """A database with a schema `cells` beside `public`."""
    url = postgresql.create_database(next(_names))
    run(url, "CREATE SCHEMA cells")
    return url


@pytest.fixture(params=SPELLINGS)
def in_schema(request: pytest.FixtureRequest, database: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URL that leads to the schema `cells`."""
    if request.param == "in the environment":
        monkeypatch.setenv("PGOPTIONS", "-csearch_path=cells")
    return database + SPELLINGS[request.param]


def settings_of(connection: Connection) -> dict[str, str]:
    names = ("search_path", "statement_timeout", "lock_timeout")
    return {name: str(connection.scalar(text(f"SHOW {name}"))) for name in names}


@pytest.mark.parametrize("use", USES)
def test_our_limits_are_added_to_the_options_of_the_url(in_schema: str, use: Use) -> None:
    assert asked(in_schema, settings_of, use) == {
        "search_path": "cells",
        "statement_timeout": "5s",
        "lock_timeout": "5s",
    }


def test_the_options_of_the_url_win_over_our_limits_and_over_the_environment(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGOPTIONS", "-csearch_path=elsewhere")
    assert asked(f"{database}{PATH}%20-cstatement_timeout%3D9s", settings_of) == {
        "search_path": "cells",
        "statement_timeout": "9s",
        "lock_timeout": "5s",
    }


@pytest.mark.slow
def test_a_directory_finds_the_tables_that_an_upgrade_made(
    in_schema: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema.upgrade(in_schema)
    with CellDirectory.open(Settings(database={"url": in_schema})) as directory:
        cell, instance = directory.create_cell("one", "sqlite:///one.db", "fake://"), uuid4()
        directory.map_instance(instance, cell.uuid, "project-1")
        assert directory.resolve_cell(instance).uuid == cell.uuid
    assert schema.check(in_schema) == []
    monkeypatch.delenv("PGOPTIONS", raising=False)
    assert schema.current(database) is None  # in `public` nothing was done


@pytest.mark.slow
def test_a_cell_is_looked_for_in_the_schema_that_its_url_names(
    in_schema: str, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`public` is another cell's: were that looked into, a living instance would go."""
    ours, theirs = str(uuid4()), str(uuid4())
    for where, instance in (("cells", ours), ("public", theirs)):
        run(
            database,
            f"CREATE TABLE {where}.instances (uuid VARCHAR(36))",
            f"INSERT INTO {where}.instances VALUES ('{instance}')",
        )
    mappings = f"sqlite:///{tmp_path / 'mappings.db'}"
    schema.upgrade(mappings)
    with CellDirectory.open(Settings(database={"url": mappings})) as directory:
        cell = directory.create_cell("one", in_schema, "fake://")
        directory.map_instance(ours, cell.uuid, "project-1")
        with directory.connect_cell(ours) as connection:
            assert connection.scalars(text("SELECT uuid FROM instances")).all() == [ours]
        assert directory.prune_purged(cell.uuid, older_than_s=0).removed == 0
        assert directory.resolve_cell(ours) == cell


def test_a_limit_that_a_postgresql_url_names_is_kept(database: str) -> None:
    def ask(connection: Connection) -> dict[str, str]:
        driver: Any = connection.connection.driver_connection
        return {name: driver.info.get_parameters()[name] for name in ("connect_timeout", "tcp_user_timeout")}

    assert asked(database, ask) == {"connect_timeout": "3", "tcp_user_timeout": "6000"}
    assert asked(f"{database}?connect_timeout=7", ask) == {"connect_timeout": "7", "tcp_user_timeout": "6000"}
    assert asked(f"{database}?tcp_user_timeout=12345", ask) == {"connect_timeout": "3", "tcp_user_timeout": "12345"}


def test_a_limit_that_a_mysql_url_names_is_kept(mariadb: MariaDB) -> None:
    def ask(connection: Connection) -> list[float]:
        driver: Any = connection.connection.driver_connection
        return [driver.connect_timeout, driver._read_timeout, driver._write_timeout]

    url = mariadb.database_url(None)
    assert asked(url, ask) == [3.0, 6.0, 6.0]
    assert asked(f"{url}?connect_timeout=7", ask) == [7, 6.0, 6.0]
    assert asked(f"{url}?read_timeout=8&write_timeout=9", ask) == [3.0, 8, 9]


@pytest.mark.parametrize("use", USES)
def test_a_limit_that_an_sqlite_url_names_is_kept(tmp_path: Path, use: Use) -> None:
    def ask(connection: Connection) -> int:
        return int(connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one())

    url = f"sqlite:///{tmp_path / 'one.db'}"
    assert asked(url, ask, use) == 5000
    assert asked(f"{url}?timeout=7", ask, use) == 7000


def test_the_settings_give_alembic_all_options_as_one(database: str) -> None:
    url = Settings(database={"url": database + SPELLINGS["twice"]}).database.sqlalchemy_url
    assert url == make_url(f"{database}{PATH}%20-cwork_mem%3D4MB")
