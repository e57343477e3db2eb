"""Which worlds a test walks in, and how far: a short form by default, everything by INTERLEAVINGS=all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from _pytest.mark.structures import ParameterSet

from tests.interleavings.caches import QuickMemcached
from tests.interleavings.world import CellcacheWorld, cellcache_world
from tests.servers import Redis

EVERYTHING = os.environ.get("INTERLEAVINGS") == "all"

BACKENDS = ("memory", "memcached", "redis")


def place(backend: str, *values: object) -> ParameterSet:
    """Return a test's parameters that begin with a backend; the test needs that one's server."""
    return pytest.param(backend, *values, marks=[pytest.mark.needs(backend)] if backend != "memory" else [])


@contextmanager
def new_folder() -> Iterator[Path]:
    """Make a folder in memory, where the machine has one: a walk writes thousands of rows."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="cellcache-", dir=memory if memory.is_dir() else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def open_world(
    backend: str, request: pytest.FixtureRequest, each: Mapping[int, Mapping[str, Any]] | None = None
) -> Iterator[CellcacheWorld]:
    with ExitStack() as stack:
        folder = stack.enter_context(new_folder())
        server: QuickMemcached | Redis | None = None
        if backend == "memcached":
            server = QuickMemcached(folder)
            stack.callback(server.close)
        elif backend == "redis":
            server = request.getfixturevalue("redis_server")
        yield stack.enter_context(cellcache_world(folder, server, each))
