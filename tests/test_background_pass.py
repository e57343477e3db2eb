"""What the background does, and who does it: its thread, or a lookup where that does not run."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from cellcache import CellDirectory, maintenance
from tests.children import fork_in_c, in_child
from tests.directories import HERE, Site, new_uuids, open_site

PATIENCE_S = 30.0


@pytest.fixture
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, "fakeredis") as site:
        yield site


class NeverRuns(threading.Thread):
    """A thread of Python's in a process that runs none, as a worker of uWSGI between two requests."""

    def start(self) -> None:
        """Wait for a turn that does not come."""

    def join(self, timeout: float | None = None) -> None:
        """Be gone."""


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The background thread does not run; and the intervals are short."""
    namespace = SimpleNamespace(Thread=NeverRuns, current_thread=threading.current_thread)
    monkeypatch.setattr(maintenance, "threading", namespace)
    monkeypatch.setattr(maintenance, "_PASS_S", 0.05)


def until(what: object, directory: CellDirectory, key: str) -> int:
    """Look up until `what()` is true; return how many passes lookups have made by then."""
    assert callable(what)
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline
        assert directory.resolve_cell(key).uuid == HERE
    return directory.stats().passes_by_lookups


@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize("cache", ["memory", "fakeredis"])
def test_lookups_deliver_what_is_left_over_where_no_thread_runs(
    cache: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with open_site(request, tmp_path, cache) as site:
        directory = site.open()
        key, gone = new_uuids(2)
        directory.map_instance(key, HERE, "project")
        directory.resolve_cell(key)
        directory._here().store.add_invalidation([gone], 0.0)
        hits = directory.stats().hits
        passes = until(lambda: directory.waiting_invalidations().count == 0, directory, key)
        assert passes >= 1
        assert directory.stats().hits > hits  # they were hits that noticed


@pytest.mark.usefixtures("frozen")
def test_lookups_see_that_a_cell_has_changed_where_no_thread_runs(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, key = site.open(), new_uuids(1)[0]
    monkeypatch.setattr(directory._here().maintenance, "_refresh_s", 0.05)
    directory._here().maintenance._refresh_at = 0.0
    directory._here().maintenance._expect_next()
    directory.map_instance(key, HERE, "project")
    site.run(f"UPDATE cell_mapping SET name = 'renamed' WHERE uuid = '{HERE}'")
    until(lambda: directory.resolve_cell(key).name == "renamed", directory, key)


@pytest.mark.usefixtures("frozen")
def test_pass_of_a_lookup_that_fails_costs_it_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, key = site.open(), new_uuids(1)[0]
    directory.map_instance(key, HERE, "project")
    directory.resolve_cell(key)
    site.run("ALTER TABLE cache_invalidation RENAME TO away")
    assert until(lambda: directory.stats().passes_by_lookups >= 2, directory, key) >= 2
    site.run("ALTER TABLE away RENAME TO cache_invalidation")


def test_lookups_leave_it_to_the_thread_where_that_runs(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "_PASS_S", 0.05)
    directory, key = site.open(), new_uuids(1)[0]
    directory.map_instance(key, HERE, "project")
    deliveries = threading.Semaphore(0)
    deliver = directory._here().invalidations.deliver

    def counted() -> object:
        deliveries.release()
        return deliver()

    monkeypatch.setattr(directory._here().invalidations, "deliver", counted)
    for _ in range(3):
        assert deliveries.acquire(timeout=PATIENCE_S)
    assert directory.stats().passes_by_lookups == 0


@pytest.mark.needs("mariadb")
def test_child_of_an_untold_fork_starts_no_thread_nor_does_it_when_it_forks_itself(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with open_site(request, tmp_path, "fakeredis", "mariadb") as site:
        directory, key = site.open(), new_uuids(1)[0]
        directory.map_instance(key, HERE, "project")

        def who_has_a_thread() -> bool:
            assert directory.resolve_cell(key).uuid == HERE
            return directory._here().maintenance._thread is not None

        def work() -> list[bool]:
            before = who_has_a_thread()
            return [before, in_child(who_has_a_thread, watched=False), who_has_a_thread()]

        assert in_child(work, fork=fork_in_c) == [False, True, False]  # Python has told the grandchild
        assert who_has_a_thread()


FORKS = """
import os, threading
from uuid import uuid4
from cellcache import CellDirectory, Settings

directory = CellDirectory.open(Settings(database={{"url": "{url}"}}))
key = "{key}"
for number in range(20):
    assert directory.resolve_cell(key).uuid == "{cell}"
    child = os.fork()
    names = [thread.name for thread in threading.enumerate() if thread.name == "cellcache"]
    assert names == ["cellcache"], names
    assert directory.resolve_cell(key).uuid == "{cell}"
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
directory.close()
print("done")
"""


@pytest.mark.slow
def test_fork_finds_no_thread_of_ours_and_both_go_on_with_one(site: Site) -> None:
    """From Python 3.12 on, a fork of a process with threads is warned of."""
    key = new_uuids(1)[0]
    site.open().map_instance(key, HERE, "project")
    program = FORKS.format(url=site.database_url, key=key, cell=HERE)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S * 2,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        check=False,
    )
    assert (done.stdout, done.stderr) == ("done\n", "")
