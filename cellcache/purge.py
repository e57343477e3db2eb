"""Pruning what was purged: remove the mappings of instances whose row is gone from their cell's database.

A row that is merely marked deleted keeps its mapping, since a listing of deleted instances needs the cell. A young
mapping is left alone, since it is created before its instance's row is. All mappings are compared before the first
goes, so that purge_verdict.py can tell whether the database is the cell's, and once more as they go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cellcache.cell_instances import CellInstances
from cellcache.cells import Cells
from cellcache.errors import CellNotFound, PruneRefused
from cellcache.model import InstanceMapping
from cellcache.purge_verdict import Evidence, judge
from cellcache.rows import batches
from cellcache.store import Store
from cellcache.transaction import Transaction
from cellcache.write_through import Changes, WriteThrough

Progress = Callable[[int, int], None]
"""Called after each batch with the mappings checked and removed so far.

Unless on a dry run, all are checked with none removed, and then from the first on again.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneReport:
    """What a prune of one cell did. On a dry run, `removed` is what it would have removed."""

    cell_uuid: str
    checked: int = 0
    """Mappings that were old enough to be compared: the sum of the next three."""
    removed: int = 0
    still_there: int = 0
    """Spared, as the instance has its row, deleted or not."""
    changed_meanwhile: int = 0
    """Spared, as the mapping was moved, made anew or removed by others just after it was compared."""
    too_young: int = 0
    """Spared, as the mapping was created or moved of late, or is of unknown age."""
    rows_without_uuid: int = 0
    """Rows of the cell's database that hold no UUID; of a large table, those that the sample met."""
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class _Scope:
    """What is compared with what: the cell's mappings that have not changed since `cutoff`, so many at a time."""

    cell_uuid: str
    instances: CellInstances
    cutoff: datetime
    batch: int


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
        allow_many: int | None,
        progress: Progress | None,
    ) -> PruneReport:
        self._cells.refresh()  # another process may have put the cell's URL right
        cell = self._cells.get(cell_uuid)
        cutoff = self._store.now() - timedelta(seconds=older_than_s)

        def tell(checked: int, removed: int) -> None:
            if progress is not None:
                progress(checked, removed)

        with self._cells.asked(cell) as engine:
            instances = CellInstances(engine, cell.database_connection)
            return self._compare(_Scope(cell_uuid, instances, cutoff, batch), dry_run, allow_many, tell)

    def _compare(self, scope: _Scope, dry_run: bool, allow_many: int | None, tell: Progress) -> PruneReport:
        report = self._walk(scope, len, lambda checked, gone: tell(checked, gone if dry_run else 0))
        rows_without_uuid = 0
        if report.checked:
            sample = scope.instances.sample()
            rows_without_uuid = sample.rows_without_uuid
            evidence = Evidence(
                cell_uuid=scope.cell_uuid,
                sample=len(sample.uuids),
                mapped=Counter(self._store.cells_of(sample.uuids).values()),
                checked=report.checked,
                gone=report.removed,
            )
            may_go = judge(evidence, allow_many, self._called)
            if report.removed and not dry_run:
                report = self._walk(scope, self._removal(scope, may_go), tell)
        return replace(report, rows_without_uuid=rows_without_uuid, dry_run=dry_run)

    def _walk(self, scope: _Scope, remove: Callable[[Sequence[str]], int], tell: Progress) -> PruneReport:
        """Compare all mappings; hand those whose instance is gone to `remove`, which says how many it removed."""
        report, last = PruneReport(cell_uuid=scope.cell_uuid), 0
        while mappings := self._store.mappings(
            project_id=None, cell_uuid=scope.cell_uuid, after=last, limit=scope.batch
        ):
            last = mappings[-1].id
            old = [mapping.instance_uuid for mapping in mappings if _unchanged_since(mapping, scope.cutoff)]
            there = scope.instances.those_there(old)
            gone = [uuid for uuid in old if uuid not in there]
            removed = sum(map(remove, batches(gone)))
            report = replace(
                report,
                checked=report.checked + len(old),
                removed=report.removed + removed,
                still_there=report.still_there + len(old) - len(gone),
                changed_meanwhile=report.changed_meanwhile + len(gone) - removed,
                too_young=report.too_young + len(mappings) - len(old),
            )
            tell(report.checked, report.removed)
        return report

    def _removal(self, scope: _Scope, may_go: int) -> Callable[[Sequence[str]], int]:
        """Return what removes mappings, and stops before more of them would go than may."""
        left = may_go

        def remove(gone: Sequence[str]) -> int:
            nonlocal left
            left -= len(gone)
            if left < 0:
                raise PruneRefused(
                    f"cell {self._called(scope.cell_uuid)}: more than the {may_go:,} mappings that may go lack their "
                    "instances now, unlike a moment ago; no more were removed. Run it again when its rows are at rest"
                )
            return self._remove(gone, scope.cell_uuid, scope.cutoff)

        return remove

    def _called(self, cell_uuid: str) -> str:
        try:
            name = self._cells.get(cell_uuid).name
        except CellNotFound:
            name = None
        return cell_uuid if name is None else f"{name} ({cell_uuid})"

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
