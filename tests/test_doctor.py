"""The doctor: each thing that can be wrong is found, said, and given a remedy; what is right is said to be right."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from cellcache import CellDirectory, schema
from cellcache.codec import FENCE
from cellcache.errors import BackendUnsupported
from tests.caches import MemcachedCache
from tests.command_line import PASSWORD, Deployment, make_deployment
from tests.fake_redis import FakeRedis
from tests.servers import MariaDB, Memcached, PostgreSQL, Redis

Findings = dict[str, list[dict[str, Any]]]


@pytest.fixture
def deployment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Deployment:
    return make_deployment(tmp_path, capsys)


def examine(deployment: Deployment, *arguments: str, code: int = 0) -> Findings:
    """Return the findings by what they are about."""
    outcome = deployment.run("doctor", "--json", *arguments)
    assert outcome.code == code, outcome
    findings: Findings = {}
    for finding in outcome.documents:
        findings.setdefault(finding["what"], []).append(finding)
        assert (finding["level"] == "fine") == (finding["advice"] is None), finding
    return findings


def set_clock(monkeypatch: pytest.MonkeyPatch, clock: Callable[[], float]) -> None:
    monkeypatch.setattr("cellcache.doctor.time", SimpleNamespace(time=clock, perf_counter=time.perf_counter))


def problems(findings: Findings) -> set[str]:
    return {finding["what"] for each in findings.values() for finding in each if finding["level"] == "problem"}


def memcached_configuration(deployment: Deployment, *addresses: str) -> None:
    deployment.configure(
        f'[database]\nurl = "{deployment.database_url}"\n'
        f'[cache]\nbackend = "cellcache.memcached"\nservers = {list(addresses)!r}\ntimeout_s = 1.0\n'
    )


@pytest.mark.slow
def test_a_sound_deployment_has_nothing_wrong(deployment: Deployment) -> None:
    deployment.ok("cell", "create", "one", "--database-connection", deployment.cell_database("one"))
    findings = examine(deployment)
    things = ["database", "clock", "tables", "writes", "cache", "cache node", "invalidations", "mappings", "cell"]
    assert list(findings) == things
    assert all(finding["level"] == "fine" for each in findings.values() for finding in each)
    assert findings["database"][0]["version"] == sqlite3.sqlite_version
    assert findings["database"][0]["round_trip_s"] > 0
    assert schema.head() in findings["tables"][0]["says"]
    assert "time-to-live" in findings["cache"][0]["says"]
    table = deployment.ok("doctor").out
    assert "wrong" not in table
    assert "coherent inside this process" in table


@pytest.mark.needs("memcached")
@pytest.mark.slow
def test_entries_that_are_wrong_or_keep_an_answer_out_for_good_are_a_problem(
    deployment: Deployment, memcached: Memcached
) -> None:
    memcached_configuration(deployment, memcached.address)
    deployment.ok("cell", "create", "one", "--database-connection", deployment.cell_database("one"))
    keys = [str(uuid4()) for _ in range(3)]
    for key in keys:
        deployment.ok("instance", "map", key, "--cell", "one", "--project", "p")
    (finding,) = examine(deployment)["cache entries"]
    assert (finding["level"], finding["says"]) == ("fine", "3 compared with the table, none wrong")
    MemcachedCache([memcached]).place_mark(keys[0], FENCE + b"12345678", 0)
    (finding,) = examine(deployment, code=1)["cache entries"]
    assert finding["says"].startswith(f"1 of 3 are wrong, such as that of {keys[0]}: a mark that would stand")
    assert "verify --repair" in finding["advice"]
    deployment.run("verify", "--repair")
    assert examine(deployment)["cache entries"][0]["level"] == "fine"


@pytest.mark.slow
def test_a_deployment_without_cells_is_told_how_to_add_one(deployment: Deployment) -> None:
    (finding,) = examine(deployment)["cells"]
    assert finding["level"] == "note"
    assert "cellcache cell create" in finding["advice"]


@pytest.mark.parametrize("kind", ["mariadb", "postgresql"])
def test_a_database_server_says_its_version(deployment: Deployment, kind: str, request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue(kind)
    assert isinstance(server, MariaDB | PostgreSQL)
    url = server.create_database(f"doctor_{kind}")
    deployment.configure(f'[database]\nurl = "{url}"\n')
    assert problems(examine(deployment, code=1)) == {"tables"}
    schema.upgrade(url)
    (finding,) = examine(deployment)["database"]
    assert finding["version"][0].isdigit()
    assert ":***@" in finding["name"]


@pytest.mark.parametrize(
    ("ahead_s", "level", "says"),
    [
        (0.0, "fine", "in step with the database's"),
        (30.0, "fine", r"(29|30|31) s ahead of the database's"),
        (-30.0, "fine", r"(29|30|31) s behind the database's"),
        (-90.0, "note", r"(89|90|91) s behind the database's"),
        (7200.0, "note", r"7,(199|200|201) s ahead of the database's"),
    ],
)
def test_a_clock_that_differs_from_the_databases_is_a_note(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, ahead_s: float, level: str, says: str
) -> None:
    set_clock(monkeypatch, lambda: time.time() + ahead_s)
    (finding,) = examine(deployment, "--no-cells")["clock"]
    assert finding["level"] == level
    assert re.fullmatch(says, finding["says"])


def test_what_asking_for_the_time_takes_is_not_blamed_on_the_clock(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A minute and a half from question to answer: the clocks may agree, so nothing is said against ours."""
    looks = iter((0.0, 90.0))
    set_clock(monkeypatch, lambda: time.time() + next(looks))
    (finding,) = examine(deployment, "--no-cells")["clock"]
    assert finding["says"] == "in step with the database's"


