"""The read path behind a lookup that brought no known cell: steps 2 to 4 of the reader in docs/coherence.md."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Collection, Mapping, Sequence

from cellcache.cells import Cells
from cellcache.codec import Undecodable, decode, encode
from cellcache.config import Settings
from cellcache.errors import CellCacheError, CellNotFound, InstanceNotMapped, MappedCellNotFound
from cellcache.flights import Flight, Flights, beginning
from cellcache.known_backends import MEMCACHED, REDIS
from cellcache.marks import Marks
from cellcache.model import CellMapping, is_canonical
from cellcache.protocol import Absent, CoherentBackend, Fill, Lease
from cellcache.statistics import Counters
from cellcache.store import Store

log = logging.getLogger(__name__)

Entry = bytes | Lease | Absent

_PAUSES_S: Sequence[float] = (0.001, 0.002, 0.002)
"""How long a reader without the lease waits, in all, for the one who holds it: a read takes a millisecond or so."""

_BETWEEN_WARNINGS_S = 60.0


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
        self._limit_s = settings.cache.timeout_s if settings.cache.backend in {MEMCACHED, REDIS} else math.inf
        # A flight is two statements at most, each of which waits for a connection and then for its answer.
        longest_s = 2 * (settings.database.timeout_s * 2 + settings.database.connect_timeout_s)
        self._flights: Flights[str | None] = Flights(longest_s=longest_s)
        self._marks = Marks()
        self._next_warning_at = 0.0

    def resolve(self, key: str, entry: Entry, asked_at: int, began: float) -> CellMapping:
        """Return the cell of an instance whose lookup answered `entry`.

        It began at `asked_at` in the order of all, and at `began` on the monotonic clock.
        """
        if isinstance(entry, bytes):
            try:
                return self._cell_in(key, entry)
            except (Undecodable, CellNotFound):
                entry = self._discard([key], began)[key]
        self._count_misses([entry])
        cell_uuid = self._read(self._met({key: entry}, began), asked_at)[key]
        if cell_uuid is None:
            raise InstanceNotMapped(key)
        try:
            return self._cells.get(cell_uuid)
        except CellNotFound:
            self._forget_broken([key])
            raise MappedCellNotFound(key, cell_uuid) from None

    def resolve_many(self, entries: Mapping[str, Entry], asked_at: int, began: float) -> dict[str, CellMapping]:
        """The same for many; the answer lacks those that are not mapped, or to what is no cell."""
        found: dict[str, CellMapping] = {}
        absent: dict[str, Lease | Absent] = {}
        meaningless: list[str] = []
        for key, entry in entries.items():
            if not isinstance(entry, bytes):
                absent[key] = entry
                continue
            try:
                found[key] = self._cell_in(key, entry)
            except InstanceNotMapped:
                continue
            except (Undecodable, CellNotFound):
                meaningless.append(key)
        if meaningless:
            absent |= self._discard(meaningless, began)
        if absent:
            self._count_misses(absent.values())
            rows = self._read(self._met(absent, began), asked_at)
            found |= self._cells_named({key: cell for key, cell in rows.items() if cell is not None})
        return found

    def _cells_named(self, rows: Mapping[str, str]) -> dict[str, CellMapping]:
        """Return the cells that rows name, without the rows that name what is no cell."""
        read_at = beginning()
        found: dict[str, CellMapping] = {}
        broken: dict[str, str] = {}
        for key, cell_uuid in rows.items():
            try:
                found[key] = self._cells.get(cell_uuid, since=read_at)
            except CellNotFound:
                broken[key] = cell_uuid
        if broken:
            self._forget_broken(list(broken))
            if time.monotonic() >= self._next_warning_at:
                self._next_warning_at = time.monotonic() + _BETWEEN_WARNINGS_S
                error = MappedCellNotFound(*next(iter(broken.items())))
                log.warning("left out of an answer (`cellcache doctor` names all such instances): %s", error)
        return found

    def _forget_broken(self, keys: Sequence[str]) -> None:
        """Leave nothing in the cache of instances whose mapping names what is no cell.

        No lease that was taken for one, and no entry either: everyone who came upon it would discard it.
        """
        self._counters.broken_mappings.add_many(len(keys))
        self._backend.invalidate_multi(keys)

    def _cell_in(self, key: str, value: bytes) -> CellMapping:
        cell_uuid = decode(value)
        if cell_uuid is None:
            self._counters.negative_hits.add()
            raise InstanceNotMapped(key)
        cell = self._cells.named_in_cache(cell_uuid)  # one that was created since this process last read them
        self._counters.hits.add()
        return cell

    def _discard(self, keys: Sequence[str], began: float) -> dict[str, Lease | Absent]:
        """Remove entries that mean nothing to us: corrupt, foreign, or naming a cell that is no more.

        Return what their absence brings: most likely the leases to put something better there. Of a slow cache they are
        not asked for, but left to the next lookup: one that is late with garbage costs no more than one that is late.
        """
        self._counters.undecodable.add_many(len(keys))
        # The last quarter is for a process that was kept from running since the cache answered.
        deadline = max(began + self._limit_s, time.monotonic() + self._limit_s / 4)
        self._backend.invalidate_multi(keys, deadline=deadline)
        entries = {} if self._is_slow(began) else self._look(keys)
        return {key: Absent.PASSED_OVER if isinstance(entry := entries.get(key, b""), bytes) else entry for key in keys}

    def _is_slow(self, began: float) -> bool:
        """Return whether the cache has taken so long for this lookup that nothing more should be asked of it."""
        return time.monotonic() - began > self._limit_s / 2

    def _met(self, entries: Mapping[str, Lease | Absent], began: float) -> Mapping[str, Lease | Absent]:
        """Remove marks that are not ours, where this is not the first lookup to meet one.

        Nor is a slow cache asked whether the holder of a lease is done.
        """
        marked = [key for key, entry in entries.items() if entry is Absent.LEASED or entry is Absent.FENCED]
        if not marked:
            return entries
        if self._is_slow(began):
            return {**entries, **dict.fromkeys(marked, Absent.PASSED_OVER)}
        again = self._marks.met_again(marked)
        if again:
            seen = self._backend.peek_multi(again)
            endless = [key for key, one in zip(again, seen, strict=True) if one is Absent.ENDLESS]
            if endless:
                return {**entries, **self._discard(endless, began)}
        return entries

    def _read(self, entries: Mapping[str, Lease | Absent], asked_at: int) -> dict[str, str | None]:
        """Return what the table says, read once for all threads that ask at the same time."""
        answers: dict[str, str | None] = {}
        while entries:
            granted_at = beginning()
            leased = {key for key, entry in entries.items() if isinstance(entry, Lease)}
            with self._flights.begin() as own:
                others = self._flights.join(own, entries, leased=leased, asked_at=asked_at)
                if own.keys:
                    answers |= self._lead(own, {key: entries[key] for key in own.keys})
            if not others:
                return answers
            answers |= self._follow(others, entries, asked_at, granted_at)
            # What is missing was read by a flight that began before we asked, perhaps before a write that returned
            # before we asked. If so, that write took away the flight's lease: what the cache holds now is right, and
            # mostly it is the flight's answer. Or its leader was interrupted: one of us reads for the rest.
            found, entries = self._ask_again([key for key in others if key not in answers])
            answers |= found
        return answers

    def _lead(self, flight: Flight[str | None], entries: Mapping[str, Lease | Absent]) -> dict[str, str | None]:
        try:
            answers = self._fetch(flight, entries)
        except CellCacheError as error:
            self._flights.end(flight)
            flight.fail(error)
            raise
        self._flights.end(flight)
        flight.land(answers)
        return answers

    def _fetch(self, flight: Flight[str | None], entries: Mapping[str, Lease | Absent]) -> dict[str, str | None]:
        answers: dict[str, str | None] = {}
        absent = dict(entries)
        waiting = [key for key, entry in entries.items() if entry is Absent.LEASED]
        alone = self._without_holder(flight, waiting) if waiting else []
        flight.take_off()  # once for all that is read from here on: answers of the cache are answers too
        if alone:
            answers, still_absent = self._ask_again(alone)
            absent |= still_absent
        rest = [key for key in absent if key not in answers]
        if rest:
            cells = {rest[0]: self._store.cell_of(rest[0])} if len(rest) == 1 else self._store.cells_of(rest)
            answers |= {key: cells.get(key) for key in rest}
            fills = {key: (entry, answers[key]) for key, entry in absent.items() if isinstance(entry, Lease)}
            self._fill(fills, wait=flight.followed)  # whoever cannot take our answer will ask the cache for it
        return answers

    def _without_holder(self, flight: Flight[str | None], keys: Sequence[str]) -> list[str]:
        """Wait a moment for those who hold these leases; return the keys of those who have not come aboard.

        Another reader is fetching them, in this process or elsewhere, and will be done in a moment: if every one of a
        fleet that looks for a hot instance read it for itself, the database would have it all at once.
        """
        for pause_s in _PAUSES_S:
            time.sleep(pause_s)
            if flight.leased.issuperset(keys):
                break
        return [key for key in keys if key not in flight.leased]

    def _follow(
        self, flights: Mapping[str, Flight[str | None]], entries: Mapping[str, Entry], asked_at: int, granted_at: int
    ) -> dict[str, str | None]:
        """Wait for the reads of others; return the answers of those that began after we asked."""
        landed = {key: flight.wait() for key, flight in flights.items()}
        answers = {
            key: landed[key][key]
            for key, flight in flights.items()
            if key in landed[key] and flight.began_after(asked_at)
        }
        leases = {key: entry for key in answers if isinstance(entry := entries[key], Lease)}
        self._fill(
            {key: (lease, answers[key]) for key, lease in leases.items() if flights[key].began_after(granted_at)},
            wait=False,
        )
        # The rest were read after we asked, and perhaps before the lease was ours. A write may have come in between,
        # which such a lease has not seen: it must not be filled with that, and others should not wait for it.
        unfit = [key for key in leases if not flights[key].began_after(granted_at)]
        if unfit:
            self._backend.invalidate_multi(unfit)
        return answers

    def _look(self, keys: Sequence[str]) -> dict[str, Entry]:
        if len(keys) == 1:
            return {keys[0]: self._backend.lookup(keys[0])}
        return dict(zip(keys, self._backend.lookup_multi(keys), strict=True)) if keys else {}

    def _ask_again(self, keys: Sequence[str]) -> tuple[dict[str, str | None], dict[str, Lease | Absent]]:
        """Return what the cache says now, and for the rest what it has in place of an answer."""
        answers: dict[str, str | None] = {}
        absent: dict[str, Lease | Absent] = {}
        for key, entry in self._look(keys).items():
            if not isinstance(entry, bytes):
                absent[key] = entry
                continue
            try:
                cell_uuid = decode(entry)
                if cell_uuid is not None:
                    self._cells.named_in_cache(cell_uuid)
                answers[key] = cell_uuid
            except (Undecodable, CellNotFound):
                absent[key] = Absent.PASSED_OVER  # the next lookup will remove it
        return answers, absent

    def _fill(self, answers: Mapping[str, tuple[Lease, str | None]], *, wait: bool) -> None:
        mapped_s, not_mapped_s = self._limits.ttl_s, self._limits.negative_ttl_s
        fills = [
            Fill(key, lease, encode(cell_uuid), jittered(not_mapped_s if cell_uuid is None else mapped_s))
            for key, (lease, cell_uuid) in answers.items()
            if cell_uuid is None or is_canonical(cell_uuid)  # else there is no such cell, whatever it is
        ]
        if fills:
            self._counters.fills.add_many(len(fills))
            self._backend.send_fills(fills, self._counters.fills_refused.add_many, wait=wait)

    def _count_misses(self, entries: Collection[Entry]) -> None:
        self._counters.misses.add_many(len(entries))
        self._counters.unreachable.add_many(sum(entry is Absent.UNREACHABLE for entry in entries))
