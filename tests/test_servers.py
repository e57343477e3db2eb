"""The servers of the tests: they come and go when told, keep their port, and leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import sqlalchemy

from tests import server_process, servers
from tests.conftest import require
from tests.server_process import Server, ServerFailed, _remove_abandoned
from tests.servers import DatabaseServer, Kind, MariaDB, Memcached, PostgreSQL, Redis, missing

_PATIENCE_S = 30.0

# What each server answers with a first byte or more, before any password.
_REQUESTS: dict[type[Server], bytes] = {
    Memcached: b"version\r\n",
    Redis: b"PING\r\n",
    MariaDB: b"",
    PostgreSQL: b"\x00\x00\x00\x08\x04\xd2\x16\x2f",  # "may I use TLS?"
}

every_server = pytest.mark.parametrize(
    "make",
    [
        pytest.param(Memcached, marks=pytest.mark.needs("memcached")),
        pytest.param(Redis, marks=pytest.mark.needs("redis")),
        pytest.param(MariaDB, marks=pytest.mark.needs("mariadb")),
        pytest.param(PostgreSQL, marks=pytest.mark.needs("postgresql")),
    ],
)
every_database = pytest.mark.parametrize(
    "make",
    [
        pytest.param(MariaDB, marks=pytest.mark.needs("mariadb")),
        pytest.param(PostgreSQL, marks=pytest.mark.needs("postgresql")),
    ],
)


def ask(server: Server, timeout_s: float = 5.0) -> bytes:
    """The first bytes that a new connection gets; TimeoutError if there are none in time."""
    with socket.create_connection((server.host, server.port), timeout=timeout_s) as connection:
        connection.sendall(_REQUESTS[type(server)])
        return connection.recv(1024)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    """Whether the process has ended, reaped or not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@every_server
def test_a_server_stops_and_starts_again_on_its_port(make: Callable[[], Server]) -> None:
    with make() as server:
        port, pid = server.port, server.pid
        assert ask(server)
        server.stop()
        assert is_gone(pid)
        assert not server.running
        with pytest.raises(ConnectionRefusedError):
            ask(server)
        server.restart()
        assert (server.port, server.running) == (port, True)
        assert ask(server)


@every_server
def test_a_killed_server_is_gone_with_its_children_and_starts_again(make: Callable[[], Server]) -> None:
    with make() as server:
        pids = [process.pid for process in server._processes()]
        server.kill()
        assert all(is_gone(pid) for pid in pids)
        with pytest.raises(ConnectionRefusedError):
            ask(server)
        server.start()
        assert ask(server)


@every_server
def test_a_suspended_server_takes_connections_and_says_nothing_until_it_is_resumed(
    make: Callable[[], Server],
) -> None:
    with make() as server:
        server.suspend()
        with pytest.raises(TimeoutError):
            ask(server, timeout_s=0.2)
        server.resume()
        assert ask(server)


@every_server
def test_a_suspended_server_can_be_ended_and_put_right(make: Callable[[], Server]) -> None:
    with make() as server:
        for end in (server.kill, server.stop):
            server.suspend()
            end()
            assert not server.running
            server.start()
            assert ask(server)
        server.suspend()
        server.recover()
        assert ask(server)


@every_server
def test_a_closed_server_leaves_no_process_no_directory_and_no_shared_memory(make: Callable[[], Server]) -> None:
    with make() as server:
        pids = [process.pid for process in server._processes()]
        server.kill()
        server.start()
        pids += [process.pid for process in server._processes()]
        server.kill()
    assert all(is_gone(pid) for pid in pids)
    assert not server.directory.exists()
    assert shared_memory_of(pids) == []
    with pytest.raises(ConnectionRefusedError):
        ask(server)


def shared_memory_of(pids: list[int]) -> list[str]:
    """The System V shared memory segments that these processes created."""
    listed = subprocess.run(["ipcs", "-m", "-p"], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines() if line[:1].isdigit()]
    return [shmid for shmid, _owner, creator, _last in rows if int(creator) in pids]


