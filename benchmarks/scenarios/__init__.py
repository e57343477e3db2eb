"""The scenarios, in the order in which they run: each yields the cases that it measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.bench import Bench
from benchmarks.results import Case
from benchmarks.scenarios import bulk, growth, hit, memory, miss, nodes, nova, processes, request, threads, write, zipf

Scenario = Callable[[Bench], Iterator[Case]]

SCENARIOS: dict[str, tuple[str, Scenario]] = {
    "hit": (hit.TITLE, hit.run),
    "unmapped": ("one hit that says “not mapped”", hit.run_unmapped),
    "bulk": (bulk.TITLE, bulk.run),
    "miss": (miss.TITLE, miss.run),
    "create": (write.TITLE_CREATE, write.run_create),
    "move": (write.TITLE_MOVE, write.run_move),
    "prune": (write.TITLE_PRUNE, write.run_prune),
    "request": (request.TITLE, request.run),
    "memory": (memory.TITLE, memory.run),
    "threads": (threads.TITLE, threads.run),
    "processes": (processes.TITLE_HITS, processes.run_hits),
    "nodes": (nodes.TITLE, nodes.run),
    "zipf": (zipf.TITLE, zipf.run),
    "fleet": (processes.TITLE_FLEET, processes.run_fleet),
    "growth": (growth.TITLE, growth.run),
    "nova": (nova.TITLE, nova.run),
}

BY_OPTION = ("nova",)
"""Those that run only if they are asked for: they install what is no business of ours."""
