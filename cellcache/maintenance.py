"""The directory's one background thread: delivers invalidations, and reads cell mappings and agreement again.

No lookup and no write ever waits for it. It ends with `close()`, and a forked child starts its own.
"""

from __future__ import annotations

import logging
import random
import threading
import time

from cellcache.cells import Cells
from cellcache.errors import CellCacheError
from cellcache.invalidations import Invalidations
from cellcache.signing import Signing

log = logging.getLogger(__name__)

_PASS_S = 5.0  # between looks for rows that other processes left behind
_RETRY_S = 1.0  # the same while something of our own waits


class Maintenance:
    def __init__(
        self, invalidations: Invalidations, cells: Cells, signing: Signing | None, *, refresh_s: float
    ) -> None:
        self._invalidations = invalidations
        self._cells = cells
        self._signing = signing
        self._refresh_s = refresh_s
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(self._stop,), name="cellcache", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; wait for what it is doing now, which the database's time limits bound."""
        self._stop.set()
        self._invalidations.wanted.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._thread = None

    def _run(self, stop: threading.Event) -> None:
        deliver_at, refresh_at = time.monotonic() + _until_next_pass_s(), time.monotonic() + self._refresh_s
        failing = False
        while not stop.is_set():
            hurry = self._invalidations.wanted.wait(max(0.0, min(deliver_at, refresh_at) - time.monotonic()))
            if stop.is_set():
                return
            try:
                # What fails is due again with the next pass, and not at once.
                if hurry or time.monotonic() >= deliver_at:
                    deliver_at = time.monotonic() + _until_next_pass_s()
                    self._invalidations.deliver()
                if time.monotonic() >= refresh_at:
                    refresh_at = time.monotonic() + min(self._refresh_s, _PASS_S)
                    self._cells.refresh()
                    if self._signing is not None:
                        self._signing.refresh()
                    refresh_at = time.monotonic() + self._refresh_s
                failing = False
            except CellCacheError as error:
                if not failing:
                    log.warning("background work will be tried again: %s", error)
                failing = True
            except Exception:  # a thread that ended here would leave every later write's rows to other processes
                log.exception("background work failed as it never should; it will be tried again")
            if hurry:
                stop.wait(_RETRY_S)


def _until_next_pass_s() -> float:
    return _PASS_S * random.uniform(0.8, 1.2)  # noqa: S311 - a fleet's rhythm
