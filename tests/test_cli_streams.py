"""The streams that a shell hands to a command: closed, full, in an encoding that lacks letters, read by nobody."""

from __future__ import annotations

import io
import os
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TextIO

import pytest

from cellcache.cli import main
from cellcache.cli.exits import ExitCode
from tests.command_line import Deployment, command, environment, make_deployment

A = "0f0e3f6e-2f6c-4a3b-9d5e-2f1f6a7f4c11"
PRINTING = ["cell list", "cell list --json", "db upgrade --sql", "resolve --help", "--version"]
DOING = "cell create another --database-connection sqlite:///c.db"
READING = ["instance map --from -", "cell create another --database-connection -", "cell update c --transport-url -"]


@pytest.fixture
def deployment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Deployment:
    deployment = make_deployment(tmp_path, capsys)
    deployment.ok("cell", "create", "c", "--database-connection", "sqlite:///cell.db")
    return deployment


def cells(deployment: Deployment) -> int:
    with closing(sqlite3.connect(deployment.folder / "mappings.db")) as connection:
        (count,) = connection.execute("SELECT count(*) FROM cell_mapping").fetchone()
    return int(count)


# -- in this process, with the streams that Python makes of such ones --------------------------------------------------


@pytest.fixture
def full() -> Iterator[TextIO]:
    with open("/dev/full", "w", encoding="utf-8") as stream:  # noqa: PTH123
        yield stream


@pytest.fixture
def unread() -> Iterator[TextIO]:
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "w", encoding="utf-8") as stream:
        yield stream


def told(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, line: str, **streams: TextIO | None
) -> tuple[int, str]:
    """Run one command with such streams; return its exit code and what it says on stderr."""
    with monkeypatch.context() as patch:
        for name, stream in streams.items():
            patch.setattr(sys, name, stream)
            patch.setattr(sys, f"__{name}__", stream)
        code = main(["--config", str(deployment.config), *shlex.split(line)])
        if streams.get("stderr", sys.stderr) is None:
            sys.stderr.close()  # it was put in place of the one that is closed
        if sys.stdout is not None and sys.stdout is not streams.get("stdout", sys.stdout):
            sys.stdout.close()  # else what is left in it goes, some time later, to the next file of that number
    return code, deployment.capture.readouterr().err


@pytest.mark.parametrize("line", [*PRINTING, DOING])
def test_where_the_output_is_closed_nothing_is_done(
    deployment: Deployment, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "cellcache: standard output is closed; nothing was done\n"
    assert told(deployment, monkeypatch, line, stdout=None) == (ExitCode.OUTPUT, said)
    assert cells(deployment) == 1


@pytest.mark.parametrize("line", [*PRINTING, DOING])
def test_an_output_that_is_full_is_one_line_and_a_code(
    deployment: Deployment, line: str, full: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "cellcache: standard output cannot be written: No space left on device\n"
    assert told(deployment, monkeypatch, line, stdout=full) == (ExitCode.OUTPUT, said)


@pytest.mark.parametrize("line", [*PRINTING, DOING])
def test_an_output_that_nobody_reads_says_nothing(
    deployment: Deployment, line: str, unread: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert told(deployment, monkeypatch, line, stdout=unread) == (ExitCode.BROKEN_PIPE, "")


@pytest.mark.parametrize("closed", [True, False])
def test_where_nobody_can_be_told_the_exit_code_still_tells(
    deployment: Deployment, full: TextIO, closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for line, code in (("cell list -v", 0), ("resolve nonsense", ExitCode.USAGE), (f"resolve {A} -v", ExitCode.NO)):
        assert told(deployment, monkeypatch, line, stderr=None if closed else full) == (code, "")


@pytest.mark.parametrize("line", READING)
def test_an_input_that_is_closed_is_not_an_empty_one(
    deployment: Deployment, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "cellcache: standard input is closed: there is nothing to read in place of -\n"
    assert told(deployment, monkeypatch, line, stdin=None) == (ExitCode.USAGE, said)


def test_an_input_that_is_closed_agrees_to_nothing(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    code, said = told(deployment, monkeypatch, "db downgrade base", stdin=None)
    assert code == ExitCode.USAGE
    assert "nothing was done" in said
    assert cells(deployment) == 1


def test_an_input_that_breaks_off_is_told_with_its_line(deployment: Deployment) -> None:
    outcome = deployment.run("instance", "map", "--from", "/proc/self/mem")
    assert outcome.code == ExitCode.USAGE
    assert "line 1: [Errno 5] Input/output error" in outcome.err


@pytest.mark.parametrize("form", ["", "--json"])
def test_letters_that_the_output_lacks_are_escaped(
    deployment: Deployment, form: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    deployment.ok("cell", "update", "c", "--name", "Zürich")
    with (tmp_path / "out").open("w", encoding="ascii") as stream:
        assert told(deployment, monkeypatch, f"cell list {form}", stdout=stream) == (0, "")
    assert ("Z\\u00fcrich" if form else "Z\\xfcrich") in (tmp_path / "out").read_text(encoding="ascii")


def test_a_program_that_calls_us_keeps_the_output_that_it_put_in_place(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = io.StringIO()
    monkeypatch.setattr(sys, "stdout", mine)
    assert main(["--config", str(deployment.config), "cell", "list", "--json"]) == 0
    assert mine.getvalue().startswith("{")


# -- in a process of its own, with those that a shell makes ------------------------------------------------------------


def shell(deployment: Deployment, line: str, rest: str, stdout: int = subprocess.PIPE) -> tuple[int, str]:
    words = shlex.join([*command(*shlex.split(line)), "--config", str(deployment.config)])
    done = subprocess.run(
        ["bash", "-c", f"{words} {rest}"],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "rest", "code", "said"),
    [
        (DOING, ">&-", ExitCode.OUTPUT, "cellcache: standard output is closed; nothing was done\n"),
        ("cell list", ">/dev/full", ExitCode.OUTPUT, "cellcache: standard output cannot be written: No space"),
        ("resolve nonsense", "2>&-", ExitCode.USAGE, ""),
        (f"resolve {A} -v", "2>/dev/full", ExitCode.NO, ""),
        (f"instance map {A} --cell c", "--project $'\\xff'", ExitCode.USAGE, "project_id '\\udcff' is not a text"),
    ],
)
def test_a_shell_is_told_the_same(deployment: Deployment, line: str, rest: str, code: int, said: str) -> None:
    returned, err = shell(deployment, line, rest)
    assert returned == code
    assert said in err
    assert bool(said) == bool(err)
    assert cells(deployment) == 1


@pytest.mark.slow
def test_python_does_not_complain_at_its_end_of_an_output_that_nobody_reads(
    deployment: Deployment, unread: TextIO
) -> None:
    assert shell(deployment, "db upgrade --sql", "", unread.fileno()) == (ExitCode.BROKEN_PIPE, "")


@pytest.mark.slow
def test_where_all_streams_are_closed_the_database_is_none_of_them(deployment: Deployment) -> None:
    """Else the next file that is opened has the number of standard error, and a message is written into it."""
    assert shell(deployment, "instance map -v nonsense --cell c --project p", "<&- 2>&-") == (ExitCode.USAGE, "")
    with closing(sqlite3.connect(deployment.folder / "mappings.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
