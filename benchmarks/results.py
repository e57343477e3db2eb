"""What a run found: figures of lanes, in cases, as `results.json` keeps them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.profiles import Profile

Unit = Literal["us", "bytes", "per second", "share", "reads", "s"]


@dataclass(slots=True)
class Figure:
    """One lane of a case. `values` are the rounds', in the case's unit."""

    key: str
    title: str
    values: list[float]
    p50: float | None = None
    p99: float | None = None
    p999: float | None = None
    calls: int = 0
    instances: int = 1
    cache_round_trips: int | None = None
    database_round_trips: int | None = None
    statements: int | None = None
    transaction_statements: int | None = None
    extra: dict[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return float(np.median(self.values))

    @property
    def contender(self) -> str:
        return self.key.partition("@")[0]

    @property
    def variant(self) -> str:
        """What comes behind the contender's own key, such as the number of threads."""
        return self.key.partition("@")[2]


@dataclass(slots=True)
class Ratio:
    """The median of the rounds' ratios, and the quartiles around it."""

    median: float
    low: float
    high: float


@dataclass(slots=True)
class Case:
    """Lanes that ran in the same rounds. `reference` is the one that the tables compare the others with."""

    key: str
    scenario: str
    title: str
    reference: str
    figures: list[Figure]
    unit: Unit = "us"
    note: str = ""

    @property
    def has_variants(self) -> bool:
        """Whether the lanes are sizes of something."""
        return any(figure.variant for figure in self.figures)

    def figure(self, key: str) -> Figure | None:
        return next((figure for figure in self.figures if figure.key == key), None)

    def ratio(self, key: str, against: str) -> Ratio | None:
        """Return how a lane compares with another of this case, round by round."""
        one, other = self.figure(key), self.figure(against)
        return None if one is None or other is None else ratio(one.values, other.values)


def ratio(values: Sequence[float], others: Sequence[float]) -> Ratio:
    """Compare value by value where both have the same rounds, else medians."""
    if len(values) == len(others):
        ratios = np.divide(values, others)
    else:
        ratios = np.divide([np.median(values)], [np.median(others)])
    low, median, high = np.percentile(ratios, [25, 50, 75])
    return Ratio(float(median), float(low), float(high))


@dataclass(slots=True)
class Results:
    """A whole run."""

    machine: dict[str, str]
    versions: dict[str, str]
    settings: dict[str, Any]
    contenders: dict[str, str] = field(default_factory=dict)
    """How each was used, by its title."""
    cases: list[Case] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    profiles: list[Profile] = field(default_factory=list)
    """Of what missed a goal."""
    took_s: float = 0.0

    def case(self, key: str) -> Case | None:
        return next((case for case in self.cases if case.key == key), None)

    def profile(self, case: str, lane: str) -> Profile | None:
        return next((found for found in self.profiles if (found.case, found.lane) == (case, lane)), None)

    def write(self, path: Path, goals: Sequence[Any] = ()) -> None:
        found = asdict(self) | {"goals": [asdict(goal) for goal in goals]}
        path.write_text(json.dumps(found, indent=1, default=str) + "\n")


def percentiles(calls_us: Sequence[float]) -> tuple[float, float, float]:
    p50, p99, p999 = np.percentile(calls_us, [50, 99, 99.9])
    return float(p50), float(p99), float(p999)
