"""Two cells whose URLs lead to one database are found, whatever their URLs call it; and two databases are two."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.pool import NullPool

from cellcache.config import DatabaseSettings
from cellcache.model import CellMapping
from cellcache.shared_databases import shared_databases, sharing_with
from tests.servers import MariaDB, PostgreSQL

LIMITS = DatabaseSettings()

_names = (f"shared_{number}" for number in itertools.count(1))


def cells(*urls: str) -> list[CellMapping]:
    return [
        CellMapping(uuid=str(uuid4()), name=None, database_connection=url, transport_url="none:///") for url in urls
    ]


def share(*urls: str) -> bool:
    """Say whether all these have one database; that some have and others have not is an error."""
    found = shared_databases(chosen := cells(*urls), LIMITS)
    assert found in ([], [chosen])
    return found == [chosen]


def run(url: str, *statements: str) -> None:
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def with_user(url: str, user: str) -> str:
    return make_url(url).set(username=user, password="p").render_as_string(hide_password=False)


def test_an_sqlite_file_is_one_by_whatever_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, link, hard = tmp_path / "cell.db", tmp_path / "link.db", tmp_path / "hard.db"
    file.touch()
    link.symlink_to(file)
    os.link(file, hard)
    monkeypatch.chdir(tmp_path)
    paths = (file, "cell.db", "./cell.db", link, hard, f"file:{file}?uri=true")
    assert share(*(f"sqlite:///{path}" for path in paths), f"sqlite+pysqlite:///{file}")
    (tmp_path / "other.db").touch()
    assert not share(f"sqlite:///{file}", f"sqlite:///{tmp_path / 'other.db'}")


def test_an_sqlite_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    assert share(f"sqlite:///{tmp_path}/new.db", f"sqlite:///{tmp_path}/./new.db")
    assert not share(f"sqlite:///{tmp_path}/new.db", f"sqlite:///{tmp_path}/newer.db")
    assert list(tmp_path.iterdir()) == []


def test_a_mysql_database_is_one_by_whatever_name_of_its_server(mariadb: MariaDB) -> None:
    one, other = (mariadb.create_database(name) for name in itertools.islice(_names, 2))
    mariadb.execute("CREATE USER IF NOT EXISTS shared@127.0.0.1 IDENTIFIED BY 'p'")
    mariadb.execute("GRANT SELECT ON *.* TO shared@127.0.0.1")
    try:
        hosts = (one.replace("127.0.0.1", host) for host in ("localhost", "127.1"))
        assert share(one, *hosts, one.replace("mysql+", "mariadb+"), with_user(one, "shared"), f"{one}?charset=utf8mb4")
        assert not share(one, other)
    finally:
        mariadb.execute("DROP USER shared@127.0.0.1")


def test_a_postgresql_schema_is_one_by_whatever_name_of_its_server(postgresql: PostgreSQL) -> None:
    one, other = (postgresql.create_database(name) for name in itertools.islice(_names, 2))
    run(one, "CREATE SCHEMA cells", "CREATE TABLE public.instances (uuid VARCHAR(36))")
    run(one, "CREATE ROLE shared LOGIN PASSWORD 'p'")
    try:
        hosts = (one.replace("127.0.0.1", host) for host in ("localhost", "127.1"))
        assert share(one, *hosts, with_user(one, "shared"), f"{one}?application_name=x")
        assert share(one, f"{one}?options=-csearch_path%3Dcells,public")  # it is found in `public`
        assert not share(one, other)
        run(one, "CREATE TABLE cells.instances (uuid VARCHAR(36))")
        assert not share(one, f"{one}?options=-csearch_path%3Dcells,public")
        assert share(*(f"{one}?options=-csearch_path%3D{path}" for path in ("cells", "cells,public", "none,cells")))
    finally:
        run(one, "DROP ROLE shared")


def test_a_postgresql_schema_without_the_table_is_told_by_its_name(postgresql: PostgreSQL) -> None:
    url = postgresql.create_database(next(_names))
    run(url, "CREATE SCHEMA cells")
    assert share(url, f"{url}?options=-csearch_path%3Dpublic")
    assert not share(url, f"{url}?options=-csearch_path%3Dcells")


@pytest.mark.parametrize("kind", ["mysql+pymysql", "postgresql+psycopg"])
def test_a_database_that_is_away_is_told_by_its_url(kind: str) -> None:
    here = f"{kind}://nova:hush@127.0.0.1:1/cell"
    assert share(here, f"{kind}://other:secret@localhost:1/cell")
    assert not share(here, f"{kind}://nova:hush@127.0.0.1:1/other")


def test_a_url_that_cannot_be_used_leads_nowhere() -> None:
    for url in ("", "nonsense", "nonsense://h/d", "mysql+pymysql://{username}@h/d"):
        assert not share(url, url)


def test_several_are_told_apart_at_once_and_each_is_told_with_whom_it_shares(tmp_path: Path) -> None:
    chosen = cells(*(f"sqlite:///{tmp_path}/{name}.db" for name in ("a", "b", "a", "c", "b", "a")))
    a, b, a2, c, b2, a3 = chosen
    assert shared_databases(chosen, LIMITS) == [[a, a2, a3], [b, b2]]
    assert sharing_with(a2, chosen, LIMITS) == [a, a3]
    assert sharing_with(c, chosen, LIMITS) == []


def test_a_cell_is_compared_with_those_of_its_kind_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell, other = cells(f"sqlite:///{tmp_path}/a.db", "mysql+pymysql://nova@127.0.0.1:1/cell")
    asked: list[list[CellMapping]] = []

    def ask(some: list[CellMapping], _: DatabaseSettings) -> list[list[CellMapping]]:
        asked.append(some)
        return []

    monkeypatch.setattr("cellcache.shared_databases.shared_databases", ask)
    assert sharing_with(cell, [other, cell], LIMITS) == []
    assert asked == [[cell]]
