"""The read path behind a lookup that brought no known cell: steps 2 to 4 of the reader in docs/coherence.md."""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Mapping

from cellcache.cells import Cells
from cellcache.codec import Undecodable, decode, encode
from cellcache.config import Settings
from cellcache.errors import CellNotFound, InstanceNotMapped
from cellcache.flights import Flight, Flights, beginning
from cellcache.model import CellMapping
from cellcache.protocol import Absent, CoherentBackend, Fill, Lease
from cellcache.statistics import Counters
from cellcache.store import Store

Entry = bytes | Lease | Absent

_PAUSES_S = (0.001, 0.002, 0.002)
"""How long a reader without the lease waits, in all, for the one who holds it: a read takes a millisecond or so."""


def jittered(ttl_s: float) -> float:
    """Spread by a tenth, so that what a fleet stored in one minute does not expire in one minute."""
    return ttl_s * (1.0 - random.random() / 10)  # noqa: S311


class ReadThrough:
    """Answers from SQL what the cache could not, and stores the answer where that is safe."""

    def __init__(
        self, store: Store, backend: CoherentBackend, cells: Cells, counters: Counters, settings: Settings
    ) -> None:
        self._store = store
        self._backend = backend
        self._cells = cells
        self._counters = counters
        self._limits = settings.cache
        # A flight is two statements at most, each of which waits for a connection and then for its answer.
        self._longest_flight_s = 2 * (settings.database.timeout_s * 2 + settings.database.connect_timeout_s)
        self._flights: Flights[str | None] = Flights()

    def resolve(self, key: str, entry: Entry) -> CellMapping:
        """Return the cell of an instance whose lookup answered `entry`."""
        if isinstance(entry, bytes):
            try:
                return self._cell_in(key, entry)
            except (Undecodable, CellNotFound):
                entry = self._discard(key)
        self._count_misses([entry])
        cell_uuid = self._read(key, entry)
        if cell_uuid is None:
            raise InstanceNotMapped(key)
        return self._cells.get(cell_uuid)

    def resolve_many(self, entries: Mapping[str, Entry]) -> dict[str, CellMapping]:
        """The same for many; the answer lacks those that are not mapped."""
        found: dict[str, CellMapping] = {}
        absent: dict[str, Lease | Absent] = {}
        for key, entry in entries.items():
            if not isinstance(entry, bytes):
                absent[key] = entry
                continue
            try:
                found[key] = self._cell_in(key, entry)
            except InstanceNotMapped:
                continue
            except (Undecodable, CellNotFound):
                absent[key] = self._discard(key)
        if absent:
            self._count_misses(absent.values())
            cells = self._store.cells_of(list(absent))
            self._fill({key: (lease, cells.get(key)) for key, lease in absent.items() if isinstance(lease, Lease)})
            found.update((key, self._cells.get(cell_uuid)) for key, cell_uuid in cells.items())
        return found

    def _cell_in(self, key: str, value: bytes) -> CellMapping:
        cell_uuid = decode(value)
        if cell_uuid is None:
            self._counters.negative_hits.add()
            raise InstanceNotMapped(key)
        cell = self._cells.get(cell_uuid)  # one that was created since this process last read them
        self._counters.hits.add()
        return cell

    def _discard(self, key: str) -> Lease | Absent:
        """Remove an entry that means nothing to us: corrupt, foreign, or naming a cell that is no more.

        Return what its absence brings: most likely the lease to put something better there.
        """
        self._counters.undecodable.add()
        self._backend.invalidate_multi([key])
        entry = self._backend.lookup(key)
        return Absent.LEASED if isinstance(entry, bytes) else entry

    def _read(self, key: str, entry: Lease | Absent) -> str | None:
        """Return what the table says, read once for all threads that ask at the same time."""
        began = beginning()
        while True:
            flight, leading = self._flights.join(key, lead=isinstance(entry, Lease))
            if leading:
                return self._fetch(key, entry, flight)
            cell_uuid = flight.wait(self._longest_flight_s)
            if flight.began > began:
                return cell_uuid
            # The flight may have read the row before a write that returned before we began. If so, that write took
            # away the flight's lease: what the cache holds now is right, and mostly it is the flight's answer.
            now_there = self._look_again(key)
            if isinstance(now_there, bytes):
                return decode(now_there)
            entry = now_there

    def _fetch(self, key: str, entry: Lease | Absent, flight: Flight[str | None]) -> str | None:
        try:
            cell_uuid = self._answer(key, entry, flight)
        except BaseException as error:
            self._flights.end(key, flight)
            flight.fail(error)
            raise
        self._flights.end(key, flight)
        flight.land(cell_uuid)
        return cell_uuid

    def _answer(self, key: str, entry: Lease | Absent, flight: Flight[str | None]) -> str | None:
        if entry is Absent.LEASED:
            # Another reader is fetching it, in this process or elsewhere, and will be done in a moment: if every one
            # of a fleet that looks for a hot instance read it for itself, the database would have it all at once.
            for pause_s in _PAUSES_S:
                time.sleep(pause_s)
                newer = self._flights.current(key)
                if newer is not None and newer is not flight:  # that reader is of this process, and began after us
                    return newer.wait(self._longest_flight_s)
            now_there = self._look_again(key)
            if isinstance(now_there, bytes):
                return decode(now_there)
            entry = now_there
        cell_uuid = self._store.cell_of(key)
        if isinstance(entry, Lease):
            self._fill({key: (entry, cell_uuid)})
        return cell_uuid

    def _look_again(self, key: str) -> Entry:
        """Ask the cache once more; bytes that come back from here can be decoded."""
        entry = self._backend.lookup(key)
        if isinstance(entry, bytes):
            try:
                decode(entry)
            except Undecodable:
                return self._discard(key)
        return entry

    def _fill(self, answers: Mapping[str, tuple[Lease, str | None]]) -> None:
        mapped_s, not_mapped_s = self._limits.ttl_s, self._limits.negative_ttl_s
        fills = [
            Fill(key, lease, encode(cell_uuid), jittered(not_mapped_s if cell_uuid is None else mapped_s))
            for key, (lease, cell_uuid) in answers.items()
        ]
        if fills:
            stored = sum(self._backend.fill_multi(fills))
            self._counters.fills_stored.add_many(stored)
            self._counters.fills_refused.add_many(len(fills) - stored)

    def _count_misses(self, entries: Collection[Entry]) -> None:
        self._counters.misses.add_many(len(entries))
        self._counters.unreachable.add_many(sum(entry is Absent.UNREACHABLE for entry in entries))
