"""The demonstration cleans up wherever it is interrupted; where it is killed, the next one says what is left."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cellcache import CellDirectory, Settings, demo_cells, demo_tables, schema
from cellcache.cli import demo as cli_demo
from cellcache.demo import Demonstration
from cellcache.errors import DatabaseUnavailable
from tests.command_line import Deployment, command, environment, make_deployment
from tests.traces import OURS, databases, drop_database, execute, tables

pytestmark = pytest.mark.slow

SIZE = ("--instances", "60")

MOMENTS: dict[str, tuple[Any, str, int]] = {
    "looking for tables": (demo_tables, "_demand_nothing", 1),
    "making the tables": (schema, "create", 1),
    "making the first database": (demo_cells, "make", 1),
    "making the last database": (demo_cells, "make", 3),
    "opening the directory": (CellDirectory, "__init__", 1),
    "making the first cell": (CellDirectory, "create_cell", 1),
    "making the last cell": (CellDirectory, "create_cell", 3),
    "mapping": (CellDirectory, "map_instances", 1),
    "booting": (demo_cells.CellDatabase, "boot", 2),
    "serving": (CellDirectory, "connect_cell", 20),
    "measuring": (CellDirectory, "resolve_cells", 2),
    "moving": (CellDirectory, "move_instance", 1),
    "purging": (demo_cells.CellDatabase, "purge", 1),
    "pruning": (CellDirectory, "prune", 1),
}
"""What is called, and at which of its calls something comes in between."""

CLEANING_UP: dict[str, tuple[Any, str, int]] = {
    "removing mappings": (CellDirectory, "prune", 2),
    "removing a cell": (CellDirectory, "delete_cell", 2),
    "closing the directory": (CellDirectory, "close", 2),
    "dropping a database": (demo_cells, "drop", 2),
    "looking for rows of others": (demo_tables, "_lock", 1),
    "dropping the tables": (demo_tables, "_drop", 1),
}
"""The same, once the story is told."""

ON_SERVERS = (
    "making the tables",
    "making the last database",
    "making the last cell",
    "mapping",
    "removing a cell",
    "dropping a database",
    "dropping the tables",
)


def come_in_between(
    monkeypatch: pytest.MonkeyPatch, moment: str, when: str, interruption: Callable[[], object]
) -> list[int]:
    """Interrupt before or after a call. The list that is returned counts the calls."""
    place, name, at = (MOMENTS | CLEANING_UP)[moment]
    original = getattr(place, name)
    calls: list[int] = []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(len(calls) + 1)
        now = calls[-1] == at
        if now and when == "before":
            interruption()
        answer = original(*arguments, **options)
        if now and when == "after":
            interruption()
        return answer

    monkeypatch.setattr(place, name, interrupted)
    return calls


@pytest.fixture
def deployment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> Deployment:
    """A configuration that names an empty database, on each kind of server in turn. The story is a short one."""
    monkeypatch.setattr(cli_demo, "_REQUESTS", 30)
    monkeypatch.setattr(cli_demo, "_ROUNDS", 1)
    deployment = make_deployment(tmp_path, capsys, migrated=False)
    deployment.configure(f'[database]\nurl = "{database_url}"\ntimeout_s = 10\n')  # for a busy machine
    return deployment


def assert_no_trace(url: str, before: set[str]) -> None:
    assert databases(url) == before
    assert tables(url) == set()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("moment", [*MOMENTS, *CLEANING_UP])
def test_a_signal_at_any_moment_lets_it_clean_up(
    deployment: Deployment, database_url: str, moment: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = databases(database_url)
    calls = come_in_between(monkeypatch, moment, when, lambda: signal.raise_signal(signal.SIGTERM))
    outcome = deployment.run_to_its_end("demo", *SIZE)
    assert outcome.code == 128 + signal.SIGTERM, outcome.err
    assert calls
    assert_no_trace(database_url, before)


@pytest.mark.parametrize("database_url", ["mariadb", "postgresql"], indirect=True)
@pytest.mark.parametrize("moment", ON_SERVERS)
def test_a_signal_lets_it_clean_up_servers(
    deployment: Deployment, database_url: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = databases(database_url)
    assert come_in_between(monkeypatch, moment, "after", lambda: signal.raise_signal(signal.SIGINT)) == []
    outcome = deployment.run_to_its_end("demo", *SIZE)
    assert outcome.code == 128 + signal.SIGINT, outcome.err
    assert_no_trace(database_url, before)


@pytest.mark.parametrize(
    ("moment", "when"),
    # Where CREATE DATABASE is said to have failed, nobody can tell whose the database is: it stays, if there is one.
    [(m, w) for m in MOMENTS for w in ("before", "after") if not (m.endswith("database") and w == "after")],
)
def test_an_error_at_any_moment_lets_it_clean_up(
    deployment: Deployment, database_url: str, moment: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise DatabaseUnavailable("the database is away for a moment")

    before = databases(database_url)
    assert come_in_between(monkeypatch, moment, when, fail) == []
    outcome = deployment.run("demo", *SIZE)
    assert (outcome.code, outcome.error) == (3, "the database is away for a moment")
    assert_no_trace(database_url, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_second_signal_does_not_stop_the_cleaning_up(
    deployment: Deployment, database_url: str, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = databases(database_url)
    come_in_between(monkeypatch, "mapping", "after", lambda: signal.raise_signal(number))
    come_in_between(monkeypatch, "dropping a database", "before", lambda: signal.raise_signal(number))
    assert deployment.run_to_its_end("demo", *SIZE).code == 128 + number
    assert_no_trace(database_url, before)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_what_was_to_be_ignored_stays_ignored(
    deployment: Deployment, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    come_in_between(monkeypatch, "serving", "after", lambda: signal.raise_signal(signal.SIGHUP))
    handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert deployment.run_to_its_end("demo", *SIZE).code == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, handler)
    assert_no_trace(database_url, set())


@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError])
def test_whatever_is_raised_in_it_it_still_cleans_up(database_url: str, fault: type[BaseException]) -> None:
    def interrupt(_: int) -> None:
        raise fault

    before = databases(database_url)
    with pytest.raises(fault), Demonstration(Settings(database={"url": database_url}), size=50) as story:
        story.prepare(interrupt)
    assert_no_trace(database_url, before)


def begin(deployment: Deployment) -> subprocess.Popen[str]:
    """Start it in a process of its own, and return when it has told its first chapter."""
    arguments = command("demo", "--config", str(deployment.config), "-n", "5000")
    process = subprocess.Popen(arguments, env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while not process.stdout.readline().startswith("1. Three cells"):
        assert process.poll() is None
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_process_that_is_told_to_end_cleans_up(
    deployment: Deployment, database_url: str, number: signal.Signals
) -> None:
    before = databases(database_url)
    with begin(deployment) as process:
        assert len({name for name in databases(database_url) if "_cell" in name} - before) >= 3
        process.send_signal(number)
        assert process.wait(timeout=60) == 128 + number
    assert_no_trace(database_url, before)


def test_after_a_process_that_was_killed_the_next_one_says_what_to_remove(
    deployment: Deployment, database_url: str
) -> None:
    before = databases(database_url)
    with begin(deployment) as process:
        process.kill()
        process.wait(timeout=60)
    left = {name.partition(".db")[0] for name in databases(database_url) - before if "_cell" in name}
    assert len(left) == 3
    outcome = deployment.run("demo", *SIZE)
    assert outcome.code == 1
    assert all(name in outcome.error for name in left | OURS)
    assert "if a demonstration that was killed has left them, drop them" in outcome.error
    execute(database_url, *(f"DROP TABLE {name}" for name in OURS))
    outcome = deployment.run("demo", *SIZE)
    assert outcome.code == 2
    assert all(name in outcome.error for name in left)
    for name in left:
        drop_database(database_url, name)
    deployment.ok("demo", *SIZE)
    assert {name for name in databases(database_url) - before if "_cell" in name} == set()
    assert tables(database_url) == set()
