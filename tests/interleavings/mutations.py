"""Each step of the protocol, taken out: what the walks must notice.

They change the directories of a world from outside; the product knows nothing of them.
"""

from __future__ import annotations

import math
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

from cellcache.backends.node import Node
from cellcache.codec import FENCE
from cellcache.flights import Flight
from cellcache.invalidations import Invalidations
from cellcache.protocol import Fence, Fill, Settlement
from tests.interleavings.checks import Property
from tests.interleavings.explore import Report, Run, Way, follow, walk
from tests.interleavings.processes import Process
from tests.interleavings.scheduler import stop
from tests.interleavings.world import CellcacheWorld, Scenario

EVERYWHERE = ("memory", "memcached", "redis")


@dataclass(frozen=True)
class Mutation:
    """What is taken out, where it is noticed, and what breaks without it."""

    name: str
    scenario: Scenario
    breaks: Property
    backends: Sequence[str] = EVERYWHERE
    applied: Callable[[CellcacheWorld], AbstractContextManager[object]] = lambda _world: nullcontext()
    each: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)  # settings of one process of the world
    most_switches: int | None = None
    way: Way = ()  # where to go, if walking there takes minutes

    def __str__(self) -> str:
        return self.name

    def find(self, world: CellcacheWorld, *, thorough: bool, at_most: int | None = None) -> Report:
        """Walk until it shows, or go straight to where it does; `at_most` ends the walk after so many schedules."""
        if self.way and not thorough:
            report, run = Report(), Run(world, self.scenario)
            follow(run, self.way)
            report.add(run, run.conclude())
            return report
        return walk(
            world,
            self.scenario,
            most_switches=self.most_switches,
            until=lambda report: self.breaks in report.broken or report.schedules == at_most,
        )


@contextmanager
def _in_each(change: Callable[[CellcacheWorld, Process], None], world: CellcacheWorld) -> Iterator[None]:
    for process in world.processes:
        change(world, process)
    yield


def _omit_fence(_world: CellcacheWorld, process: Process) -> None:
    def claim(keys: Sequence[str]) -> list[Fence]:
        return [Fence(FENCE + secrets.token_bytes(8), asked_at=0.0) for _ in keys]

    _replace(process, "fence_multi", claim)


def _fill_by_set(_world: CellcacheWorld, process: Process) -> None:
    def fill(fills: Sequence[Fill], _refused: Callable[[int], object], **_: bool) -> None:
        _store(process, {one.key: one.value for one in fills})

    _replace(process, "send_fills", fill)


def _settle_by_set(world: CellcacheWorld, process: Process) -> None:
    def settle(settlements: Sequence[Settlement]) -> list[bool]:
        for one in settlements:
            if one.value is None:
                stop("cache", "delete")
                world.evict()
            else:
                _store(process, {one.key: one.value})
        return [True] * len(settlements)

    _replace(process, "settle_multi", settle)


def _remove_fences_too(world: CellcacheWorld, process: Process) -> None:
    def invalidate(keys: Sequence[str]) -> list[bool]:
        stop("cache", "delete")
        world.evict()
        return [True] * len(keys)

    _replace(process, "invalidate_multi", invalidate)


def _use_any_connection(request: str, _world: CellcacheWorld, process: Process) -> None:
    """Take a token for good on whatever connection there is, or can be made."""
    backend: Any = process.directory._here().backend
    locate, method, here = backend._locate, getattr(backend, request), threading.local()

    def locate_whatever_the_token(keys: Sequence[str], asked_at: Sequence[float] | None = None) -> Any:
        return locate(keys, None if getattr(here, "asking", False) else asked_at)

    def ask(*what: Any, **more: Any) -> Any:
        here.asking = True
        try:
            return method(*what, **more)
        finally:
            here.asking = False

    backend._locate = locate_whatever_the_token
    _replace(process, request, ask)


def _use_younger_connections(_world: CellcacheWorld) -> AbstractContextManager[object]:
    """Take a token for good on any connection of the process, however young."""
    take_older: Callable[[Node[Any], float, float], Any] = Node.take_older

    def take_any(node: Node[Any], _asked_at: float, began: float) -> Any:
        connection = take_older(node, math.inf, began)
        if connection is not None:
            connection.made_at = -math.inf
        return connection

    return mock.patch.object(Node, "take_older", take_any)


