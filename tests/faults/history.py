"""What the processes of a campaign did: every call's start, end and outcome, in one file per process.

All times are of the system's monotonic clock, which is one for all processes, in nanoseconds. A line is written
straight to the file: what a process that is killed has said before stays said. A write says so before it begins;
the last one of a process that was killed therefore has a start and no end, and nobody knows its outcome.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["done", "failed", "unknown"]
Answers = Mapping[str, str | None]
"""By instance: the cell, or None for "not mapped"."""

clock = time.monotonic_ns


@dataclass(frozen=True, slots=True)
class Call:
    """A read, with what it answered, or a write, with what it was to make of one instance."""

    op: str
    kind: Literal["read", "write"]
    value: str | None
    start: int
    end: int | None  # None: nobody knows when it took effect, if it did
    outcome: Outcome = "done"


class Recorder:
    """The file of one process; threads share it."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def read(self, op: str, start: int, answers: Answers) -> None:
        self._line(op=op, read=answers, start=start, end=clock())

    def unanswered(self, op: str, start: int, error: Exception) -> None:
        """A read that ended in an error of ours; not a matter for the checker."""
        self._line(op=op, unanswered=type(error).__name__, start=start, end=clock())

    def begin(self, op: str, values: Answers) -> int:
        start = clock()
        self._line(op=op, write=values, start=start)
        return start

    def end(self, op: str, outcome: Outcome, changed: Iterable[str] | None = None) -> None:
        """The write has returned; with `changed`, the others of its instances were as they should be already."""
        end = clock()
        self._line(op=op, outcome=outcome, end=end, changed=None if changed is None else list(changed))

    def unreached(self, op: str, keys: Iterable[str]) -> None:
        """The cache node of these did not confirm a fence or a settlement of the write."""
        self._line(op=op, unreached=list(keys), at=clock())

    def unexpected(self, thread: str, error: BaseException | None) -> None:
        self._line(op=thread, unexpected=f"{type(error).__name__}: {error}"[:500], at=clock())

    def finished(self, statistics: Mapping[str, Any]) -> None:
        self._line(statistics=statistics)

    def _line(self, **record: Any) -> None:
        os.write(self._file, json.dumps(record).encode() + b"\n")


@dataclass
class History:
    """What all processes have recorded."""

    calls: dict[str, list[Call]] = field(default_factory=dict)  # by instance
    unreached: dict[str, set[str]] = field(default_factory=dict)  # by write: the instances
    unexpected: list[str] = field(default_factory=list)
    unanswered: dict[str, int] = field(default_factory=dict)  # errors that reads ended in, by name
    lookup_ns: list[int] = field(default_factory=list)  # how long each single lookup took
    outcomes: dict[str, int] = field(default_factory=dict)  # of writes
    statistics: list[dict[str, Any]] = field(default_factory=list)  # of the directories that were closed

    @property
    def reads(self) -> int:
        return sum(call.kind == "read" for calls in self.calls.values() for call in calls)


def load(files: Iterable[Path]) -> History:
    """Put together what the files say; the last line of a process that was killed may be torn."""
    history = History()
    for path in files:
        _load_one(path, history)
    return history


def _load_one(path: Path, history: History) -> None:
    open_writes: dict[str, tuple[Answers, int]] = {}
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        record = json.loads(line)
        op = record.get("op", "")
        if "read" in record:
            for key, value in record["read"].items():
                history.calls.setdefault(key, []).append(Call(op, "read", value, record["start"], record["end"]))
            if len(record["read"]) == 1:
                history.lookup_ns.append(record["end"] - record["start"])
        elif "write" in record:
            open_writes[op] = (record["write"], record["start"])
        elif "outcome" in record:
            values, start = open_writes.pop(op)
            if record.get("changed") is not None:
                values = {key: values[key] for key in record["changed"]}
            _add_write(history, op, values, start, record["end"], record["outcome"])
        elif "unreached" in record:
            history.unreached.setdefault(op, set()).update(record["unreached"])
        elif "unanswered" in record:
            history.unanswered[record["unanswered"]] = history.unanswered.get(record["unanswered"], 0) + 1
        elif "unexpected" in record:
            history.unexpected.append(f"{op}: {record['unexpected']}")
        elif "statistics" in record:
            history.statistics.append(record["statistics"])
    for op, (values, start) in open_writes.items():
        _add_write(history, op, values, start, None, "unknown")


def _add_write(history: History, op: str, values: Answers, start: int, end: int | None, outcome: Outcome) -> None:
    history.outcomes[outcome] = history.outcomes.get(outcome, 0) + 1
    known_end = None if outcome == "unknown" else end
    for key, value in values.items():
        history.calls.setdefault(key, []).append(Call(op, "write", value, start, known_end, outcome))
