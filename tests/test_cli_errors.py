"""What goes wrong is one line on stderr and an exit code that says whose fault it is; never a traceback."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import pytest
import typer

from cellcache import cli, errors, schema
from cellcache.cli import app, main
from cellcache.cli.completion import complete_cell
from cellcache.cli.exits import ExitCode, exit_code_of
from tests.command_line import PASSWORD, Deployment, command, environment, every_command, make_deployment, run_process

A = "0f0e3f6e-2f6c-4a3b-9d5e-2f1f6a7f4c11"


@pytest.fixture
def deployment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Deployment:
    return make_deployment(tmp_path, capsys)


# -- exit codes ----------------------------------------------------------------------------------------------------


def test_every_error_has_an_exit_code() -> None:
    codes = {
        errors.InvalidUUID("x"): 2,
        errors.ConfigError(): 2,
        errors.InvalidValue(): 2,
        errors.InstanceNotMapped(A): 1,
        errors.CellNotFound(A): 1,
        errors.CellDisabled(A): 1,
        errors.CellInUse(A): 1,
        errors.CellExists(A): 1,
        errors.PruneRefused(): 1,
        errors.SchemaError(): 3,
        errors.DatabaseUnavailable(): 3,
        errors.CommitUnknown(): 3,
        errors.CacheUnavailable(): 4,
        errors.BackendUnsupported(): 4,
    }
    assert {type(error).__name__: exit_code_of(error) for error in codes} == {
        type(error).__name__: code for error, code in codes.items()
    }


def test_the_documentation_lists_every_exit_code() -> None:
    documented = re.findall(
        r"^\| (\d+) \|", (Path(__file__).parent.parent / "docs" / "cli.md").read_text(), re.MULTILINE
    )
    assert [int(code) for code in documented] == [code.value for code in ExitCode]


def test_a_configuration_with_mistakes_is_a_line_for_each(deployment: Deployment) -> None:
    deployment.configure('[database]\nurll = "x"\n[cache]\nbackend = "cellcache.memcahed"\n')
    outcome = deployment.run("stats")
    assert outcome.code == 2
    lines = outcome.err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("cellcache: ") for line in lines)
    assert "database.url?" in outcome.err
    assert "cellcache.memcached?" in outcome.err


def test_a_configuration_that_is_not_there_or_not_toml_is_told(deployment: Deployment) -> None:
    assert "cannot be read" in deployment.run("stats", "--config", "no/such/file").error
    deployment.configure("[database\n")
    outcome = deployment.run("stats")
    assert outcome.code == 2
    assert "is not TOML" in outcome.error


@pytest.mark.slow
def test_a_database_without_tables_says_which_command_to_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deployment = make_deployment(tmp_path, capsys, migrated=False)
    for arguments in (("resolve", A), ("cell", "list"), ("instance", "list"), ("stats",)):
        outcome = deployment.run(*arguments)
        assert outcome.code == 3
        assert "cellcache db upgrade" in outcome.error


@pytest.mark.slow
def test_a_database_that_does_not_answer_is_code_3(deployment: Deployment) -> None:
    deployment.configure(f'[database]\nurl = "mysql+pymysql://nova:{PASSWORD}@127.0.0.1:1/nova_api"\n')
    for arguments in (("resolve", A), ("cell", "list"), ("db", "current"), ("db", "upgrade")):
        outcome = deployment.run(*arguments)
        assert outcome.code == 3
        assert "127.0.0.1:1/nova_api" in outcome.error


def test_an_unreachable_cache_refuses_writes_with_code_4_where_so_configured(deployment: Deployment) -> None:
    deployment.ok("cell", "create", "one", "--database-connection", "sqlite:///one.db")
    deployment.configure(
        f'[database]\nurl = "{deployment.database_url}"\n'
        '[cache]\nbackend = "cellcache.memcached"\nservers = ["127.0.0.1:1"]\non_unreachable = "refuse"\n'
    )
    outcome = deployment.run("instance", "map", A, "--cell", "one", "--project", "p")
    assert outcome.code == 4
    assert "nothing was written" in outcome.err
    assert all(line.startswith("cellcache: ") for line in outcome.err.splitlines())
    assert deployment.run("instance", "show", A).code == 1


def test_what_nobody_foresaw_is_one_line_that_asks_for_a_report(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError(f"mysql://nova:{PASSWORD}@db/x\nand more")

    monkeypatch.setattr("cellcache.cli.commands.CellDirectory.open", fail)
    outcome = deployment.run("stats")
    assert outcome.code == 70
    assert re.fullmatch(r"unexpected ZeroDivisionError: mysql://nova:\*\*\*@db/x; please report .*", outcome.error)
    verbose = deployment.run("stats", "--verbose")
    assert "Traceback" in verbose.err
    assert PASSWORD not in verbose.err


def test_an_unknown_option_or_command_is_one_line_with_a_hint(deployment: Deployment) -> None:
    assert "--json" in deployment.run("resolve", A, "--jsno").error
    outcome = deployment.run("instance", "mpa", A)
    assert outcome.code == 2
    assert "cellcache instance --help" in outcome.error


# -- in a process of its own -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_version_is_printed() -> None:
    outcome = run_process("--version")
    assert (outcome.code, outcome.out, outcome.err) == (0, f"cellcache {version('cellcache')}\n", "")


@pytest.mark.slow
def test_a_process_exits_with_the_code_and_the_line(tmp_path: Path) -> None:
    outcome = run_process("resolve", "nonsense", cwd=tmp_path)
    assert (outcome.code, outcome.out) == (2, "")
    assert "not a UUID" in outcome.error


@pytest.mark.slow
def test_without_configuration_a_first_try_is_one_variable_away(tmp_path: Path) -> None:
    refused = run_process("db", "upgrade", cwd=tmp_path)
    assert refused.code == 2
    assert list(tmp_path.iterdir()) == []
    variable, url = refused.error.partition("`export ")[2].partition("`")[0].split("=")
    env = {variable: url.replace("$HOME", str(tmp_path))}
    assert run_process("db", "upgrade", env=env).code == 0
    assert (tmp_path / "cellcache.db").exists()
    assert run_process("resolve", A, env=env).code == 1


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [line for line, _ in every_command()], ids=" ".join)
def test_without_configuration_no_command_believes_what_lies_in_the_folder(
    arguments: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    schema.upgrade("sqlite:///cellcache.db")
    opened: list[object] = []
    monkeypatch.setattr(sqlite3.dbapi2, "connect", lambda *given, **_: opened.append(given))
    more = {"resolve": [A], "instance map": [A, "--cell", "c", "--project", "p"], "instance move": [A, "--cell", "c"]}
    more |= {"instance show": [A], "instance prune": [A], "db downgrade": ["base", "--yes"], "demo": ["--help"]}
    more |= {f"cell {what}": ["c"] for what in ("show", "delete")} | {"cell update": ["c", "--disable"]}
    more |= {"cell create": ["c", "--database-connection", "sqlite:///c.db"]}
    code = main([*arguments, *more.get(" ".join(arguments), [])])
    assert opened == []
    if arguments not in {("demo",), ("db", "history"), ("cache", "signing-key")}:  # which need no database
        assert (code, "no database is configured" in capsys.readouterr().err) == (2, True)


@pytest.mark.slow
def test_the_environment_names_the_configuration(deployment: Deployment) -> None:
    outcome = run_process("db", "current", "--json", env={"CELLCACHE_CONFIG": str(deployment.config)})
    assert outcome.document["up_to_date"] is True


@pytest.mark.slow
@pytest.mark.parametrize("form", ["table", "json"])
def test_whoever_reads_only_the_beginning_is_no_error(deployment: Deployment, form: str) -> None:
    deployment.ok("cell", "create", "one", "--database-connection", "sqlite:///one.db")
    rows = "".join(f"{number:08x}-0000-4000-8000-000000000000,one,p\n" for number in range(3000))
    (deployment.folder / "rows.csv").write_text(rows)
    deployment.ok("instance", "map", "--from", str(deployment.folder / "rows.csv"))
    arguments = command(
        "instance", "list", "--all", "-c", str(deployment.config), *(["--json"] if form == "json" else [])
    )
    with subprocess.Popen(
        arguments, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=30) == ExitCode.BROKEN_PIPE


@pytest.mark.slow
def test_an_interrupted_command_says_nothing(deployment: Deployment) -> None:
    arguments = command("instance", "map", "--from", "-", "--verbose")
    with subprocess.Popen(
        arguments,
        env=environment({"CELLCACHE_CONFIG": str(deployment.config)}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None
        started = process.stderr.readline()  # the log of the opened directory: from here on it waits for stdin
        assert b"cellcache.memory" in started
        for _ in range(5):  # one that arrives in a destructor is lost, as Python has it: press again
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            # Not too soon: a second one that meets Python at its end kills it.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=15)
                break
        assert process.returncode == ExitCode.INTERRUPTED
        assert process.stderr.read().strip() == b""


# -- help and completion -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path, _ in every_command()], ids=" ".join)
def test_every_command_explains_itself_and_gives_an_example(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*path, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"Usage: cellcache {' '.join(path)}" in text
    assert f"Example: cellcache {' '.join(path)}" in text.replace("pass show cell1 | ", "")
    for option in ("--config", "--json", "--verbose"):
        assert option in text


@pytest.mark.slow
def test_the_help_tells_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "Exit codes" in out
    assert cli.main([]) == 2
    assert "Exit codes" in capsys.readouterr().out


@pytest.mark.parametrize("group", ["cell", "instance", "db"])
def test_a_group_without_a_command_shows_its_help(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([group]) == 2
    captured = capsys.readouterr()
    assert f"Usage: cellcache {group}" in captured.out
    assert captured.err == ""


@pytest.mark.slow
def test_a_completion_script_is_printed() -> None:
    shell = {"SHELL": "/bin/bash", "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    outcome = run_process("--show-completion", "bash", env=shell)
    assert outcome.code == 0
    assert "_CELLCACHE_COMPLETE" in outcome.out
    assert "complete -o default -F" in outcome.out


def complete(line: str, env: Mapping[str, str] | None = None) -> list[str]:
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - (not line.endswith(" ")))}
    outcome = run_process(env={"_CELLCACHE_COMPLETE": "complete_bash", **words, **(env or {})})
    assert outcome.err == ""
    return outcome.out.split()


@pytest.mark.slow
def test_commands_and_options_are_completed() -> None:
    assert complete("cellcache inst") == ["instance"]
    assert "--purged" in complete("cellcache instance prune --p")


@pytest.mark.slow
def test_cells_are_completed_by_name(deployment: Deployment) -> None:
    for name in ("one", "two"):
        deployment.ok("cell", "create", name, "--database-connection", "sqlite:///c.db")
    assert complete(f"cellcache -c {deployment.config} cell show tw") == ["two"]
    assert "one" in complete("cellcache instance list --cell ", {"CELLCACHE_CONFIG": str(deployment.config)})


@pytest.mark.slow
def test_without_configuration_no_cell_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever can write to the folder could have left a database there."""
    monkeypatch.chdir(tmp_path)
    schema.upgrade("sqlite:///cellcache.db")
    make_deployment(tmp_path, None, migrated=False)  # type: ignore[arg-type]
    assert complete("cellcache cell show ") == []