@pytest.mark.slow
def test_deployment_is_named_that_entries_are_signed_for(deployment: Deployment) -> None:
    with FakeRedis() as cache:
        deployment.configure(
            f'[database]\nurl = "{deployment.database_url}"\n[cache]\nbackend = "cellcache.redis"\n'
            f'url = "{cache.url}"\nsigning_key = "{"0123456789abcdef" * 2}"\ntimeout_s = 4.0\n'
        )
        (finding,) = examine(deployment, "--no-cells")["signing"]
        UUID(finding["says"])
        assert examine(deployment, "--no-cells")["signing"] == [finding]
        with closing(sqlite3.connect(deployment.folder / "mappings.db")) as connection, connection:
            connection.execute("UPDATE cache_agreement SET value = 'none of these'")
        findings = examine(deployment, "--no-cells", code=1)
        assert problems(findings) == {"signing"}
        assert "its identity could not be read: the row 'deployment'" in findings["signing"][0]["says"]
        schema.downgrade(deployment.database_url, "0001_pre_instance_mapping")
        findings = examine(deployment, "--no-cells", code=1)
        assert problems(findings) == {"tables", "signing"}
        assert "cellcache db upgrade" in findings["signing"][0]["advice"]


def test_missing_tables_are_a_problem_with_a_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deployment = make_deployment(tmp_path, capsys)
    schema.downgrade(deployment.database_url, "base")
    findings = examine(deployment, code=1)
    assert problems(findings) == {"tables"}
    assert "cellcache db upgrade" in findings["tables"][0]["advice"]
    assert "cell" not in findings


def test_tables_of_a_newer_release_are_a_problem(deployment: Deployment) -> None:
    with closing(sqlite3.connect(deployment.folder / "mappings.db")) as connection, connection:
        connection.execute("UPDATE cellcache_alembic_version SET version_num = '9999_pre_future'")
    findings = examine(deployment, code=1)
    assert "9999_pre_future" in findings["tables"][0]["says"]
    assert "newer" in findings["tables"][0]["advice"]


def test_tables_that_were_altered_are_a_note(deployment: Deployment) -> None:
    with closing(sqlite3.connect(deployment.folder / "mappings.db")) as connection:
        connection.execute("DROP INDEX ix_instance_mapping_project_id_id")
    (finding,) = examine(deployment)["tables"]
    assert finding["level"] == "note"
    assert "ix_instance_mapping_project_id_id" in finding["says"]


@pytest.mark.slow
def test_a_database_that_is_away_does_not_keep_it_from_the_cache(deployment: Deployment) -> None:
    deployment.configure(
        f'[database]\nurl = "mysql+pymysql://nova:{PASSWORD}@127.0.0.1:1/nova_api"\n'
        '[cache]\nbackend = "cellcache.memcached"\nservers = ["127.0.0.1:1"]\n'
    )
    findings = examine(deployment, code=1)
    assert problems(findings) == {"database", "cache node"}
    assert "tables" not in findings
    assert PASSWORD not in str(findings)


def test_a_sqlite_file_that_is_not_there_is_not_created(deployment: Deployment) -> None:
    missing = deployment.folder / "nowhere.db"
    deployment.configure(f'[database]\nurl = "sqlite:///{missing}"\n')
    findings = examine(deployment, code=1)
    assert problems(findings) == {"database"}
    assert "cellcache db upgrade" in findings["database"][0]["advice"]
    assert not missing.exists()


