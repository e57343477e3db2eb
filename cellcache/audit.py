"""Comparing the cache with the table, as they go: what `cellcache verify` does.

A difference seen once means nothing: a writer may be between its commit and its settling, or may have come in between
our two reads. Seen again and again over a second, with the same old value standing, it is one.

Only instances that the table has are compared: a cache cannot be asked for all that it holds.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cellcache.codec import Undecodable, decode
from cellcache.errors import InvalidValue
from cellcache.protocol import CoherentBackend
from cellcache.store import Store

_LOOKS_AFTER_S = (0.05, 0.2, 0.75)
_SAMPLE = 100  # rows read at each of a sample's random places
_SHOWN = 100  # differences that a report keeps


@dataclass(frozen=True, slots=True)
class Difference:
    """An instance for which the cache has long been answering something else than the table. None: not mapped."""

    instance_uuid: str
    cached_cell_uuid: str | None
    mapped_cell_uuid: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What was compared up to now."""

    checked: int = 0
    """Instances looked at."""
    cached: int = 0
    """Those for which the cache held an answer."""
    wrong: int = 0
    """Those for which it held a wrong one."""
    repaired: int = 0
    """Wrong answers that were removed, confirmed by their node."""
    differences: tuple[Difference, ...] = ()
    """The first hundred of the wrong ones."""

    @property
    def consistency(self) -> float:
        """The share of the instances looked at for which the cache did not answer wrongly, from 0 to 1."""
        return 1.0 if not self.checked else 1 - self.wrong / self.checked

    def including(self, *, checked: int, cached: int, repaired: int, differences: Sequence[Difference]) -> VerifyReport:
        return VerifyReport(
            checked=self.checked + checked,
            cached=self.cached + cached,
            wrong=self.wrong + len(differences),
            repaired=self.repaired + repaired,
            differences=(*self.differences, *differences)[:_SHOWN],
        )


class Audit:
    """Reads instances from the table, and what the cache says of each, without taking leases."""

    def __init__(self, store: Store, backend: CoherentBackend) -> None:
        self._store = store
        self._backend = backend

    def run(self, *, sample: int | None, rate_per_s: float | None, repair: bool) -> Iterator[VerifyReport]:
        """Yield the report as it stands after each batch; see `CellDirectory.verify`."""
        if (sample is not None and sample < 1) or (rate_per_s is not None and not rate_per_s > 0):
            raise InvalidValue("sample and rate_per_s must be positive")
        report = VerifyReport()
        yield report
        for mapped in self._all() if sample is None else self._sampled(sample):
            began = time.monotonic()
            keys = list(mapped)
            cached = {key: value for key, value in zip(keys, self._backend.peek_multi(keys), strict=True) if value}
            differences = self._lasting({key: value for key, value in cached.items() if _cell(value) != mapped[key]})
            repaired = sum(self._backend.invalidate_multi([one.instance_uuid for one in differences])) if repair else 0
            report = report.including(checked=len(keys), cached=len(cached), repaired=repaired, differences=differences)
            yield report
            if rate_per_s is not None:
                time.sleep(max(0.0, began + len(keys) / rate_per_s - time.monotonic()))

    def _all(self) -> Iterator[dict[str, str | None]]:
        last = None
        while rows := self._store.mappings(project_id=None, cell_uuid=None, after=last, limit=1000):
            last = rows[-1].id
            yield {row.instance_uuid: row.cell_uuid for row in rows}

    def _sampled(self, size: int) -> Iterator[dict[str, str | None]]:
        first, last = self._store.id_range()
        while size > 0 and last:
            after = random.randint(first, last) - 1  # noqa: S311 - not a secret
            rows = self._store.mappings(project_id=None, cell_uuid=None, after=after, limit=min(size, _SAMPLE))
            size -= len(rows)
            yield {row.instance_uuid: row.cell_uuid for row in rows}

    def _lasting(self, suspects: Mapping[str, bytes]) -> list[Difference]:
        """Look again until only those are left whose old value still stands and still is not what the table says."""
        for pause_s in _LOOKS_AFTER_S:
            if not suspects:
                break
            time.sleep(pause_s)
            suspects = self._standing(suspects)
        mapped = self._store.cells_of(list(suspects)) if suspects else {}
        return [Difference(key, _shown(value), mapped.get(key)) for key, value in suspects.items()]

    def _standing(self, suspects: Mapping[str, bytes]) -> dict[str, bytes]:
        keys = list(suspects)
        mapped = self._store.cells_of(keys)
        # The cache is asked after the table: what is seen there has had the time of a read to be settled.
        cached = zip(keys, self._backend.peek_multi(keys), strict=True)
        return {key: value for key, value in cached if value == suspects[key] and _cell(value) != mapped.get(key)}


def _cell(value: bytes) -> str | Undecodable | None:
    try:
        return decode(value)
    except Undecodable as error:
        return error


def _shown(value: bytes) -> str | None:
    cell = _cell(value)
    return f"undecodable {value[:24].hex()}" if isinstance(cell, Undecodable) else cell
