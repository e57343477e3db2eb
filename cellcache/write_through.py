"""The write path: change the row, fence the entry, commit, settle; as docs/coherence.md lays it down."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from cellcache.codec import encode
from cellcache.config import CacheSettings
from cellcache.errors import CacheUnavailable, DatabaseUnavailable
from cellcache.invalidations import Invalidations
from cellcache.protocol import CoherentBackend, Fence, Settlement
from cellcache.read_through import jittered
from cellcache.statistics import Counters
from cellcache.store import Store
from cellcache.transaction import Transaction, TransactionBroken

R = TypeVar("R")

TRIES = 3

Changes = Mapping[str, str | None]
"""What a write makes of each instance: the UUID of its cell, or None where it is no longer mapped."""


class WriteThrough:
    """Runs a change of `instance_mapping` so that no later lookup answers with what was before it."""

    def __init__(
        self,
        store: Store,
        backend: CoherentBackend,
        invalidations: Invalidations,
        counters: Counters,
        settings: CacheSettings,
    ) -> None:
        self._store = store
        self._backend = backend
        self._invalidations = invalidations
        self._counters = counters
        self._ttl_s = settings.ttl_s
        self._fence_ttl_s = settings.fence_ttl_s
        self._refuses = settings.on_unreachable == "refuse"

    def write(self, change: Callable[[Transaction], tuple[R, Changes]]) -> R:
        """Run `change` in a transaction, up to three times if that breaks before its commit; return its result.

        Raises what `change` raises, CacheUnavailable and DatabaseUnavailable with nothing written;
        CommitUnknown where that cannot be told.
        """
        for attempt in range(1, TRIES + 1):
            try:
                return self._write(change)
            except TransactionBroken as error:
                if attempt == TRIES:
                    raise DatabaseUnavailable(f"{error}; nothing was written, after {TRIES} tries") from error
                time.sleep(attempt * random.uniform(0.0, 0.02))  # noqa: S311 - lest two meet in one deadlock again
        raise AssertionError

    def _write(self, change: Callable[[Transaction], tuple[R, Changes]]) -> R:
        fences: dict[str, Fence] = {}
        row: int | None = None
        transaction: Transaction | None = None
        try:
            with self._store.transaction() as transaction:
                result, changes = change(transaction)  # from here on writers of the same rows wait for us
                if not changes:
                    return result
                keys = list(changes)
                fences = self._fence(keys)
                unfenced = [key for key, fence in fences.items() if not fence.confirmed]
                if unfenced and self._refuses:
                    raise CacheUnavailable(  # noqa: TRY301 - the handler below takes the fences away
                        f"the cache node of instance {unfenced[0]} ({len(unfenced)} of {len(keys)} in this write) is "
                        'unreachable and cache.on_unreachable is "refuse": nothing was written, try again later'
                    )
                row = self._invalidations.record(transaction, keys, unfenced)
                transaction.commit()
        except BaseException:
            if transaction is not None and transaction.in_doubt:
                # It may still happen. The fences stay until they expire; what has come in their place by then must go.
                self._invalidations.in_doubt(keys, after_s=self._fence_ttl_s)
            else:
                self._settle(fences, dict.fromkeys(fences))
            raise
        if unsettled := self._settle(fences, changes):
            self._invalidations.unsettled(row, unsettled)
        else:
            self._invalidations.settled(row)
        return result

    def _fence(self, keys: Sequence[str]) -> dict[str, Fence]:
        """Fence every entry."""
        fences = dict(zip(keys, self._backend.fence_multi(keys), strict=True))
        confirmed = sum(fence.confirmed for fence in fences.values())
        self._counters.fences.add_many(confirmed)
        self._counters.fences_failed.add_many(len(keys) - confirmed)
        return fences

    def _settle(self, fences: Mapping[str, Fence], changes: Changes) -> dict[str, Fence]:
        """Put the new values where the fences are; return those whose node has not confirmed it.

        A fence that was not confirmed is only removed. It may have been on its way for so long that another writer has
        passed from its own fence to its settling meanwhile; then our value is older than the one that it overwrote.
        """
        settlements = [
            Settlement(key, fence, encode(cell_uuid) if cell_uuid and fence.confirmed else None, jittered(self._ttl_s))
            for key, fence in fences.items()
            for cell_uuid in [changes[key]]
        ]
        confirmed = self._backend.settle_multi(settlements)
        unsettled = {one.key: one.fence for one, done in zip(settlements, confirmed, strict=True) if not done}
        self._counters.settles.add_many(len(settlements) - len(unsettled))
        self._counters.settles_failed.add_many(len(unsettled))
        return unsettled
