"""The goals, and whether a run reached them."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from benchmarks.results import Ratio, Results

_FILE = Path(__file__).with_name("goals.toml")

Limit = Annotated[float, Field(gt=0)]
State = Literal["reached", "missed", "not measured"]


class Goal(BaseModel):
    """One row of the table: `of` compared with `against`, both lanes of one case.

    `at_most` limits the ratio of times or sizes; `at_least` that of rates, the same ratio upside down.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    against_title: str
    case: str
    of: str
    against: str
    at_most: Limit | None = None
    at_least: Limit | None = None
    why: str = ""
    """Why it cannot be reached, or has not been; shown where a run missed it."""
    tried: str = ""

    @model_validator(mode="after")
    def _has_one_limit(self) -> Self:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("a goal has either at_most or at_least")
        return self

    @property
    def limit(self) -> str:
        return f"{self.at_most:g}x" if self.at_most is not None else f"≥ {self.at_least:g}x"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one goal fared. `by` is the measured ratio's distance from the limit as a share of it; positive is better."""

    title: str
    against: str
    limit: str
    measured: Ratio | None
    state: State
    by: float | None
    case: str
    of: str
    why: str = ""
    tried: str = ""
    """Both only where the goal was missed."""


@cache
def goals(path: Path = _FILE) -> tuple[Goal, ...]:
    """Return the goals; a ValidationError says what is wrong with the file."""
    with path.open("rb") as file:
        return tuple(Goal.model_validate(entry) for entry in tomllib.load(file)["goal"])


def outcome(goal: Goal, results: Results) -> Outcome:
    case = results.case(goal.case)
    measured = case.ratio(goal.of, goal.against) if case else None
    if measured is None:
        return Outcome(goal.title, goal.against_title, goal.limit, None, "not measured", None, goal.case, goal.of)
    if goal.at_most is not None:
        by = 1 - measured.median / goal.at_most
    else:
        measured = Ratio(1 / measured.median, 1 / measured.high, 1 / measured.low)
        by = measured.median / (goal.at_least or 1) - 1
    found = Outcome(goal.title, goal.against_title, goal.limit, measured, "reached", by, goal.case, goal.of)
    return found if by >= 0 else replace(found, state="missed", why=goal.why, tried=goal.tried)


def outcomes(results: Results) -> list[Outcome]:
    return [outcome(goal, results) for goal in goals()]


def missed(case: str, results: Results) -> list[str]:
    """Return the lanes that missed a goal of this case."""
    found = (outcome(goal, results) for goal in goals() if goal.case == case)
    return list(dict.fromkeys(each.of for each in found if each.state == "missed"))
