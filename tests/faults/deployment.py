"""A directory with cells and instances, and what its callers should be told: the subject of every fault."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

from cellcache import CellDirectory, InstanceNotMapped, schema
from cellcache.config import Settings

PATIENCE_S = 15.0
"""How long to wait for what should take less than two seconds, on a machine that is busy with other things."""


def prepare(database_url: str, cells: int = 3) -> list[str]:
    """Create the tables and some cells; return the UUIDs of the cells."""
    schema.upgrade(database_url)
    with open_directory(database_url, {}) as directory:
        return [
            directory.create_cell(f"cell{number}", "sqlite:///cell.db", "rabbit://", uuid=UUID(int=number + 1)).uuid
            for number in range(cells)
        ]


def open_directory(database_url: str, cache: Mapping[str, Any], **database: Any) -> CellDirectory:
    return CellDirectory.open(Settings(database={"url": database_url, **database}, cache=cache))


class Deployment:
    """An open directory, and the truth: the cell of each instance."""

    def __init__(self, directory: CellDirectory, cells: list[str], instances: int = 60) -> None:
        self.directory = directory
        self.cells = cells
        self.truth = {str(uuid4()): cells[number % len(cells)] for number in range(instances)}
        directory.map_instances([(key, cell, "project") for key, cell in self.truth.items()])

    @property
    def keys(self) -> list[str]:
        return list(self.truth)

    def move(self, key: str) -> None:
        """Move an instance to the next cell."""
        cell = self.cells[(self.cells.index(self.truth[key]) + 1) % len(self.cells)]
        self.directory.move_instance(key, cell)
        self.truth[key] = cell

    def look_up_everything(self, threads: int = 1, *, but: Collection[str] = ()) -> float:
        """Ask for every instance one by one, and for one that is not mapped; return the longest time one took.

        Every answer must be right. With threads, each asks for all of them in an order of its own.
        """
        wanted = [key for key in self.truth if key not in but]
        together = threading.Barrier(threads)

        def ask(offset: int) -> float:
            together.wait(PATIENCE_S)
            longest_s = 0.0
            keys = wanted[offset:] + wanted[:offset]
            for key in keys:
                began = time.monotonic()
                cell = self.directory.resolve_cell(key)
                longest_s = max(longest_s, time.monotonic() - began)
                assert cell.uuid == self.truth[key], f"{key} is in {self.truth[key]}, the answer was {cell.uuid}"
            began = time.monotonic()
            try:
                cell = self.directory.resolve_cell(uuid4())
            except InstanceNotMapped:
                return max(longest_s, time.monotonic() - began)
            raise AssertionError(f"an instance that is not mapped was found in {cell.uuid}")

        with ThreadPoolExecutor(threads) as pool:
            return max(pool.map(ask, range(0, threads * 7, 7)))

    def look_up_in_bulk(self) -> float:
        """Ask for all of them in one call; every answer must be right. Return the time it took."""
        began = time.monotonic()
        answers = self.directory.resolve_cells([*self.keys, str(uuid4())])
        took_s = time.monotonic() - began
        assert {key: cell.uuid for key, cell in answers.items()} == self.truth
        return took_s

    def misses_of_a_round(self, *, but: Collection[str] = ()) -> int:
        """For how many of all instances the cache has no answer now."""
        before = self.directory.stats().hits
        self.look_up_everything(but=but)
        return len(self.truth) - len(but) - (self.directory.stats().hits - before)

    def seconds_until_all_hit(self, *, but: Collection[str] = ()) -> float:
        """Look up everything again and again until all of it comes from the cache; return how long that took."""
        began = time.monotonic()
        wait_until(lambda: self.misses_of_a_round(but=but) == 0, "the cache answers for everything again")
        return time.monotonic() - began


def wait_until(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {patience_s:g} s"
        time.sleep(0.05)
