"""The demonstration: what it shows is true, and it leaves everything as it found it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import make_url

from cellcache import CellDirectory, Settings
from cellcache.demo import Demonstration, WrongAnswer
from cellcache.model import CellMapping
from tests.command_line import Deployment, make_deployment
from tests.servers import MariaDB, Memcached, Redis
from tests.traces import databases, tables

pytestmark = pytest.mark.slow

SIZE = ("--instances", "300")


def no_tick(_: int) -> None:
    pass


@pytest.fixture
def deployment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Deployment:
    return make_deployment(tmp_path, capsys, migrated=False)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which temporary ones are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_it_tells_its_story_without_any_server_and_leaves_nothing_behind(
    deployment: Deployment, temporary: Path
) -> None:
    outcome = deployment.run("demo", *SIZE, config=False)
    assert outcome.code == 0, outcome.err
    for chapter in ("1. Three cells", "2. One request", "3. ", "4. What a lookup costs", "5. An instance moves", "6. "):
        assert f"\n{chapter}" in outcome.out
    assert "\x1b" not in outcome.out
    assert outcome.err == ""
    assert list(temporary.iterdir()) == []


def test_its_figures_are_those_of_what_happened(deployment: Deployment) -> None:
    told = deployment.run("demo", *SIZE, "--json", config=False).document
    assert told["prepared"]["instances"] == 300
    assert list(told["prepared"]["cells"]) == ["cell1", "cell2", "cell3"]
    request = told["request"]
    assert request["row"]["uuid"] == request["instance_uuid"]
    assert request["database"] == told["prepared"]["cells"][request["cell"]]
    served = told["served"]
    assert served["hits"] + served["misses"] == served["requests"]
    assert 0 < served["misses"] <= 300
    costs = {cost["kind"]: cost for cost in told["costs"]}
    assert {kind: cost["from_cache"] for kind, cost in costs.items()} == {
        "sql": 0,
        "miss": 0,
        "hit": 1,
        "not mapped, first": 0,
        "not mapped, again": 1,
        "sql at once": 0,
        "miss at once": 0,
        "hit at once": 1,
    }
    assert costs["hit at once"]["lookups"] == 300
    assert all(0 < cost["median_s"] <= cost["p99_s"] for cost in costs.values())
    moved = told["moved"]
    assert moved["before"] != moved["after"] == moved["elsewhere"]
    purged = told["purged"]
    assert purged["purged"] == purged["purged_mapped_before"] == purged["spared_as_young"] == purged["pruned"] > 0
    assert purged["purged_mapped_after"] == 0
    assert purged["marked_mapped_after"] == purged["marked"] - purged["purged"]
    asked = sum(cost["lookups"] * cost["calls"] for cost in told["costs"] if cost["lookups"] == 1)
    assert told["answers_checked"] > asked


def test_what_it_keeps_can_be_gone_on_with(
    deployment: Deployment, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")  # a terminal narrower than the folder's path
    outcome = deployment.run("demo", *SIZE, "--keep", config=False)
    (folder,) = temporary.iterdir()
    assert f"--config {folder}/cellcache.toml" in outcome.out
    kept = deployment.run("stats", "--json", "--config", str(folder / "cellcache.toml"), config=False).document
    assert 200 <= kept["mappings"] < 300
    assert [cell["name"] for cell in kept["cells"]] == ["cell1", "cell2", "cell3"]
    doctor = deployment.run("doctor", "--config", str(folder / "cellcache.toml"), config=False)
    assert doctor.code == 0


def test_the_environment_cannot_turn_it_on_a_real_database(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELLCACHE_DATABASE__URL", deployment.database_url)
    assert deployment.run("demo", *SIZE, "--json", config=False).code == 0
    assert databases(deployment.database_url) == set()


def test_on_a_database_without_tables_it_leaves_no_trace(deployment: Deployment, database_url: str) -> None:
    deployment.configure(f'[database]\nurl = "{database_url}"\n')
    before = databases(database_url)
    outcome = deployment.run("demo", *SIZE, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.document["purged"]["pruned"] > 0
    assert databases(database_url) == before
    assert tables(database_url) == set()


@pytest.mark.quiet
@pytest.mark.parametrize("cache", ["memcached", "redis"])
def test_on_a_shared_cache_another_directory_sees_the_move(
    deployment: Deployment, cache: str, request: pytest.FixtureRequest
) -> None:
    if cache == "redis":
        server = request.getfixturevalue("redis_server")
        assert isinstance(server, Redis)
        place = f'url = "{server.url}"'
    else:
        servers: list[Memcached] = request.getfixturevalue("memcacheds")
        place = f"servers = {[server.address for server in servers]!r}"
    deployment.configure(
        f'[database]\nurl = "{deployment.database_url}"\n'
        f'[cache]\nbackend = "cellcache.{cache}"\n{place}\ntimeout_s = 2.0\n'
    )
    told = deployment.json("demo", *SIZE)
    assert told["moved"]["elsewhere"] == told["moved"]["after"]
    assert {cost["kind"]: cost["from_cache"] for cost in told["costs"]}["hit"] == 1


def test_over_a_backend_that_keeps_nothing_it_says_so(deployment: Deployment) -> None:
    deployment.configure(f'[database]\nurl = "{deployment.database_url}"\n[cache]\nbackend = "dogpile.cache.null"\n')
    out = deployment.ok("demo", *SIZE).out
    assert "hit (0% were)" in out
    assert "not coherent" in out


def test_an_account_that_may_not_create_databases_is_told_so(deployment: Deployment, mariadb: MariaDB) -> None:
    url = make_url(mariadb.create_database("demo_denied"))
    mariadb.execute(f"CREATE OR REPLACE USER poor@{mariadb.host} IDENTIFIED BY 'poor-password'")
    mariadb.execute(f"GRANT ALL ON demo_denied.* TO poor@{mariadb.host}")
    poor = url.set(username="poor", password="poor-password").render_as_string(hide_password=False)
    deployment.configure(f'[database]\nurl = "{poor}"\n')
    outcome = deployment.run("demo", *SIZE)
    assert outcome.code == 2
    assert "cannot create database demo_denied_cell1" in outcome.error
    assert "poor-password" not in outcome.err
    assert tables(poor) == set()


def test_where_it_runs_is_told_without_any_password() -> None:
    for url in ("mysql+pymysql://nova:s3cret@db/nova", "mysql+pymysql://db/nova?user=nova&password=s3cret"):
        place = Demonstration(Settings(database={"url": url}), size=30).place
        assert place.startswith("mysql+pymysql://")
        assert "s3cret" not in place


def test_keeping_is_for_the_embedded_one_alone(deployment: Deployment) -> None:
    assert deployment.run("demo", "--keep").code == 2


def answering(wrongly: Callable[[CellDirectory, CellMapping], CellMapping]) -> Callable[..., CellMapping]:
    resolve = CellDirectory.resolve_cell

    def resolve_cell(self: CellDirectory, instance_uuid: str) -> CellMapping:
        return wrongly(self, resolve(self, instance_uuid))

    return resolve_cell


def test_a_wrong_answer_ends_it(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(database={"url": deployment.database_url})
    with Demonstration(settings, size=50) as story:
        story.prepare(no_tick)
        first: list[CellMapping] = []

        def always_the_first(_: CellDirectory, cell: CellMapping) -> CellMapping:
            first.append(cell)
            return first[0]

        monkeypatch.setattr(CellDirectory, "resolve_cell", answering(always_the_first))
        with pytest.raises(WrongAnswer):
            story.measure(1, no_tick)
        monkeypatch.undo()
    assert databases(deployment.database_url) == set()