def _store(process: Process, values: Mapping[str, bytes]) -> None:
    backend: Any = process.directory._here().backend
    if not process.nodes:
        stop("cache", "set")
    backend.store_multi(values)


def _replace(process: Process, request: str, by: Callable[..., Any]) -> None:
    setattr(process.directory._here().backend, request, by)


MUTATIONS = [
    Mutation(
        "the fence is omitted",
        Scenario(("move",), warm=True),
        "backward read",
        applied=partial(_in_each, _omit_fence),
    ),
    Mutation(
        "a fill sets instead of comparing",
        Scenario(("resolve", "prune")),
        "stale read",
        applied=partial(_in_each, _fill_by_set),
    ),
    Mutation(
        "a bulk fill sets instead of comparing",
        Scenario(("resolve many", "create"), mapped=False),
        "stale read",
        applied=partial(_in_each, _fill_by_set),
    ),
    Mutation(
        "a write settles by set",
        Scenario(("move", "move")),
        "stale read",
        applied=partial(_in_each, _settle_by_set),
    ),
    Mutation(
        "a fence's token is used after a reconnect",
        Scenario(("move", "move"), faults=frozenset({"restart"})),
        "backward read",
        backends=("memcached",),  # on Redis a fence is known by its random mark
        applied=partial(_in_each, partial(_use_any_connection, "settle_multi")),
        most_switches=3,
        way=((0, "settle_multi"), "restart", (1, "INSERT"), (0, None), (1, None)),
    ),
    Mutation(
        "a lease's token is used after a reconnect",
        Scenario(("resolve", "prune", "resolve"), faults=frozenset({"restart"})),
        "stale read",
        backends=("memcached",),
        applied=partial(_in_each, partial(_use_any_connection, "send_fills")),
        most_switches=2,
        way=((0, "send_fills"), (1, None), "restart", (2, "join a flight"), (0, None), (2, None)),
    ),
    Mutation(
        "a fence's token is used over a connection that is younger",
        Scenario(("move", "move"), processes=(0, 0), faults=frozenset({"restart"})),
        "backward read",
        backends=("memcached",),
        applied=_use_younger_connections,
        most_switches=3,
        way=((0, "settle_multi"), "restart", (1, "INSERT"), (0, None), (1, None)),
    ),
    Mutation(
        "a lease's token is used over a connection that is younger",
        Scenario(("resolve", "prune", "resolve"), processes=(0, 1, 0), faults=frozenset({"restart"})),
        "stale read",
        backends=("memcached",),
        applied=_use_younger_connections,
        most_switches=2,
        way=((0, "send_fills"), (1, None), "restart", (2, "join a flight"), (0, None), (2, None)),
    ),
    Mutation(
        "the format's version stands in the key",
        Scenario(("move",), warm=True),
        "stale read",
        backends=("memcached", "redis"),
        each={0: {"key_prefix": "2:"}},  # the writer is of the next release, its readers are not
    ),
    Mutation(
        "no row of invalidations",
        Scenario(("move", "resolve"), faults=frozenset({"lose fence", "crash"})),
        "stale rest",
        applied=lambda _world: mock.patch.object(Invalidations, "record", return_value=None),
    ),
    Mutation(
        "whoever waits for a flight takes its answer, whenever it began",
        Scenario(("resolve", "resolve", "prune", "resolve"), processes=(0, 0, 1, 2)),
        "stale read",
        applied=lambda _world: mock.patch.object(Flight, "began_after", return_value=True),
        most_switches=2,
        way=(
            (0, "end the flight"),
            (2, None),
            (3, "SELECT"),
            (1, "wait for the flight"),
            (0, None),
            (1, None),
            (3, None),
        ),
    ),
    Mutation(
        "a delivery removes fences",
        Scenario(("deliver", "move", "resolve"), left_over=True),
        "backward read",
        applied=partial(_in_each, _remove_fences_too),
    ),
]