@every_server
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, None])
def test_a_server_ends_with_the_process_that_started_it(make: type[Server], end: signal.Signals | None) -> None:
    script = f"""
import sys
from tests.servers import {make.__name__}
server = {make.__name__}().start()
print(server.directory, *[process.pid for process in server._processes()], flush=True)
sys.stdin.read()
"""
    with starter(script) as process:
        assert process.stdout is not None
        directory, *pids = process.stdout.readline().split()
        assert not is_gone(int(pids[0]))
        if end is None:
            process.communicate()  # its standard input ends, so it does too
        else:
            process.send_signal(end)
            process.wait()
        wait_until(lambda: all(is_gone(int(pid)) for pid in pids))
        if end in {signal.SIGINT, None}:  # Python had its chance
            assert not Path(directory).exists()
        else:
            remove_abandoned_now(Path(directory))


@contextlib.contextmanager
def starter(script: str) -> Iterator[subprocess.Popen[str]]:
    """Run a Python script in the environment of this one."""
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parents[1],
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def remove_abandoned_now(directory: Path) -> None:
    """Make a directory old enough to be taken for abandoned, and see it removed."""
    os.utime(directory, (0, 0))
    _remove_abandoned()
    wait_until(lambda: not directory.exists())  # another test run may have been the first to find it, and be at it


@pytest.mark.needs("postgresql")
def test_a_postgresql_that_was_suspended_when_its_starter_was_killed_is_ended_by_the_next_one() -> None:
    script = """
import sys
from tests.servers import PostgreSQL
server = PostgreSQL().start()
server.suspend()
print(server.directory, *[process.pid for process in server._processes()], flush=True)
sys.stdin.read()
"""
    with starter(script) as process:
        assert process.stdout is not None
        directory, *pids = process.stdout.readline().split()
        process.kill()
        process.wait()
        remove_abandoned_now(Path(directory))
        wait_until(lambda: all(is_gone(int(pid)) for pid in pids))
        assert shared_memory_of([int(pid) for pid in pids]) == []


@pytest.mark.needs("memcached")
def test_a_directory_whose_owner_lives_is_not_taken_for_abandoned() -> None:
    with Memcached() as server:
        os.utime(server.directory, (0, 0))
        _remove_abandoned()
        assert server.directory.exists()
        assert ask(server)


def test_a_directory_that_is_being_made_is_not_taken_for_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    young = tmp_path / "cellcache-server-young"
    young.mkdir()
    _remove_abandoned()
    assert young.exists()


def test_what_somebody_else_calls_alike_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mine = tmp_path / "mine"
    mine.mkdir()
    os.utime(mine, (0, 0))
    theirs = tmp_path / "cellcache-server-theirs"
    theirs.symlink_to(mine)
    os.utime(theirs, (0, 0), follow_symlinks=False)
    monkeypatch.setattr(server_process, "_processes_in", lambda _: pytest.fail("looked for processes to end"))
    _remove_abandoned()
    assert mine.exists()


@every_server
def test_the_folder_of_a_server_is_its_own(make: Callable[[], Server]) -> None:
    server = make()
    assert stat.S_IMODE(server.directory.stat().st_mode) == 0o700
    server.close()


@every_database
def test_nobody_is_let_into_a_database_without_its_password(make: Callable[[], DatabaseServer]) -> None:
    """Every account of this host can connect to its port, and what comes with MariaDB has no password."""
    with make() as server:
        url = sqlalchemy.make_url(server.url)
        for user in ("root", "", "nobody", "mysql", "postgres", "cellcache"):
            for database in (None, "postgres"):
                engine = sqlalchemy.create_engine(url.set(username=user, password="", database=database))
                with pytest.raises(sqlalchemy.exc.OperationalError), engine.connect():
                    pass
                engine.dispose()
        assert server.create_database("still_there")


def test_the_lock_of_the_installer_is_where_root_alone_can_put_it() -> None:
    """In a folder that everybody writes to, anybody can hold it, or lead it elsewhere."""
    script = (Path(__file__).parent / "apt_install.sh").read_text(encoding="utf-8")
    (lock,) = re.findall(r"^exec 9>(\S+)$", script, re.MULTILINE)
    for folder in Path(lock).parents:
        found = folder.stat()
        assert (found.st_uid, found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)) == (0, 0), folder


@pytest.mark.needs("redis")
def test_a_server_outlives_the_thread_that_restarted_it() -> None:
    with Redis() as server:
        thread = threading.Thread(target=server.restart)
        thread.start()
        thread.join()
        pid = server.pid
        time.sleep(0.2)
        assert not is_gone(pid)
        assert ask(server)


