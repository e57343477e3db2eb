"""Processes whose clock is an hour or two ahead or behind: nothing is late, and nothing goes too early.

Debian's `faketime` shows a process that time. Its monotonic clock stays right, as on a host that is set wrongly.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from cellcache import CellDirectory
from cellcache.database_clock import DatabaseTime
from cellcache.invalidations import GRACE_S
from cellcache.tables import instance_mapping
from tests.caches import eventually
from tests.command_line import command, environment
from tests.directories import DATABASES, HERE, THERE, Site, new_cell_database, new_uuids, open_site
from tests.servers import Memcached

pytestmark = [pytest.mark.slow, pytest.mark.needs("faketime")]

SERVERS = DATABASES[1:]
MOVE_AND_DIE = """
import os, sys
from cellcache import CellDirectory

config, cell_uuid, *keys = sys.argv[1:]
directory = CellDirectory.open(config)
for key in keys:
    directory.move_instance(key, cell_uuid)
os._exit(0)
"""
READ_AND_MAP = """
import json, sys
from cellcache import CellDirectory

config, cell_uuid, count, *keys = sys.argv[1:]
with CellDirectory.open(config) as directory:
    directory.resolve_cells(keys[: int(count)])
    directory.map_instances((key, cell_uuid, "project") for key in keys[int(count) :])
    print(json.dumps(directory.stats().as_dict()))
"""


@pytest.fixture(params=SERVERS)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, "memory", request.param) as site:
        yield site


@pytest.fixture
def cache() -> Iterator[Memcached]:
    with Memcached() as server:
        yield server


def configure(site: Site, folder: Path, cache: str = "") -> str:
    config = folder / "cellcache.toml"
    config.write_text(f'[database]\nurl = "{site.database_url}"\n{cache}', encoding="utf-8")
    return str(config)


def at(shift: str, *arguments: str, code: int = 0) -> str:
    """Run a process whose clock is that far from ours; return what it prints."""
    clock = ["timeout", "60", "faketime", "--exclude-monotonic", "-f", shift]
    done = subprocess.run([*clock, *arguments], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == code, done
    return done.stdout


def move_and_die(shift: str, config: str, *keys: str) -> None:
    at(shift, sys.executable, "-c", MOVE_AND_DIE, config, THERE, *keys)


@pytest.mark.needs("memcached")
@pytest.mark.parametrize("shift", ["+1h", "-1h"])
def test_signed_entries_are_over_by_the_databases_clock_on_such_a_host_too(
    site: Site, cache: Memcached, tmp_path: Path, shift: str
) -> None:
    config = configure(
        site,
        tmp_path,
        f'[cache]\nbackend = "cellcache.memcached"\nservers = ["{cache.address}"]\ntimeout_s = 4.0\n'
        f'ttl_s = 600\nsigning_key = "{"0123456789abcdef" * 2}"\n',
    )
    ours, theirs = new_uuids(5), new_uuids(5)
    with CellDirectory.open(config) as directory:
        directory.map_instances((key, HERE, "project") for key in ours)
        there = json.loads(at(shift, sys.executable, "-c", READ_AND_MAP, config, THERE, "5", *ours, *theirs))
        assert (there["hits"], there["undecodable"]) == (5, 0)
        assert {cell.uuid for cell in directory.resolve_cells(theirs).values()} == {THERE}
        assert (directory.stats().hits, directory.stats().undecodable) == (5, 0)


@pytest.mark.needs("memcached")
@pytest.mark.parametrize("shift", ["+1h", "-1h"])
def test_what_such_a_writer_leaves_is_counted_and_delivered_as_anyones(
    site: Site, cache: Memcached, tmp_path: Path, shift: str
) -> None:
    config = configure(
        site,
        tmp_path,
        f'[cache]\nbackend = "cellcache.memcached"\nservers = ["{cache.address}"]\ntimeout_s = 0.5\nretry_s = 0.1\n',
    )
    keys = new_uuids(5)
    with CellDirectory.open(config) as directory:
        directory.map_instances((key, HERE, "project") for key in keys)
        directory.resolve_cells(keys)
        cache.suspend()
        move_and_die(shift, config, *keys)
        waiting = directory.waiting_invalidations()
        assert waiting.count == 5
        assert 0 <= (waiting.oldest_s or 0.0) < 600
        cache.resume()
        assert eventually(lambda: directory.waiting_invalidations().count == 0)
        assert {cell.uuid for cell in directory.resolve_cells(keys).values()} == {THERE}


@pytest.mark.parametrize("shift", ["+1h", "-1h"])
def test_what_it_has_settled_is_left_to_it_for_as_long_as_to_anyone(site: Site, tmp_path: Path, shift: str) -> None:
    directory, (key,) = site.open(), new_uuids(1)
    directory.map_instance(key, HERE, "project")
    directory.deliver_invalidations()
    move_and_die(shift, configure(site, tmp_path), key)
    (left,) = directory.list_invalidations()
    assert left.deliver_after - left.created_at == timedelta(seconds=GRACE_S)
    ((now,),) = site.run(select(DatabaseTime()))
    moved_at = directory.get_instance(key).updated_at
    assert moved_at is not None
    assert timedelta() <= now - left.created_at < timedelta(minutes=10)
    assert timedelta() <= now - moved_at < timedelta(minutes=10)


@pytest.mark.parametrize(("shift", "age_s", "removed"), [("+2h", 0, 0), ("-2h", 5400, 3)])
def test_prune_goes_by_the_age_that_a_mapping_has(
    site: Site, tmp_path: Path, shift: str, age_s: int, removed: int
) -> None:
    directory, there, gone = site.open(), new_uuids(10), new_uuids(3)
    cell = directory.create_cell("pruned", new_cell_database(tmp_path, dict.fromkeys(there, 0)), "fake://").uuid
    directory.map_instances((key, cell, "project") for key in [*there, *gone])
    if age_s:
        site.run(instance_mapping.update().values(created_at=DatabaseTime(-age_s)))
    at(shift, *command("--config", configure(site, tmp_path), "instance", "prune", "--purged", "--cell", cell))
    assert len(site.table()) == 13 - removed


@pytest.mark.parametrize("kind", DATABASES)
def test_doctor_says_how_far_the_clock_is(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """On SQLite the host's clock is the database's, and there is no other."""
    with open_site(request, tmp_path, "memory", kind) as site:
        examine = command("--config", configure(site, tmp_path), "doctor", "--no-cells", "--json")
        findings = at("+1h", *examine, code=1)  # for the tables, which have no revision here
        (clock,) = [one for one in map(json.loads, findings.splitlines()) if one["what"] == "clock"]
        assert clock["level"] == ("fine" if kind == "sqlite" else "note")
        assert re.match("in step" if kind == "sqlite" else "3,(599|600|601) s ahead of", clock["says"])
