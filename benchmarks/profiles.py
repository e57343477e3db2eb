"""Where a call's time goes: what is work in Python, and what is waiting for a server.

This runs after a case's timed rounds and never during them: the profiler makes every function call of Python dearer.
"""

from __future__ import annotations

import cProfile
import gc
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any, Literal

from benchmarks.race import Lane

Kind = Literal["work", "cache", "database", "commit"]
KINDS: dict[Kind, str] = {
    "work": "work in Python",
    "cache": "waiting for the cache",
    "database": "waiting for the database",
    "commit": "waiting for COMMIT to be on disk (fsync)",
}

_CALLS = 300
_MOST_S = 3.0
_AT_ONCE = 50  # calls whose arguments are made together; fewer where the lane's own batches are smaller
_SHOWN = 12
_SOCKET = re.compile(r"<method '((?:send|recv)\w*)' of '_socket\.socket' objects>")
_BUILT_IN = re.compile(r"<(?:built-in method (?:builtins\.)?(.+)|method '(\w+)' of '(.+)' objects)>")


@dataclass(frozen=True, slots=True)
class Line:
    """One function, or one way to wait for one kind of server: its own time, without what it calls."""

    function: str
    kind: Kind
    own_us: float
    """Per call of the operation, as `calls` is."""
    calls: float


@dataclass(frozen=True, slots=True)
class Profile:
    """What a few hundred calls of a lane did, on average. Times are those under the profiler, save `plain_us`."""

    case: str
    lane: str
    title: str
    calls: int
    call_us: float
    plain_us: float
    """The same operation without the profiler, in turn with the calls under it."""
    kinds_us: dict[Kind, float]
    lines: list[Line]


def profile(case: str, lane: Lane) -> Profile:
    """Profile a lane that was raced."""
    profiler = cProfile.Profile()
    calls, plain_s, began = 0, 0.0, time.monotonic()
    size = min(lane.per_batch or 1, _AT_ONCE)
    gc.collect()
    gc.disable()
    try:
        while calls < _CALLS and (not calls or time.monotonic() - began < _MOST_S):
            arguments = lane.arguments(size)
            start = time.perf_counter()
            for argument in arguments:
                lane.call(argument)
            plain_s += time.perf_counter() - start
            arguments = lane.arguments(size)
            profiler.enable()
            for argument in arguments:
                lane.call(argument)
            profiler.disable()
            calls += size
    finally:
        profiler.disable()
        gc.enable()
    # The waits first, however short: there are few of them, and the rest is work.
    lines = sorted(_lines(profiler.getstats(), calls), key=lambda line: (line.kind == "work", -line.own_us))
    kinds_us = {kind: sum(line.own_us for line in lines if line.kind == kind) for kind in KINDS}
    call_us = sum(kinds_us.values())
    return Profile(case, lane.key, lane.title, calls, call_us, plain_s / calls * 1e6, kinds_us, lines[:_SHOWN])


def _lines(entries: Iterable[Any], calls: int) -> Iterator[Line]:
    """Sort the profiler's entries; who it was that a socket waited for, its callers say."""
    waits: defaultdict[tuple[str, Kind], list[float]] = defaultdict(lambda: [0.0, 0])
    commits = waits["recv_into", "commit"]
    for entry in entries:
        for callee in entry.calls or ():
            if socket := _SOCKET.match(str(callee.code)):
                wait = waits[socket[1], "database" if _is_driver(entry.code) else "cache"]
                wait[0] += callee.inlinetime
                wait[1] += callee.callcount
            elif _name(entry.code).endswith(" Connection.commit") and _name(callee.code).endswith("._read_ok_packet"):
                commits[:] = callee.totaltime, callee.callcount  # all but a few µs of it is the recv_into below
        if not _SOCKET.match(str(entry.code)) and "_lsprof.Profiler" not in str(entry.code):
            yield Line(_name(entry.code), "work", entry.inlinetime / calls * 1e6, entry.callcount / calls)
    answers = waits["recv_into", "database"]  # those to COMMIT as well, which its own caller tells from the rest
    commits[0] = min(commits[0], answers[0])
    answers[:] = answers[0] - commits[0], answers[1] - commits[1]
    for (function, kind), (seconds, count) in waits.items():
        if count:
            yield Line(function, kind, seconds / calls * 1e6, count / calls)


def _is_driver(code: CodeType | str) -> bool:
    """Whether this is PyMySQL, or the standard library's file around a socket, which here nobody else reads from."""
    path = Path(getattr(code, "co_filename", ""))
    return "pymysql" in path.parts or path.name == "socket.py"


def _name(code: CodeType | str) -> str:
    if isinstance(code, CodeType):
        return f"{'/'.join(Path(code.co_filename).parts[-2:])} {code.co_qualname}"
    found = _BUILT_IN.match(code)
    return (found[1] or f"{found[3]}.{found[2]}") if found else code
