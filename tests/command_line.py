"""Runs the command line, in this process or in one of its own, on a small deployment on SQLite files."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import typer

from cellcache import schema
from cellcache.cli import app, main

PASSWORD = "Hunter-2-hunter"  # planted in URLs, and looked for in every output


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def documents(self) -> list[Any]:
        """The JSON on stdout, a document a line."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def document(self) -> Any:
        (document,) = self.documents
        return document

    @property
    def error(self) -> str:
        """The one line on stderr, without "cellcache: "."""
        (line,) = self.err.splitlines()
        assert line.startswith("cellcache: "), line
        return line.removeprefix("cellcache: ")


@dataclass(frozen=True)
class Deployment:
    """A configuration file, and what runs commands with it."""

    folder: Path
    capture: pytest.CaptureFixture[str]
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def config(self) -> Path:
        return self.folder / "cellcache.toml"

    @property
    def database_url(self) -> str:
        return f"sqlite:///{self.folder / 'mappings.db'}"

    def configure(self, text: str) -> None:
        self.config.write_text(text, encoding="utf-8")

    def run(self, *arguments: str, config: bool = True) -> Outcome:
        """Run one command in this process."""
        given = ["--config", str(self.config)] if config else []
        self.capture.readouterr()
        code = main([*given, *arguments])
        captured = self.capture.readouterr()
        outcome = Outcome(int(code), captured.out, captured.err)
        self.outcomes.append(outcome)
        return outcome

    def run_to_its_end(self, *arguments: str) -> Outcome:
        """Run one command that may end as if by a signal, as the interpreter would."""
        try:
            return self.run(*arguments)
        except SystemExit as end:
            captured = self.capture.readouterr()
            return Outcome(int(end.code or 0), captured.out, captured.err)

    def ok(self, *arguments: str) -> Outcome:
        outcome = self.run(*arguments)
        assert outcome.code == 0, outcome
        return outcome

    def json(self, *arguments: str) -> Any:
        """Return the one document that a command prints with --json."""
        return self.ok(*arguments, "--json").document

    def cell_database(self, name: str, instances: Iterable[str] = ()) -> str:
        """Make a cell's database with rows in its `instances` table, and return its URL."""
        path = self.folder / f"{name}.db"
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("CREATE TABLE instances (uuid VARCHAR(36) UNIQUE, deleted INTEGER DEFAULT 0)")
            connection.executemany("INSERT INTO instances (uuid) VALUES (?)", [(uuid,) for uuid in instances])
        return f"sqlite:///{path}"


def make_deployment(folder: Path, capture: pytest.CaptureFixture[str], *, migrated: bool = True) -> Deployment:
    deployment = Deployment(folder, capture)
    deployment.configure(f'[database]\nurl = "{deployment.database_url}"\n')
    if migrated:
        schema.upgrade(deployment.database_url)
    return deployment


def every_command() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the path of each command, and the command as the parser has it."""

    def walk(group: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        for name, found in group.commands.items():
            if hasattr(found, "commands"):
                yield from walk(found, (*path, name))
            else:
                yield (*path, name), found

    return walk(typer.main.get_command(app), ())


def command(*arguments: str) -> list[str]:
    """Return what starts the command line in a process of its own."""
    return [sys.executable, "-c", "import sys; from cellcache.cli import app, main; sys.exit(main())", *arguments]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without anything that configures cellcache, typer or rich."""
    foreign = ("CELLCACHE_", "_CELLCACHE_", "CELL_", "COLUMNS", "FORCE_COLOR", "NO_COLOR")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    return kept | dict(extra or {})


def run_process(
    *arguments: str, env: Mapping[str, str] | None = None, stdin: str = "", cwd: Path | None = None
) -> Outcome:
    """Run one command in a process of its own."""
    done = subprocess.run(
        command(*arguments),
        env=environment(env),
        input=stdin,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
