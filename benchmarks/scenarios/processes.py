"""Several processes on one cache: hits a second together, and what a fleet's cold start costs the database."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.bench import Bench
from benchmarks.results import Case, Figure, percentiles
from benchmarks.workers import Workers

TITLE_HITS = "processes that share a cache"
TITLE_FLEET = "a fleet that starts with a cold cache"
_HITTING = ("cellcache.memcached", "pymemcache.client", "dogpile.pymemcache")
_STARTING = ("cellcache.memcached", "cellcache.redis", "dogpile.pymemcache", "dogpile.redis")
_HITS_EACH = 1_000
_ROUNDS = 10
_COLD_KEYS = 2_000


def run_hits(bench: Bench) -> Iterator[Case]:
    contenders = [contender for contender in bench.who_can("lookup") if contender.key in _HITTING]
    if not contenders:
        return
    places = {contender.key: bench.loaded(contender).place for contender in contenders}
    titles = {contender.key: contender.title for contender in contenders}
    rounds = min(_ROUNDS, bench.options.rounds)
    each = _HITS_EACH if rounds == _ROUNDS else _HITS_EACH // 5
    lanes = [(key, size) for key in places for size in bench.options.processes]
    times: dict[tuple[str, int], list[float]] = {lane: [] for lane in lanes}
    calls: dict[tuple[str, int], list[float]] = {lane: [] for lane in lanes}
    title = "Hits by all processes together, by the number of processes"
    with (
        Workers(places, max(bench.options.processes)) as workers,
        bench.progress.step(title, rounds) as on_progress,
    ):
        for _ in range(rounds):
            for key, size in bench.random.sample(lanes, len(lanes)):
                numbers = [[bench.random.randrange(bench.options.rows) for _ in range(each)] for _ in range(size)]
                took_s, took_us = workers.look_up(key, numbers)
                times[key, size].append(took_s / size / each * 1e6)
                calls[key, size].extend(took_us)
            on_progress(1)
    figures = [
        Figure(
            f"{key}@{size}",
            titles[key],
            times[key, size],
            *percentiles(calls[key, size]),
            calls=len(calls[key, size]),
        )
        for key, size in lanes
    ]
    yield Case(
        "processes",
        "processes",
        title,
        figures[0].key,
        figures,
        note="Time per hit is that of all processes together; the percentiles are those of single calls.",
    )


def run_fleet(bench: Bench) -> Iterator[Case]:
    contenders = [contender for contender in bench.who_can("lookup") if contender.key in _STARTING]
    if not contenders:
        return
    places = {contender.key: bench.place(contender, alone=True) for contender in contenders}
    keys = min(_COLD_KEYS, bench.options.rows // 10)
    rounds = 3
    figures = []
    title = f"SQL reads when a fleet asks for the same {keys:,} instances and nothing is cached"
    first = 0
    with (
        Workers(places, max(bench.options.processes)) as workers,
        bench.world.statements() as statements,
        bench.progress.step(title, len(contenders) * len(bench.options.processes) * rounds) as on_progress,
    ):
        for contender in contenders:
            for size in bench.options.processes:
                reads, seconds = [], []
                for _ in range(rounds):
                    numbers = [(first + number) % bench.options.rows for number in range(keys)]
                    first += keys
                    before = statements.read().statements
                    took_s, _ = workers.look_up(contender.key, [numbers] * size)
                    reads.append((statements.read().statements - before) / keys)
                    seconds.append(took_s)
                    on_progress(1)
                figures.append(
                    Figure(f"{contender.key}@{size}", contender.title, reads, extra={"seconds": min(seconds)})
                )
    yield Case(
        "fleet",
        "fleet",
        title,
        figures[0].key,
        figures,
        unit="reads",
        note="Reads per instance: 1 is the least there is. Every process asks in the same order, which is the worst.",
    )
