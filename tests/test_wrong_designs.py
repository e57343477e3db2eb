"""The four faults of the obvious design (docs/coherence.md), each forced once: it answers stale there, ours does not.

The obvious design is a plain dogpile region over dogpile.cache.pymemcache or dogpile.cache.redis: a miss sets what it
has read, a write sets or deletes the entry after its commit. Nothing is broken on the way but where a fault says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from tests.interleavings.checks import Property
from tests.interleavings.explore import Run, Way, follow, walk
from tests.interleavings.places import new_folder, open_world
from tests.interleavings.plain import After, plain_world
from tests.interleavings.world import Scenario, World

PLAIN = {"dogpile.cache.pymemcache": "memcached", "dogpile.cache.redis": "redis_server"}
OURS = {"cellcache.memcached": "memcached", "cellcache.redis": "redis"}
NEEDS = {name: "memcached" if "memcache" in name else "redis" for name in (*PLAIN, *OURS)}

FILL = ("set", "send_fills")  # the step in which a reader stores what it has read: in that design, in ours
AFTER_COMMIT = ("set", "delete", "settle_multi")  # the step in which a writer tells the cache of its commit
END = None


class Fault(NamedTuple):
    """An order of steps, at whose end operation `reader` begins and answers."""

    operations: tuple[str, ...]
    way: Way
    reader: int
    after: After  # what the plain design does after a commit
    mapped: bool = True
    warm: bool = False


FAULTS = {
    "a reader sets the old row after a writer has deleted it": Fault(
        ("resolve", "prune", "resolve"), ((0, FILL), (1, END), (0, END), (2, END)), reader=2, after="delete"
    ),
    "a reader sets 'no such instance' after a create": Fault(
        ("resolve", "create", "resolve"), ((0, FILL), (1, END), (0, END), (2, END)), reader=2, after="set", mapped=False
    ),
    "two writers reach the cache in the other order": Fault(
        ("move", "move", "resolve"), ((0, AFTER_COMMIT), (1, END), (0, END), (2, END)), reader=2, after="set"
    ),
    "a writer dies between its commit and its delete": Fault(
        ("prune", "resolve"), ((0, AFTER_COMMIT), (0, "dies"), (1, END)), reader=1, after="delete", warm=True
    ),
}


@contextmanager
def open_design(name: str, after: After, request: pytest.FixtureRequest) -> Iterator[World]:
    if name in OURS:
        with open_world(OURS[name], request) as ours:
            yield ours
    else:
        with new_folder() as folder, plain_world(folder, request.getfixturevalue(PLAIN[name]), after) as plain:
            yield plain


def designs(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "design", [pytest.param(name, marks=pytest.mark.needs(NEEDS[name])) for name in names]
    )


@designs(*PLAIN, *OURS)
@pytest.mark.parametrize("name", FAULTS)
def test_fault_of_the_obvious_design(design: str, name: str, request: pytest.FixtureRequest) -> None:
    """The region that was not ours answers what is no longer true; over our backends the directory does not."""
    fault = FAULTS[name]
    with open_design(design, fault.after, request) as world:
        run = Run(world, Scenario(fault.operations, mapped=fault.mapped, warm=fault.warm))
        follow(run, fault.way)
        answers_stale = run.answer(fault.reader) != world.database.cell_of(world.key)
        run.conclude()
    assert answers_stale == (design in PLAIN)


WALKS: list[tuple[Scenario, After, set[Property]]] = [
    (Scenario(("resolve", "prune")), "delete", {"stale read", "backward read", "stale rest"}),
    (Scenario(("resolve", "create"), mapped=False), "set", {"stale read", "backward read", "stale rest"}),
    (Scenario(("move", "move")), "set", {"stale read", "backward read", "stale rest"}),
    (Scenario(("prune",), warm=True, faults=frozenset({"crash"})), "delete", {"backward read", "stale rest"}),
]


@designs(*PLAIN, *OURS)
@pytest.mark.parametrize(("scenario", "after", "breaks"), WALKS, ids=[str(scenario) for scenario, _, _ in WALKS])
def test_a_walk_finds_the_faults(
    design: str, scenario: Scenario, after: After, breaks: set[Property], request: pytest.FixtureRequest
) -> None:
    """Nobody tells the walk where they are."""
    with open_design(design, after, request) as world:
        report = walk(world, scenario)
    assert report.broken.keys() == (breaks if design in PLAIN else set())
