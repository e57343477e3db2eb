"""`cellcache verify` and `cellcache invalidations`: whether the promise holds, and the one window that it leaves."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated

import typer

from cellcache.audit import VerifyReport
from cellcache.cli.choices import seconds
from cellcache.cli.commands import Session, command
from cellcache.cli.exits import ExitCode, UsageProblem, complain
from cellcache.cli.render import print_fields, print_json, print_line, print_table, progress
from cellcache.directory import CellDirectory
from cellcache.errors import DatabaseUnavailable

invalidations_app = typer.Typer(name="invalidations", help="What the cache must still forget: list it, deliver it.")


def register(app: typer.Typer) -> None:
    command(app, "verify", "cellcache verify --sample 10000", "cellcache verify --rate 500 --forever --repair")(verify)
    command(invalidations_app, "list", "cellcache invalidations list")(list_)
    command(invalidations_app, "run", "cellcache invalidations run", "cellcache invalidations run --forever")(run)
    app.add_typer(invalidations_app)


def verify(
    session: Session,
    sample: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="So many different instances, drawn at random.", show_default=False),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(min=1, metavar="PER_SECOND", help="Look at no more than so many a second.", show_default=False),
    ] = None,
    forever: Annotated[bool, typer.Option("--forever", help="Begin again at the end, until Ctrl-C.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Remove from the cache what is wrong.")] = False,
) -> None:
    """Compare the cache with the table: all instances, or a sample.

    A difference counts if it is still there a second later: until then a writer may have been at work. Takes no
    leases, so it changes nothing unless you say --repair. Exit code 1 if something was wrong, repaired or not; else 4
    if a cache node did not answer for some instances, though it was asked several times.

    It sees what the table has: an entry of an instance that was pruned is not looked for.
    """
    if forever and session.json:
        raise UsageProblem("--forever has no end, and so no document to print: leave --json or --forever out")
    with session.directory() as directory:
        report = _verify(session, directory, sample, rate, repair=repair)
        while forever:
            report = _verify(session, directory, sample, rate, repair=repair)
    if repair and report.repaired < report.wrong:
        complain(f"{report.wrong - report.repaired:,} wrong answers are still there: their cache node did not answer")
    if report.wrong:
        raise typer.Exit(ExitCode.NO)
    if report.unreachable:
        complain(
            f"cache nodes did not answer for {report.unreachable:,} instances; `cellcache doctor` says which are away"
        )
        raise typer.Exit(ExitCode.CACHE)


def _verify(
    session: Session, directory: CellDirectory, sample: int | None, rate: float | None, *, repair: bool
) -> VerifyReport:
    report = VerifyReport()
    try:
        with progress() as bar:
            total = None if bar.disable else sample or sum(directory.count_by_cell().values())
            task = bar.add_task("compared", total=total)
            for report in directory.verify(sample=sample, rate_per_s=rate, repair=repair):
                bar.update(task, completed=report.checked, description=f"{report.wrong:,} wrong")
    finally:  # if it was interrupted, what was seen so far is worth knowing
        if session.json:
            print_json(asdict(report) | {"consistency": report.consistency})
        else:
            _print_report(report, repair=repair)
    return report


def _print_report(report: VerifyReport, *, repair: bool) -> None:
    if report.differences:
        rows = [
            (one.instance_uuid, one.cached_cell_uuid or "not mapped", one.mapped_cell_uuid or "not mapped")
            for one in report.differences
        ]
        print_table(("instance", "the cache says", "the table says"), rows, whole=("instance",))
        print_line()
    fields: dict[str, object] = {
        "instances looked at": f"{report.checked:,}",
        "of them unreachable": f"{report.unreachable:,}",
        "of them in the cache": f"{report.cached:,}",
        "consistent": with_nines(report),
        "wrong": f"{report.wrong:,}",
    }
    print_fields(fields | ({"repaired": f"{report.repaired:,}"} if repair else {}))


def with_nines(report: VerifyReport) -> str:
    """Return the consistency as a percentage with as many digits as the number of answers can carry."""
    if report.consistency is None:
        return "nothing was compared"
    if not report.wrong:
        return "100 %"
    digits = max(1, len(str(report.cached)) - 2)
    percent = 100 * report.consistency
    nines = len(f"{report.consistency:.12f}"[2:]) - len(f"{report.consistency:.12f}"[2:].lstrip("9"))
    return f"{percent:.{digits}f} % ({nines} nine{'' if nines == 1 else 's'})"


def list_(
    session: Session,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="The oldest so many.")] = 100,
) -> None:
    """List invalidations, the oldest first.

    One that is not due yet belongs to a write of the last seconds, and goes without anybody's doing. One that is due
    was left over: its writer died, or could not reach the cache.
    """
    with session.directory() as directory:
        found = directory.list_invalidations(limit)
    if session.json:
        print_json(*(one._asdict() for one in found))
        return
    rows = [
        (
            one.id,
            one.created_at,
            "yes" if one.due else "not yet",
            len(one.instance_uuids),
            one.instance_uuids[0],
        )
        for one in found
    ]
    print_table(("id", "created", "due", "instances", "the first of them"), rows, numbers=("id", "instances"))


def run(
    session: Session,
    forever: Annotated[bool, typer.Option("--forever", help="Go on delivering, until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(metavar="TIME", parser=seconds, help="With --forever: look so often.")] = "1s",  # type: ignore[assignment]  # the parser turns it into seconds
) -> None:
    """Deliver the invalidations that are due, as every process with an open directory does.

    For deployments whose processes are all short-lived: let one of these run. Exit code 1 if some still wait for a
    cache node that is away.
    """
    with session.directory() as directory:
        delivery = directory.deliver_invalidations()
        delivered = delivery.delivered
        while forever:
            time.sleep(every)
            try:
                delivered += directory.deliver_invalidations().delivered
            except DatabaseUnavailable as error:
                complain(f"will be tried again: {error}")
    if session.json:
        print_json(delivery._asdict())
    else:
        print_line(f"{delivered:,} delivered, {delivery.waiting:,} wait for a cache node that is away")
    if delivery.waiting:
        raise typer.Exit(ExitCode.NO)
