"""Time contenders against each other: round by round, so that whatever the machine does to one it does to all.

In each round every contender runs one batch, in a new order. What is compared are the rounds' ratios: a machine that
is twice as slow for a minute leaves them alone. The garbage collector is off while the clock runs, arguments are
fresh and made beforehand, and nothing is pinned to a core.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

_CLOCK_MATTERS_S = 50e-6  # below this, reading the clock for each call would be part of what is timed
_MOST_PER_BATCH = 5_000
_LEAST_ROUNDS = 3
_WARM_UP_BATCHES = 3


@dataclass(slots=True)
class Lane:
    """One contender in one case: the call that is timed, and where its arguments come from."""

    key: str
    title: str
    call: Callable[[Any], object]
    arguments: Callable[[int], list[Any]]
    """Returns so many fresh arguments; may also prepare the world for them. Not timed."""
    instances: int = 1
    """How many instances one call is about."""
    per_batch: int | None = None
    """How many calls a batch has; found out if None."""


@dataclass(slots=True)
class Times:
    """One lane's times in microseconds per call: the mean of each round's batch, and single calls of all rounds."""

    rounds_us: list[float] = field(default_factory=list)
    calls_us: list[float] = field(default_factory=list)


def race(
    lanes: Sequence[Lane],
    *,
    rounds: int,
    batch_s: float,
    case_s: float,
    random: Random,
    on_round: Callable[[float], object] = lambda _: None,
) -> dict[str, Times]:
    """Run the lanes against each other; return their times by key. `on_round` is told the share that is done."""
    for lane in lanes:
        if lane.per_batch is None:
            lane.per_batch = _calibrate(lane, batch_s)
    times = {lane.key: Times() for lane in lanes}
    gc.collect()
    gc.freeze()  # what the contenders hold need not be looked through again after every round
    gc.disable()
    began = time.monotonic()
    try:
        for number in range(rounds):
            for lane in random.sample(lanes, len(lanes)):
                _run(lane, times[lane.key])
            gc.collect()
            spent = time.monotonic() - began
            on_round(max((number + 1) / rounds, min(spent / case_s, 1.0)))
            if spent > case_s and number + 1 >= _LEAST_ROUNDS:
                break
    finally:
        gc.enable()
        gc.unfreeze()
    return times


def _run(lane: Lane, times: Times) -> None:
    size = lane.per_batch or 1
    call = lane.call
    arguments = lane.arguments(size)
    if times.rounds_us and times.rounds_us[-1] > _CLOCK_MATTERS_S * 1e6:
        single = _time_each(call, arguments)
        times.rounds_us.append(sum(single) / len(single))
    else:
        began = time.perf_counter_ns()
        deque(map(call, arguments), maxlen=0)  # the cheapest loop there is
        times.rounds_us.append((time.perf_counter_ns() - began) / len(arguments) / 1000)
        single = _time_each(call, lane.arguments(size))
    times.calls_us.extend(single)


def _time_each(call: Callable[[Any], object], arguments: Sequence[Any]) -> list[float]:
    clock = time.perf_counter_ns
    times = []
    for argument in arguments:
        began = clock()
        call(argument)
        times.append((clock() - began) / 1000)
    return times


def _calibrate(lane: Lane, batch_s: float) -> int:
    """Warm up, and find how many calls fill a batch."""
    size = 1
    for _ in range(_WARM_UP_BATCHES):
        while True:
            arguments = lane.arguments(size)
            began = time.perf_counter()
            for argument in arguments:
                lane.call(argument)
            spent = time.perf_counter() - began
            if spent > batch_s / 4 or size >= _MOST_PER_BATCH:
                break
            size = min(size * 4, _MOST_PER_BATCH)
    return max(1, min(_MOST_PER_BATCH, round(size * batch_s / spent)))
