"""Sorts what the checker found: inside a declared window, after a fence that was lost, or a breach of the promise.

While a write's cache node cannot be reached, and until its invalidation is delivered, readers who can reach that
node may see the older answer: that is the one window which the promise declares. And a node that is killed loses
its fences: until the writes that they stood for have returned, readers may see what was before them, or after.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tests.faults.checker import Commit, Finding, check
from tests.faults.history import Call, History
from tests.faults.journal import Journal
from tests.faults.nemesis import Event

_CLOCKS_S = 0.01  # by how much the database's clock and ours may differ at most, on one machine


class Sorted(NamedTuple):
    """What the checker found, by whether the promise allows for it."""

    in_a_window: list[Finding]
    fence_lost: list[Finding]
    breaches: list[Finding]


def judge(found: History, journal: Journal, events: Sequence[Event]) -> Sorted:
    """Check every instance and sort what was found."""
    outcome = Sorted([], [], [])
    kills = [event for event in events if event.name == "node killed"]
    for key, calls in found.calls.items():
        commits = journal.commits.get(key, [])
        excuses = _Excuses(key, calls, found, journal, kills)
        for finding in check(key, None, commits, calls, excuses.is_excused):
            overtaken = commits[finding.answered : finding.due]
            if finding.kind not in {"stale read", "backward read"}:
                outcome.breaches.append(finding)
            elif all(excuses.is_in_a_window(finding.call, commit) for commit in overtaken):
                outcome.in_a_window.append(finding)
            elif all(excuses.is_excused(finding.call, commit) for commit in overtaken):
                outcome.fence_lost.append(finding)
            else:
                outcome.breaches.append(finding)
    return outcome


class _Excuses:
    """Why a read of one instance may not know of a commit, though others do."""

    def __init__(
        self, key: str, calls: Sequence[Call], found: History, journal: Journal, kills: Sequence[Event]
    ) -> None:
        self._key = key
        self._writes = {call.op: call for call in calls if call.kind == "write"}
        self._unreached = found.unreached
        self._delivered_at = journal.delivered_at
        self._kills = kills

    def is_excused(self, read: Call, commit: Commit) -> bool:
        return self.is_in_a_window(read, commit) or self._has_lost_its_fence(read, commit)

    def is_in_a_window(self, read: Call, commit: Commit) -> bool:
        """Whether the read began while the write's invalidation was outstanding for want of its node."""
        return self._key in self._unreached.get(commit.op, ()) and self._is_outstanding(read, commit)

    def _has_lost_its_fence(self, read: Call, commit: Commit) -> bool:
        """Whether a node lost its memory while the write, which had not returned when the read began, was under way."""
        write = self._writes.get(commit.op)
        if write is None or (write.end is not None and write.end < read.start):
            return False
        killed = any(write.start <= kill.end and kill.start <= (read.end or 0) for kill in self._kills)
        return killed and self._is_outstanding(read, commit)

    def _is_outstanding(self, read: Call, commit: Commit) -> bool:
        delivered = self._delivered_at.get(commit.op)
        return delivered is None or read.start <= delivered + _CLOCKS_S * 1e9
