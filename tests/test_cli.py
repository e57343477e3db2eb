"""The command line at work: what each command prints for people and for programs."""

from __future__ import annotations

import io
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from uuid import UUID

import pytest

from cellcache import Settings, schema
from tests.command_line import PASSWORD, Deployment, make_deployment

A = "0f0e3f6e-2f6c-4a3b-9d5e-2f1f6a7f4c11"
B = "5b0c1c1e-8b8c-4e0a-9a43-3b1f3ad1e4ab"
NOBODY = "ffffffff-ffff-4fff-8fff-ffffffffffff"
SECRET_URL = f"mysql+pymysql://nova:{PASSWORD}@127.0.0.1:1/nova_cell"


@pytest.fixture
def deployment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Deployment:
    return make_deployment(tmp_path, capsys)


@pytest.fixture
def two_cells(deployment: Deployment) -> Deployment:
    """Cells "one" and "two", each with a database; instance A is mapped to "one"."""
    for name in ("one", "two"):
        deployment.ok("cell", "create", name, "--database-connection", deployment.cell_database(name, [A]))
    deployment.ok("instance", "map", A, "--cell", "one", "--project", "p1")
    return deployment


@pytest.mark.slow
def test_options_for_every_command_stand_before_or_after_it(deployment: Deployment) -> None:
    config = str(deployment.config)
    for arguments in (
        ("--config", config, "--json", "db", "current"),
        ("db", "current", "--json", "--config", config),
        ("--json", "db", "current", "-c", config),
        ("db", "--json", "-c", config, "current"),
    ):
        outcome = deployment.run(*arguments, config=False)
        assert outcome.document == {"current": schema.head(), "head": schema.head(), "up_to_date": True}


def test_an_option_nearer_to_the_command_wins(deployment: Deployment, tmp_path: Path) -> None:
    outcome = deployment.run(
        "--config", str(tmp_path / "none.toml"), "db", "current", "--config", str(deployment.config)
    )
    assert outcome.code == 0


# -- db ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_signing_key_is_made_that_the_configuration_takes(deployment: Deployment) -> None:
    first, second = (deployment.ok("cache", "signing-key").out.strip() for _ in range(2))
    assert first != second
    file = deployment.folder / "signing.key"
    assert deployment.ok("cache", "signing-key", str(file)).out == ""
    assert file.stat().st_mode & 0o777 == 0o600
    cache = {"backend": "cellcache.redis", "url": "redis://cache", "signing_key_file": file}
    settings = Settings(cache=cache | {"previous_signing_key": first})
    assert settings.cache.signing_keys == [file.read_bytes().strip(), first.encode()]
    assert len(deployment.json("cache", "signing-key")["signing_key"]) == 64
    other = deployment.folder / "other.key"
    assert deployment.json("cache", "signing-key", str(other)) == {"file": str(other)}


def test_a_key_that_is_there_is_left_alone(deployment: Deployment) -> None:
    file = deployment.folder / "signing.key"
    file.write_text("in use")
    refused = deployment.run("cache", "signing-key", str(file))
    assert (refused.code, refused.out) == (2, "")
    assert "is there already" in refused.error
    assert file.read_text() == "in use"
    for impossible in (str(deployment.folder / "nowhere" / "key"), "a\0b", "a\ud800"):
        refused = deployment.run("cache", "signing-key", impossible)
        assert (refused.code, "cannot write" in refused.error) == (2, True)


@pytest.mark.slow
def test_the_tables_go_up_and_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deployment = make_deployment(tmp_path, capsys, migrated=False)
    assert deployment.json("db", "current") == {"current": None, "head": schema.head(), "up_to_date": False}
    assert "run `cellcache db upgrade`" in deployment.ok("db", "current").out
    assert deployment.ok("db", "upgrade").out.startswith(schema.head())
    assert deployment.ok("db", "upgrade").code == 0
    assert deployment.json("db", "check") == {"differences": []}
    assert deployment.json("db", "downgrade", "base", "--yes")["current"] is None


