"""One lookup that the cache answers: with a cell, and with "not mapped"."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.bench import Bench
from benchmarks.contenders import Contender, Family
from benchmarks.results import Case

TITLE = "one hit"
_FLOORS: dict[Family, str] = {"memcached": "socket", "redis": "redis-py", "memory": "dict"}
_NAMES: dict[Family, str] = {"memcached": "memcached", "redis": "Redis", "memory": "this process"}


def run(bench: Bench) -> Iterator[Case]:
    def some(contender: Contender, size: int) -> list[Any]:
        return [contender.argument(key) for key in bench.instances.some(bench.random, size)]

    for family, floor in _FLOORS.items():
        yield from bench.compare(
            f"hit-{family}",
            f"One hit in {_NAMES[family]}",
            "lookup",
            bench.who_can("lookup", (family, "sql")),
            some,
            reference=floor,
            scenario="hit",
            cached=True,
        )


def run_unmapped(bench: Bench) -> Iterator[Case]:
    known = bench.never_mapped(min(5_000, bench.options.rows))

    def some(contender: Contender, size: int) -> list[Any]:
        del contender
        return ["".join(bench.random.choice(known)) for _ in range(size)]

    for family in _FLOORS:
        contenders = bench.who_can("lookup_unmapped", (family,), reads_through=True)
        for contender in contenders:
            answer = bench.loaded(contender).operation("lookup_unmapped")
            with bench.progress.step(f"asking {contender.title} for what is not mapped", len(known)) as on_progress:
                for key in known:
                    answer(key)
                    on_progress(1)
        yield from bench.compare(
            f"unmapped-{family}",
            f"One hit that says “not mapped”, in {_NAMES[family]}",
            "lookup_unmapped",
            contenders,
            some,
            reference=f"dogpile.{'pymemcache' if family == 'memcached' else family}",
            scenario="unmapped",
            cached=True,
        )
