"""A run in progress: what every scenario needs to race the contenders against each other."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from benchmarks.contenders import CONTENDERS, Contender, Family, Operation
from benchmarks.instances import Instances
from benchmarks.options import Options
from benchmarks.profiles import Profile, profile
from benchmarks.progress import Progress
from benchmarks.race import Lane, race
from benchmarks.results import Case, Figure, percentiles
from benchmarks.world import Counted, Counts, Place, World

_CHECKED = 20
_ON_SEVERAL_NODES = 20_000
_COUNTED = 3
_NEVER_MAPPED = 10**12  # numbers from here on belong to no instance that any scenario creates

Prepare = Callable[[Contender, int], list[Any]]
"""Returns so many fresh arguments for a contender's operation; may prepare the world for them."""


class WrongAnswer(AssertionError):
    """A contender answered something else than the table holds."""


class Bench:
    """Opens and loads each contender once, checks it, races it, counts for it."""

    def __init__(self, options: Options, world: World, progress: Progress) -> None:
        self.options = options
        self.world = world
        self.progress = progress
        self.random = Random(options.seed)
        self.instances: Instances = world.instances(options.rows)
        self.left_out = [reason for contender in CONTENDERS if (reason := contender.missing())]
        self.lanes: dict[str, dict[str, Lane]] = {}  # that were raced, by case and key
        self._loaded: dict[tuple[type[Contender], int], Contender] = {}
        self._new = itertools.count(max(options.rows, *options.growth))  # new to every table of the run
        self._never = itertools.count(_NEVER_MAPPED)
        self._stack = contextlib.ExitStack()

    def close(self) -> None:
        self._stack.close()

    # -- contenders --------------------------------------------------------------------------------------------

    def who_can(
        self,
        operation: Operation,
        families: Iterable[Family] = ("memcached", "redis", "memory", "sql"),
        *,
        nodes: int = 1,
        reads_through: bool = False,
    ) -> list[type[Contender]]:
        """Return the contenders of these families that have the operation and can use so many memcached nodes."""
        return [
            contender
            for contender in CONTENDERS
            if contender.can(operation)
            and contender.family in set(families)
            and contender.missing() is None
            and (not self.options.contenders or contender.key in self.options.contenders)
            and (nodes == 1 or contender.many_nodes or contender.family != "memcached")
            and (contender.reads_through or contender.family == "sql" or not reads_through)
        ]

    def loaded(self, contender: type[Contender], nodes: int = 1) -> Contender:
        """Return a contender whose cache holds every instance; opened, loaded and checked once per run."""
        nodes = nodes if contender.family == "memcached" else 1
        key = contender, nodes
        if key not in self._loaded:
            opened = self._stack.enter_context(contextlib.closing(contender(self.place(contender, nodes))))
            stored = self.stored(nodes)
            with self.progress.step(f"filling {contender.title}", stored.count) as on_progress:
                for start in range(0, stored.count, 10_000):
                    numbers = range(start, min(start + 10_000, stored.count))
                    opened.store(stored, numbers)
                    on_progress(len(numbers))
            self._check(opened, stored)
            self._loaded[key] = opened
        return self._loaded[key]

    def stored(self, nodes: int) -> Instances:
        """Return the instances that a cache of so many nodes is filled with: to fill several takes HashClient long."""
        count = self.options.rows if nodes == 1 else min(self.options.rows, _ON_SEVERAL_NODES)
        return self.world.instances(count)

    def has(self, key: str) -> bool:
        return any(contender.key == key for contender in self.who_can("lookup"))

    def place(
        self, contender: type[Contender], nodes: int = 1, rows: int | None = None, *, alone: bool = False
    ) -> Place:
        """Return a place with what the contender needs; `alone` gives it empty caches that nobody else uses."""
        rows = self.options.rows if rows is None else rows
        place = Place(self.world.database(rows).url, self.world.cell_database(), self.world.instances(rows))
        if contender.family == "memcached":
            place = replace(place, memcached=self.world.new_memcached(nodes) if alone else self.world.memcached(nodes))
        elif contender.family == "redis":
            place = replace(place, redis=self.world.new_redis() if alone else self.world.redis())
        return place

    def _check(self, contender: Contender, stored: Instances) -> None:
        numbers = self.random.sample(range(stored.count), _CHECKED)
        expected = {self.instances.uuid(number): self.instances.cell(number) for number in numbers}
        if contender.can("lookup"):
            lookup = contender.operation("lookup")
            for key, cell in expected.items():
                demand(contender, contender.cell_of(lookup(contender.argument(key))), cell)
        if contender.can("lookup_many"):
            found = contender.operation("lookup_many")(contender.argument_many(list(expected)))
            demand(contender, contender.cells_of(found, list(expected)), expected)
        if contender.can("lookup_unmapped"):
            demand(contender, contender.operation("lookup_unmapped")(self.never_mapped(1)[0]), None)

    # -- arguments ---------------------------------------------------------------------------------------------

    def new_numbers(self, size: int) -> list[int]:
        """Return the numbers of instances that nobody has created yet."""
        return list(itertools.islice(self._new, size))

    def never_mapped(self, size: int) -> list[str]:
        return [self.instances.uuid(number) for number in itertools.islice(self._never, size)]

    # -- cases -------------------------------------------------------------------------------------------------

    def compare(
        self,
        case: str,
        title: str,
        operation: Operation,
        contenders: Sequence[type[Contender]],
        prepare: Prepare,
        *,
        reference: str,
        scenario: str,
        nodes: int = 1,
        instances: int = 1,
        per_batch: int | None = None,
        cached: bool = False,
        note: str = "",
    ) -> Iterator[Case]:
        """Race one operation of several contenders; yields nothing where none of them is there.

        `cached` says that the caches hold what the arguments ask for.
        """
        opened = [self.loaded(contender, nodes) for contender in contenders]
        if not opened:
            return
        lanes = [self._lane(contender, operation, prepare, instances, per_batch) for contender in opened]
        counts = {contender.key: self.count(contender, operation, prepare, cached=cached) for contender in opened}
        figures = self.race(case, title, lanes)
        for figure in figures:
            found = counts[figure.key]
            figure.cache_round_trips = found.cache_round_trips
            figure.database_round_trips = found.database_round_trips
            figure.statements = found.statements
            figure.transaction_statements = found.transaction_statements
        yield Case(case, scenario, title, reference, figures, note=note)

    def race(self, case: str, title: str, lanes: Sequence[Lane]) -> list[Figure]:
        self.lanes[case] = {lane.key: lane for lane in lanes}
        with self.progress.step(title, 1.0) as on_progress:
            done = 0.0

            def on_round(share: float) -> None:
                nonlocal done
                on_progress(share - done)
                done = share

            times = race(
                lanes,
                rounds=self.options.rounds,
                batch_s=self.options.batch_s,
                case_s=self.options.case_s,
                random=self.random,
                on_round=on_round,
            )
        return [
            Figure(
                lane.key,
                lane.title,
                times[lane.key].rounds_us,
                *percentiles(times[lane.key].calls_us),
                calls=len(times[lane.key].calls_us),
                instances=lane.instances,
            )
            for lane in lanes
        ]

    def profile(self, case: str, key: str) -> Profile | None:
        """Profile a lane of a case that has just been raced; None where nothing was timed, as of memory."""
        lane = self.lanes.get(case, {}).get(key)
        if lane is None:
            return None
        with self.progress.step(f"profiling {lane.title}", 1.0):
            return profile(case, lane)

    def count(self, contender: Contender, operation: Operation, prepare: Prepare, *, cached: bool) -> Counts:
        """Return what one call costs over warm connections: the least of three, as a background thread may ask too."""
        with Counted(contender.place) as counted, contextlib.closing(type(contender)(counted.place)) as through:
            call = through.operation(operation)
            found = []
            # What it takes to prepare the arguments need not go through the proxies, unless the cache is in there.
            preparing = through if through.family == "memory" else contender
            for _ in range(_COUNTED):
                warm, argument = prepare(preparing, 2)
                call(argument if cached else warm)
                found.append(counted.counts(lambda: call(argument)))  # noqa: B023
        return Counts(
            *(min(getattr(one, name) for one in found) for name in Counts.__slots__),
        )

    def _lane(
        self, contender: Contender, operation: Operation, prepare: Prepare, instances: int, per_batch: int | None
    ) -> Lane:
        return Lane(
            contender.key,
            contender.title,
            contender.operation(operation),
            lambda size: prepare(contender, size),
            instances,
            per_batch,
        )


def demand(contender: Contender, found: object, expected: object) -> None:
    if found != expected:
        raise WrongAnswer(f"{contender.title} answered {found!r:.200} where the table has {expected!r:.200}")
