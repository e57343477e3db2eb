"""`cellcache demo`: the demonstration, told to someone who watches."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cellcache.cli.commands import Session, command
from cellcache.cli.exits import UsageProblem, complain
from cellcache.cli.render import as_text, duration, print_json, progress, terminal
from cellcache.config import Settings
from cellcache.demo import Demonstration, FollowedRequest, Moved, Prepared, Purged, Served, Tick
from cellcache.demo_costs import Cost

_REQUESTS = 3000
_ROUNDS = 10
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_WIDTH = 110  # longer lines are hard to read

_KINDS = {
    "sql": "straight from SQL",
    "miss": "miss",
    "hit": "hit",
    "not mapped, first": "not mapped, first",
    "not mapped, again": "not mapped, again",
    "sql at once": "straight from SQL",
    "miss at once": "misses",
    "hit at once": "hits",
}


def register(app: typer.Typer) -> None:
    command(app, "demo", "cellcache demo", "cellcache demo --config /etc/cellcache.toml")(demo)


def demo(
    session: Session,
    instances: Annotated[int, typer.Option("--instances", "-n", min=30, metavar="N", help="Map so many.")] = 10_000,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the files behind, to go on with by hand.")] = False,
) -> None:
    """See it work: three cells, instances, requests, and what each kind of lookup costs. Under a minute.

    Without --config it needs no server: SQLite files in a temporary folder and the memory backend, gone at the end.
    With --config it runs on those servers. The configured database must have none of cellcache's tables: it creates
    them, and databases for the cells beside it, and in the end removes what it made, and nothing that others wrote.
    """
    if session.config is not None and keep:
        raise UsageProblem("--keep is for the demonstration without --config: on your servers it cleans up")
    started = time.perf_counter()
    with _ending_at_a_step() as step, _place(session, keep=keep) as (settings, folder):
        story = Demonstration(settings, size=instances, keep=keep)
        try:
            with story:
                told = _tell(story, _Narrator(step, quiet=session.json), folder)
        finally:
            for what in story.left:
                complain(f"left in place: {what}")
        seconds = time.perf_counter() - started
        if session.json:
            told |= {"answers_checked": story.answers_checked, "left": story.left, "seconds": round(seconds, 3)}
            print_json(told)
            return
        # Not wrapped: a command that is to be copied must not break in the middle of a path.
        terminal().print(_ending(folder, seconds, left=story.left, keep=keep), "", soft_wrap=True)


@contextmanager
def _ending_at_a_step() -> Iterator[Callable[[], None]]:
    """Give what ends us at the next step after Ctrl-C, SIGTERM or SIGHUP, to be called at each.

    In between something may just have been made on someone's servers and not be known as ours yet; and once it is being
    removed, a second signal must not leave the rest behind.
    """
    came: list[int] = []

    def step() -> None:
        if came:
            raise KeyboardInterrupt if came[0] == signal.SIGINT else SystemExit(128 + came[0])

    listening = [number for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores one
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in listening}
    try:
        yield step
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    step()


@contextmanager
def _place(session: Session, *, keep: bool) -> Iterator[tuple[Settings, Path | None]]:
    """Give the settings to run with, and the folder that holds everything if there are no servers."""
    if session.config is not None:
        yield session.settings(), None
        return
    folder = Path(tempfile.mkdtemp(prefix="cellcache-demo-"))
    try:
        url = f"sqlite:///{folder / 'demo.db'}"
        (folder / "cellcache.toml").write_text(f'[database]\nurl = "{url}"\n', encoding="utf-8")
        yield Settings(database={"url": url}), folder
    finally:
        if not keep:
            shutil.rmtree(folder)


class _Narrator:
    """Says what happens, a chapter at a time; with `quiet`, nothing. Each is a step, and so is each tick."""

    def __init__(self, step: Callable[[], None], *, quiet: bool) -> None:
        self._step = step
        self._quiet = quiet
        self._console = terminal()

    def say(self, title: str, *body: RenderableType) -> None:
        self._step()
        if not self._quiet:
            self._console.print(Text(title, style="bold cyan"))
            self._console.print(
                Padding(Group(*body), (0, 0, 1, 3), expand=False), width=min(self._console.width, _WIDTH)
            )

    @contextmanager
    def waiting(self, task: str, total: int) -> Iterator[Tick]:
        with progress(quiet=self._quiet) as bar:
            identity = bar.add_task(task, total=total)

            def tick(steps: int) -> None:
                bar.advance(identity, steps)
                self._step()

            yield tick


def _tell(story: Demonstration, narrator: _Narrator, folder: Path | None) -> dict[str, Any]:
    place = f"SQLite files in {folder} and the in-process memory backend: no server" if folder else story.place
    narrator.say("cellcache: which cell does this instance live in?", place, f"Promise: {story.promise}.")

    with narrator.waiting("booting and mapping instances", story.size) as tick:
        prepared = story.prepare(tick)
    narrator.say("1. Three cells, each with a database of its own", *_prepared(prepared))

    request = story.follow_one_request()
    narrator.say("2. One request, as the specification draws it", _request(request))

    with narrator.waiting("serving requests", _REQUESTS) as tick:
        served = story.serve(_REQUESTS, tick)
    narrator.say(f"3. {served.requests:,} requests, with nothing in the cache at first", _served(served))

    with narrator.waiting("measuring lookups", _ROUNDS) as tick:
        costs = story.measure(_ROUNDS, tick)
    narrator.say("4. What a lookup costs", _cost_table(costs), "", *_remarks(costs, served, story.answers_checked))

    moved = story.move_one()
    narrator.say("5. An instance moves", *_moved(moved))

    purged = story.purge_some()
    narrator.say("6. Instances are deleted, then purged; then their mappings are pruned", _purged(purged))
    return {
        "promise": story.promise,
        "prepared": asdict(prepared),
        "request": asdict(request),
        "served": asdict(served),
        "costs": [asdict(cost) for cost in costs],
        "moved": asdict(moved),
        "purged": asdict(purged),
    }


def _prepared(prepared: Prepared) -> Iterator[RenderableType]:
    yield (
        f"Tables at revision {prepared.revision}. {prepared.instances:,} instances booted in the cells, mapped, and "
        f"written through to the cache in {duration(prepared.seconds)}."
    )
    yield _pairs(prepared.cells)


def _request(request: FollowedRequest) -> RenderableType:
    row = request.row
    found = f"{row['display_name']} on {row['host']}, {row['vm_state']}, {row['vcpus']} vCPUs, {row['memory_mb']} MB"
    return _pairs(
        {
            "the request names": f"instance {request.instance_uuid}",
            "instance_mapping": f"cell {request.cell_uuid}",
            "cell_mapping": f"{request.cell}, {request.database}",
            "its instances table": found,
        }
    )


def _served(served: Served) -> str:
    return (
        f"{served.requests / served.seconds:,.0f} a second, popular instances asked for more often: {served.hits:,} "
        f"lookups were hits, {served.misses:,} went on to SQL. A whole request, with the row from the cell's "
        f"database, took {duration(served.median_s)} (median)."
    )


def _cost_table(costs: list[Cost]) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("")
    for head in ("median", "p99", "against SQL"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("", width=16)
    for at_once in (False, True):
        group = [cost for cost in costs if (cost.lookups > 1) == at_once]
        slowest = max(cost.median_s for cost in group)
        table.add_row(Text(f"{group[0].lookups:,} at once" if at_once else "One instance", style="bold"))
        for cost in group:
            hit = cost.from_cache > 0.5
            table.add_row(
                Text(f"  {_label(cost)}"),
                duration(cost.median_s),
                duration(cost.p99_s),
                _against_sql(cost),
                Bar(slowest, 0, cost.median_s, color="green" if hit else "cyan"),
                style="green" if hit else "",
            )
    return table


def _label(cost: Cost) -> str:
    should_hit = cost.kind.startswith("hit") or cost.kind.endswith("again")
    but = f" ({cost.from_cache:.0%} were)" if should_hit and cost.from_cache < 0.995 else ""
    return _KINDS[cost.kind] + but


def _remarks(costs: list[Cost], served: Served, answers_checked: int) -> Iterator[str]:
    median = {cost.kind: cost.median_s for cost in costs}
    yield (
        "Straight from SQL is a SELECT through SQLAlchemy and its pool. A miss asks the cache, then SQL, and leaves "
        "the answer in the cache; that an instance is not mapped is such an answer too, for a few seconds."
    )
    yield (
        f"Of a whole request of {duration(served.median_s)} a hit is {median['hit'] / served.median_s:.1%}; "
        f"a SELECT of its own would take {duration(median['sql'])} more."
    )
    yield f"Each of the {answers_checked:,} answers so far was checked against what had been written: all are right."


def _against_sql(cost: Cost) -> str:
    if cost.kind.startswith("sql"):
        return "1"
    times = "\N{MULTIPLICATION SIGN}"
    faster = 1 / cost.of_sql
    return (
        f"{cost.of_sql:.2f}{times} the time" if faster < 1.1 else f"{faster:.{0 if faster >= 10 else 1}f}{times} faster"
    )


def _moved(moved: Moved) -> Iterator[RenderableType]:
    yield f"{moved.instance_uuid} goes from {moved.before} to {moved.after}, row and mapping."
    yield f"The very next lookup says {moved.after}."
    if moved.elsewhere:
        yield f"So does another directory, which said {moved.before} a moment before: {moved.elsewhere}."


def _purged(purged: Purged) -> RenderableType:
    return _pairs(
        {
            "deleted by their owners": f"{purged.marked:,} instances of {purged.cell}; their rows are only marked",
            "purged by an operator": f"{purged.purged:,} rows are gone; still mapped: {purged.purged_mapped_before:,}",
            "prune --purged": f"{purged.spared_as_young:,} spared: younger than an hour, they might be building",
            "  with --older-than 0": f"{purged.pruned:,} found and removed",
            "asked again": f"mapped: {purged.purged_mapped_after:,} of the purged, "
            f"{purged.marked_mapped_after:,} of those only deleted",
        }
    )


def _pairs(pairs: dict[str, str]) -> RenderableType:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs.items():
        table.add_row(name, as_text(value))
    return table


def _ending(folder: Path | None, seconds: float, *, left: list[str], keep: bool) -> str:
    if keep:
        return (
            f"Done in {duration(seconds)}. The files are in {folder}; go on with\n"
            f"  cellcache --config {folder}/cellcache.toml instance list --limit 3"
        )
    if left:
        return f"Done in {duration(seconds)}; what it wrote is removed again, but for what others use by now."
    return f"Done in {duration(seconds)}; everything that was written is removed again."
