"""`report.md`: the goals, every case as a table, and what the figures belong to."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.goals import Outcome
from benchmarks.report import tables, words
from benchmarks.results import Results


def page(results: Results, outcomes: list[Outcome]) -> str:
    return "\n".join(_lines(results, outcomes)) + "\n"


def _lines(results: Results, outcomes: list[Outcome]) -> Iterator[str]:
    yield "# What a lookup costs"
    yield ""
    yield from (f"- {name}: {value}" for name, value in results.machine.items())
    yield "- " + ", ".join(f"{name} {value}" for name, value in results.versions.items())
    yield "- " + words.settings(results.settings)
    yield ""
    yield "## What the lookup must reach"
    yield ""
    yield from table(tables.of_goals(outcomes))
    yield from _missed(results, outcomes)
    scenario = None
    for case in results.cases:
        if case.scenario != scenario:
            scenario = case.scenario
            yield ""
            yield f"## {scenario.capitalize()}"
        yield ""
        yield f"### {case.title}"
        yield ""
        yield from table(tables.of_case(case))
        if case.note:
            yield ""
            yield case.note
    yield ""
    yield "## How to read it"
    yield ""
    yield from (f"- {line}" for line in words.METHOD)
    yield ""
    yield "## How each was used"
    yield ""
    yield from (f"- {title}: {how}" for title, how in results.contenders.items())
    if results.left_out:
        yield ""
        yield "## Left out"
        yield ""
        yield from (f"- {line}" for line in results.left_out)


def _missed(results: Results, outcomes: list[Outcome]) -> Iterator[str]:
    """Why a goal was missed; a profile once, though its lane may have missed several goals."""
    shown: dict[tuple[str, str], str] = {}
    for outcome in outcomes:
        if outcome.state != "missed":
            continue
        heading = f"{outcome.title}, against {outcome.against}"
        yield ""
        yield f"### Missed: {heading}"
        yield ""
        yield f"- By how much: {words.missed(outcome)}"
        if outcome.why:
            yield f"- Why: {outcome.why}"
        if outcome.tried:
            yield f"- Tried: {outcome.tried}"
        profile = results.profile(outcome.case, outcome.of)
        if profile is None:
            continue
        yield f"- Where the time goes: {words.where(profile)}"
        if before := shown.get((outcome.case, outcome.of)):
            yield f"- The profile: the same as under “{before}”"
            continue
        shown[outcome.case, outcome.of] = heading
        yield f"- The profile: {words.profiled(profile)}"
        yield ""
        yield from table(tables.of_profile(profile))


def table(found: tables.Table) -> Iterator[str]:
    yield _row(found.headers)
    yield "|---|" + "---:|" * (len(found.headers) - 1)
    for row, marked in zip(found.rows, found.marked, strict=True):
        yield _row([f"**{row[0]}**" if marked else row[0], *row[1:]])


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
