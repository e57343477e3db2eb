"""The goals and the cases as tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.goals import Outcome
from benchmarks.report import tables
from benchmarks.results import Case

_STYLES = {"reached": "green", "missed": "red", "not measured": "dim"}


def show_case(console: Console, case: Case) -> None:
    found = tables.of_case(case)
    table = Table(title=case.title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for number, header in enumerate(found.headers):
        table.add_column(header, justify="right" if number else "left", no_wrap=True)
    for row, ours in zip(found.rows, found.marked, strict=True):
        table.add_row(*map(escape, row), style="bold" if ours else "")
    console.print(table)
    if case.note:
        console.print(case.note, style="dim")
    console.print()


def show_goals(console: Console, outcomes: Sequence[Outcome]) -> None:
    found = tables.of_goals(outcomes)
    table = Table(title="What the lookup must reach", title_justify="left", title_style="bold", box=box.SIMPLE)
    for number, header in enumerate(found.headers):
        table.add_column(header, justify="left" if number in {0, 1, 4} else "right")
    for row, outcome in zip(found.rows, outcomes, strict=True):
        table.add_row(*(escape(cell.replace("`", "")) for cell in row), style=_STYLES[outcome.state])
    console.print(table)
