"""The cell mappings, in process memory: there are few, they change rarely, and they hold credentials.

So they are never in the cache: an entry there names a cell by its UUID, and this is where that becomes a cell.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from sqlalchemy import Engine

from cellcache.codec import encode
from cellcache.config import CellsSettings, DatabaseSettings
from cellcache.database import LONGEST_ANSWER, close_engine, open_engine
from cellcache.errors import CellNotFound
from cellcache.flights import beginning
from cellcache.foreign import shown
from cellcache.model import CellMapping, is_canonical
from cellcache.store import Store

log = logging.getLogger(__name__)

_BETWEEN_LOOKS_S = 1.0


class Cells:
    """Every cell, read from SQL when one is asked for that is not known, and again now and then."""

    def __init__(self, store: Store, settings: CellsSettings, limits: DatabaseSettings) -> None:
        self.by_value: dict[object, CellMapping] = {}
        """From what stands in the cache to the cell: all that a hit needs. Kept the same object for ever."""
        self._store = store
        self._settings = settings
        self._limits = limits
        self._by_uuid: dict[str, CellMapping] = {}
        self._odd: set[str] = set()
        self._engines: dict[str, Engine] = {}
        # A signal handler or a finalizer may come in between, and use the directory too.
        self._lock = threading.RLock()
        self._refreshing = threading.RLock()
        self._refresh_began = 0
        self._next_look_at = 0.0

    def get(self, cell_uuid: str, *, since: int | None = None) -> CellMapping:
        """Return the cell; where it is not known, after one SQL read, if none has begun after `since`.

        Raises CellNotFound.
        """
        cell = self._by_uuid.get(cell_uuid)
        if cell is None and is_canonical(cell_uuid):
            self._refresh_since(beginning() if since is None else since)
            cell = self._by_uuid.get(cell_uuid)
        if cell is None:
            raise CellNotFound(cell_uuid)
        return cell

    def named_in_cache(self, cell_uuid: str) -> CellMapping:
        """Return the cell that an entry of the cache names; raise CellNotFound as `get` does, but after at most one
        SQL read a second, whoever asks: who writes to the cache chooses what is asked for.

        What is not found so may be a cell all the same, just made. The table says, to whoever reads the mapping's row.
        """
        cell = self._by_uuid.get(cell_uuid)
        if cell is None:
            with self._refreshing:  # all threads of a new process come here at once
                if monotonic() >= self._next_look_at:
                    self.refresh()
                    self._next_look_at = monotonic() + _BETWEEN_LOOKS_S
            cell = self._by_uuid.get(cell_uuid)
        if cell is None:
            raise CellNotFound(cell_uuid)
        return cell

    def _refresh_since(self, began: int) -> None:
        """Read all cells again, unless another thread does or did so that began later: all threads of a new process
        come here at once.
        """
        with self._refreshing:
            if self._refresh_began < began:
                self.refresh()

    def refresh(self) -> None:
        """Read all cells again, or leave what a later read of another thread has brought meanwhile.

        Connections to a database that no cell names any more are closed.
        """
        refresh_began = beginning()
        cells = {cell.uuid: cell for cell in self._store.cells()}
        self._leave_out_odd(cells)
        with self._lock:
            # A reads, B changes a cell, reads and is done, A comes to this line: A's cells are from before the change.
            if refresh_began < self._refresh_began:
                return
            self._by_uuid, self._refresh_began = cells, refresh_began
            by_value: dict[object, CellMapping] = {encode(uuid): cell for uuid, cell in cells.items()}
            self.by_value.update(by_value)
            for value in self.by_value.keys() - by_value.keys():
                del self.by_value[value]
            urls = {cell.database_connection for cell in cells.values()}
            gone = [self._engines.pop(url) for url in self._engines.keys() - urls]
        for engine in gone:
            close_engine(engine)

    def _leave_out_odd(self, cells: dict[str, CellMapping]) -> None:
        """Take out the rows whose UUID is none, which somebody wrote by hand; name each once."""
        odd = {uuid for uuid in cells if not is_canonical(uuid)}
        for uuid in odd:
            del cells[uuid]
        for uuid in sorted(odd - self._odd):
            log.warning(
                "the row %s of cell_mapping is passed over: that is no UUID, lower-case and with hyphens", shown(uuid)
            )
        self._odd = odd

    def engine(self, cell: CellMapping) -> Engine:
        """Return the engine for the cell's own database; nothing is connected yet."""
        with self._lock:
            engine = self._engines.get(cell.database_connection)
            if engine is None:
                engine = self._engines[cell.database_connection] = open_engine(
                    cell.database_connection,
                    pool_size=self._settings.pool_size,
                    timeout_s=self._limits.timeout_s,
                    connect_timeout_s=self._limits.connect_timeout_s,
                    use="cell",
                )
            return engine

    @contextmanager
    def asked(self, cell: CellMapping) -> Iterator[Engine]:
        """Yield an engine for questions of our own, whose answers are limited as a whole."""
        engine = open_engine(
            cell.database_connection,
            pool_size=1,
            timeout_s=self._limits.timeout_s,
            connect_timeout_s=self._limits.connect_timeout_s,
            use="cell",
            most_bytes=LONGEST_ANSWER,
        )
        try:
            yield engine
        finally:
            engine.dispose()

    def close(self) -> None:
        with self._lock:
            engines = list(self._engines.values())
            self._engines.clear()
        for engine in engines:
            close_engine(engine)
