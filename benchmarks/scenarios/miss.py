"""A lookup that the cache cannot answer: it is read from SQL and kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.bench import Bench
from benchmarks.contenders import Contender
from benchmarks.results import Case

TITLE = "misses"
_MANY = 1_000


def run(bench: Bench) -> Iterator[Case]:
    many = min(_MANY, bench.instances.count)

    def forgotten(contender: Contender, size: int) -> list[Any]:
        keys = bench.instances.distinct(bench.random, size)
        _forget(contender, keys)
        return keys

    def forgotten_lists(contender: Contender, number: int) -> list[Any]:
        return [forgotten(contender, many) for _ in range(number)]

    yield from bench.compare(
        "miss",
        "One miss: the cache asked, the row read, the answer kept",
        "lookup",
        bench.who_can("lookup", reads_through=True),
        forgotten,
        reference="sql.core",
        scenario="miss",
        per_batch=20 if bench.options.rows > 2000 else 2,
    )
    yield from bench.compare(
        "miss-1000",
        f"{many:,} misses at once",
        "lookup_many",
        bench.who_can("lookup_many", reads_through=True),
        forgotten_lists,
        reference="sql.core",
        scenario="miss",
        instances=many,
        per_batch=1,
    )


def _forget(contender: Contender, keys: list[str]) -> None:
    forget = getattr(contender, "forget", None)
    if forget is not None:
        forget(keys)
