"""The scenarios, in the order in which they run: each yields the cases that it measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.bench import Bench
from benchmarks.results import Case
from benchmarks.scenarios import bulk, hit, miss, write

Scenario = Callable[[Bench], Iterator[Case]]

SCENARIOS: dict[str, tuple[str, Scenario]] = {
    "hit": (hit.TITLE, hit.run),
    "unmapped": ("one hit that says “not mapped”", hit.run_unmapped),
    "bulk": (bulk.TITLE, bulk.run),
    "miss": (miss.TITLE, miss.run),
    "create": (write.TITLE_CREATE, write.run_create),
    "move": (write.TITLE_MOVE, write.run_move),
    "prune": (write.TITLE_PRUNE, write.run_prune),
}
