"""A table that grows: what misses, writes and listings cost as it does, and what its migration takes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import create_engine, make_url

from benchmarks.bench import Bench
from benchmarks.contenders import Contender, Operation
from benchmarks.contenders.ours import OnMemcached
from benchmarks.contenders.sql import Core
from benchmarks.instances import Instances
from benchmarks.race import Lane
from benchmarks.results import Case, Figure
from benchmarks.tables import insert_rows, local_files

TITLE = "a table that grows"
_WHO: tuple[type[Contender], ...] = (OnMemcached, Core)
_OPERATIONS: tuple[tuple[str, Operation, str, int], ...] = (
    ("growth-miss", "lookup", "One miss, by the number of rows", 20),
    ("growth-create", "create", "Creating one mapping, by the number of rows", 5),
    ("growth-prune", "prune", "Pruning one mapping, by the number of rows", 5),
    ("growth-listing", "listing", "A page of 100 of a project's mappings, by the number of rows", 5),
)


def run(bench: Bench) -> Iterator[Case]:
    yield _migrations(bench)
    with contextlib.ExitStack() as stack:
        opened = {
            (contender, rows): stack.enter_context(contextlib.closing(contender(bench.place(contender, rows=rows))))
            for contender in _WHO
            for rows in bench.options.growth
        }
        for case, operation, title, per_batch in _OPERATIONS:
            lanes = [
                Lane(
                    f"{contender.key}@{rows:,}",
                    contender.title,
                    one.operation(operation),
                    _arguments(bench, one, operation, rows),
                    per_batch=per_batch if bench.options.batch_s >= 0.01 else 2,
                )
                for (contender, rows), one in opened.items()
            ]
            yield Case(case, "growth", title, lanes[0].key, bench.race(case, title, lanes))


def _migrations(bench: Bench) -> Case:
    figures = []
    for rows in bench.options.growth:
        loaded = bench.world.database(rows)
        figures.append(
            Figure(
                f"migration@{rows:,}",
                "cellcache db upgrade",
                [loaded.migration_s],
                extra={"MiB before": loaded.bytes_before / 2**20, "MiB after": loaded.bytes_after / 2**20},
            )
        )
    return Case(
        "migration",
        "growth",
        "Migrating a table that is there and full: the time, and the space of the three indexes",
        figures[0].key,
        figures,
        unit="s",
        note="The table is created without indexes and loaded; then `cellcache db upgrade` adds what is missing.",
    )


def _arguments(bench: Bench, contender: Contender, operation: Operation, rows: int) -> Callable[[int], list[Any]]:
    instances = Instances(rows, bench.options.seed)
    url = contender.place.database

    def missing(size: int) -> list[Any]:
        keys = instances.distinct(bench.random, size)
        if isinstance(contender, OnMemcached):
            contender.forget(keys)
        return keys

    def new(size: int) -> list[Any]:
        return [instances.row(number) for number in bench.new_numbers(size)]

    def inserted(size: int) -> list[Any]:
        numbers = bench.new_numbers(size)
        engine = create_engine(url, connect_args=local_files(make_url(url)))
        with engine.begin() as connection:
            insert_rows(connection, map(instances.row, numbers))
        engine.dispose()
        return [[instances.uuid(number)] for number in numbers]

    def projects(size: int) -> list[Any]:
        return [instances.project(bench.random.randrange(rows)) for _ in range(size)]

    return {"lookup": missing, "create": new, "prune": inserted, "listing": projects}[operation]
