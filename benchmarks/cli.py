"""`python -m benchmarks`: run scenarios, say how far they are, and write what they found."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.bench import Bench
from benchmarks.contenders import CONTENDERS
from benchmarks.goals import missed, outcomes
from benchmarks.machine import machine, versions
from benchmarks.options import Options
from benchmarks.progress import Progress
from benchmarks.report import write
from benchmarks.report.terminal import show_case, show_goals
from benchmarks.results import Results
from benchmarks.scenarios import BY_OPTION, SCENARIOS
from benchmarks.world import World
from tests.servers import Kind, missing

_DEFAULTS = Options()
_NEEDED: tuple[Kind, ...] = ("memcached", "redis", "mariadb")

app = typer.Typer(add_completion=False, rich_markup_mode=None)


def main() -> None:
    app()


@app.command()
def run(
    scenarios: Annotated[str, typer.Option(help=f"Some of {','.join(SCENARIOS)}; all but nova if empty.")] = "",
    contenders: Annotated[str, typer.Option(help="Some of the contenders' keys; all if empty.")] = "",
    rows: Annotated[int | None, typer.Option(help="Rows in the table, and entries in each cache.")] = None,
    sizes: Annotated[str, typer.Option(help="Instances at once, such as 1,100,1000.")] = "",
    servers: Annotated[str, typer.Option(help="Numbers of memcached nodes, such as 1,3,8.")] = "",
    threads: Annotated[str, typer.Option(help="Numbers of threads, such as 1,32.")] = "",
    processes: Annotated[str, typer.Option(help="Numbers of processes, such as 1,4.")] = "",
    growth: Annotated[str, typer.Option(help="Sizes of the table as it grows, such as 10000,1000000.")] = "",
    rounds: Annotated[int | None, typer.Option(help="Rounds per case, unless its time is over before.")] = None,
    seed: Annotated[int, typer.Option(help="Of the instances and of every choice.")] = _DEFAULTS.seed,
    quick: Annotated[bool, typer.Option("--quick", help="Show that it works; the figures mean little.")] = False,
    large: Annotated[bool, typer.Option("--large", help="Also a table of 10 million rows.")] = False,
    nova: Annotated[bool, typer.Option("--nova", help="Also OpenStack Nova, installed into .venv-nova.")] = False,
    output: Annotated[Path, typer.Option(help="The folder for the results.")] = _DEFAULTS.output,
) -> None:
    """Measure what a lookup costs, beside everything one could use instead."""
    options = Options(seed=seed, output=output)
    options = options.quick() if quick else options
    chosen = _chosen("--scenarios", scenarios, list(SCENARIOS)) or tuple(set(SCENARIOS) - set(BY_OPTION))
    options = replace(
        options,
        scenarios=tuple(name for name in SCENARIOS if name in chosen or (nova and name == "nova")),
        contenders=_chosen("--contenders", contenders, [contender.key for contender in CONTENDERS]),
        rows=rows or options.rows,
        rounds=rounds or options.rounds,
        sizes=_numbers("--sizes", sizes) or options.sizes,
        servers=_numbers("--servers", servers) or options.servers,
        threads=_numbers("--threads", threads) or options.threads,
        processes=_numbers("--processes", processes) or options.processes,
        growth=_numbers("--growth", growth) or options.growth,
    )
    options = options.large() if large else options
    console = Console() if sys.stdout.isatty() else Console(width=150)
    if absent := [reason for kind in _NEEDED if (reason := missing(kind))]:
        for reason in absent:
            console.print(reason, soft_wrap=True)
        raise typer.Exit(1)
    results = Results(machine(), versions(), {**asdict(options), "output": options.output.name})
    results.contenders = {one.title: one.how for one in CONTENDERS if one.missing() is None}
    try:
        measure(options, console, results)
    finally:  # whatever ends a run, what it has found by then is kept
        show_goals(console, outcomes(results))
        for path in write(results, options.output):
            console.print(path, soft_wrap=True)


def measure(options: Options, console: Console, results: Results) -> None:
    """Run the scenarios and add what they find to the results."""
    began = time.monotonic()
    with (
        Progress(console, len(options.scenarios)) as progress,
        World(options.seed, progress.step, buffer_pool_gb=6 if max(options.growth) > 2_000_000 else 1) as world,
        contextlib.closing(Bench(options, world, progress)) as bench,
    ):
        for reason in bench.left_out:
            console.print(reason)
        results.left_out = bench.left_out
        for name in options.scenarios:
            title, scenario = SCENARIOS[name]
            progress.scenario(title)
            for case in scenario(bench):
                results.cases.append(case)
                show_case(console, case)
                # Here, while what the case was measured with is still open.
                found = (bench.profile(case.key, lane) for lane in missed(case.key, results))
                results.profiles.extend(filter(None, found))
                results.took_s = time.monotonic() - began
            progress.scenario_done()


def _chosen(option: str, text: str, known: list[str]) -> tuple[str, ...]:
    names = tuple(filter(None, text.replace(" ", "").split(",")))
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{option}: {name!r} is not one of {', '.join(known)}")
    return names


def _numbers(option: str, text: str) -> tuple[int, ...]:
    words = filter(None, text.replace(" ", "").split(","))
    try:
        numbers = tuple(int(word) for word in words)
    except ValueError:
        raise typer.BadParameter(f"{option}: {text!r} is not a list of numbers such as 1,3,8") from None
    if any(number < 1 for number in numbers):
        raise typer.BadParameter(f"{option}: every number must be at least 1")
    return numbers
