"""Every order of the steps of two and three operations on one instance, on the real code over each cache.

By default a part that takes about a minute; with INTERLEAVINGS=all every pair and every triple with every
fault, which takes hours. The figures of each walk are in the JUnit properties, and shown by `pytest -rP`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from itertools import combinations_with_replacement, product
from unittest import mock

import pytest

from cellcache import DatabaseUnavailable
from tests.interleavings.explore import Action, Report, Run, walk
from tests.interleavings.mutations import MUTATIONS, Mutation
from tests.interleavings.places import BACKENDS, EVERYTHING, open_world, place
from tests.interleavings.world import CellcacheWorld, Scenario

EVERYWHERE = [place(backend) for backend in BACKENDS]
SERVERS = EVERYWHERE[1:]

Record = Callable[[str, object], None]

NAMES = ("resolve", "resolve many", "create", "move", "prune")
LOSSES = frozenset({"crash", "lose fence"})
ALL_LOSSES = frozenset({"crash", "lose fence", "evict"})

PAIRS = list(combinations_with_replacement(NAMES, 2))
TRIPLES = list(combinations_with_replacement(NAMES, 3))
BEGINNINGS = list(product((True, False), (False, True)))  # mapped, warm

# The short form of the walks whose number explodes.
WITH_LOSSES = [
    Scenario(("resolve", "move"), faults=ALL_LOSSES),
    Scenario(("resolve many", "prune"), faults=LOSSES),
    Scenario(("resolve", "create"), mapped=False, warm=True, faults=LOSSES),
    Scenario(("move", "prune"), warm=True, faults=frozenset({"crash"})),
]
OF_THREE = [
    Scenario(("resolve", "resolve many", "move")),
    Scenario(("resolve", "move", "prune"), warm=True),
    Scenario(("deliver", "move", "resolve"), left_over=True),
]
IN_ONE_PROCESS = [
    Scenario(("resolve", "resolve", "move"), processes=(0, 0, 1)),
    Scenario(("resolve", "resolve", "prune"), processes=(0, 0, 0)),
    Scenario(("resolve", "resolve many", "create"), mapped=False, processes=(0, 0, 1)),
]
WITH_RESTART = [
    Scenario(("resolve", "move"), faults=frozenset({"restart"})),
    Scenario(("create", "prune"), mapped=False, faults=frozenset({"restart"})),
]

if EVERYTHING:
    WITH_LOSSES = [
        Scenario(pair, mapped, warm, faults=ALL_LOSSES) for pair, (mapped, warm) in product(PAIRS, BEGINNINGS)
    ]
    OF_THREE = [
        Scenario(three, mapped, warm, faults=faults)
        for three, (mapped, warm), faults in product(TRIPLES, BEGINNINGS, (frozenset[str](), LOSSES))
    ] + [
        Scenario(("deliver", *pair), mapped, warm, left_over=True)
        for pair, (mapped, warm) in product(PAIRS, BEGINNINGS)
    ]
    IN_ONE_PROCESS = [
        Scenario(three, mapped, warm, processes=processes)
        for three, (mapped, warm), processes in product(TRIPLES, BEGINNINGS, ((0, 0, 0), (0, 0, 1), (0, 1, 0)))
    ]
    WITH_RESTART = [
        Scenario(several, mapped, warm, faults=frozenset({"restart"}))
        for several, (mapped, warm) in product([*PAIRS, *TRIPLES], BEGINNINGS)
    ]

long = pytest.mark.timeout(0 if EVERYTHING else 900)


# Threads of one process also meet in its flights, which makes for so many orders that these walks are bounded.
MOST_SWITCHES_IN_ONE_PROCESS = 3 if EVERYTHING else 2


def walk_all(
    world: CellcacheWorld, scenarios: Iterable[Scenario], record: Record, *, most_switches: int | None = None
) -> Report:
    """Walk each; fail where the first property breaks, with the shortest way there."""
    total = Report()
    for scenario in scenarios:
        report = walk(world, scenario, most_switches=most_switches)
        assert not report.broken, f"{scenario}: {report}"
        assert report.schedules
        total.include(report)
    record("schedules", total.schedules)
    record("cut", total.cut)
    record("excused", total.excused)
    print(total)
    return total


@pytest.mark.slow
@pytest.mark.parametrize("backend", EVERYWHERE)
def test_every_step_is_a_stop(backend: str, request: pytest.FixtureRequest) -> None:
    """What the walks rest on: were a request or a statement not to stop, orders would be missing unnoticed."""
    read, told = "join a flight, take off, SELECT", "end the flight, land"
    expected = {
        "memory": {
            "resolve": f"look into the memory, ask, lookup, {read}, send_fills, {told}",
            "resolve many": f"ask, lookup_multi, lookup, {read}, send_fills, {told}",
            "move": "BEGIN, SELECT, SELECT, UPDATE, fence_multi, INSERT, COMMIT, settle_multi",
            "prune": "BEGIN, SELECT, DELETE, fence_multi, INSERT, COMMIT, settle_multi",
        },
        "memcached": {
            "resolve": f"ask, lookup, mg, {read}, send_fills, {told}, ms",
            "resolve many": f"ask, lookup_multi, mg, {read}, send_fills, {told}, ms",
            "move": "BEGIN, SELECT, SELECT, UPDATE, fence_multi, ms, INSERT, COMMIT, settle_multi, ms",
            "prune": "BEGIN, SELECT, DELETE, fence_multi, ms, INSERT, COMMIT, settle_multi, md",
        },
        "redis": {
            "resolve": f"ask, lookup, SET, {read}, send_fills, {told}, EVALSHA",
            "resolve many": f"ask, lookup_multi, SET, {read}, send_fills, {told}, EVALSHA",
            "move": "BEGIN, SELECT, SELECT, UPDATE, fence_multi, SET, INSERT, COMMIT, settle_multi, EVALSHA",
            "prune": "BEGIN, SELECT, DELETE, fence_multi, SET, INSERT, COMMIT, settle_multi, EVALSHA",
        },
    }
    with open_world(backend, request) as world:
        for name, steps in expected[backend].items():
            run = Run(world, Scenario((name,)))
            while choices := run.choices():
                run.take(choices[0])
            run.conclude()
            assert [step.partition(": ")[2] for step in run.trace] == steps.split(", ")


@long
@pytest.mark.slow
@pytest.mark.parametrize("backend", EVERYWHERE)
def test_pairs(backend: str, request: pytest.FixtureRequest, record_property: Record) -> None:
    with open_world(backend, request) as world:
        walk_all(world, (Scenario(pair, *begins) for pair, begins in product(PAIRS, BEGINNINGS)), record_property)


@long
@pytest.mark.slow
@pytest.mark.parametrize("backend", EVERYWHERE)
def test_pairs_with_crashes_and_lost_entries(
    backend: str, request: pytest.FixtureRequest, record_property: Record
) -> None:
    with open_world(backend, request) as world:
        total = walk_all(world, WITH_LOSSES, record_property)
        assert total.excused  # the declared exception is met, and with it the fault that causes it


@long
@pytest.mark.slow
@pytest.mark.parametrize("backend", EVERYWHERE)
def test_three_operations(backend: str, request: pytest.FixtureRequest, record_property: Record) -> None:
    with open_world(backend, request) as world:
        walk_all(world, OF_THREE, record_property)


@long
@pytest.mark.slow
@pytest.mark.parametrize("backend", EVERYWHERE)
def test_threads_of_one_process(backend: str, request: pytest.FixtureRequest, record_property: Record) -> None:
    with open_world(backend, request) as world:
        walk_all(world, IN_ONE_PROCESS, record_property, most_switches=MOST_SWITCHES_IN_ONE_PROCESS)


@long
@pytest.mark.slow
@pytest.mark.parametrize("backend", SERVERS)
def test_restart_of_the_cache(backend: str, request: pytest.FixtureRequest, record_property: Record) -> None:
    with open_world(backend, request) as world:
        walk_all(world, WITH_RESTART, record_property)


@long
@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "mutation"),
    [place(backend, mutation) for mutation in MUTATIONS for backend in mutation.backends],
    ids=str,
)
def test_each_step_is_needed(
    backend: str, mutation: Mutation, request: pytest.FixtureRequest, record_property: Record
) -> None:
    """Without it, a walk finds the property that breaks; with it, the same schedules break none."""
    with open_world(backend, request, mutation.each) as world, mutation.applied(world):
        report = mutation.find(world, thorough=EVERYTHING)
    record_property("schedules", report.schedules)
    print(report)
    assert mutation.breaks in report.broken
    with open_world(backend, request) as world:
        assert not mutation.find(world, thorough=False, at_most=report.schedules).broken


@pytest.mark.slow
@pytest.mark.parametrize("faults", [frozenset[str](), LOSSES], ids=["no faults", "with faults"])
def test_what_is_not_walked_shows_nothing_else(faults: frozenset[str], request: pytest.FixtureRequest) -> None:
    """The orders that the walks leave out break the same properties as those they take."""
    fill_by_set = MUTATIONS[1]
    for pair in (("resolve", "prune"), ("resolve", "move")):
        scenario = Scenario(pair, faults=faults)
        with open_world("memory", request) as world, fill_by_set.applied(world):
            some, every = (walk(world, scenario, reduce=reduce) for reduce in (True, False))
        assert some.schedules < every.schedules
        assert some.broken.keys() == every.broken.keys()
        assert some.broken.keys() >= {"stale read", "backward read", "stale rest"}


def test_an_operation_that_waits_for_a_lock_is_not_chosen(request: pytest.FixtureRequest) -> None:
    with open_world("memory", request) as world:
        run = Run(world, Scenario(("move", "move")))
        while run.next_label(0) != "COMMIT":
            run.take(Action("go", 0))
        assert run.choices() == [Action("go", 0)]
        run.take(Action("go", 0))
        assert run.choices() == [Action("go", 0), Action("go", 1)]
        run.give_up()


def test_a_settled_row_is_forgotten_by_its_own_id_alone(request: pytest.FixtureRequest) -> None:
    """A writer forgets its row late, after another has delivered it: a younger write's row must outlive that."""
    with open_world("memory", request) as world:
        world.begin(Scenario((), mapped=False))
        slow, deliverer, young = world.processes[:3]
        slow.directory.map_instance(
            world.key, world.database.cells[0], "project"
        )  # it has settled; its row is to be forgotten
        deliverer.directory._here().invalidations.deliver()
        young.directory.move_instance(world.key, world.database.cells[1])
        young.forget_invalidations()  # it dies before it forgets
        slow.directory._here().invalidations.flush()
        left = world.database.rows()
        world.database.forget_rows()
    assert left == 1


def test_a_failed_commit_leaves_no_transaction_behind(request: pytest.FixtureRequest) -> None:
    """SQLite keeps a transaction open whose COMMIT found the file busy: its connection must not be used again."""
    with open_world("memory", request) as world:
        world.begin(Scenario((), mapped=False))
        directory = world.processes[0].directory
        dialect = directory._here().store._writing.dialect
        with (
            mock.patch.object(dialect, "do_commit", side_effect=sqlite3.OperationalError("database is locked")),
            pytest.raises(DatabaseUnavailable),
        ):
            directory.map_instance(world.key, world.database.cells[0], "project")
        with closing(sqlite3.connect(world.database.path, timeout=0.0)) as other:
            other.execute("BEGIN IMMEDIATE")
