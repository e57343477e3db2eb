"""Time contenders against each other: round by round, so that whatever the machine does to one it does to all.

In each round every contender runs one batch, in a new order, and the median call of the batch is its value for the
round: a call during which the machine did something else weighs no more than any other (the percentiles show it). What
is compared are the rounds' ratios: a machine that is twice as slow for a minute leaves them alone. The garbage
collector is off while the clock runs, arguments are fresh and made beforehand, and nothing is pinned to a core.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from statistics import fmean, median
from typing import Any

_WORTH_A_CLOCK_US = 10.0  # shorter calls are timed in groups that take so long, or the clock would be measured as well
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
    mean: bool = False
    """Whether a round's value is the mean of its calls: where they are of several kinds, as hits and misses are."""


@dataclass(slots=True)
class Times:
    """One lane's times in microseconds per call: each round's value, and all single calls (or small groups of them)."""

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
    groups = {lane.key: _calibrate(lane, batch_s) for lane in lanes}
    times = {lane.key: Times() for lane in lanes}
    gc.collect()
    gc.freeze()  # what the contenders hold need not be looked through again after every round
    gc.disable()
    began = time.monotonic()
    try:
        for number in range(rounds):
            for lane in random.sample(lanes, len(lanes)):
                calls = _time(lane.call, lane.arguments(lane.per_batch or 1), groups[lane.key])
                times[lane.key].rounds_us.append(fmean(calls) if lane.mean else median(calls))
                times[lane.key].calls_us.extend(calls)
            gc.collect()
            spent = time.monotonic() - began
            on_round(min(1.0, max((number + 1) / rounds, spent / case_s)))
            if spent > case_s and number + 1 >= _LEAST_ROUNDS:
                break
    finally:
        gc.enable()
        gc.unfreeze()
    return times


def _time(call: Callable[[Any], object], arguments: Sequence[Any], group: int) -> list[float]:
    clock = time.perf_counter_ns
    times = []
    if group == 1:
        for argument in arguments:
            began = clock()
            call(argument)
            times.append((clock() - began) / 1000)
        return times
    for start in range(0, len(arguments), group):
        some = arguments[start : start + group]
        calls = map(call, some)
        began = clock()
        deque(calls, maxlen=0)  # the cheapest loop there is
        times.append((clock() - began) / 1000 / len(some))
    return times


def _calibrate(lane: Lane, batch_s: float) -> int:
    """Warm up; find how many calls fill a batch, unless the lane says so, and how many are timed together."""
    size = lane.per_batch or 1
    for _ in range(_WARM_UP_BATCHES):
        while True:
            arguments = lane.arguments(size)
            began = time.perf_counter()
            for argument in arguments:
                lane.call(argument)
            spent = time.perf_counter() - began
            if lane.per_batch or spent > batch_s / 4 or size >= _MOST_PER_BATCH:
                break
            size = min(size * 4, _MOST_PER_BATCH)
    per_call_us = spent / size * 1e6
    if lane.per_batch is None:
        lane.per_batch = max(1, min(_MOST_PER_BATCH, round(size * batch_s / spent)))
    return max(1, round(_WORTH_A_CLOCK_US * 4 / per_call_us)) if per_call_us < _WORTH_A_CLOCK_US / 2 else 1
