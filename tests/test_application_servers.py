"""A service under the servers that people run: told of its fork or not, with threads or greenlets, loaded before or
after.

Each worker must answer with the right cell, and leave nothing wrong in the cache that they share.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.directories import Site, new_uuids, open_site

INSTANCES, CELLS, WORKERS, REQUESTS = 1000, 20, 4, 60
PATIENCE_S = 60.0

UWSGI = ["uwsgi", "--master", "--die-on-term", "--need-app", "--module", "tests.served_application"]
GUNICORN = ["gunicorn", "tests.served_application:application", "--graceful-timeout", "5", "--no-control-socket"]
SERVERS = {
    "uWSGI as it comes": [*UWSGI, "--processes", str(WORKERS)],
    "uWSGI with threads": [*UWSGI, "--processes", "2", "--enable-threads", "--threads", "4"],
    "uWSGI with lazy applications": [*UWSGI, "--processes", str(WORKERS), "--lazy-apps"],
    "gunicorn": [*GUNICORN, "--workers", str(WORKERS)],
    "gunicorn, loaded before": [*GUNICORN, "--workers", str(WORKERS), "--preload"],
    "gunicorn with threads": [*GUNICORN, "--workers", "2", "--threads", "4"],
    "gunicorn with threads, loaded before": [*GUNICORN, "--workers", "2", "--threads", "4", "--preload"],
    "gunicorn with gevent": [*GUNICORN, "--workers", "2", "--worker-class", "gevent"],
    "gunicorn with gevent, loaded before": [*GUNICORN, "--workers", "2", "--worker-class", "gevent", "--preload"],
}


@pytest.fixture(
    params=[pytest.param(kind, marks=pytest.mark.needs(kind)) for kind in ("memcached", "redis")],
)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, request.param, "mariadb") as site:
        yield site


@pytest.mark.slow
@pytest.mark.needs("mariadb")
@pytest.mark.parametrize("name", SERVERS)
def test_every_worker_names_the_right_cell(site: Site, tmp_path: Path, name: str) -> None:
    directory = site.open()
    cells = [directory.create_cell(f"cell {n}", "sqlite:///none.db", "fake://").uuid for n in range(CELLS)]
    placed = {key: cells[n % CELLS] for n, key in enumerate(new_uuids(INSTANCES))}
    directory.map_instances((key, cell, "project") for key, cell in placed.items())
    with _serving(site, tmp_path, SERVERS[name], placed) as ask, ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(ask, (37 * n % (INSTANCES - 100) for n in range(REQUESTS))))
    assert sum(answer["wrong"] for answer in answers) == 0
    assert [failure for answer in answers for failure in answer["failures"]] == []
    if name in {"uWSGI as it comes", "gunicorn, loaded before"}:  # of others one worker may have begun before the rest
        assert len({answer["process"] for answer in answers}) > 1
    found = site.open().resolve_cells(placed)
    assert {key: cell.uuid for key, cell in found.items()} == placed


@contextmanager
def _serving(site: Site, path: Path, command: list[str], placed: dict[str, str]) -> Iterator[Any]:
    """Run the service; give what asks it for the hundred instances behind so many."""
    served, log = path / "served.json", path / "server.log"
    cache = {"backend": site.cache.entry_point, "timeout_s": 4.0, **site.cache.arguments()}
    settings = {"database": {"url": site.database_url}, "cache": cache}
    served.write_text(json.dumps({"settings": settings, "instances": placed}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    listening = ["--http-socket", address, "--virtualenv", sys.prefix] if command[0] == "uwsgi" else ["--bind", address]
    environment = {**os.environ, "SERVED": str(served), "PYTHONPATH": str(Path(__file__).parent.parent)}
    executable = str(Path(sys.executable).parent / command[0])
    with log.open("wb") as output:
        server = subprocess.Popen(
            [executable, *command[1:], *listening], env=environment, cwd=path, stdout=output, stderr=output
        )

    def ask(first: int) -> Any:
        with urlopen(f"http://{address}/?{first}", timeout=PATIENCE_S) as response:
            return json.load(response)

    try:
        _wait_for(ask, server, log)
        yield ask
    finally:
        server.terminate()
        try:
            server.wait(PATIENCE_S / 2)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait_for(ask: Any, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            ask(0)
        except URLError as error:
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the server did not start ({error}): {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        else:
            return