HOSTILE_NAMES = [
    "$(id)",
    "`id`",
    "a b",
    "a;id",
    "a'b",
    'a"b',
    "--show-secrets",
    "-c",
    "a\nb",
    "a\x1b]52;c;x\a",
    "a:b",
    "ä",
]


def test_what_a_shell_could_run_is_not_offered_to_it(deployment: Deployment) -> None:
    """Neither as a choice nor as its meaning: zsh evaluates both."""
    for name in (*HOSTILE_NAMES, "cell-1.a_b"):
        deployment.ok("cell", "create", "x", "--database-connection", "sqlite:///c.db")
        with closing(sqlite3.connect(deployment.folder / "mappings.db")) as connection, connection:
            connection.execute("UPDATE cell_mapping SET name = ? WHERE name = 'x'", [name])
    with closing(sqlite3.connect(deployment.folder / "mappings.db")) as connection, connection:
        connection.execute("UPDATE cell_mapping SET uuid = '$(id)' WHERE name = 'a b'")
    context = typer.Context(typer.main.get_command(app))
    context.params["config"] = str(deployment.config)
    offered = complete_cell(context, "")
    assert len(offered) == 1 + len(HOSTILE_NAMES)  # one by its name, all but one by their UUIDs
    assert [choice for choice, _ in offered if choice == "cell-1.a_b"] == ["cell-1.a_b"]
    for text in itertools.chain(*offered):
        assert re.fullmatch(r"(?:\w[\w.-]*)?", text)
    assert complete_cell(context, "--") == complete_cell(context, "$") == []


@pytest.mark.slow
def test_where_no_database_answers_no_cell_is_completed(deployment: Deployment) -> None:
    deployment.configure('[database]\nurl = "mysql+pymysql://nova@127.0.0.1:1/nova_api"\n')
    assert complete(f"cellcache -c {deployment.config} cell show tw") == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="pseudo-terminals")
def test_a_progress_bar_shows_on_a_terminal_and_only_there(deployment: Deployment) -> None:
    arguments = command("doctor", "-c", str(deployment.config))
    ours, theirs = os.openpty()
    with subprocess.Popen(
        arguments, env=environment({"TERM": "xterm"}), stdout=subprocess.PIPE, stderr=theirs
    ) as process:
        os.close(theirs)
        assert process.stdout is not None
        out = process.stdout.read()
        seen = b""
        while True:
            try:
                seen += os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
        os.close(ours)
        assert process.wait(timeout=30) == 0
    assert b"\x1b[" in seen
    assert b"\x1b[" not in out
    assert deployment.ok("doctor").err == ""
