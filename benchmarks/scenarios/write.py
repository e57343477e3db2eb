"""Create, move and prune: one and a thousand at once, against a bare transaction on the same durable database."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import create_engine, make_url

from benchmarks.bench import Bench
from benchmarks.contenders import Contender
from benchmarks.results import Case
from benchmarks.tables import insert_rows, local_files

TITLE_CREATE = "creating mappings"
TITLE_MOVE = "moving instances"
TITLE_PRUNE = "pruning mappings"
_MANY = 1_000
_PER_BATCH = 5  # a durable commit waits for the disk


def run_create(bench: Bench) -> Iterator[Case]:
    def rows(contender: Contender, size: int) -> list[Any]:
        del contender
        return [bench.instances.row(number) for number in bench.new_numbers(size)]

    def lists(contender: Contender, number: int) -> list[Any]:
        return [rows(contender, _MANY) for _ in range(number)]

    yield from bench.compare(
        "create",
        "Creating one mapping, with a durable commit",
        "create",
        bench.who_can("create"),
        rows,
        reference="sql.core",
        scenario="create",
        per_batch=_PER_BATCH,
    )
    yield from bench.compare(
        "create-1000",
        "Creating 1,000 mappings at once",
        "create_many",
        bench.who_can("create_many"),
        lists,
        reference="sql.core",
        scenario="create",
        instances=_MANY,
        per_batch=1,
    )


def run_move(bench: Bench) -> Iterator[Case]:
    def changes(contender: Contender, size: int) -> list[Any]:
        del contender
        numbers = _inserted(bench, size)
        return [(bench.instances.uuid(number), bench.instances.cell(number + 1)) for number in numbers]

    yield from bench.compare(
        "move",
        "Moving one instance to another cell",
        "move",
        bench.who_can("move"),
        changes,
        reference="sql.core",
        scenario="move",
        per_batch=_PER_BATCH,
    )


def run_prune(bench: Bench) -> Iterator[Case]:
    def one_each(contender: Contender, size: int) -> list[Any]:
        del contender
        return [[bench.instances.uuid(number)] for number in _inserted(bench, size)]

    def lists(contender: Contender, number: int) -> list[Any]:
        del contender
        return [[bench.instances.uuid(new) for new in _inserted(bench, _MANY)] for _ in range(number)]

    yield from bench.compare(
        "prune",
        "Pruning one mapping",
        "prune",
        bench.who_can("prune"),
        one_each,
        reference="sql.core",
        scenario="prune",
        per_batch=_PER_BATCH,
    )
    yield from bench.compare(
        "prune-1000",
        "Pruning 1,000 mappings at once",
        "prune",
        bench.who_can("prune"),
        lists,
        reference="sql.core",
        scenario="prune",
        instances=_MANY,
        per_batch=1,
    )


def _inserted(bench: Bench, size: int) -> list[int]:
    """Return the numbers of instances that were just mapped, behind every cache's back."""
    numbers = bench.new_numbers(size)
    url = bench.world.database(bench.options.rows).url
    engine = create_engine(url, connect_args=local_files(make_url(url)))
    with engine.begin() as connection:
        insert_rows(connection, map(bench.instances.row, numbers))
    engine.dispose()
    return numbers
