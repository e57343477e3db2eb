"""A request as a whole: which cell, and then the instance's row from that cell's database."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.bench import Bench
from benchmarks.cells import ROWS
from benchmarks.contenders import Contender
from benchmarks.results import Case

TITLE = "a request as a whole"


def run(bench: Bench) -> Iterator[Case]:
    rows = min(ROWS, bench.instances.count)

    def some(contender: Contender, size: int) -> list[Any]:
        del contender
        return [bench.instances.uuid(bench.random.randrange(rows)) for _ in range(size)]

    for case in bench.compare(
        "request",
        "A request: find the cell, then read the instance's row there",
        "request",
        bench.who_can("request"),
        some,
        reference="row",
        scenario="request",
        cached=True,
        note="The share of the lookup is what a request costs beyond reading the row from a cell that is known.",
    ):
        alone = case.figure("row")
        for figure in case.figures:
            figure.database_round_trips = None  # the cells' databases are not behind the counting proxy
            if alone is not None and figure is not alone:
                shares = 1 - np.divide(alone.values, figure.values)
                figure.extra["share of the lookup"] = float(np.median(shares))
        yield case
