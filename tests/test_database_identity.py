"""Which URLs lead to one database: their directories share what they keep in memory, and no others do."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.pool import NullPool

from cellcache import CellDirectory, InstanceNotMapped, Settings
from cellcache.database_identity import database_identity
from tests.directories import HERE, THERE, create_tables, new_database, new_uuids
from tests.servers import PostgreSQL


def identity(url: str) -> str:
    return database_identity(make_url(url))


def in_memory(url: str) -> Settings:
    return Settings(database={"url": url}, cache={"backend": "cellcache.memory"})


MYSQL = [
    ["mysql+pymysql://u:p@db/cells", "mariadb+pymysql://other:pw@DB:3306/cells?charset=utf8mb4&connect_timeout=3"],
    ["mysql+pymysql://u:p@db:3307/cells"],
    ["mysql+pymysql://u:p@db/other"],
    ["mysql+pymysql://u:p@db.example.org/cells", "mysql+pymysql://u:p@db.example.org./cells"],
    [
        "mysql+pymysql://u:p@localhost/cells",
        "mysql+pymysql://u:p@127.0.0.1/cells",
        "mysql+pymysql://u:p@[::1]:3306/cells",
        "mysql+pymysql://u:p@[0:0:0:0:0:0:0:1]/cells",
        "mysql+pymysql:///cells",
    ],
    ["mysql+pymysql://u:p@127.0.0.2/cells"],
    ["mysql+pymysql://u:p@[2001:db8::1]/cells", "mysql+pymysql://u:p@[2001:DB8:0::1]/cells"],
    ["mysql+pymysql://u:p@/cells?unix_socket=/run/a", "mysql+pymysql://u@localhost/cells?unix_socket=/run/../run/a"],
    ["mysql+pymysql://u:p@/cells?unix_socket=/run/b"],
    ["mysql+pymysql://u:p@db/cells?init_command=USE+other"],
]
POSTGRESQL = [
    ["postgresql+psycopg://u:p@db/cells", "postgresql+psycopg://v@DB:5432/cells?sslmode=require&connect_timeout=3"],
    ["postgresql+psycopg://u@db:5433/cells"],
    ["postgresql+psycopg://u@db/Cells"],
    [
        "postgresql+psycopg://u@localhost/cells",
        "postgresql+psycopg://u@127.0.0.1/cells",
        "postgresql+psycopg://u@[::1]/cells",
    ],
    ["postgresql+psycopg:///cells"],
    ["postgresql+psycopg:///cells?host=/run/postgresql", "postgresql+psycopg://u@/cells?host=/run/x/../postgresql"],
    [
        "postgresql+psycopg://u@/cells?host=h1:5432&host=h2:5433",
        "postgresql+psycopg://u@/cells?host=h2:5433&host=h1:5432",
        "postgresql+psycopg://u@/cells?host=H1,h2&port=5432,5433",
    ],
    [
        "postgresql+psycopg://u@db/cells?options=-c%20search_path%3Da",
        "postgresql+psycopg://u@db/cells?options=-csearch_path%3DA%20-c%20statement_timeout%3D1",
        "postgresql+psycopg://u@db/cells?options=--search-path%3Db&options=-c%20search_path%3D%22a%22",
    ],
    ["postgresql+psycopg://u@db/cells?options=-c%20search_path%3D%22A%22"],
    [
        "postgresql+psycopg://u@db/cells?options=-c%20search_path%3Da,b",
        "postgresql+psycopg://u@db/cells?options=-c%20search_path%3Da,%5C%20b",
    ],
    ["postgresql+psycopg://u@db/cells?options=-c%20role%3Da"],
    ["postgresql+psycopg://u@db/cells?service=one"],
    ["postgresql+psycopg://u@db/cells?hostaddr=10.0.0.1"],
]


@pytest.mark.parametrize("groups", [MYSQL, POSTGRESQL], ids=["mysql", "postgresql"])
def test_urls_of_one_database_are_one_and_those_of_two_are_two(
    groups: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGOPTIONS", raising=False)
    for urls in groups:
        assert len({identity(url) for url in urls}) == 1, urls
    assert len({identity(urls[0]) for urls in groups}) == len(groups)


def test_pgoptions_choose_the_schema_where_the_url_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, chosen = "postgresql+psycopg://u@db/cells", "postgresql+psycopg://u@db/cells?options=-c%20search_path%3Da"
    monkeypatch.setenv("PGOPTIONS", "-c search_path=a")
    assert identity(plain) == identity(chosen)
    monkeypatch.setenv("PGOPTIONS", "-c search_path=b")
    assert identity(plain) != identity(chosen)


def test_an_identity_holds_no_password() -> None:
    assert not any("hush" in identity(f"{scheme}://u:hush@h/d") for scheme in ("mysql+pymysql", "postgresql+psycopg"))


def test_a_file_of_sqlite_is_one_however_it_is_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, other = tmp_path / "a folder", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    file = folder / "x.db"
    file.touch()
    (tmp_path / "link").symlink_to(folder)
    (folder / "link.db").symlink_to(file)
    monkeypatch.chdir(folder)
    quoted = str(file).replace(" ", "%20")
    same = [
        f"sqlite:///{file}",
        f"sqlite+pysqlite:///{file}?timeout=3",
        f"sqlite:///{folder}/./x.db",
        f"sqlite:///{folder}/../a folder//x.db",
        f"sqlite:///{tmp_path}/link/x.db",
        "sqlite:///x.db",
        "sqlite:///./link.db",
        f"sqlite:///file:{quoted}?uri=true",
        f"sqlite:///file://localhost{quoted}?mode=rw&uri=true",
        "sqlite:///file:x.db?uri=true&cache=private",
    ]
    assert len({identity(url) for url in same}) == 1
    assert identity("sqlite:///X.db") != identity(same[0])
    assert identity("sqlite:///file:x.db") != identity(same[0]), "without uri=true a file of that very name"
    monkeypatch.chdir(other)
    assert identity("sqlite:///x.db") != identity(same[0])


# -- what follows for directories over the memory backend --------------------------------------------------------------


def check_shared(one_url: str, two_url: str) -> None:
    """A move through one directory is seen through the other at once."""
    with CellDirectory.open(in_memory(one_url)) as one, CellDirectory.open(in_memory(two_url)) as two:
        (key,) = new_uuids(1)
        one.map_instance(key, HERE, "project")
        assert two.resolve_cell(key).uuid == HERE
        one.move_instance(key, THERE)
        assert two.resolve_cell(key).uuid == THERE


def check_apart(one_url: str, two_url: str) -> None:
    """What is mapped in one database is not in the other."""
    with CellDirectory.open(in_memory(one_url)) as one, CellDirectory.open(in_memory(two_url)) as two:
        (key,) = new_uuids(1)
        one.map_instance(key, HERE, "project")
        assert one.resolve_cell(key).uuid == HERE
        with pytest.raises(InstanceNotMapped):
            two.resolve_cell(key)


def test_directories_over_one_file_share_a_store(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    url = new_database(request, tmp_path, "sqlite")
    check_shared(url, url.replace(f"{tmp_path}/", f"{tmp_path}/./"))


def test_one_relative_path_from_two_folders_is_two_stores(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directories = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        Path(new_database(request, folder, "sqlite").removeprefix("sqlite:///")).rename(folder / "cells.db")
        monkeypatch.chdir(folder)
        directories.append(CellDirectory.open(in_memory("sqlite:///cells.db")))
    (key,) = new_uuids(1)
    directories[0].map_instance(key, HERE, "project")
    with pytest.raises(InstanceNotMapped):
        directories[1].resolve_cell(key)
    assert directories[0].resolve_cell(key).uuid == HERE
    for directory in directories:
        directory.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mariadb", "postgresql"])
def test_directories_over_one_database_of_a_server_share_a_store(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    url, other = (new_database(request, tmp_path, kind) for _ in range(2))
    spelt = make_url(url).set(drivername="mysql+pymysql" if kind == "mariadb" else "postgresql+psycopg")
    spelt = spelt.update_query_dict({"connect_timeout": "7"})
    check_shared(url, spelt.render_as_string(hide_password=False))
    check_apart(url, other)


@pytest.mark.slow
def test_two_schemas_of_one_database_are_two_stores(postgresql: PostgreSQL) -> None:
    url = postgresql.create_database("identity_schemas")
    one, two = (f"{url}?options=-c%20search_path%3D{schema}" for schema in ("one", "two"))
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA one"))
        connection.execute(text("CREATE SCHEMA two"))
    create_tables(one)
    create_tables(two)
    check_shared(one, one.replace("-c%20search_path", "--search-path"))
    check_apart(one, two)
