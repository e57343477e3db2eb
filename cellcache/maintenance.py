"""What a directory does in the background: it delivers invalidations, reads cell mappings and agreement again.

A thread does it, which no lookup and no write ever waits for. It ends with `close()`, and before a fork: a process with
one thread can be copied whole. Where it does not run (a child of a fork that Python was not told of, such as uWSGI's;
an interpreter that is never idle), the next lookup finds the pass overdue and makes it, once in an interval.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from pathlib import Path

from cellcache.cells import Cells
from cellcache.counter import Counter
from cellcache.errors import CellCacheError
from cellcache.event import Event
from cellcache.invalidations import Invalidations
from cellcache.signing import Signing

log = logging.getLogger(__name__)

_PASS_S = 5.0  # between looks for rows that other processes left behind
_RETRY_S = 1.0  # the same while something of our own waits
_LONGEST_PASS_S = 30.0  # who began one and has not ended it by then was stopped in its midst
_FORK_WAITS_S = 1.0


class Maintenance:
    def __init__(
        self, invalidations: Invalidations, cells: Cells, signing: Signing | None, *, refresh_s: float
    ) -> None:
        self._invalidations = invalidations
        self._cells = cells
        self._signing = signing
        self._refresh_s = refresh_s
        self._stop = Event()
        self._thread: threading.Thread | None = None
        self._ran_before_fork = False
        self._failing = False
        now = time.monotonic()
        self._deliver_at, self._refresh_at = now + _until_next_pass_s(), now + refresh_s
        self.overdue_at = float("inf")
        """When a lookup must see to it, on the monotonic clock: half an interval after it was due."""
        self.by_lookups = Counter()
        """Passes that were made so."""

    def start(self) -> None:
        self._stop = Event()
        self._thread = threading.Thread(target=self._run, args=(self._stop,), name="cellcache", daemon=True)
        self._expect_next()
        self._thread.start()

    def leave_to_lookups(self) -> None:
        """Begin without a thread: lookups find each pass overdue, and make it."""
        self._expect_next()

    def stop(self, *, within_s: float | None = None) -> bool:
        """End the thread, and return whether it has ended; wait for what it is doing now.

        Without `within_s` for as long as that takes, which the database's time limits bound.
        """
        thread = self._thread
        self._stop.set()
        self._invalidations.wanted.wake()
        self.overdue_at = float("inf")
        if thread is None or thread is threading.current_thread():
            return thread is None
        thread.join(within_s)
        if thread.is_alive():
            return False
        self._thread = None
        return True

    def stop_for_fork(self) -> None:
        """End the thread within a second, or leave it running: a fork does not wait for a database."""
        thread = self._thread
        self._ran_before_fork = thread is not None
        if self.stop(within_s=_FORK_WAITS_S) and thread is not None:
            _wait_until_gone(thread)

    def go_on_after_fork(self) -> None:
        """In the parent: start the thread again if there was one. A child of an untold fork may be a parent, too."""
        if self._ran_before_fork:
            self.start()
        else:
            self.leave_to_lookups()

    def catch_up(self) -> None:
        """Make the pass that is overdue, in a lookup. Blocks for as long as its few statements take.

        Logs what fails, as the thread does: the lookup is not to blame.
        """
        if time.monotonic() < self.overdue_at:
            return  # another lookup has begun it
        self.overdue_at = time.monotonic() + _LONGEST_PASS_S
        self.by_lookups.add()
        self._pass(hurry=self._invalidations.wanted.is_set())

    def _run(self, stop: Event) -> None:
        while not stop.is_set():
            due_at = min(self._deliver_at, self._refresh_at)
            hurry = self._invalidations.wanted.wait(max(0.0, due_at - time.monotonic()))
            if stop.is_set():
                return
            self.overdue_at = time.monotonic() + _LONGEST_PASS_S
            self._pass(hurry=hurry)
            if hurry:
                stop.wait(_RETRY_S)

    def _pass(self, *, hurry: bool) -> None:
        """Do what is due. What fails is due again with the next pass, and not at once."""
        try:
            if hurry or time.monotonic() >= self._deliver_at:
                self._deliver_at = time.monotonic() + _until_next_pass_s()
                self._invalidations.deliver()
            if time.monotonic() >= self._refresh_at:
                self._refresh_at = time.monotonic() + min(self._refresh_s, _PASS_S)
                self._cells.refresh()
                if self._signing is not None:
                    self._signing.refresh()
                self._refresh_at = time.monotonic() + self._refresh_s
            self._failing = False
        except CellCacheError as error:
            if not self._failing:
                log.warning("background work will be tried again: %s", error)
            self._failing = True
        except Exception:  # a thread that ended here would leave every later write's rows to other processes
            log.exception("background work failed as it never should; it will be tried again")
        finally:
            self._expect_next()

    def _expect_next(self) -> None:
        self.overdue_at = min(self._deliver_at + _PASS_S / 2, self._refresh_at + self._refresh_s / 2)


def _until_next_pass_s() -> float:
    return _PASS_S * random.uniform(0.8, 1.2)  # noqa: S311 - a fleet's rhythm


def _wait_until_gone(thread: threading.Thread) -> None:
    """Before Python 3.13, `join` returns a moment before the system's own thread is gone, which a fork would count."""
    deadline = time.monotonic() + _FORK_WAITS_S
    while Path(f"/proc/self/task/{thread.native_id}").exists() and time.monotonic() < deadline:
        time.sleep(0.0001)
