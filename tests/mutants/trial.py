"""A copy of the project in which a change is made, tried against the tests, and taken back."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.mutants.changes import Change

PACKAGES = {"cellcache": "cellcache", "backends": "cellcache/backends", "migrations": "cellcache/migrations"}
"""Where the folders of the library stand in a copy: as they are installed, so that the copy is what is imported."""
_BESIDE = ("tests", "benchmarks", "docs", "pyproject.toml", "README.md", "CHANGELOG.md")
_GRACE_S = 30.0  # for servers to be stopped
_MOST_MEMORY = 4 << 30  # of a loop that no longer ends


class Outcome(NamedTuple):
    """How the tests took a change. `noticed_by` is the first test that failed, or None where all passed."""

    noticed_by: str | None
    took_s: float


class Trial:
    """A copy in a folder of its own: whatever is changed, the project itself stays as it is."""

    def __init__(self, project: Path, copy: Path, packages: Mapping[str, str] = PACKAGES) -> None:
        self._copy = copy
        self._packages = packages
        for name in (*packages, *_BESIDE):
            source, target = project / name, copy / packages.get(name, name)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".*"))
            elif source.exists():
                shutil.copy(source, target)

    def run(self, tests: Sequence[str], change: Change | None = None, *, limit_s: float) -> Outcome:
        """Run the tests until one fails; who does not end within the limit has noticed, too."""
        began = time.monotonic()
        with self._changed(change):
            noticed_by = self._first_failure(tests, limit_s)
        return Outcome(noticed_by, time.monotonic() - began)

    @contextmanager
    def _changed(self, change: Change | None) -> Iterator[None]:
        if change is None:
            yield
            return
        folder, _, name = change.path.partition("/")
        file = self._copy / self._packages[folder] / name
        before = file.read_text(encoding="utf-8")
        file.write_text(change.text, encoding="utf-8")
        try:
            yield
        finally:
            file.write_text(before, encoding="utf-8")

    def _first_failure(self, tests: Sequence[str], limit_s: float) -> str | None:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-rfE",
            "--no-header",
            "--tb=no",
            "-p",
            "no:cacheprovider",
        ]
        environment = {**os.environ, "PYTHONPATH": str(self._copy), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "300"}
        process = subprocess.Popen(
            [*command, *tests],
            cwd=self._copy,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        resource.prlimit(process.pid, resource.RLIMIT_DATA, (_MOST_MEMORY, _MOST_MEMORY))
        try:
            output, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            return f"the time limit of {limit_s:.0f} s"
        finally:
            _end(process)
        if process.returncode == 0:
            return None
        if process.returncode < 0:
            return f"{signal.Signals(-process.returncode).name}, which ended the tests"
        failures = [line.split(" ")[1] for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
        return failures[0] if failures else (output.strip().splitlines() or ["no output"])[-1]


def _end(process: subprocess.Popen[str]) -> None:
    """Let pytest stop its servers, as after Ctrl-C; kill it if it does not."""
    for signal_ in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, signal_)
            try:
                process.communicate(timeout=_GRACE_S)
            except subprocess.TimeoutExpired:
                continue
