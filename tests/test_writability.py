"""A database that does not take our writes is found before the first of them is made, and nothing is written for it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from cellcache import Settings, schema
from cellcache.doctor import examine
from cellcache.findings import Finding, Level
from cellcache.tables import metadata
from tests.servers import MariaDB, PostgreSQL

_NOBODY = 65534


def writes(url: str) -> Finding:
    """What the doctor says of writing there."""
    (finding,) = [each for each in examine(Settings(database={"url": url}), cells=False) if each.what == "writes"]
    assert (finding.level is Level.PROBLEM) == bool(finding.advice)
    return finding


def refused(url: str) -> str:
    finding = writes(url)
    assert finding.level is Level.PROBLEM, finding
    return finding.says


def test_an_account_that_may_write_has_nothing_wrong(database_url: str) -> None:
    schema.upgrade(database_url)
    assert writes(database_url).says == "allowed"


def test_asking_changes_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'mappings.db'}"
    schema.upgrade(url)
    with closing(sqlite3.connect(tmp_path / "mappings.db")) as connection, connection:
        connection.execute("INSERT INTO cell_mapping VALUES (NULL, NULL, 1, 'a', 'b', 'c', 'd', 0)")
        before = list(connection.iterdump())
    writes(url)
    with closing(sqlite3.connect(tmp_path / "mappings.db")) as connection:
        assert list(connection.iterdump()) == before


# -- SQLite ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users reach, too: pytest's own are root's alone, and root may write whatever is read-only."""
    folder = Path(tempfile.mkdtemp(prefix="cellcache-writability-"))
    folder.chmod(0o755)
    schema.upgrade(f"sqlite:///{folder / 'mappings.db'}")
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


@contextmanager
def an_ordinary_user() -> Iterator[None]:
    if os.geteuid():
        yield
        return
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_sqlite_file_that_is_not_writable_is_a_problem(folder: Path) -> None:
    folder.chmod(0o777)
    (folder / "mappings.db").chmod(stat.S_IREAD | stat.S_IRGRP | stat.S_IROTH)
    with an_ordinary_user():
        assert "readonly" in refused(f"sqlite:///{folder / 'mappings.db'}")


def test_a_sqlite_folder_that_is_not_writable_is_a_problem(folder: Path) -> None:
    (folder / "mappings.db").chmod(0o666)
    with an_ordinary_user():
        found = list(examine(Settings(database={"url": f"sqlite:///{folder / 'mappings.db'}"}), cells=False))
    assert [each.what for each in found if each.level is Level.PROBLEM] in (
        ["database"],
        ["file", "writes"],
    )  # and others can read it
    assert "writable" in "".join(each.advice or "" for each in found)


def test_a_sqlite_url_that_only_reads_is_a_problem(folder: Path) -> None:
    assert "readonly" in refused(f"sqlite:///file:{folder / 'mappings.db'}?mode=ro&uri=true")


# -- servers -----------------------------------------------------------------------------------------------------------


def with_account(server: MariaDB | PostgreSQL, database: str, account: str) -> str:
    """Make an account that may log in and do nothing else; return the URL with which it does."""
    place = "@'127.0.0.1'" if isinstance(server, MariaDB) else ""
    password = "IDENTIFIED BY" if isinstance(server, MariaDB) else "PASSWORD"
    server.execute(f"CREATE USER {account}{place} {password} 'p'")
    url = make_url(server.database_url(database)).set(username=account, password="p")
    return url.render_as_string(hide_password=False)


def in_database(url: str, statement: str) -> None:
    from sqlalchemy import create_engine, text
    from sqlalchemy.pool import NullPool

    with create_engine(url, poolclass=NullPool).begin() as connection:
        connection.execute(text(statement))


TABLES = [*metadata.tables, "cellcache_alembic_version"]


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["INSERT", "UPDATE", "DELETE"])
@pytest.mark.parametrize("kind", ["mariadb", "postgresql"])
def test_a_right_that_one_table_lacks_is_a_problem(kind: str, missing: str, request: pytest.FixtureRequest) -> None:
    server: Any = request.getfixturevalue(kind)
    name = f"rights_{missing.lower()}"
    admin = server.create_database(name)
    schema.upgrade(admin)
    url = with_account(server, name, f"without_{missing.lower()}")
    account = f"without_{missing.lower()}" + ("@'127.0.0.1'" if kind == "mariadb" else "")
    for table in TABLES:
        in_database(admin, f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {account}")
    if kind == "postgresql":
        in_database(admin, f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {account}")
    assert writes(url).says == "allowed"
    for table in metadata.tables:
        in_database(admin, f"REVOKE {missing} ON {table} FROM {account}")
        says = refused(url)
        assert says.startswith(f"refused: {missing} ")
        assert table in says
        in_database(admin, f"GRANT {missing} ON {table} TO {account}")


def test_an_account_that_may_only_select_is_a_problem(mariadb: MariaDB, postgresql: PostgreSQL) -> None:
    for server, account in ((mariadb, "may_select@'127.0.0.1'"), (postgresql, "may_select")):
        admin = server.create_database("for_a_reader")
        schema.upgrade(admin)
        url = with_account(server, "for_a_reader", "may_select")
        for table in TABLES:
            in_database(admin, f"GRANT SELECT ON {table} TO {account}")
        assert refused(url).endswith(" more)")


def test_ids_that_postgresql_does_not_give_are_a_problem(postgresql: PostgreSQL) -> None:
    admin = postgresql.create_database("without_ids")
    schema.upgrade(admin)
    url = with_account(postgresql, "without_ids", "no_ids")
    for table in TABLES:
        in_database(admin, f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO no_ids")
    assert refused(url).startswith("refused: take an id for ")


def test_a_postgresql_that_is_set_to_be_read_only_is_a_problem(postgresql: PostgreSQL) -> None:
    url = postgresql.create_database("read_only")
    schema.upgrade(url)
    postgresql.execute("ALTER DATABASE read_only SET default_transaction_read_only = on")
    assert "read-only transaction" in refused(url)


def test_a_mariadb_that_is_set_to_be_read_only_is_a_problem(mariadb: MariaDB) -> None:
    schema.upgrade(mariadb.create_database("set_read_only"))
    url = with_account(mariadb, "set_read_only", "bound")
    mariadb.execute("GRANT ALL ON set_read_only.* TO bound@'127.0.0.1'")
    assert writes(url).says == "allowed"
    mariadb.execute("SET GLOBAL read_only = 1")
    try:
        assert "read-only" in refused(url)
    finally:
        mariadb.execute("SET GLOBAL read_only = 0")


@pytest.mark.slow
@pytest.mark.needs("postgresql")
def test_a_standby_is_a_problem() -> None:
    with PostgreSQL() as server:
        url = server.create_database("mappings")
        schema.upgrade(url)
        server.stop()
        signal = server.data / "standby.signal"
        signal.touch()
        shutil.chown(signal, server.data.owner(), server.data.group())
        server.start()
        assert "read-only transaction" in refused(url)
