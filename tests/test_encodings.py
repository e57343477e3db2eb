"""Databases and tables that are not UTF-8: a text comes back as it was written, or is refused by an error of ours."""

from __future__ import annotations

import itertools
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from cellcache import CellDirectory, InvalidValue, SchemaError, Settings, schema
from cellcache.cli import main
from tests.directories import new_uuids
from tests.servers import MariaDB, PostgreSQL
from tests.test_errors import everything_in

PLAIN, LATIN, JAPANESE = "plain", "Zürich", "東京"

_names = (f"encoding_{number}" for number in itertools.count(1))


def execute(url: str, *statements: str) -> None:
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def postgresql_database(server: PostgreSQL, encoding: str) -> str:
    name = next(_names)
    server.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'")
    url = server.database_url(name)
    schema.upgrade(url)
    return url


def mariadb_tables(server: MariaDB, charset: str) -> str:
    url = server.create_database(next(_names))
    schema.upgrade(url)
    tables = ("instance_mapping", "cell_mapping", "cache_invalidation")
    execute(url, *(f"ALTER TABLE {table} CONVERT TO CHARACTER SET {charset}" for table in tables))
    return url


def opened(url: str) -> CellDirectory:
    return CellDirectory.open(Settings(database={"url": url}))


@pytest.fixture(
    params=[
        pytest.param((kind, encoding), marks=pytest.mark.needs(kind), id=f"{kind} {encoding}")
        for kind, encodings in (("postgresql", ("UTF8", "SQL_ASCII", "LATIN1")), ("mariadb", ("utf8mb4", "latin1")))
        for encoding in encodings
    ]
)
def url(request: pytest.FixtureRequest) -> str:
    kind, encoding = request.param
    server = request.getfixturevalue(kind)
    return postgresql_database(server, encoding) if kind == "postgresql" else mariadb_tables(server, encoding)


def written_and_read(directory: CellDirectory, word: str) -> None:
    cell = directory.create_cell(word, f"sqlite:///{word}.db", f"rabbit://{word}/")
    assert directory.get_cell(cell.uuid) == cell
    assert (cell.name, cell.database_connection) == (word, f"sqlite:///{word}.db")
    key = str(uuid4())
    assert directory.map_instance(key, cell.uuid, word).project_id == word
    assert directory.map_instances([(str(uuid4()), cell.uuid, word)]) == 1
    assert directory.resolve_cell(key) == cell
    assert directory.get_instance(key).project_id == word
    assert len(directory.list_instances(project_id=word)) == 2
    assert directory.prune([key]) == 1
    assert directory.update_cell(cell.uuid, name=f"{word}!").name == f"{word}!"


def test_a_text_comes_back_as_it_was_written_or_is_refused(url: str) -> None:
    with opened(url) as directory:
        written_and_read(directory, PLAIN)
        before = (directory.list_cells(), directory.list_instances())
        for word in (LATIN, JAPANESE):
            try:
                written_and_read(directory, word)
            except InvalidValue as error:
                assert "cannot hold" in str(error)  # noqa: PT017 - whether it can is what is looked for
                assert (directory.list_cells(), directory.list_instances()) == before
            before = (directory.list_cells(), directory.list_instances())


def test_which_letters_they_hold(postgresql: PostgreSQL, mariadb: MariaDB) -> None:
    """So the test before this one finds both."""
    for url in (postgresql_database(postgresql, "LATIN1"), mariadb_tables(mariadb, "latin1")):
        with opened(url) as directory:
            written_and_read(directory, LATIN)
            (cell,) = directory.list_cells()
            for refused in (
                lambda: directory.create_cell(JAPANESE, "sqlite:///c.db", "none:///"),
                lambda: directory.update_cell(cell.uuid, name=JAPANESE),  # noqa: B023
                lambda: directory.map_instance(str(uuid4()), cell.uuid, JAPANESE),  # noqa: B023
                lambda: directory.map_instances([(str(uuid4()), cell.uuid, JAPANESE)]),  # noqa: B023
                lambda: directory.map_instances([(key, cell.uuid, LATIN + JAPANESE) for key in new_uuids(1001)]),  # noqa: B023
                lambda: directory.list_instances(project_id=JAPANESE),
            ):
                with pytest.raises(InvalidValue, match="cannot hold this text"):
                    refused()
            assert {each.project_id for each in directory.list_instances()} == {LATIN}
    with opened(postgresql_database(postgresql, "SQL_ASCII")) as directory:
        written_and_read(directory, JAPANESE)


def test_mariadb_stores_no_question_marks_where_it_is_not_strict(mariadb: MariaDB) -> None:
    url = mariadb_tables(mariadb, "latin1")
    with opened(f"{url}?sql_mode=ANSI") as directory:
        with pytest.raises(InvalidValue, match="cannot hold this text"):
            directory.create_cell(JAPANESE, "sqlite:///c.db", "none:///")
        assert directory.list_cells() == []


@pytest.mark.parametrize("charset", ["latin1", "ascii"])
def test_a_connection_that_cannot_carry_a_text_refuses_it(mariadb: MariaDB, charset: str) -> None:
    url, password = mariadb.create_database(next(_names)), f"Sesame{uuid4().hex}"
    schema.upgrade(url)
    with opened(f"{url}?charset={charset}") as directory:
        written_and_read(directory, PLAIN)
        with pytest.raises(InvalidValue, match="cannot hold this text"):
            directory.create_cell(JAPANESE, "sqlite:///c.db", "none:///")
        assert len(directory.list_cells()) == 1
        with pytest.raises(InvalidValue, match="cannot hold this text") as caught:
            directory.create_cell("c", f"mysql+pymysql://nova:{password}{JAPANESE}@db/nova", "none:///")
        assert password not in everything_in(caught.value)
        assert JAPANESE[0] not in str(caught.value)


def test_bytes_that_are_no_utf8_are_an_error_of_ours(
    postgresql: PostgreSQL, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A database that takes any bytes, and a program that wrote in its own encoding."""
    url = postgresql_database(postgresql, "SQL_ASCII")
    execute(
        f"{url}?client_encoding=UTF8",
        "INSERT INTO cell_mapping (uuid, name, transport_url, database_connection) "
        f"VALUES ('{uuid4()}', E'Z\\374rich', 'none:///', 'sqlite:///c.db')",
        "INSERT INTO instance_mapping (instance_uuid, cell_uuid, project_id) "
        f"VALUES ('{uuid4()}', '{uuid4()}', E'Z\\374rich')",
    )
    with opened(url) as directory:
        for call in (directory.list_cells, directory.list_instances):
            with pytest.raises(SchemaError, match="holds a text in another encoding"):
                call()
    config = tmp_path / "cellcache.toml"
    config.write_text(f'[database]\nurl = "{url}"\n')
    for arguments in (["cell", "list"], ["instance", "list"], ["doctor"], ["stats"], ["verify"]):
        assert main(["-c", str(config), *arguments]) == 3
        assert "holds a text in another encoding" in capsys.readouterr().err
