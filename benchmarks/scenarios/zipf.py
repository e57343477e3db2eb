"""A workload with favourites and a cache that is too small: how often it hits, and what a lookup costs on average."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from benchmarks.bench import Bench
from benchmarks.contenders import Contender
from benchmarks.contenders.dogpile_regions import DogpileMemcached
from benchmarks.contenders.in_process import CacheTools, LruCache
from benchmarks.contenders.ours import InMemory, OnMemcached
from benchmarks.instances import Instances
from benchmarks.race import Lane
from benchmarks.results import Case
from benchmarks.world import Place

TITLE = "a Zipf workload on small caches"
_UNIVERSE = 50_000
_EXPONENT = 0.9
_MEGABYTES = (2, 4, 8, 16)
_SHARES = (0.01, 0.05, 0.2, 1.0)
_COUNTED = 2_000


def run(bench: Bench) -> Iterator[Case]:
    universe = min(_UNIVERSE, bench.options.rows)
    in_memcached = [
        (f"{megabytes} MB", contender, replace(_place(bench), memcached=bench.world.new_memcached(1, megabytes)))
        for contender in (OnMemcached, DogpileMemcached)
        for megabytes in _MEGABYTES
    ]
    in_process = [
        (f"{share:.0%}", contender, replace(_place(bench), room=max(10, int(universe * share))))
        for contender in (InMemory, CacheTools, LruCache)
        for share in _SHARES
        if contender.missing() is None
    ]
    title = f"{universe:,} instances by Zipf's law, in memcached, by its memory"
    yield _case(bench, "zipf-memcached", title, in_memcached, universe)
    title = f"{universe:,} instances by Zipf's law, in this process, by the share of them that has room"
    yield _case(bench, "zipf-memory", title, in_process, universe)


def _place(bench: Bench) -> Place:
    return Place(bench.world.database(bench.options.rows).url, bench.world.cell_database(), bench.instances)


def _case(
    bench: Bench, key: str, title: str, variants: Sequence[tuple[str, type[Contender], Place]], universe: int
) -> Case:
    favourites = _Zipf(bench.instances, universe, bench.options.seed)
    ratios: dict[str, float] = {}
    lanes = []
    with contextlib.ExitStack() as stack, bench.progress.step(f"warming: {title}", len(variants)) as on_progress:
        statements = stack.enter_context(bench.world.statements())
        for variant, contender, place in variants:
            opened = stack.enter_context(contextlib.closing(contender(place)))
            lane = f"{contender.key}@{variant}"
            opened.store(bench.instances, range(universe - 1, -1, -1))  # the favourites last
            lookup = opened.operation("lookup")
            counted = max(200, int(_COUNTED * min(1.0, bench.options.batch_s / 0.01)))
            for asked in favourites.next(counted):
                lookup(asked)
            before = statements.read().statements
            for asked in favourites.next(counted):
                lookup(asked)
            ratios[lane] = 1 - (statements.read().statements - before) / counted
            lanes.append(Lane(lane, opened.title, lookup, favourites.next, per_batch=100, mean=True))
            on_progress(1)
        figures = bench.race(key, title, lanes)
    for figure in figures:
        figure.extra["hit ratio"] = ratios[figure.key]
    return Case(key, "zipf", title, lanes[0].key, figures, note="The time is the mean of hits and misses together.")


class _Zipf:
    """Asks for instance number n in proportion to 1 / (n + 1) ** 0.9."""

    def __init__(self, instances: Instances, universe: int, seed: int) -> None:
        self._instances = instances
        weights = 1.0 / np.arange(1, universe + 1) ** _EXPONENT
        self._shares = np.cumsum(weights / weights.sum())
        self._random = np.random.default_rng(seed)

    def next(self, size: int) -> list[str]:
        numbers = np.searchsorted(self._shares, self._random.random(size))
        last = len(self._shares) - 1
        return [self._instances.uuid(min(int(number), last)) for number in numbers]
