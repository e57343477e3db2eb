"""More memcached nodes: what finding the right one, and asking several at once, costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.bench import Bench
from benchmarks.contenders import Contender
from benchmarks.race import Lane
from benchmarks.results import Case

TITLE = "more memcached nodes"
_MANY = 1_000


def run(bench: Bench) -> Iterator[Case]:
    some = bench.stored(max(bench.options.servers))
    many = min(_MANY, some.count)

    def keys(contender: Contender, size: int) -> list[Any]:
        return [contender.argument(key) for key in some.some(bench.random, size)]

    def lists(contender: Contender, number: int) -> list[Any]:
        return [contender.argument_many(some.distinct(bench.random, many)) for _ in range(number)]

    for case, title, operation, arguments, instances in (
        ("nodes", "One hit, by the number of memcached nodes", "lookup", keys, 1),
        ("nodes-bulk", f"{many:,} hits at once, by the number of memcached nodes", "lookup_many", lists, many),
    ):
        lanes = []
        for contender in bench.who_can("lookup_many", ("memcached",), nodes=max(bench.options.servers)):
            for nodes in bench.options.servers:
                opened = bench.loaded(contender, nodes)
                lanes.append(
                    Lane(
                        f"{contender.key}@{nodes}",
                        contender.title,
                        getattr(opened, operation),
                        lambda size, opened=opened, arguments=arguments: arguments(opened, size),  # type: ignore[misc]
                        instances,
                    )
                )
        if lanes:
            yield Case(case, "nodes", title, lanes[0].key, bench.race(case, title, lanes))