def test_a_downgrade_is_not_done_without_a_yes(deployment: Deployment) -> None:
    outcome = deployment.run("db", "downgrade", "base")
    assert outcome.code == 2
    assert "--yes" in outcome.error
    assert deployment.json("db", "current")["up_to_date"] is True


def test_sql_is_printed_and_the_database_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deployment = make_deployment(tmp_path, capsys, migrated=False)
    assert "CREATE TABLE instance_mapping" in deployment.ok("db", "upgrade", "--sql").out
    assert "DROP TABLE instance_mapping" in deployment.ok("db", "downgrade", f"{schema.head()}:base", "--sql").out
    assert deployment.json("db", "current")["current"] is None


def test_history_lists_the_revisions(deployment: Deployment) -> None:
    revisions = deployment.ok("db", "history", "--json").documents
    assert [revision["revision"] for revision in revisions] == [revision.revision for revision in schema.history()]
    assert schema.head() in deployment.ok("db", "history").out


def test_check_says_what_differs(deployment: Deployment) -> None:
    with closing(sqlite3.connect(deployment.folder / "mappings.db")) as connection:
        connection.execute("DROP INDEX ix_instance_mapping_project_id_id")
    outcome = deployment.run("db", "check")
    assert outcome.code == 1
    assert "ix_instance_mapping_project_id_id" in outcome.out


# -- cell --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_cell_is_created_listed_shown_changed_and_deleted(deployment: Deployment) -> None:
    created = deployment.json("cell", "create", "one", "--database-connection", "sqlite:///one.db")
    assert created["name"] == "one"
    assert created["transport_url"] == "none:///"
    assert created["disabled"] is False
    assert str(UUID(created["uuid"])) == created["uuid"]
    assert deployment.ok("cell", "list", "--json").documents == [created]
    assert deployment.json("cell", "show", "one") == created
    assert deployment.json("cell", "show", created["uuid"].upper()) == created

    changed = deployment.json("cell", "update", "one", "--name", "first", "--disable")
    assert (changed["uuid"], changed["name"], changed["disabled"]) == (created["uuid"], "first", True)
    assert deployment.json("cell", "update", "first", "--enable")["disabled"] is False
    assert deployment.json("cell", "delete", "first") == {"deleted": created["uuid"]}
    assert deployment.ok("cell", "list", "--json").documents == []


def test_a_cell_can_have_a_uuid_of_ones_own(deployment: Deployment) -> None:
    arguments = ("cell", "create", "one", "--database-connection", "sqlite:///one.db", "--uuid", A.upper())
    assert deployment.json(*arguments)["uuid"] == A
    assert deployment.run(*arguments).code == 1


