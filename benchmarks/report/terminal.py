"""The goals and the cases as tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.goals import Outcome
from benchmarks.report.words import amount, by, counted, ratio
from benchmarks.results import Case

_STYLES = {"reached": "green", "missed": "red", "not measured": "dim"}


def show_case(console: Console, case: Case) -> None:
    table = Table(title=case.title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    reference = case.figure(case.reference)
    for column in ("", "median", "p50", "p99", "p99.9", "trips", "SQL", f"x  {reference.title if reference else ''}"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for figure in sorted(case.figures, key=lambda figure: figure.median):
        compared = case.ratio(figure.key, case.reference)
        name = f"{figure.title} {figure.variant}".strip()
        table.add_row(
            f"[bold]{name}[/]" if figure.key.startswith("cellcache") else name,
            amount(figure.median, case.unit),
            *(amount(value, case.unit) for value in (figure.p50, figure.p99, figure.p999)),
            counted(figure.cache_round_trips, figure.database_round_trips),
            counted(figure.statements, figure.transaction_statements),
            ratio(compared) if compared else "",
        )
    console.print(table)
    console.print()


def show_goals(console: Console, outcomes: Sequence[Outcome]) -> None:
    table = Table(title="What the lookup must reach", title_justify="left", title_style="bold")
    for column in ("case", "against", "at most", "measured", "", "by"):
        table.add_column(column, justify="right" if column in {"at most", "measured", "by"} else "left")
    for outcome in outcomes:
        style = _STYLES[outcome.state]
        table.add_row(
            outcome.title.replace("`", ""),
            outcome.against.replace("`", ""),
            outcome.limit,
            ratio(outcome.measured) if outcome.measured else "",
            f"[{style}]{outcome.state}[/]",
            f"[{style}]{by(outcome.by)}[/]",
        )
    console.print(table)
