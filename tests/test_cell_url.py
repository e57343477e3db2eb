"""The options of a cell's database URL: whoever writes to `cell_mapping` has no file and no login of this host."""

from __future__ import annotations

import inspect
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psycopg
import pymysql
import pytest
from psycopg import pq
from sqlalchemy import create_engine, insert, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from cellcache import CellDirectory, ConfigError, InvalidValue, Settings, schema
from cellcache.cell_url import ACCEPTED, REFUSED, parsed_cell_url
from cellcache.cli import main
from cellcache.database import Use, open_engine
from cellcache.tables import cell_mapping
from tests.directories import new_uuids

SECRET = "hush-hush"
URLS = {
    "mysql": f"mysql+pymysql://nova:{SECRET}@127.0.0.1:1/nova",
    "postgresql": f"postgresql+psycopg://nova:{SECRET}@127.0.0.1:1/nova",
    "sqlite": "sqlite:////nowhere/cell.db",
}
HOSTILE = [
    "mysql+pymysql://nova@127.0.0.1:1/nova?local_infile=1",
    "mysql+pymysql://nova@127.0.0.1:1/nova?%6cocal_infile=1",
    "mariadb+pymysql://nova@127.0.0.1:1/nova?charset=utf8mb4&read_default_file=/root/.my.cnf&read_default_group=client",
    "mysql+pymysql://nova@127.0.0.1:1/nova?init_command=DROP+DATABASE+nova",
    "mysql+pymysql://nova@127.0.0.1:1/nova?plugin=theirs",
    "postgresql+psycopg://nova@127.0.0.1:1/nova?service=theirs&servicefile=/tmp/theirs",
    "postgresql+psycopg://nova@127.0.0.1:1/nova?passfile=/root/.pgpass",
    "postgresql+psycopg://nova@127.0.0.1:1/nova?sslkeylogfile=/root/.bashrc",
    "postgresql+psycopg://nova@127.0.0.1:1/nova?conninfo=service%3Dtheirs",
    "postgresql+psycopg://nova@127.0.0.1:1/nova?gssdelegation=1",
    "sqlite:////nowhere/cell.db?uri=true&vfs=theirs",
]


def options_of(url: str) -> list[str]:
    return sorted(make_url(url).query.keys() & set().union(*REFUSED.values()))


def drivers_options(kind: str) -> set[str]:
    """Everything that the driver which is installed here takes, and SQLAlchemy before it."""
    if kind == "mysql":
        return set(inspect.signature(pymysql.connect).parameters) | {"plugin", "plugins"}
    if kind == "postgresql":
        ours = set(inspect.signature(psycopg.connect).parameters) - {"kwargs"}
        return ours | {each.keyword.decode() for each in pq.Conninfo.get_defaults()} | {"plugin", "plugins"}
    return {"uri", "timeout", "detect_types", "isolation_level", "check_same_thread", "cached_statements", "plugin"}


@pytest.mark.parametrize("kind", URLS)
def test_each_option_of_the_driver_is_accepted_or_refused_by_name(kind: str) -> None:
    """One that a later release of a driver brings is refused, too: look at it, and write it in one of the two."""
    assert not ACCEPTED[kind] & REFUSED[kind]
    assert drivers_options(kind) <= ACCEPTED[kind] | REFUSED[kind]
    for option in ACCEPTED[kind]:
        assert parsed_cell_url(f"{URLS[kind]}?{option}=1").query == {option: "1"}
    for option in REFUSED[kind]:
        with pytest.raises(ValueError, match=rf"\b{option}\b"):
            parsed_cell_url(f"{URLS[kind]}?{option}=1")


@pytest.mark.parametrize("kind", URLS)
def test_an_option_that_nobody_knows_is_refused_and_not_shown(kind: str) -> None:
    """It may be a part of a password that holds a question mark."""
    with pytest.raises(ValueError, match=r"\(one that cellcache does not know\)") as refusal:
        parsed_cell_url(f"{URLS[kind]}?{SECRET}=1")
    assert SECRET not in str(refusal.value)


@pytest.mark.parametrize("url", HOSTILE)
def test_such_a_url_is_refused_where_a_cell_is_created_or_changed(url: str, tmp_path: Path) -> None:
    mappings = f"sqlite:///{tmp_path / 'mappings.db'}"
    schema.upgrade(mappings)
    with CellDirectory.open(Settings(database={"url": mappings})) as directory:
        cell = directory.create_cell("one", "sqlite:///one.db", "none:///")
        with pytest.raises(InvalidValue, match=options_of(url)[0]):
            directory.create_cell("two", url, "none:///")
        with pytest.raises(InvalidValue, match=options_of(url)[0]):
            directory.update_cell(cell.uuid, database_connection=url)
        assert directory.list_cells() == [cell]


