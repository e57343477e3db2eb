"""The directory: in which cell an instance lives.

Reader                                           Writer
1. get; a value is the answer                    1. begin; change the row, which locks it
2. absent: take the lease in the same trip       2. fence the entry; unreachable: record the invalidation
3. read the row in a fresh snapshot              3. commit
4. store over that very lease, or not at all     4. settle: the new value over one's own fence, or nothing

Step 1 of the reader is `resolve_cell` below, the rest is in read_through.py; the writer is in write_through.py.
docs/coherence.md says why it is done so.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any, Self
from uuid import UUID, uuid4

from dogpile.cache import CacheRegion
from sqlalchemy import Connection

from cellcache.arguments import (
    LARGEST_ID,
    LARGEST_PAGE,
    LONGEST_S,
    demand_many,
    demand_number,
    demand_switch,
    demand_whole,
)
from cellcache.audit import Audit, VerifyReport
from cellcache.config import Settings
from cellcache.database import DATABASE_ERRORS, demand_usable_url, translated
from cellcache.directory_state import DirectoryState
from cellcache.errors import CellCacheError, InstanceNotMapped, InvalidValue, MappingExists
from cellcache.explain import Explanation, explain
from cellcache.flights import beginning
from cellcache.foreign import shown
from cellcache.invalidations import Delivery
from cellcache.model import CellMapping, InstanceMapping, canonical_uuid, canonical_uuids
from cellcache.per_process import PerProcess
from cellcache.protocol import CoherentBackend, NodeStatus
from cellcache.purge import Progress, PruneReport
from cellcache.region import demand_support
from cellcache.rows import batches
from cellcache.statistics import Statistics
from cellcache.store import Invalidation, Waiting
from cellcache.texts import LONGEST_NAME, demand_text, demand_transport_url
from cellcache.transaction import Transaction, TransactionBroken
from cellcache.write_through import Changes

log = logging.getLogger(__name__)

_AT_ONCE = 10_000

NewMapping = tuple[str | UUID, str | UUID, str]
"""instance_uuid, cell_uuid, project_id"""


class CellDirectory:
    """Answers in which cell an instance lives. One per process and configuration; threads share it."""

    def __init__(self, settings: Settings) -> None:
        """Prepare everything and connect nothing; `open` is what callers want."""
        self.settings = settings
        self._states = PerProcess(lambda: DirectoryState(settings), begin=self._begin)
        self._here = self._states.get
        self._opened = self._closed = False
        self._here()

    @property
    def region(self) -> CacheRegion:
        """The dogpile.cache region: keys are instance UUIDs, values the UUIDs of their cells, None if not mapped."""
        return self._here().region

    @classmethod
    def open(cls, source: str | os.PathLike[str] | Settings | None = None) -> Self:
        """Open the directory that a file, a Settings or (None) the environment describes.

        Raises ConfigError, and BackendUnsupported for a cache server that cannot keep the promise. A server that is
        down is no reason not to open: its lookups go to SQL until it is back. Blocks for at most the cache's time
        limit per node, and where entries are signed the database's as well.
        """
        directory = cls(source if isinstance(source, Settings) else Settings.load(source))
        here = directory._here()
        try:
            demand_support(directory._backend)
        except BaseException:
            directory.close()
            raise
        if here.signing is not None:
            here.signing.obtain()
        log.info("cache backend %s: %s", directory.settings.cache.backend, here.backend.promise)
        directory._opened = True
        here.maintenance.start()
        _open_directories.add(directory)
        return directory

    def close(self) -> None:
        """End the background thread and close every connection: those in use, when they are given back."""
        _open_directories.discard(self)
        self._closed = True
        self._here().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- instances ---------------------------------------------------------------------------------------------

    def resolve_cell(self, instance_uuid: str | UUID) -> CellMapping:
        """Return the cell in which the instance lives.

        One cache round trip on a hit. Raises InvalidUUID, InstanceNotMapped, MappedCellNotFound, and, for what is not
        in the cache, DatabaseUnavailable. Never answers with what was true before a write that has returned.
        """
        began, here = monotonic(), self._states.latest
        try:
            held = here.held(instance_uuid)
        except TypeError:  # not hashable, so no UUID either
            held = None
        if held is not None and began < held[1] and began < here.maintenance.overdue_at:
            cell = here.cell_of_value.get(held[0])
            if cell is not None:
                here.count_hit()
                return cell
        key = canonical_uuid(instance_uuid)
        here = self._here()
        if began > here.maintenance.overdue_at:
            here.maintenance.catch_up()
            began = monotonic()
        asked_at = beginning()
        entry = here.lookup(key)
        cell = here.cell_of_value.get(entry)
        if cell is None:
            return here.read_through.resolve(key, entry, asked_at, began)
        here.count_hit()
        return cell

    def resolve_cells(self, instance_uuids: Iterable[str | UUID]) -> dict[str, CellMapping]:
        """Return the cell of each instance by canonical UUID; those that are not mapped are absent.

        So are those whose mapping names what is no cell, for which `resolve_cell` raises MappedCellNotFound: they are
        logged now and then, counted (`stats().broken_mappings`), and named by `cellcache doctor`.

        One round trip per cache node and 1,000 instances, one SQL statement per 1,000 misses. All UUIDs are checked
        first, then 10,000 at a time are looked up: the answer is all that grows with their number.
        """
        keys = canonical_uuids(instance_uuids)
        found: dict[str, CellMapping] = {}
        for start in range(0, len(keys), _AT_ONCE):
            found |= self._resolve_part(keys[start : start + _AT_ONCE])
        return found

    def _resolve_part(self, keys: Sequence[str]) -> dict[str, CellMapping]:
        here = self._here()
        if monotonic() > here.maintenance.overdue_at:
            here.maintenance.catch_up()
        began, asked_at = monotonic(), beginning()
        entries = here.backend.lookup_multi(keys)
        cells = list(map(here.cell_of_value.get, entries))
        found = {key: cell for key, cell in zip(keys, cells, strict=True) if cell is not None}
        here.counters.hits.add_many(len(found))
        if len(found) < len(keys):
            rest = {key: entry for key, entry in zip(keys, entries, strict=True) if key not in found}
            found.update(here.read_through.resolve_many(rest, asked_at, began))
        return found

    def map_instance(self, instance_uuid: str | UUID, cell_uuid: str | UUID, project_id: str) -> InstanceMapping:
        """Create the mapping of one instance and write it through to the cache.

        Raises MappingExists (its `identical` tells a repeat from a contradiction), and for a new one CellNotFound and
        CellDisabled.
        """
        key, cell, project = _checked((instance_uuid, cell_uuid, project_id))

        def create(transaction: Transaction) -> tuple[InstanceMapping, Changes]:
            mapping = transaction.insert_mapping(key, cell, project)
            if mapping is None:
                existing = transaction.mappings([key]).get(key)
                if existing is not None:
                    raise _exists(existing, cell, project)
                transaction.require_cells([cell])
                raise TransactionBroken(f"instance {key} was pruned, or its cell made or enabled, only now")
            return mapping, {key: cell}

        return self._here().write_through.write(create)

    def map_instances(self, rows: Iterable[NewMapping]) -> int:
        """Create many mappings and write them through to the cache; return how many were created.

        Each 1,000 rows are one transaction, all or nothing, inserted in the order of their UUIDs. A repeat of what is
        mapped already is passed over; a contradiction raises MappingExists, and nothing of its 1,000 is written.
        """
        return sum(self._map_batch(batch) for batch in batches(demand_many("rows", rows)))

    def _map_batch(self, rows: Sequence[NewMapping]) -> int:
        wanted: dict[str, tuple[str, str]] = {}
        for key, cell, project in map(_checked, rows):
            if wanted.setdefault(key, (cell, project)) != (cell, project):
                raise InvalidValue(f"instance {key} stands twice in these rows, with different cells or projects")

        def create(transaction: Transaction) -> tuple[int, Changes]:
            existing = transaction.mappings(list(wanted))
            _demand_repeats(existing, wanted)
            new = {key: row for key, row in wanted.items() if key not in existing}
            if not new:
                return 0, {}
            created_at = transaction.require_cells(cell for cell, _ in new.values())
            created = transaction.insert_mappings(((key, *row) for key, row in new.items()), created_at)
            if created < len(new):  # others have mapped some since we looked; our entries of them will say the same
                standing = transaction.passed_over_mappings(list(new))
                _demand_repeats(standing, wanted)
                if len(standing) < len(new):
                    raise TransactionBroken("others have mapped and pruned some of these instances meanwhile")
            return created, {key: cell for key, (cell, _) in new.items()}

        return self._here().write_through.write(create)

    def move_instance(self, instance_uuid: str | UUID, cell_uuid: str | UUID) -> InstanceMapping:
        """Say that the instance lives in another cell from now on. Moving it to where it is changes nothing.

        Raises InstanceNotMapped, CellNotFound, CellDisabled.
        """
        key, cell = canonical_uuid(instance_uuid), canonical_uuid(cell_uuid)

        def move(transaction: Transaction) -> tuple[InstanceMapping, Changes]:
            mapping = transaction.lock_mappings([key]).get(key)
            if mapping is None:
                raise InstanceNotMapped(key)
            if mapping.cell_uuid == cell:
                return mapping, {}
            updated_at = transaction.require_cells([cell])
            return transaction.set_cell(mapping, cell, updated_at), {key: cell}

        return self._here().write_through.write(move)

    def prune(self, instance_uuids: Iterable[str | UUID]) -> int:
        """Remove mappings, and their entries from the cache; return how many there were.

        Each 1,000 are one transaction. Only for instances whose row is gone from their cell's database: see
        `prune_purged`, which finds them.
        """

        def remove_these(keys: Sequence[str]) -> int:
            def remove(transaction: Transaction) -> tuple[int, Changes]:
                mappings = transaction.lock_mappings(keys)
                if mappings:
                    transaction.delete_mappings(mappings.values())
                return len(mappings), dict.fromkeys(mappings)

            return self._here().write_through.write(remove)

        return sum(remove_these(batch) for batch in batches(canonical_uuids(instance_uuids)))

    def prune_purged(
        self,
        cell_uuid: str | UUID,
        *,
        older_than_s: float = 3600.0,
        batch: int = 1000,
        dry_run: bool = False,
        allow_many: int | None = None,
        progress: Progress | None = None,
    ) -> PruneReport:
        """Remove the mappings of a cell whose instances have no row at all in the cell's `instances` table.

        Rows marked deleted keep their mapping; mappings created or moved less than `older_than_s` ago are left alone.
        All are compared before the first is removed, and once more then. May be interrupted and run again at any time.

        Raises PruneRefused, also on a dry run, if more of the database's own instances are mapped to other cells than
        to this one, or if more than `allow_many` mappings would go; where that is not given, more than half of those
        that are old enough, or any though none of the database's own instances is mapped to the cell. Raises
        CellNotFound, and DatabaseUnavailable or SchemaError for the cell's database; nothing more is removed then.
        """
        if progress is not None and not callable(progress):
            raise InvalidValue(f"progress {shown(progress)} cannot be called")
        return self._here().purge.prune(
            canonical_uuid(cell_uuid),
            older_than_s=demand_number("older_than_s", older_than_s, least=0, most=LONGEST_S),
            batch=demand_whole("batch", batch, least=1, most=LARGEST_PAGE),
            dry_run=demand_switch("dry_run", dry_run),
            allow_many=None if allow_many is None else demand_whole("allow_many", allow_many, least=0, most=LARGEST_ID),
            progress=progress,
        )

    def get_instance(self, instance_uuid: str | UUID) -> InstanceMapping:
        """Return the row itself, from SQL. Raises InstanceNotMapped."""
        key = canonical_uuid(instance_uuid)
        mapping = self._here().store.mapping(key)
        if mapping is None:
            raise InstanceNotMapped(key)
        return mapping

    def list_instances(
        self,
        project_id: str | None = None,
        cell_uuid: str | UUID | None = None,
        after: int | None = None,
        limit: int = 1000,
    ) -> list[InstanceMapping]:
        """Return up to `limit` rows in the order of their `id`; pass the last one's as `after` for the next page.

        None restricts nothing. A blank is no way to say so: it raises InvalidValue, or InvalidUUID.
        """
        project = None if project_id is None else demand_text("project_id", project_id, longest=LONGEST_NAME)
        cell = None if cell_uuid is None else canonical_uuid(cell_uuid)
        last = None if after is None else demand_whole("after", after, least=0, most=LARGEST_ID)
        size = demand_whole("limit", limit, least=1, most=LARGEST_PAGE)
        return self._here().store.mappings(project_id=project, cell_uuid=cell, after=last, limit=size)

    @contextmanager
    def connect_cell(self, instance_uuid: str | UUID) -> Iterator[Connection]:
        """Connect to the database of the cell in which the instance lives; the connection goes back at the end.

        Raises as `resolve_cell` does, and DatabaseUnavailable if that database does not answer.
        """
        cell = self.resolve_cell(instance_uuid)
        try:
            connection = self._here().cells.engine(cell).connect()
        except DATABASE_ERRORS as error:
            raise translated(error, cell.database_connection) from error
        with connection:
            yield connection

    # -- cells -------------------------------------------------------------------------------------------------

    def create_cell(
        self, name: str | None, database_connection: str, transport_url: str, uuid: str | UUID | None = None
    ) -> CellMapping:
        """Create a cell; its UUID is made up where none is given. Raises CellExists."""
        cell = CellMapping(
            uuid=str(uuid4()) if uuid is None else canonical_uuid(uuid),
            name=None if name is None else demand_text("name", name, longest=LONGEST_NAME),
            database_connection=demand_usable_url(database_connection),
            transport_url=demand_transport_url(transport_url),
        )
        with self._here().store.change_cells() as transaction:
            cell = transaction.insert_cell(cell)
            transaction.commit()
        self._here().cells.refresh()
        return cell

    def get_cell(self, uuid: str | UUID) -> CellMapping:
        """Return a cell as the table has it now. Raises CellNotFound."""
        self._here().cells.refresh()
        return self._here().cells.get(canonical_uuid(uuid))

    def list_cells(self) -> list[CellMapping]:
        """Return all cells, the oldest first."""
        return self._here().store.cells()

    def update_cell(
        self,
        uuid: str | UUID,
        *,
        name: str | None = None,
        database_connection: str | None = None,
        transport_url: str | None = None,
        disabled: bool | None = None,
    ) -> CellMapping:
        """Change what is given, leave the rest. Other processes see it within `cells.refresh_s`."""
        changes: dict[str, Any] = {
            "name": None if name is None else demand_text("name", name, longest=LONGEST_NAME),
            "database_connection": None if database_connection is None else demand_usable_url(database_connection),
            "transport_url": None if transport_url is None else demand_transport_url(transport_url),
            "disabled": None if disabled is None else demand_switch("disabled", disabled),
        }
        cell_uuid = canonical_uuid(uuid)
        with self._here().store.change_cells() as transaction:
            transaction.update_cell(cell_uuid, {key: value for key, value in changes.items() if value is not None})
            transaction.commit()
        return self.get_cell(cell_uuid)

    def delete_cell(self, uuid: str | UUID) -> None:
        """Delete a cell that has no mappings any more. Raises CellInUse, CellNotFound."""
        with self._here().store.change_cells() as transaction:
            transaction.delete_cell(canonical_uuid(uuid))
            transaction.commit()
        self._here().cells.refresh()

    def explain(self, instance_uuid: str | UUID) -> Explanation:
        """Resolve one instance and tell what each step found and took. Not counted in `stats`."""
        here = self._here()
        return explain(
            canonical_uuid(instance_uuid),
            store=here.store,
            backend=here.backend,
            cells=here.cells,
            settings=self.settings,
        )

    # -- watching it -------------------------------------------------------------------------------------------

    def stats(self) -> Statistics:
        """Return what was counted since this process opened the directory. Costs one SQL statement."""
        waiting: Waiting | None
        try:
            waiting = self.waiting_invalidations()
        except CellCacheError:
            waiting = None
        here = self._here()
        counted = {name: counter.value for name, counter in vars(here.counters).items()}
        return Statistics(
            **counted,
            cache_errors=here.backend.errors,
            sql_reads=here.store.reads.value,
            passes_by_lookups=here.maintenance.by_lookups.value,
            invalidations_pending=None if waiting is None else waiting.count,
            invalidations_oldest_s=None if waiting is None else waiting.oldest_s,
        )

    def verify(
        self, *, sample: int | None = None, rate_per_s: float | None = None, repair: bool = False
    ) -> Iterator[VerifyReport]:
        """Compare the cache with the table: all instances, or `sample` different ones, drawn by their UUIDs.

        Yields the report as it stands, at once and after each batch; stop whenever you like. Goes no faster than
        `rate_per_s` instances a second. With `repair`, removes what is wrong; without, it changes nothing. A
        difference that is seen only while a write is under way is not one. What a cache node does not answer is asked
        again for a few times `cache.retry_s`, and then counted as unreachable. Raises DatabaseUnavailable.
        """
        here = self._here()
        audit = Audit(here.store, here.backend, retry_s=self.settings.cache.retry_s)
        return audit.run(
            sample=None if sample is None else demand_whole("sample", sample, least=1, most=LARGEST_ID),
            rate_per_s=None if rate_per_s is None else demand_number("rate_per_s", rate_per_s, least=0.001, most=1e9),
            repair=demand_switch("repair", repair),
        )

    def deliver_invalidations(self) -> Delivery:
        """Deliver now what is due, as the background thread does every few seconds. Raises DatabaseUnavailable."""
        return self._here().invalidations.deliver()

    def list_invalidations(self, limit: int = 100) -> list[Invalidation]:
        """Return the oldest invalidations, also those that their writer will most likely remove within seconds."""
        return self._here().store.invalidations(limit=demand_whole("limit", limit, least=1, most=LARGEST_PAGE))

    def waiting_invalidations(self) -> Waiting:
        """Return how many invalidations are due and not delivered, and how old the oldest is. One SQL statement."""
        return self._here().store.waiting_invalidations()

    def count_by_cell(self) -> dict[str, int]:
        """Return the number of mappings per cell UUID. Reads the whole index: seconds for millions of rows."""
        return self._here().store.count_by_cell()

    def check_cache(self) -> list[NodeStatus]:
        """Reach every cache node, past any circuit breaker. Blocks for at most the time limit per node."""
        return self._backend.check()

    def deployment(self) -> str:
        """Return the identity that signed entries of this deployment are for; it is written where there is none yet.

        Raises DatabaseUnavailable, SchemaError.
        """
        return self._here().store.agreement().deployment

    @property
    def promise(self) -> str:
        """How fresh an answer is, in one line."""
        return self._backend.promise

    @property
    def _backend(self) -> CoherentBackend:
        return self._here().backend

    def _begin(self, here: DirectoryState) -> None:
        """In a process that has made a state of its own.

        It starts no thread: where Python was not told of the fork, a new thread may wait for ever for what one of the
        parent's held in the interpreter (seen with 3.11, where the parent's threads were busy).
        """
        if self._closed:
            here.close()
        elif self._opened:
            here.maintenance.leave_to_lookups()


_open_directories: weakref.WeakSet[CellDirectory] = weakref.WeakSet()


def _before_fork() -> None:
    for directory in list(_open_directories):
        directory._here().maintenance.stop_for_fork()  # noqa: SLF001 - its own module


def _after_fork_in_parent() -> None:
    for directory in list(_open_directories):
        directory._here().maintenance.go_on_after_fork()  # noqa: SLF001


def _after_fork_in_child() -> None:
    """Begin at once where Python is told of the fork. Nothing rests on it: other children begin at their first use."""
    for directory in list(_open_directories):
        directory._here().maintenance.start()  # noqa: SLF001


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


def _checked(row: NewMapping) -> tuple[str, str, str]:
    try:
        instance_uuid, cell_uuid, project_id = row
    except (TypeError, ValueError):
        raise InvalidValue(f"row {shown(row)} is not an instance, its cell and its project") from None
    project = demand_text("project_id", project_id, longest=LONGEST_NAME)
    return canonical_uuid(instance_uuid), canonical_uuid(cell_uuid), project


def _demand_repeats(existing: Mapping[str, InstanceMapping], wanted: Mapping[str, tuple[str, str]]) -> None:
    """Raise MappingExists for a mapping that contradicts what is wanted of its instance."""
    for key, mapping in existing.items():
        if (mapping.cell_uuid, mapping.project_id) != wanted[key]:
            raise _exists(mapping, *wanted[key])


def _exists(existing: InstanceMapping, cell_uuid: str, project_id: str) -> MappingExists:
    return MappingExists(existing, identical=(existing.cell_uuid, existing.project_id) == (cell_uuid, project_id))
