"""Say what a run is doing: bars on a terminal, a line per step elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress


class Progress:
    """A bar for the step that runs and one for the whole; the steps that are done disappear."""

    def __init__(self, console: Console, scenarios: int) -> None:
        self._console = console
        self._began = 0.0
        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._whole = self._bars.add_task("benchmarks", total=scenarios)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def scenario(self, title: str) -> None:
        """Begin the next scenario."""
        self._bars.update(self._whole, description=title)
        self._console.print(f"[bold]{title}[/]")
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def scenario_done(self) -> None:
        self._bars.advance(self._whole)
        self._console.print(f"took {time.monotonic() - self._began:.0f} s\n", style="dim")

    @contextmanager
    def step(self, title: str, total: float) -> Iterator[Callable[[float], object]]:
        """Show one step; call what it gives with each part of `total` that is done."""
        task = self._bars.add_task(f"  {title}", total=total)
        try:
            yield lambda part: self._bars.advance(task, part)
        finally:
            self._bars.remove_task(task)
