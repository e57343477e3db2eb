"""Real servers for every test file: one of each kind for the whole run, put right again after each test.

A server that is not installed skips the tests that need it, visibly; with CI=true it fails them. A test that starts
servers of its own says so by `@pytest.mark.needs("memcached")`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.server_process import Server
from tests.servers import Kind, MariaDB, Memcached, PostgreSQL, Redis, missing

# Started in the background, a shell has these ignored, and so would every process that a test starts and interrupts.
for _signal in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, signal.default_int_handler if _signal == signal.SIGINT else signal.SIG_DFL)

# Where pytest starts processes of its own to run the tests in, readline tells them the width of its terminal.
for _name in ("COLUMNS", "LINES"):
    os.environ.pop(_name, None)

AnyServer = TypeVar("AnyServer", bound=Server)

_SERVER_NAMES = {"memcached", "memcacheds", "redis", "redis_server", "mariadb", "postgresql"}
_RUN_ON_THE_WHEEL = ("test_packaging", "test_migrations", "test_cli")
_shared: list[Server] = []
_database_names = (f"test_{number}" for number in itertools.count(1))


def require(kind: Kind) -> None:
    """Skip the test if this server is not installed, or fail it where the environment says it must be there."""
    reason = missing(kind)
    if reason is None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def memcached() -> Iterator[Memcached]:
    """One memcached. Entries of other tests are in it."""
    require("memcached")
    with _shared_server(Memcached()) as server:
        yield server


@pytest.fixture(scope="session")
def memcacheds() -> Iterator[list[Memcached]]:
    """Three memcached servers, other than `memcached`."""
    require("memcached")
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(_shared_server(Memcached())) for _ in range(3)]


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    """One Redis. Entries of other tests are in it."""
    require("redis")
    with _shared_server(Redis()) as server:
        yield server


@pytest.fixture(
    params=[
        pytest.param("memcached", marks=pytest.mark.needs("memcached")),
        pytest.param("redis_server", marks=pytest.mark.needs("redis")),
    ]
)
def cache_server(request: pytest.FixtureRequest) -> Memcached | Redis:
    """One of the cache servers, for tests that treat both alike."""
    chosen: Memcached | Redis = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    require("mariadb")
    with _shared_server(MariaDB()) as server:
        yield server


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    require("postgresql")
    with _shared_server(PostgreSQL()) as server:
        yield server


@pytest.fixture(params=["sqlite", "mariadb", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of this test's own, on each kind of server in turn."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'cellcache.db'}"
        return
    server = request.getfixturevalue(request.param)
    assert isinstance(server, MariaDB | PostgreSQL)
    name = next(_database_names)
    yield server.create_database(name)
    server.drop_database(name)


@contextlib.contextmanager
def _shared_server(server: AnyServer) -> Iterator[AnyServer]:
    with server:
        _shared.append(server)
        yield server
        _shared.remove(server)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a server, for `-m "not servers"`, and those that run on the wheel too."""
    for item in items:
        if item.path.name.startswith(_RUN_ON_THE_WHEEL):
            item.add_marker("packaging")
        asked_for = set(getattr(item, "fixturenames", ()))
        call = getattr(item, "callspec", None)
        # A parameter that is the name of a server: a fixture asks for the server by it.
        asked_for.update(value for value in (call.params.values() if call else ()) if isinstance(value, str))
        if item.get_closest_marker("needs") or not asked_for.isdisjoint(_SERVER_NAMES):
            item.add_marker("servers")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        for kind in marker.args:
            require(kind)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    """Whatever a test did to a shared server, its fixtures' ends and the next test find it running."""
    for server in _shared:
        server.recover()
    yield
    for server in _shared:
        server.recover()
