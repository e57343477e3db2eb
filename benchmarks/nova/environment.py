"""Nova in a virtual environment of its own, and a process in it that works on a database with Nova's own schema."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import create_engine, make_url, text

from benchmarks.instances import CELLS, Instances
from benchmarks.tables import local_files

FOLDER = Path(".venv-nova")
_DRIVER = Path(__file__).with_name("driver.py")
_AT_ONCE = 100_000


class NovaMissing(RuntimeError):
    """Nova could not be installed or run; the text is one line that says why."""


def install() -> Path:
    """Return the Python of an environment that has Nova; makes it if need be, which takes minutes and the index."""
    python = FOLDER / "bin" / "python"
    stamp = FOLDER / ".installed"
    if not stamp.exists():
        _run([sys.executable, "-m", "venv", str(FOLDER)], "venv")
        _run([str(python), "-m", "pip", "--disable-pip-version-check", "-q", "install", "nova", "PyMySQL"], "pip")
        stamp.touch()
    return python


def create_database(python: Path, url: str, instances: Instances) -> None:
    """Migrate an empty database by Nova's own history, and fill it."""
    _run([str(python), str(_DRIVER), "migrate"], "Nova's migrations", url)
    engine = create_engine(url, connect_args=local_files(make_url(url)))
    with engine.begin() as connection:
        for number, uuid in enumerate(instances.cells(), 1):
            connection.execute(
                text(
                    "INSERT INTO cell_mappings (id, uuid, name, transport_url, database_connection, disabled) "
                    "VALUES (:id, :uuid, :name, 'rabbit://nova@cell/', 'mysql+pymysql://nova@cell/nova', 0)"
                ),
                {"id": number, "uuid": uuid, "name": f"cell{number}"},
            )
        path = Path(f"{FOLDER}-rows.tsv")
        for start in range(0, instances.count, _AT_ONCE):
            numbers = range(start, min(start + _AT_ONCE, instances.count))
            path.write_text("".join(f"{_line(instances, number)}\n" for number in numbers))
            connection.execute(
                text(
                    f"LOAD DATA LOCAL INFILE '{path}' INTO TABLE instance_mappings CHARACTER SET ascii "
                    "(instance_uuid, cell_id, project_id) "
                    "SET user_id = 'user', queued_for_delete = 0, created_at = now()"
                )
            )
        path.unlink()
    with engine.connect() as connection:
        connection.exec_driver_sql("ANALYZE TABLE instance_mappings").all()
    engine.dispose()


def cell_id(number: int) -> int:
    return number % CELLS + 1


def _line(instances: Instances, number: int) -> str:
    return f"{instances.uuid(number)}\t{cell_id(number)}\t{instances.project(number)}"


class Driver:
    """The process in Nova's environment; see driver.py for what it does."""

    def __init__(self, python: Path, url: str) -> None:
        self._process = subprocess.Popen(
            [str(python), str(_DRIVER)],
            env=_environment(url),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process:
            if self._process.stdin:
                self._process.stdin.close()

    def do(self, what: str, arguments: Sequence[Any]) -> tuple[list[float], Any]:
        """Return the microseconds of a call for each argument, and the last one's answer."""
        if self._process.stdin:
            self._process.stdin.write(json.dumps({"do": what, "with": arguments}) + "\n")
            self._process.stdin.flush()
        found = self._read()
        return found["us"], found["last"]

    def _read(self) -> Any:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise NovaMissing("Nova's process ended without an answer")
        return json.loads(line)


def _run(command: list[str], what: str, url: str = "") -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment(url))
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise NovaMissing(f"OpenStack Nova: left out, {what} failed: {last[:200]}")


def _environment(url: str) -> dict[str, str]:
    """Return the environment of its processes; the password goes this way, as everyone may read a command line."""
    return {**os.environ, "NOVA_API_DATABASE": url}
