"""OpenStack Nova's real InstanceMapping, beside the bare statement on Nova's own table: the tie to everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

from benchmarks.bench import Bench
from benchmarks.nova.environment import Driver, NovaMissing, cell_id, create_database, install
from benchmarks.results import Case, Figure, percentiles

TITLE = "OpenStack Nova's InstanceMapping"
_MANY = 1_000
_NOTE = (
    "In Nova's own environment and process, on Nova's own schema, on the same server; nothing is cached. Nova answers "
    "with the whole cell mapping, the bare statement with an integer. Compare by way of the bare statement."
)


def run(bench: Bench) -> Iterator[Case]:
    try:
        with bench.progress.step("installing Nova and migrating its database", 1.0):
            python = install()
            url = bench.world.mariadb.create_database("nova_api")
            create_database(python, url, bench.instances)
        with Driver(python, url) as driver:
            yield from _compare(bench, driver)
    except NovaMissing as error:
        bench.left_out.append(str(error))


def _compare(bench: Bench, driver: Driver) -> Iterator[Case]:
    instances, random = bench.instances, bench.random
    number = random.randrange(instances.count)
    for what in ("get", "core-get"):
        _, answer = driver.do(what, [instances.uuid(number)])
        if answer != cell_id(number):
            raise NovaMissing(f"OpenStack Nova: left out, {what} answered {answer}, not {cell_id(number)}")

    def keys(size: int) -> list[Any]:
        return instances.some(random, size)

    def lists(size: int) -> list[Any]:
        return [instances.distinct(random, min(_MANY, instances.count)) for _ in range(size)]

    def new(size: int) -> list[Any]:
        return [(instances.uuid(new), cell_id(new), instances.project(new)) for new in bench.new_numbers(size)]

    def created(size: int) -> list[Any]:
        rows = new(size)
        driver.do("core-create", rows)
        return [row[0] for row in rows]

    cases: tuple[tuple[str, str, Callable[[int], list[Any]], int, str, str], ...] = (
        ("get", "One lookup", keys, 20, "get_by_instance_uuid", "bare SELECT, pooled Core"),
        ("get-many", "1,000 at once", lists, 1, "get_by_instance_uuids", "bare IN, pooled Core"),
        ("create", "Creating one mapping", new, 5, "create", "bare INSERT and commit"),
        ("destroy", "Pruning one mapping", created, 5, "destroy", "bare DELETE and commit"),
    )
    for operation, title, arguments, size, theirs, bare in cases:
        lanes = {operation: f"Nova, InstanceMapping.{theirs}", f"core-{operation}": bare}
        values: dict[str, list[float]] = {lane: [] for lane in lanes}
        calls: dict[str, list[float]] = {lane: [] for lane in lanes}
        with bench.progress.step(f"{title} with Nova", bench.options.rounds) as on_progress:
            for lane in lanes:
                driver.do(lane, arguments(size))
            for _ in range(bench.options.rounds):
                for lane in random.sample(list(lanes), len(lanes)):
                    took_us, _ = driver.do(lane, arguments(size))
                    values[lane].append(median(took_us))
                    calls[lane].extend(took_us)
                on_progress(1)
        figures = [
            Figure(
                f"nova.{lane}" if lane == operation else "sql.nova",
                lanes[lane],
                values[lane],
                *percentiles(calls[lane]),
                calls=len(calls[lane]),
            )
            for lane in lanes
        ]
        yield Case(f"nova-{operation}", "nova", f"{title}, in Nova", "sql.nova", figures, note=_NOTE)
