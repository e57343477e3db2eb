"""Pruning what was purged: remove the mappings of instances whose row is gone from their cell's database.

A row that is merely marked deleted keeps its mapping, since a listing of deleted instances needs the cell. A young
mapping is left alone, since it is created before its instance's row is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Engine, String, column, select, table
from sqlalchemy.exc import SQLAlchemyError

from cellcache.cells import Cells
from cellcache.database import translated
from cellcache.errors import InvalidValue, PruneRefused
from cellcache.model import CellMapping, InstanceMapping
from cellcache.rows import IN_ONE_STATEMENT, batches
from cellcache.store import Store
from cellcache.transaction import Transaction
from cellcache.write_through import Changes, WriteThrough

_instances = table("instances", column("uuid", String(36)))

Progress = Callable[[int, int], None]
"""Called after each batch with the mappings checked and removed so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneReport:
    """What a prune of one cell did. On a dry run, `removed` is what it would have removed."""

    cell_uuid: str
    checked: int
    removed: int
    dry_run: bool


class Purge:
    """Compares the mappings of one cell with its `instances` table, a batch at a time, by ascending id."""

    def __init__(self, store: Store, cells: Cells, write_through: WriteThrough) -> None:
        self._store = store
        self._cells = cells
        self._write_through = write_through

    def prune(
        self,
        cell_uuid: str,
        *,
        older_than_s: float,
        batch: int,
        dry_run: bool,
        allow_empty: bool,
        progress: Progress | None,
    ) -> PruneReport:
        if batch < 1 or older_than_s < 0:
            raise InvalidValue(f"batch {batch} must be at least 1 and older_than_s {older_than_s:g} not negative")
        cell = self._cells.get(cell_uuid)
        cutoff = self._store.now() - timedelta(seconds=older_than_s)
        checked, removed, last = 0, 0, 0
        while mappings := self._store.mappings(
            cell_uuid=cell_uuid, after=last, limit=batch, unchanged_since=cutoff, project_id=None
        ):
            last = mappings[-1].id
            if not checked and not allow_empty:
                self._demand_instances(cell)
            gone = self._purged(cell, mappings)
            removed += len(gone) if dry_run else sum(self._remove(part, cell_uuid, cutoff) for part in batches(gone))
            checked += len(mappings)
            if progress is not None:
                progress(checked, removed)
        return PruneReport(cell_uuid=cell_uuid, checked=checked, removed=removed, dry_run=dry_run)

    def _demand_instances(self, cell: CellMapping) -> None:
        if not self._select(cell, None):
            raise PruneRefused(
                f"the `instances` table in the database of cell {cell.uuid} is empty though instances are mapped to "
                "it; if it should be, and is not the wrong database or one not yet filled, allow it (--allow-empty)"
            )

    def _purged(self, cell: CellMapping, mappings: Sequence[InstanceMapping]) -> list[str]:
        uuids = [mapping.instance_uuid for mapping in mappings]
        there: set[str] = set()
        for part in batches(uuids, IN_ONE_STATEMENT):
            there.update(self._select(cell, part))
        return [uuid for uuid in uuids if uuid not in there]

    def _select(self, cell: CellMapping, uuids: Sequence[str] | None) -> list[str]:
        """Return those of the UUIDs that have a row, deleted or not; for None, one row's if there is any.

        Each call is a transaction of its own: a snapshot that grows old would hide rows created since.
        """
        query = select(_instances.c.uuid)
        query = query.limit(1) if uuids is None else query.where(_instances.c.uuid.in_(uuids))
        engine: Engine = self._cells.engine(cell)
        try:
            with engine.connect() as connection:
                return [uuid.lower() for uuid in connection.scalars(query)]
        except (SQLAlchemyError, OSError) as error:
            raise translated(error, cell.database_connection, tables="instances") from error

    def _remove(self, instance_uuids: Sequence[str], cell_uuid: str, cutoff: datetime) -> int:
        """Remove these mappings, but none that was moved or made anew since it was compared."""

        def remove(transaction: Transaction) -> tuple[int, Changes]:
            gone = [
                mapping
                for mapping in transaction.lock_mappings(instance_uuids).values()
                if mapping.cell_uuid == cell_uuid and _unchanged_since(mapping, cutoff)
            ]
            if gone:
                transaction.delete_mappings(gone)
            return len(gone), {mapping.instance_uuid: None for mapping in gone}

        return self._write_through.write(remove)


def _unchanged_since(mapping: InstanceMapping, cutoff: datetime) -> bool:
    """Say no to a mapping of unknown age, as SQL does: it is not old enough for anything."""
    changed_at = mapping.updated_at or mapping.created_at
    return changed_at is not None and changed_at <= cutoff