@pytest.mark.slow
def test_each_cells_database_is_reached(deployment: Deployment) -> None:
    missing = deployment.folder / "nowhere.db"
    for name, url in (
        ("good", deployment.cell_database("good")),
        ("away", f"mysql+pymysql://nova:{PASSWORD}@127.0.0.1:1/nova_cell"),
        ("missing", f"sqlite:///{missing}"),
        ("wrong", deployment.database_url),
    ):
        deployment.ok("cell", "create", name, "--database-connection", url)
    deployment.ok("cell", "update", "good", "--disable")
    by_name = {finding["name"]: finding for finding in examine(deployment, code=1)["cell"]}
    assert {name: finding["level"] for name, finding in by_name.items()} == {
        "good": "fine",
        "away": "problem",
        "missing": "problem",
        "wrong": "problem",
    }
    assert "(disabled)" in by_name["good"]["says"]
    assert "no `instances` table" in by_name["wrong"]["says"]
    assert not missing.exists()
    assert PASSWORD not in str(by_name)
    assert "cell" not in examine(deployment, "--no-cells")
    outcome = deployment.run("doctor")
    assert outcome.error == "3 things are wrong"
    assert "cellcache cell update" in outcome.out.replace("\n", " ")


def test_a_cache_node_that_is_away_is_found_and_the_others_are_fine(
    deployment: Deployment, memcacheds: list[Memcached]
) -> None:
    memcached_configuration(deployment, *(server.address for server in memcacheds))
    assert [finding["level"] for finding in examine(deployment)["cache node"]] == ["fine"] * 3
    memcacheds[1].kill()
    findings = examine(deployment, code=1)["cache node"]
    assert {finding["name"]: finding["level"] for finding in findings} == {
        memcacheds[0].address: "fine",
        memcacheds[1].address: "problem",
        memcacheds[2].address: "fine",
    }
    assert all(finding["version"] for finding in findings if finding["level"] == "fine")


def test_redis_is_reached(deployment: Deployment, redis_server: Redis) -> None:
    deployment.configure(
        f'[database]\nurl = "{deployment.database_url}"\n'
        f'[cache]\nbackend = "cellcache.redis"\nurl = "{redis_server.url}"\ntimeout_s = 1.0\n'
    )
    (finding,) = examine(deployment)["cache node"]
    assert finding["version"]


def test_a_cache_server_that_is_too_old_is_a_problem(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> CellDirectory:
        raise BackendUnsupported("memcached at 127.0.0.1:11211 is 1.5.6; cellcache needs 1.6.10 or newer")

    monkeypatch.setattr(CellDirectory, "open", refuse)
    findings = examine(deployment, code=1)
    assert problems(findings) == {"cache"}
    assert "1.6.10" in findings["cache"][0]["says"]


@pytest.mark.slow
def test_a_backend_without_leases_is_a_note(deployment: Deployment) -> None:
    deployment.configure(f'[database]\nurl = "{deployment.database_url}"\n[cache]\nbackend = "dogpile.cache.null"\n')
    (finding,) = examine(deployment)["cache"]
    assert finding["level"] == "note"
    assert "not coherent" in finding["says"]


@pytest.mark.slow
@pytest.mark.parametrize(("age", "level"), [("-5 seconds", "note"), ("-10 minutes", "problem")])
def test_invalidations_that_wait_too_long_are_a_problem(deployment: Deployment, age: str, level: str) -> None:
    memcached_configuration(deployment, "127.0.0.1:1")
    with closing(sqlite3.connect(deployment.folder / "mappings.db")) as connection, connection:
        connection.execute(
            "INSERT INTO cache_invalidation (created_at, deliver_after, instance_uuids) "
            "VALUES (datetime('now', ?), datetime('now', ?), '0f0e3f6e-2f6c-4a3b-9d5e-2f1f6a7f4c11')",
            (age, age),
        )
    (finding,) = examine(deployment, code=1)["invalidations"]
    assert finding["level"] == level
    assert finding["says"].startswith("1, the oldest for ")


@pytest.mark.slow
def test_cells_that_have_one_database_are_a_problem_that_names_them(deployment: Deployment) -> None:
    url, other = deployment.cell_database("one"), deployment.cell_database("other")
    named = {
        name: deployment.json("cell", "create", name, "--database-connection", given)["uuid"]
        for name, given in (("a", url), ("c", other))
    }
    assert "cells" not in examine(deployment)
    doubled = deployment.run("cell", "create", "b", "--database-connection", url.replace("///", "////"), "--json")
    (finding,) = examine(deployment, code=1)["cells"]
    assert finding["level"] == "problem"
    assert finding["name"] == f"a ({named['a']}), b ({doubled.document['uuid']})"
    assert finding["says"].startswith("have one database, sqlite:///")
    assert "cellcache cell update" in finding["advice"]
    assert "cells" not in examine(deployment, "--no-cells")
