"""How figures are written: three significant digits, the unit that fits, ratios with their spread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.goals import Outcome
from benchmarks.profiles import KINDS, Kind, Profile
from benchmarks.results import Ratio, Unit


def amount(value: float | None, unit: Unit) -> str:
    """Return a figure with its unit."""
    if value is None:
        return ""
    if unit == "us":
        if value < 1000:
            return f"{_three(value)} µs"
        return f"{_three(value / 1000)} ms" if value < 1_000_000 else f"{_three(value / 1_000_000)} s"
    if unit == "s":
        return f"{_three(value)} s"
    if unit == "share":
        return f"{value * 100:.1f} %"
    if unit == "bytes":
        return f"{value:,.0f} B" if value < 10_000 else f"{value / 2**20:,.1f} MiB"
    return f"{value:,.0f}" if value >= 100 else _three(value)


def ratio(found: Ratio) -> str:
    """Return the median ratio and its quartiles."""
    if f"{found.low:.2g}" == f"{found.high:.2g}":
        return f"{_three(found.median)}x"
    return f"{_three(found.median)}x ({_three(found.low)} to {_three(found.high)})"


def by(share: float | None) -> str:
    """Return how far a goal was exceeded or missed."""
    return "" if share is None else f"{share * 100:+.0f} %"


def counted(first: int | None, second: int | None) -> str:
    """Return two counts, the second only where there is one."""
    if first is None:
        return ""
    return f"{first}+{second}" if second else str(first)


def missed(outcome: Outcome) -> str:
    """Return by how much a goal was missed."""
    return f"{ratio(outcome.measured)} instead of {outcome.limit}" if outcome.measured else ""


def waiting(function: str, kind: Kind) -> str:
    return f"{KINDS[kind]}: `{function}`"


def where(profile: Profile) -> str:
    """Return where a call's time goes, the most first."""
    kinds = sorted(profile.kinds_us.items(), key=lambda item: -item[1])
    shares = ((kind, 100 * us / profile.call_us) for kind, us in kinds)
    return ", ".join(f"{share:.0f} % {KINDS[kind]}" for kind, share in shares if share > 0.5)


def profiled(profile: Profile) -> str:
    """Return what was profiled, and what the profiler itself made of it."""
    waits_us = profile.call_us - profile.kinds_us["work"]
    return (
        f"{profile.title}: {profile.calls:,} calls under cProfile after the timed rounds, "
        f"{amount(profile.call_us, 'us')} each, of which {amount(waits_us, 'us')} waiting. "
        f"Without the profiler, which lengthens the work alone: {amount(profile.plain_us, 'us')} each."
    )


def _three(value: float) -> str:
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 3
    return f"{value:,.{digits}f}"


METHOD = (
    "Every contender runs a batch in every round, in a new order; a round's value is the median call of its batch.",
    "“x …” is the median of the rounds' ratios, with its quartiles: times of different runs cannot be compared, "
    "ratios of one run can.",
    "p50, p99 and p99.9 are of all calls of all rounds; calls of less than 5 µs are timed some at a time, as reading "
    "the clock would be a part of them.",
    "Where a goal was missed, a profile of some 300 further calls, or fewer if they are long, tells waiting from work: "
    "a send or a receive is waiting, with all that the kernel does in it. The profiler lengthens the work and not the "
    "waits, whose share is larger without it.",
    "Round trips are counted by a proxy: to the cache, also the fill that nobody waits for, and behind the plus sign "
    "to the database.",
    "SQL is counted by the database: statements that read or change rows, and behind the plus sign BEGIN, COMMIT, "
    "ROLLBACK and SET.",
    "Keys are drawn at random from all that are stored and made anew for every call; the garbage collector is off "
    "while the clock runs; nothing is pinned to a core.",
    "The database waits for the disk at every commit, for everyone alike.",
)


def settings(found: Mapping[str, Any]) -> str:
    """Return a run's settings in a line."""
    return (
        f"{found['rows']:,} rows, up to {found['rounds']} rounds of {found['batch_s'] * 1000:g} ms per contender and "
        f"{found['case_s']:g} s per case, seed {found['seed']}"
    )
