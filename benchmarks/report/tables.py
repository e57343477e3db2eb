"""A case and the goals as plain tables, for the terminal, for Markdown and for HTML alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.goals import Outcome
from benchmarks.profiles import Profile
from benchmarks.report.words import amount, by, counted, ratio, waiting
from benchmarks.results import Case, Figure


@dataclass(frozen=True, slots=True)
class Table:
    """Texts. The first column is names, the others are figures; `marked` says which rows stand out."""

    headers: list[str]
    rows: list[list[str]]
    marked: list[bool]


def of_case(case: Case) -> Table:
    """Return a case's lanes, the fastest first, or in their own order where they are sizes of something."""
    figures = case.figures if case.has_variants else sorted(case.figures, key=lambda figure: figure.median)
    reference = case.figure(case.reference)
    against = name(reference) if reference else ""
    extras = list(dict.fromkeys(extra for figure in case.figures for extra in figure.extra))
    columns = [
        ("contender", [name(figure) for figure in figures]),
        ("median", [amount(figure.median, case.unit) for figure in figures]),
        ("p50", [amount(figure.p50, case.unit) for figure in figures]),
        ("p99", [amount(figure.p99, case.unit) for figure in figures]),
        ("p99.9", [amount(figure.p999, case.unit) for figure in figures]),
        ("round trips", [counted(figure.cache_round_trips, figure.database_round_trips) for figure in figures]),
        ("SQL", [counted(figure.statements, figure.transaction_statements) for figure in figures]),
        *((extra, [_extra(extra, figure.extra.get(extra)) for figure in figures]) for extra in extras),
        (f"x {against}", [_compared(case, figure) for figure in figures]),
    ]
    filled = [(header, cells) for header, cells in columns if any(cells)]
    return Table(
        [header for header, _ in filled],
        [list(row) for row in zip(*(cells for _, cells in filled), strict=True)],
        [figure.contender.startswith("cellcache") for figure in figures],
    )


def of_goals(outcomes: Sequence[Outcome]) -> Table:
    return Table(
        ["case", "against", "goal", "measured", "", "by"],
        [
            [
                outcome.title,
                outcome.against,
                outcome.limit,
                ratio(outcome.measured) if outcome.measured else "",
                outcome.state,
                by(outcome.by),
            ]
            for outcome in outcomes
        ],
        [False] * len(outcomes),
    )


def of_profile(profile: Profile) -> Table:
    """Return what took most of a call's time, the waits marked, and the rest in one row."""
    shown = [
        (f"`{line.function}`" if line.kind == "work" else waiting(line.function, line.kind), line.own_us, line.calls)
        for line in profile.lines
    ]
    rest = profile.call_us - sum(line.own_us for line in profile.lines)
    others = [["all others", amount(rest, "us"), "", amount(rest / profile.call_us, "share")]] if rest > 0.001 else []
    return Table(
        ["function", "own time per call", "times per call", "share"],
        [
            [function, amount(own_us, "us"), f"{calls:,.4g}", amount(own_us / profile.call_us, "share")]
            for function, own_us, calls in shown
        ]
        + others,
        [line.kind != "work" for line in profile.lines] + [False] * len(others),
    )


def name(figure: Figure) -> str:
    return f"{figure.title}, {figure.variant}" if figure.variant else figure.title


def _compared(case: Case, figure: Figure) -> str:
    found = case.ratio(figure.key, case.reference)
    return ratio(found) if found else ""


def _extra(header: str, value: float | None) -> str:
    if value is None:
        return ""
    return amount(value, "share") if "ratio" in header or "share" in header else amount(value, "per second")
