"""The long campaign: `make soak`, or `python -m tests.soak --minutes 10 --report DIR`.

Processes read and write under faults; every answer is checked, and one process that lives through it all must hold
as many sockets, threads and SQL connections after it as before, and no more memory. Writes DIR/report.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from tests.faults.campaign import NODES, Campaign, Result, run

_LEAST_GROWTH_MB = 8.0  # what an allocator may keep, whatever ran


def troubles(result: Result, campaign: Campaign) -> Iterator[str]:
    """Yield what must not be: breaches of the promise, and leaks."""
    yield from (f"unexpected error: {error}" for error in result.history.unexpected[:20])
    yield from (f"breach of the promise: {finding}" for finding in result.findings.breaches[:20])
    if result.final_differences:
        yield f"cache and table differ at the end: {result.final_differences}"
    yield from leaks(result, campaign)


def leaks(result: Result, campaign: Campaign) -> Iterator[str]:
    before, after = result.before, result.after
    # The pools open what they need, up to their size, and keep it: they may have needed less before.
    if after.database_sockets > 2 * campaign.pool_size:
        yield f"{after.database_sockets} SQL connections where the two pools have {2 * campaign.pool_size}"
    # A connection per node and thread: those of the workload, the background thread and the main one.
    if after.cache_sockets > NODES * (campaign.threads + 2):
        yield f"{after.cache_sockets} connections to {NODES} cache nodes from {campaign.threads + 2} threads"
    if after.threads > before.threads:
        yield f"{after.threads} threads, {before.threads} before"
    opened = after.cache_sockets + after.database_sockets - before.cache_sockets - before.database_sockets
    if after.files > before.files + max(opened, 0):
        yield f"{after.files} open files, {before.files} before, of which {opened} more are connections in use"
    early, late = memory(result)
    if late > early * 1.1 + _LEAST_GROWTH_MB:
        yield f"memory grew from {early:.0f} to {late:.0f} MB between the second quarter of the time and the last"


def memory(result: Result) -> tuple[float, float]:
    """Return what the process held, in MB, in the second quarter and in the last."""
    held = [sample.memory_mb for sample in result.samples]
    quarter = len(held) // 4
    return median(held[quarter : 2 * quarter]), median(held[-quarter:])


def report(result: Result, campaign: Campaign, found: list[str]) -> str:
    early, late = memory(result)
    lines = [
        "# Soak under faults",
        "",
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {campaign.seconds:.0f} s of faults, seed {campaign.seed}: "
        f"{campaign.processes} processes with {campaign.threads} threads each, {campaign.instances} instances, "
        f"{NODES} memcached nodes, one MariaDB.",
        "",
        *(f"- {line}" for line in result.lines()),
        f"- memory: {early:.0f} MB in the second quarter, {late:.0f} MB in the last",
        "",
        "Troubles: " + ("none" if not found else ""),
        *(f"- {trouble}" for trouble in found),
        *(f"\n```\n{told}\n```" for told in result.stories()),
    ]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Run a long campaign under faults.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path, default=Path("build/soak"), help="where report.md goes")
    arguments = parser.parse_args()
    campaign = Campaign(seconds=arguments.minutes * 60, seed=arguments.seed, calm_s=10.0)
    with tempfile.TemporaryDirectory(prefix="cellcache-soak-") as folder:
        result = run(campaign, Path(folder))
    found = list(troubles(result, campaign))
    text = report(result, campaign, found)
    arguments.report.mkdir(parents=True, exist_ok=True)
    (arguments.report / "report.md").write_text(text)
    print(text)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
