"""Many hits at once: 1 to 10,000 instances in one call, over one and over several memcached nodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.bench import Bench
from benchmarks.contenders import Contender
from benchmarks.results import Case

TITLE = "many hits at once"
_SEVERAL = 3
_TYPICAL = 1_000


def run(bench: Bench) -> Iterator[Case]:
    for size in bench.options.sizes:
        yield from bulk(bench, size, 1, "bulk")
    if _SEVERAL in bench.options.servers and _TYPICAL in bench.options.sizes:
        yield from bulk(bench, _TYPICAL, _SEVERAL, "bulk")


def bulk(bench: Bench, size: int, nodes: int, scenario: str) -> Iterator[Case]:
    """Compare all that can look up many, on so many nodes."""
    stored = bench.stored(nodes)
    size = min(size, stored.count)

    def lists(contender: Contender, number: int) -> list[Any]:
        return [contender.argument_many(stored.distinct(bench.random, size)) for _ in range(number)]

    yield from bench.compare(
        f"bulk-{size}-nodes-{nodes}",
        f"{size:,} {'hits' if size > 1 else 'hit'} at once, {nodes} memcached {'nodes' if nodes > 1 else 'node'}",
        "lookup_many",
        bench.who_can("lookup_many", ("memcached", "sql"), nodes=nodes),
        lists,
        reference="cellcache.memcached" if nodes > 1 else "socket",
        scenario=scenario,
        cached=True,
        nodes=nodes,
        instances=size,
    )