@pytest.mark.parametrize("place", ["file", "stdin", "environment"])
def test_a_url_need_not_stand_on_the_command_line(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    arguments: tuple[str, ...] = ()
    if place == "file":
        (deployment.folder / "url").write_text(SECRET_URL + "\n")
        arguments = ("--database-connection-file", str(deployment.folder / "url"))
    elif place == "stdin":
        monkeypatch.setattr("sys.stdin", io.StringIO(SECRET_URL + "\n"))
        arguments = ("--database-connection", "-")
    else:
        monkeypatch.setenv("CELL_DATABASE_CONNECTION", SECRET_URL)
    deployment.ok("cell", "create", "one", *arguments)
    assert deployment.json("cell", "show", "one", "--show-secrets")["database_connection"] == SECRET_URL


@pytest.mark.slow
def test_an_update_leaves_the_environment_alone(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    deployment.ok("cell", "create", "one", "--database-connection", "sqlite:///one.db")
    monkeypatch.setenv("CELL_DATABASE_CONNECTION", SECRET_URL)
    assert deployment.json("cell", "update", "one", "--disable")["database_connection"] == "sqlite:///one.db"
    assert deployment.run("cell", "update", "one").code == 2


def test_a_cell_without_a_database_or_with_two_urls_from_stdin_is_refused(deployment: Deployment) -> None:
    assert "--database-connection-file" in deployment.run("cell", "create", "one").error
    both = deployment.run("cell", "create", "one", "--database-connection", "-", "--transport-url", "-")
    assert both.code == 2
    assert "stdin" in both.error


@pytest.mark.slow
def test_a_cell_in_use_is_not_deleted(two_cells: Deployment) -> None:
    outcome = two_cells.run("cell", "delete", "one")
    assert outcome.code == 1
    assert "still has instance mappings" in outcome.error


@pytest.mark.slow
def test_a_cell_that_gets_the_database_of_another_is_told_so(two_cells: Deployment) -> None:
    uuids = {cell["name"]: cell["uuid"] for cell in two_cells.ok("cell", "list", "--json").documents}
    url = f"sqlite:///{two_cells.folder / '.' / 'one.db'}"
    made = two_cells.ok("cell", "create", "three", "--database-connection", url, "--json")
    called = f"three ({made.document['uuid']})"
    assert made.error.startswith(f"warning: cell {called} has one database with cell one ({uuids['one']}); put the URL")
    updated = two_cells.ok("cell", "update", "two", "--database-connection", url, "--json")
    assert [line.split("; ")[0] for line in updated.err.splitlines()] == [
        f"cellcache: warning: cell two ({uuids['two']}) has one database with cell {other}"
        for other in (f"one ({uuids['one']})", called)
    ]
    assert two_cells.ok("cell", "update", "two", "--name", "zwei").err == ""


# -- instance ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_instance_is_mapped_moved_and_shown(two_cells: Deployment) -> None:
    mapped = two_cells.json("instance", "map", B.upper(), "--cell", "one", "--project", "p2")
    assert (mapped["instance_uuid"], mapped["project_id"], mapped["updated_at"]) == (B, "p2", None)
    assert mapped["created_at"].endswith("+00:00")
    moved = two_cells.json("instance", "move", B, "--cell", "two")
    assert moved["id"] == mapped["id"]
    assert moved["cell_uuid"] != mapped["cell_uuid"]
    assert two_cells.json("instance", "show", B) == moved
    assert "(two)" in two_cells.ok("instance", "show", B).out


@pytest.mark.slow
def test_mapping_again_is_fine_and_contradicting_is_not(two_cells: Deployment) -> None:
    assert two_cells.json("instance", "map", A, "--cell", "one", "--project", "p1")["instance_uuid"] == A
    outcome = two_cells.run("instance", "map", A, "--cell", "two", "--project", "p1")
    assert outcome.code == 1
    assert "already mapped" in outcome.error


@pytest.mark.slow
def test_a_disabled_cell_takes_no_instance(two_cells: Deployment) -> None:
    two_cells.ok("cell", "update", "two", "--disable")
    assert two_cells.run("instance", "map", B, "--cell", "two", "--project", "p").code == 1
    assert two_cells.run("instance", "move", A, "--cell", "two").code == 1


@pytest.mark.slow
def test_many_are_mapped_from_a_file(two_cells: Deployment) -> None:
    uuids = [f"{number:08x}-0000-4000-8000-000000000000" for number in range(2500)]
    file = two_cells.folder / "rows.csv"
    file.write_text("uuid,cell,project\n" + "".join(f"{uuid},two,p9\n" for uuid in uuids))
    assert two_cells.json("instance", "map", "--from", str(file)) == {"read": 2500, "created": 2500}
    assert two_cells.json("instance", "map", "--from", str(file)) == {"read": 2500, "created": 0}
    listed = two_cells.ok("instance", "list", "--project", "p9", "--all", "--json").documents
    assert [mapping["instance_uuid"] for mapping in listed] == uuids


@pytest.mark.slow
def test_many_are_mapped_from_stdin(two_cells: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(f"{A},one,p1\n{B},two,p1\n".encode()))
    monkeypatch.setattr("sys.stdin", stdin)
    assert two_cells.json("instance", "map", "--from", "-") == {"read": 2, "created": 1}


@pytest.mark.slow
def test_a_line_that_cannot_be_read_stops_the_run_and_says_how_far_it_came(two_cells: Deployment) -> None:
    file = two_cells.folder / "rows.csv"
    good = "".join(f"{number:08x}-0000-4000-8000-000000000000,two,p9\n" for number in range(1001))
    file.write_text(good + "nonsense,two,p9\n")
    outcome = two_cells.run("instance", "map", "--from", str(file))
    assert outcome.code == 2
    assert "1,000 lines were done" in outcome.err
    assert "line 1002: not a UUID" in outcome.err
    assert len(two_cells.ok("instance", "list", "--all", "--cell", "two", "--json").documents) == 1000


@pytest.mark.slow
def test_a_listing_goes_on_behind_the_last_id(two_cells: Deployment) -> None:
    two_cells.ok("instance", "map", B, "--cell", "one", "--project", "p1")
    first = two_cells.ok("instance", "list", "--limit", "1")
    assert A in first.out
    assert "--after 1" in first.out
    assert [m["instance_uuid"] for m in two_cells.ok("instance", "list", "--after", "1", "--json").documents] == [B]
    assert two_cells.ok("instance", "list", "--cell", "two").out == "no mappings\n"
    assert two_cells.ok("instance", "list", "--cell", "two", "--json").out == ""


@pytest.mark.slow
def test_named_mappings_are_pruned(two_cells: Deployment) -> None:
    assert two_cells.ok("instance", "prune", A, A.upper(), A, NOBODY).out == "1 removed, 1 were not mapped\n"
    assert two_cells.json("instance", "prune", A, NOBODY) == {"removed": 0}
    assert two_cells.run("instance", "show", A).code == 1


def purge(deployment: Deployment, cell: str) -> None:
    with closing(sqlite3.connect(deployment.folder / f"{cell}.db")) as connection, connection:
        connection.execute("DELETE FROM instances WHERE uuid = ?", (A,))
        connection.execute("INSERT INTO instances (uuid) VALUES (?)", (NOBODY,))


@pytest.mark.slow
def test_what_was_purged_is_pruned(two_cells: Deployment) -> None:
    purge(two_cells, "one")
    young, _ = two_cells.ok("instance", "prune", "--purged", "--json").documents
    assert (young["cell"], young["checked"], young["removed"]) == ("one", 0, 0)
    arguments = ("instance", "prune", "--purged", "--older-than", "0s", "--allow-many", "1")
    dry, _ = two_cells.ok(*arguments, "--dry-run", "--json").documents
    assert (dry["checked"], dry["removed"], dry["dry_run"], dry["error"]) == (1, 1, True, None)
    assert two_cells.run("instance", "show", A).code == 0
    assert "would be removed" in two_cells.ok(*arguments, "--dry-run").out
    done, _ = two_cells.ok(*arguments, "--json").documents
    assert (done["removed"], done["dry_run"]) == (1, False)
    assert two_cells.run("instance", "show", A).code == 1


@pytest.mark.slow
def test_a_cell_that_cannot_be_reached_loses_nothing_and_the_others_are_done(two_cells: Deployment) -> None:
    two_cells.ok("cell", "create", "away", "--database-connection", SECRET_URL)
    two_cells.ok("instance", "map", B, "--cell", "away", "--project", "p1")
    two_cells.ok("instance", "move", A, "--cell", "two")
    purge(two_cells, "two")
    outcome = two_cells.run("instance", "prune", "--purged", "--older-than", "0", "--allow-many", "1", "--json")
    assert outcome.code == 3
    assert outcome.error.startswith("cell away: ")
    by_cell = {report["cell"]: report for report in outcome.documents}
    assert by_cell["two"]["removed"] == 1
    assert (by_cell["away"]["removed"], bool(by_cell["away"]["error"])) == (0, True)
    assert two_cells.run("instance", "show", B).code == 0
    assert PASSWORD not in outcome.out + outcome.err


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_prune_that_would_take_too_many_is_refused_unless_allowed(
    two_cells: Deployment, more: tuple[str, ...]
) -> None:
    with closing(sqlite3.connect(two_cells.folder / "one.db")) as connection, connection:
        connection.execute("DELETE FROM instances")
    arguments = ("instance", "prune", "--purged", "--cell", "one", "--older-than", "0", *more)
    refused = two_cells.run(*arguments, "--json")
    assert refused.code == 1
    assert refused.error.startswith("refused: cell one (")
    assert refused.error.endswith("say how many may go (--allow-many 1)")
    assert (refused.document["checked"], refused.document["removed"]) == (1, 0)
    assert refused.error == f"refused: {refused.document['error']}"
    assert "failed" in two_cells.run(*arguments).out
    assert two_cells.run(*arguments, "--allow-many", "0").code == 1
    assert two_cells.json(*arguments, "--allow-many", "1")["removed"] == 1


@pytest.mark.slow
def test_a_prune_by_another_cells_database_is_refused_and_the_other_cells_are_done(two_cells: Deployment) -> None:
    two_cells.ok("instance", "map", B, "--cell", "two", "--project", "p1")
    two_cells.ok("cell", "update", "two", "--database-connection", f"sqlite:///{two_cells.folder / 'one.db'}")
    arguments = ("instance", "prune", "--purged", "--older-than", "0", "--allow-many", "9")
    for more in ((), ("--dry-run",)):
        refused = two_cells.run(*arguments, *more, "--json")
        assert refused.code == 1
        assert "the database of cell two (" in refused.error
        assert "1 to cell one (" in refused.error
        assert [(report["cell"], report["still_there"]) for report in refused.documents] == [("one", 1), ("two", None)]
    assert two_cells.run("instance", "show", B).code == 0


@pytest.mark.slow
def test_a_prune_says_what_it_spared_and_why(two_cells: Deployment) -> None:
    with closing(sqlite3.connect(two_cells.folder / "one.db")) as connection, connection:
        connection.execute("INSERT INTO instances (uuid) VALUES (NULL)")
    arguments = ("instance", "prune", "--purged", "--cell", "one", "--json")
    assert two_cells.json(*arguments) | {"cell_uuid": ""} == {
        "cell_uuid": "",
        "cell": "one",
        "checked": 0,
        "removed": 0,
        "still_there": 0,
        "too_young": 1,
        "changed_meanwhile": 0,
        "rows_without_uuid": 0,
        "dry_run": False,
        "error": None,
    }
    old = two_cells.json(*arguments, "--older-than", "0")
    assert (old["still_there"], old["too_young"], old["rows_without_uuid"]) == (1, 0, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("instance", "prune"),
        ("instance", "prune", A, "--purged"),
        ("instance", "prune", A, "--dry-run"),
        ("instance", "prune", A, "--allow-many", "0"),
        ("instance", "prune", "--purged", "--allow-many", "-1"),
        ("instance", "prune", "--purged", "--older-than", "soon"),
        ("instance", "map"),
        ("instance", "map", A, "--cell", "one"),
        ("instance", "map", A, "--from", "rows.csv"),
        ("instance", "map", "--from", "no/such/file"),
        ("instance", "list", "--limit", "0"),
        ("instance", "show", "nonsense"),
        ("resolve",),
        ("resolve", "nonsense"),
        ("cell", "update", "one"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_one_line_and_code_2(
    two_cells: Deployment, arguments: tuple[str, ...]
) -> None:
    outcome = two_cells.run(*arguments)
    assert outcome.code == 2
    assert outcome.error
    assert outcome.out == ""


# -- resolve and stats -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_instance_is_resolved(two_cells: Deployment) -> None:
    answer = two_cells.json("resolve", A.replace("-", "").upper())
    assert answer["instance_uuid"] == A
    assert answer["cell"]["name"] == "one"
    assert answer["cell"] == two_cells.json("cell", "show", "one")
    assert answer["cell"]["uuid"] in two_cells.ok("resolve", A).out


@pytest.mark.slow
def test_several_are_resolved_in_the_order_asked_for(two_cells: Deployment) -> None:
    two_cells.ok("instance", "map", B, "--cell", "two", "--project", "p1")
    outcome = two_cells.run("resolve", B, NOBODY, A, B, "--json")
    assert outcome.code == 1
    assert [(each["instance_uuid"], each["cell"] and each["cell"]["name"]) for each in outcome.documents] == [
        (B, "two"),
        (NOBODY, None),
        (A, "one"),
    ]
    assert NOBODY in outcome.error
    table = two_cells.run("resolve", B, A)
    assert table.out.index(B) < table.out.index(A)


@pytest.mark.slow
def test_explain_says_where_the_answer_came_from(two_cells: Deployment) -> None:
    answer = two_cells.json("resolve", A, "--explain")
    assert answer["source"] == "sql"
    assert [step["what"] for step in answer["steps"]] == [
        "ask the cache",
        "ask instance_mapping",
        "send the answer to the cache",
        "look up the cell mapping",
    ]
    assert all(step["seconds"] >= 0 for step in answer["steps"])
    assert "the answer came from SQL" in two_cells.ok("resolve", A, "--explain").out
    missing = two_cells.run("resolve", NOBODY, "--explain", "--json")
    assert (missing.code, missing.document["cell"]) == (1, None)


@pytest.mark.slow
def test_stats_count_what_the_deployment_holds(two_cells: Deployment) -> None:
    two_cells.ok("instance", "map", B, "--cell", "one", "--project", "p1")
    stats = two_cells.json("stats")
    assert stats["mappings"] == 2
    assert [(cell["name"], cell["mappings"]) for cell in stats["cells"]] == [("one", 2), ("two", 0)]
    assert stats["invalidations"] == {"waiting": 0, "oldest_s": None}
    assert len(stats["cache"]["nodes"]) == 1
    assert "Invalidations that wait: 0" in two_cells.ok("stats").out


# -- what must not be seen ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_password_is_in_no_output(two_cells: Deployment) -> None:
    transport = f"rabbit://openstack:{PASSWORD}@mq:5672/cell"
    two_cells.ok("cell", "create", "away", "--database-connection", SECRET_URL, "--transport-url", transport)
    two_cells.ok("instance", "map", B, "--cell", "away", "--project", "p1")
    for arguments in (
        ("cell", "list"),
        ("cell", "show", "away"),
        ("cell", "update", "away", "--database-connection", SECRET_URL),
        ("cell", "create", "broken", "--database-connection", SECRET_URL.replace("mysql+pymysql", "no-such-database")),
        ("resolve", B),
        ("resolve", B, A),
        ("resolve", B, "--explain"),
        ("instance", "show", B),
        ("instance", "prune", "--purged", "--older-than", "0"),
        ("stats",),
        ("doctor",),
    ):
        for extra in ((), ("--json",), ("--verbose",)):
            two_cells.run(*arguments, *extra)
    for outcome in two_cells.outcomes:
        assert PASSWORD not in outcome.out + outcome.err
    two_cells.configure(f'[database]\nurl = "{SECRET_URL}"\n')
    for arguments in (("stats",), ("resolve", A), ("db", "current"), ("db", "upgrade"), ("doctor",), ("demo",)):
        for config in (True, False):
            given = arguments if config else (*arguments, "--config", str(two_cells.config))
            outcome = two_cells.run(*given, "--verbose", config=config)
            assert PASSWORD not in outcome.out + outcome.err


@pytest.mark.slow
def test_secrets_are_shown_to_those_who_ask(two_cells: Deployment) -> None:
    two_cells.ok("cell", "create", "away", "--database-connection", SECRET_URL)
    two_cells.ok("instance", "map", B, "--cell", "away", "--project", "p1")
    for arguments in (("cell", "list"), ("cell", "show", "away"), ("resolve", B), ("resolve", B, A)):
        for extra in ((), ("--json",)):
            assert SECRET_URL in two_cells.ok(*arguments, "--show-secrets", *extra).out


@pytest.mark.slow
def test_what_the_database_holds_cannot_steer_the_terminal(two_cells: Deployment) -> None:
    two_cells.ok("instance", "map", B, "--cell", "one", "--project", "evil\x1b]0;owned\x07[red]x[/]\n")
    out = two_cells.ok("instance", "list").out + two_cells.ok("instance", "show", B).out
    assert "\x1b" not in out
    assert "[red]x[/]" in out
    listed = two_cells.ok("instance", "list", "--after", "1", "--json")
    assert "\x1b" not in listed.out
    assert json.loads(listed.out)["project_id"] == "evil\x1b]0;owned\x07[red]x[/]\n"
