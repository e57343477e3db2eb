"""What a command prints: tables for people or JSON for programs to stdout, progress to stderr on terminals."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskProgressColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from cellcache.foreign import printable
from cellcache.masking import mask_url
from cellcache.model import CellMapping, InstanceMapping

_WIDE = 250  # where nobody watches, a line is as long as its content


def terminal() -> Console:
    """Return a console over stdout that prints data as it is: no highlighting, no markup, no emoji codes."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDE
    return Console(highlight=False, markup=False, emoji=False, width=width)


class _Description(ProgressColumn):
    """What is being done, as it is: a cell's name in it is no markup."""

    def render(self, task: Task) -> Text:
        return as_text(task.description)


def progress(*, quiet: bool = False) -> Progress:
    """Return a progress bar on stderr that leaves nothing behind, and shows nothing where nobody watches."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        console = Console(quiet=True)
    return Progress(
        SpinnerColumn(),
        _Description(),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=console.quiet,
    )


def print_json(*documents: Any) -> None:
    """Print each document on a line of its own."""
    for document in documents:
        sys.stdout.write(json.dumps(document, default=_as_json) + "\n")
    sys.stdout.flush()


def _as_json(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, numbers: Sequence[str] = (), whole: Sequence[str] = ()
) -> None:
    """Print rows under column heads; `numbers` are set flush right, `whole` are not broken over lines."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in numbers else "left"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=column in whole)
    for row in rows:
        table.add_row(*(as_text(cell) for cell in row))
    terminal().print(table)


def print_fields(fields: dict[str, Any]) -> None:
    """Print one record, a field a line."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in fields.items():
        table.add_row(name, as_text(value))
    terminal().print(table)


def print_line(text: str = "") -> None:
    terminal().print(Text(printable(text)))


def as_text(value: Any) -> Text:
    """Return a value as it stands in a table; what the database holds cannot steer the terminal."""
    if isinstance(value, Text):
        return value
    if value is None:
        return Text("-", style="dim")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, int):
        return Text(f"{value:,}")
    if isinstance(value, datetime):
        return Text(f"{value:%Y-%m-%d %H:%M:%S} UTC")
    return Text(printable(str(value)))


def duration(seconds: float | None) -> str:
    """Return a time in the unit that suits it: 8.3 µs, 1.24 ms, 3.1 s, 12 min, 5 h, 3 d."""
    if seconds is None:
        return "-"
    for limit, size, unit in (
        (1e-3, 1e-6, "µs"),
        (1, 1e-3, "ms"),
        (120, 1, "s"),
        (7200, 60, "min"),
        (172_800, 3600, "h"),
    ):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86_400:.3g} d"


def cell_fields(cell: CellMapping, *, show_secrets: bool = False) -> dict[str, Any]:
    """Return a cell as its columns; passwords only for those who asked for them."""
    shown = (lambda url: url) if show_secrets else mask_url
    return asdict(cell) | {
        "database_connection": shown(cell.database_connection),
        "transport_url": shown(cell.transport_url),
    }


def mapping_fields(mapping: InstanceMapping) -> dict[str, Any]:
    return asdict(mapping)
