"""SQLite across forks: no connection to a file may be open where one process becomes two.

SQLite's library keeps the state of its file locks in the process, and those of the system are the process's own: a
child inherits the state and not the locks (https://www.sqlite.org/howtocorrupt.html, 2.6). Once its parent has ended,
the next process that opens the file finds nobody there, and removes the log that the child still writes to. So all
connections are closed before a fork that Python is told of. After any other, whichever child finds that one was open
refuses that file.
"""

from __future__ import annotations

import os
import sqlite3
import time
import weakref
from collections import Counter
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from cellcache.event import Event
from cellcache.per_process import PerProcess

_LONGEST_S = 5.0  # a fork waits no longer for a statement to end


class _Process:
    """The connections to files that one process has open."""

    def __init__(self) -> None:
        self.engines: weakref.WeakSet[Engine] = weakref.WeakSet()
        self.opened: Counter[str] = Counter()
        self.forking = False
        self.forked = Event()


_processes = PerProcess(_Process)


def keep_closed_across_forks(engine: Engine, path: str) -> None:
    """Have the engine of this file take part; `path` is its real path."""
    _processes.get().engines.add(engine)

    @event.listens_for(engine, "do_connect")
    def wait_for_fork(*_: Any) -> None:
        process = _processes.get()
        if process.forking:
            process.forked.wait(_LONGEST_S)
        if any(parent.opened[path] for parent in _processes.of_parents()):
            raise sqlite3.OperationalError(
                "it was open when this process was forked, and Python was not told of the fork: what is written here "
                "could be lost; open the directory after the fork (uWSGI: --lazy-apps), or use a database server"
            )

    @event.listens_for(engine, "connect")
    def count(_connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
        _processes.get().opened[path] += 1

    @event.listens_for(engine, "close")
    def count_off(_connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
        _processes.get().opened[path] -= 1

    @event.listens_for(engine, "checkin")
    def close_before_fork(_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        if _processes.get().forking:
            record.invalidate()


def _before_fork() -> None:
    """Close the connections that are idle; wait for those in use, and let nobody open another."""
    process = _processes.get()
    process.forked.clear()
    process.forking = True
    for engine in list(process.engines):
        engine.dispose()
    deadline = time.monotonic() + _LONGEST_S
    while any(process.opened.values()) and time.monotonic() < deadline:
        time.sleep(0.001)


def _after_fork() -> None:
    """In the parent; the child has a state of its own."""
    process = _processes.get()
    process.forking = False
    process.forked.set()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork)