@pytest.mark.slow
def test_such_a_row_is_named_by_doctor_and_nobody_connects_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mappings, config = f"sqlite:///{tmp_path / 'mappings.db'}", tmp_path / "cellcache.toml"
    config.write_text(f'[database]\nurl = "{mappings}"\n')
    schema.upgrade(mappings)
    cells = dict(zip(new_uuids(len(HOSTILE)), HOSTILE, strict=True))
    rows = [
        {"uuid": uuid, "name": f"odd {n}", "database_connection": url, "transport_url": "none:///", "disabled": False}
        for n, (uuid, url) in enumerate(cells.items())
    ]
    engine = create_engine(mappings, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(insert(cell_mapping), rows)
    (instance,) = new_uuids(1)
    with CellDirectory.open(config) as directory:
        for uuid, url in cells.items():
            with pytest.raises(ConfigError, match=options_of(url)[0]):
                directory.prune_purged(uuid)
        directory.map_instance(instance, next(iter(cells)), "project")
        with pytest.raises(ConfigError, match="local_infile"), directory.connect_cell(instance):
            pass
    connected: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: connected.append(address))
    assert main(["--config", str(config), "--json", "doctor"]) == 1
    found = {each["name"]: each for each in map(json.loads, capsys.readouterr().out.splitlines())}
    for n, url in enumerate(cells.values()):
        assert found[f"odd {n}"]["level"] == "problem"
        assert all(option in found[f"odd {n}"]["says"] for option in options_of(url))
    assert connected == []


# -- a server that asks for a file --------------------------------------------------------------------------------


class AsksForAFile:
    """A MySQL server that lets everybody in, and answers every statement by asking for a file of the client's."""

    def __init__(self, path: Path) -> None:
        self.received: list[bytes] = []
        self._path = path
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        greeting = (
            b"\x0a5.7.0\0" + bytes(4) + b"x" * 8 + b"\0\xff\xf7\x21\x02\0\xff\xff\x15" + bytes(10) + b"x" * 12 + b"\0"
        )
        with closing(self._listener), self._listener.accept()[0] as client, suppress(ConnectionResetError):
            client.settimeout(20)
            client.sendall(self._packet(0, greeting + b"mysql_native_password\0"))
            client.recv(4096)
            client.sendall(self._packet(2, b"\0\0\0\x02\0\0\0"))
            while sent := client.recv(4096):
                self.received.append(sent)
                client.sendall(self._packet(1, b"\xfb" + str(self._path).encode()))

    @staticmethod
    def _packet(number: int, body: bytes) -> bytes:
        return len(body).to_bytes(3, "little") + bytes([number]) + body

    def join(self) -> None:
        self._thread.join(30)
        assert not self._thread.is_alive()


@pytest.fixture
def theirs(tmp_path: Path) -> Iterator[AsksForAFile]:
    file = tmp_path / "only-mine"
    file.write_text(SECRET)
    server = AsksForAFile(file)
    yield server
    server.join()


@pytest.mark.parametrize("use", ["read", "write", "as it is", "cell"])
def test_a_server_that_asks_for_a_file_of_this_host_gets_none(
    use: Use, theirs: AsksForAFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"mysql+pymysql://nova:p@127.0.0.1:{theirs.port}/nova"
    engine = open_engine(url, pool_size=1, timeout_s=5.0, connect_timeout_s=5.0, use=use)
    given, connect = [], pymysql.connect

    def look(**options: Any) -> Any:
        given.append(options["local_infile"])
        return connect(**options)

    monkeypatch.setattr(pymysql, "connect", look)
    with pytest.raises(DBAPIError), engine.connect():
        pass
    engine.dispose()
    theirs.join()
    assert given == [False]  # not left to the driver's default
    assert theirs.received
    assert SECRET.encode() not in b"".join(theirs.received)


def test_it_would_get_one_from_a_driver_that_may_send_it(theirs: AsksForAFile) -> None:
    """Were it not so, the test above would show nothing."""
    with pytest.raises(pymysql.err.Error):
        pymysql.connect(
            host="127.0.0.1", port=theirs.port, user="nova", local_infile=True, read_timeout=1, init_command="SELECT 1"
        )
    theirs.join()
    assert SECRET.encode() in b"".join(theirs.received)


@pytest.mark.parametrize("value", ["0", "1"])
def test_the_configuration_cannot_ask_for_it_either(value: str) -> None:
    with pytest.raises(ConfigError, match="has the option local_infile, with which a server may ask for any file"):
        Settings(database={"url": f"mysql+pymysql://nova:{SECRET}@db/nova?local_infile={value}"})