@pytest.mark.needs("redis")
def test_a_forked_child_that_ends_does_not_end_its_parents_server() -> None:
    script = """
import os, sys
from tests.servers import Redis
server = Redis().start()
child = os.fork()
if child == 0:
    sys.exit()
os.waitpid(child, 0)
print(server.running, server.directory.exists(), server._ask(b"PING\\r\\n"), flush=True)
"""
    with starter(script) as process:
        output, _ = process.communicate(timeout=_PATIENCE_S)
    assert output.strip() == r"True True b'+PONG\r\n'"


@pytest.mark.needs("redis")
def test_the_port_of_a_stopped_server_is_given_to_nobody_else() -> None:
    with Redis() as server:
        server.stop()
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind((server.host, server.port))
        server.start()
        assert ask(server)


@pytest.mark.needs("redis")
def test_a_server_that_does_not_start_says_what_it_logged_and_leaves_nothing() -> None:
    server = Redis(["--no-such-option", "1"])
    with pytest.raises(ServerFailed, match="no-such-option"), server:
        pass
    assert not server.running
    assert not server.directory.exists()


@pytest.mark.needs("memcached")
def test_a_memcached_listens_on_a_unix_socket() -> None:
    with Memcached(unix_socket=True) as server:
        kind, _, path = server.address.partition(":")
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(path)
            connection.sendall(b"version\r\n")
            assert (kind, connection.recv(1024)[:7]) == ("unix", b"VERSION")


@every_database
@pytest.mark.parametrize("durable", [False, True])
def test_a_killed_database_has_lost_no_commit(make: type[DatabaseServer], durable: bool) -> None:
    with make(durable=durable) as server:
        engine = sqlalchemy.create_engine(server.create_database("kept"))
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("CREATE TABLE kept (id INTEGER PRIMARY KEY)"))
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("INSERT INTO kept VALUES (1), (2), (3)"))
        engine.dispose()
        server.kill()
        server.start()
        with engine.connect() as connection:
            assert connection.scalar(sqlalchemy.text("SELECT COUNT(*) FROM kept")) == 3
        engine.dispose()


@pytest.mark.needs("mariadb")
def test_only_a_durable_mariadb_waits_for_the_disk() -> None:
    for durable, expected in [(False, 2), (True, 1)]:
        with MariaDB(durable=durable) as server:
            engine = sqlalchemy.create_engine(server.url)
            with engine.connect() as connection:
                assert connection.scalar(sqlalchemy.text("SELECT @@innodb_flush_log_at_trx_commit")) == expected
            engine.dispose()


@pytest.mark.needs("mariadb")
def test_a_mariadb_uses_no_temporary_folder_but_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # At its start it removes all temporary tables that it finds there: those of another that starts beside it too.
    monkeypatch.setenv("TMPDIR", "/nonexistent")
    with MariaDB() as server:
        assert ask(server)


def test_each_database_url_is_an_empty_database(database_url: str) -> None:
    engine = sqlalchemy.create_engine(database_url)
    assert sqlalchemy.inspect(engine).get_table_names() == []
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE mine (id INTEGER)"))
    engine.dispose()


def test_the_three_memcached_servers_are_three(memcached: Memcached, memcacheds: list[Memcached]) -> None:
    assert len({memcached.address, *(server.address for server in memcacheds)}) == 4
    assert all(ask(server).startswith(b"VERSION") for server in memcacheds)


def test_a_test_may_leave_a_shared_server_in_any_state(redis_server: Redis) -> None:
    redis_server.kill()


def test_the_next_test_finds_the_shared_server_running(redis_server: Redis) -> None:
    assert ask(redis_server) == b"+PONG\r\n"
    redis_server.suspend()


def test_the_next_test_finds_the_shared_server_resumed(redis_server: Redis) -> None:
    assert ask(redis_server) == b"+PONG\r\n"


@pytest.mark.parametrize("kind", ["memcached", "redis", "mariadb", "postgresql"])
def test_a_missing_server_is_named_in_one_line_with_what_to_install(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "_find", lambda _name: None)
    reason = missing(kind)
    assert reason is not None
    assert "\n" not in reason
    assert reason.startswith(f"{kind}: ")
    assert "apt-get install" in reason


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_a_missing_server_skips_a_test_and_fails_it_in_ci(
    ci: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "_find", lambda _name: None)
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="apt-get install memcached"):
        require("memcached")
