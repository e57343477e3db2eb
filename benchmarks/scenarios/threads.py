"""Threads that share one contender: how many hits a second all of them get together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

from benchmarks.bench import Bench
from benchmarks.contenders import Contender
from benchmarks.race import Lane, race
from benchmarks.results import Case, Figure, percentiles

TITLE = "threads that share one directory"
_WHO = ("cellcache.memcached", "cellcache.memory", "pymemcache.pooled", "dogpile.pymemcache", "sql.core")
_TOGETHER_S = 0.05  # how long all threads of a lane run together in one round


def run(bench: Bench) -> Iterator[Case]:
    contenders = [contender for contender in bench.who_can("lookup") if contender.key in _WHO]
    figures: list[Figure] = []
    lanes = []
    pools: list[_Together] = []
    try:
        for contender in contenders:
            for threads in bench.options.threads:
                pools.append(_Together(bench, bench.loaded(contender), threads))
                lanes.append(pools[-1].lane())
        title = "Hits by all threads together, by the number of threads"
        if lanes:
            race_options = bench.options
            times = race(
                lanes,
                rounds=race_options.rounds,
                batch_s=race_options.batch_s,
                case_s=race_options.case_s,
                random=bench.random,
            )
            for lane, pool in zip(lanes, pools, strict=True):
                values = [value / pool.hits for value in times[lane.key].rounds_us]
                figures.append(
                    Figure(lane.key, lane.title, values, *percentiles(pool.calls_us), calls=len(pool.calls_us))
                )
            bench.lanes["threads"] = {lane.key: pool.alone() for lane, pool in zip(lanes, pools, strict=True)}
            yield Case(
                "threads",
                "threads",
                title,
                "cellcache.memcached@1" if bench.has("cellcache.memcached") else lanes[0].key,
                figures,
                note="Time per hit is that of all threads together; the percentiles are those of single calls.",
            )
    finally:
        for pool in pools:
            pool.close()


class _Together:
    """Some threads that wait for each other, then each look up its part of the instances."""

    def __init__(self, bench: Bench, contender: Contender, threads: int) -> None:
        self.calls_us: list[float] = []
        self._bench = bench
        self._contender = contender
        self._threads = threads
        self._barrier = Barrier(threads)
        self._pool = ThreadPoolExecutor(threads)
        self.hits = threads * self._calibrate()

    def lane(self) -> Lane:
        return Lane(
            f"{self._contender.key}@{self._threads}",
            self._contender.title,
            self._call,
            lambda size: [self._parts() for _ in range(size)],
            per_batch=1,
        )

    def alone(self) -> Lane:
        """One hit in one thread: a profiler sees one, and the work of each is what the others wait for."""
        lookup = self._contender.operation("lookup")
        return Lane(self.lane().key, f"{self._contender.title}, in one thread", lookup, self._keys, per_batch=100)

    def close(self) -> None:
        self._pool.shutdown()

    def _call(self, parts: Sequence[Sequence[Any]]) -> None:
        lookup = self._contender.operation("lookup")
        for calls in self._pool.map(_run, [self._barrier] * self._threads, [lookup] * self._threads, parts):
            self.calls_us.extend(calls)

    def _parts(self) -> list[list[Any]]:
        each = self.hits // self._threads
        return [self._keys(each) for _ in range(self._threads)]

    def _keys(self, size: int) -> list[Any]:
        return [self._contender.argument(key) for key in self._bench.instances.some(self._bench.random, size)]

    def _calibrate(self) -> int:
        """Return how many hits each thread has in a call."""
        self._call_once(10)
        began = time.perf_counter()
        self._call_once(50)
        each = (time.perf_counter() - began) / 50 / self._threads
        seconds = _TOGETHER_S if self._bench.options.batch_s >= 0.01 else _TOGETHER_S / 10
        return max(10, min(5_000, round(seconds / each / self._threads)))

    def _call_once(self, each: int) -> None:
        self._call([self._keys(each) for _ in range(self._threads)])


def _run(barrier: Barrier, lookup: Callable[[Any], object], keys: Sequence[Any]) -> list[float]:
    clock = time.perf_counter_ns
    barrier.wait()
    calls = []
    for key in keys:
        began = clock()
        lookup(key)
        calls.append((clock() - began) / 1000)
    return calls
