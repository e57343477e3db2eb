"""Decides whether what callers were told about one instance fits the order in which its changes were committed.

The database tells that order (a trigger writes it down, under the row's lock), so each commit has a number, its
version; version 0 is what was there at first. A history is right if a moment can be chosen for each call, between
its start and its end, such that the commits come in their order and every read answers with the newest before it.

With the order known, that comes down to one rule for each pair of calls: *if b ended before a started, then b's
version is not the newer one*. (Chosen moments that contradict the order of versions could otherwise be moved apart:
every call may take the earliest moment that its own start and those of all older versions leave it.) So:

- go through the calls by their start, and keep the newest version among those that have ended before: the floor;
- a commit's version must be above the floor;
- a read's version must be at or above the floor, and no commit up to it may have started after the read ended;
- where a read's answer fits several versions (an instance that was unmapped twice), take the oldest that will do:
  it raises the floor for later calls the least, so if any choice fits, this one does. A read that is excused from
  knowing the newest commits, as in a declared window, may have answered with a version from before them.

A write of unknown outcome has no end, so it never raises the floor by itself; if it is among the commits, reads may
see it at any time after its start, and once one has, later ones must.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple

from tests.faults.history import Call

Kind = Literal[
    "stale read",  # older than a write that had returned before it began
    "backward read",  # older than what another read had answered before it began
    "never written",  # no commit ever had this value
    "read too early",  # the commit that made it had not begun when the read ended
    "lost write",  # the caller was told that it is done, and there is no commit
    "denied write",  # the caller was told that nothing was written, and there is a commit
    "written twice",
    "unknown write",  # a commit that no call accounts for
    "out of order",  # committed after one that began only when it had returned
]


class Commit(NamedTuple):
    op: str
    value: str | None
    at: int = 0
    """When the row was changed, which is before the commit."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that should not be. For reads: which version was answered, and which was due at least."""

    kind: Kind
    key: str
    call: Call
    answered: int = 0
    due: int = 0
    age_s: float = 0.0
    """How long before the read began the answer was outdated for certain."""

    def __str__(self) -> str:
        text = f"{self.kind}: {self.call.op} of {self.key}, {self.call.value}"
        if self.due:
            text += f", version {self.answered} where {self.due} was due, {self.age_s * 1000:.1f} ms after"
        return text


def check(
    key: str,
    first: str | None,
    commits: Sequence[Commit],
    calls: Sequence[Call],
    excused: Callable[[Call, Commit], bool] = lambda _call, _commit: False,
) -> list[Finding]:
    """Return what is wrong with the calls about one instance whose cell was `first` at the beginning.

    Old answers are told even where the read is `excused` from knowing the commits that it does not know of.
    """
    findings = _check_outcomes(key, commits, calls)
    versions = {commit.op: number for number, commit in enumerate(commits, start=1)}
    candidates: dict[str | None, list[int]] = {}
    for version, value in enumerate([first, *(commit.value for commit in commits)]):
        candidates.setdefault(value, []).append(version)
    starts = {call.op: call.start for call in calls if call.kind == "write"}
    # The latest start among the commits up to each version: a read of that version ends after it.
    begun = list(accumulate((starts.get(commit.op, 0) for commit in commits), max, initial=0))

    floor = _Floor()
    for call in sorted(calls, key=lambda call: call.start):
        floor.advance(call.start)
        if call.kind == "write":
            committed_as = versions.get(call.op)
            if committed_as is None:
                continue
            if floor.version >= committed_as:
                findings.append(Finding("out of order", key, call, committed_as, floor.version))
            if call.end is not None:
                floor.ends(call.end, committed_as, is_write=True)
            continue
        assert call.end is not None
        possible = candidates.get(call.value, [])
        fitting = [version for version in possible if begun[version] <= call.end]
        if fitting and fitting[-1] >= floor.version:
            least = floor.version
            while least and excused(call, commits[least - 1]):
                least -= 1
            floor.ends(call.end, next(version for version in fitting if version >= least), is_write=False)
        elif not possible:
            findings.append(Finding("never written", key, call))
        elif possible[0] >= floor.version:
            findings.append(Finding("read too early", key, call, possible[0]))
        else:
            answered = max(v for v in possible if v < floor.version)
            findings.append(
                Finding(
                    "stale read" if floor.written > answered else "backward read",
                    key,
                    call,
                    answered,
                    floor.version,
                    (call.start - floor.passed(answered)) / 1e9,
                )
            )
    return findings


class _Floor:
    """The newest version among the calls that ended before the moment that has been reached."""

    def __init__(self) -> None:
        self.version = 0
        self.written = 0  # the same among the writes alone
        self._running: list[tuple[int, int, bool]] = []
        self._raised: list[tuple[int, int]] = []  # versions and the moments at which they became the floor

    def ends(self, end: int, version: int, *, is_write: bool) -> None:
        heapq.heappush(self._running, (end, version, is_write))

    def advance(self, moment: int) -> None:
        while self._running and self._running[0][0] < moment:
            end, version, is_write = heapq.heappop(self._running)
            if is_write:
                self.written = max(self.written, version)
            if version > self.version:
                self.version = version
                self._raised.append((version, end))

    def passed(self, version: int) -> int:
        """When a version was first below the floor."""
        return self._raised[bisect_right(self._raised, (version, 1 << 63))][1]


def _check_outcomes(key: str, commits: Sequence[Commit], calls: Sequence[Call]) -> list[Finding]:
    """Whether every write happened or not as its caller was told."""
    findings = []
    committed = {commit.op for commit in commits}
    writes = {call.op: call for call in calls if call.kind == "write"}
    for op, call in writes.items():
        if call.outcome == "done" and op not in committed:
            findings.append(Finding("lost write", key, call))
        if call.outcome == "failed" and op in committed:
            findings.append(Finding("denied write", key, call))
    seen: set[str] = set()
    for op, value, _ in commits:
        if op in seen:
            findings.append(Finding("written twice", key, writes.get(op, Call(op, "write", value, 0, None))))
        elif op not in writes:
            findings.append(Finding("unknown write", key, Call(op, "write", value, 0, None)))
        seen.add(op)
    return findings
