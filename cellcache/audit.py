"""Comparing the cache with the table, as they go: what `cellcache verify` does.

A difference seen once means nothing: a writer may be between its commit and its settling, or may have come in between
our two reads. Seen again and again over a second, with the same old value standing, it is one. So is a lease or a fence
that would stand for longer than any of ours: it keeps the answer out of the cache for good.

What a node does not answer is asked again, for a few times what its circuit breaker stays open; what stays without an
answer is counted by itself. It is neither right nor wrong.

Only instances that the table has are compared: a cache cannot be asked for all that it holds. A row whose UUID is none
is passed over, since no lookup finds it; `doctor` names such rows.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

from cellcache.codec import Undecodable, decode
from cellcache.model import is_canonical
from cellcache.protocol import Absent, CoherentBackend, Seen
from cellcache.store import Store

T = TypeVar("T")
Cached = bytes | Absent
"""What stands in the place of an answer: a value, or a mark that does not end."""

_LOOKS_AFTER_S = (0.05, 0.2, 0.75)
_TRIES = 4  # of what a node did not answer: another thread of ours may be the one that its breaker lets through
_PAUSE_S = 0.5
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
    unreachable: int = 0
    """Those whose cache node did not answer, asked again and again: nobody knows what it holds for them.

    All of them where entries are signed and the deployment's identity cannot be read.
    """
    cached: int = 0
    """Those for which the cache held an answer, which was compared."""
    wrong: int = 0
    """Those for which it held a wrong one."""
    repaired: int = 0
    """Wrong answers that were removed, confirmed by their node."""
    differences: tuple[Difference, ...] = ()
    """The first hundred of the wrong ones."""

    @property
    def consistency(self) -> float | None:
        """The share of the cache's answers that were not wrong, from 0 to 1; None where nothing was compared."""
        return 1 - self.wrong / self.cached if self.cached else None

    def including(
        self, *, checked: int, unreachable: int, cached: int, repaired: int, differences: Sequence[Difference]
    ) -> VerifyReport:
        return VerifyReport(
            checked=self.checked + checked,
            unreachable=self.unreachable + unreachable,
            cached=self.cached + cached,
            wrong=self.wrong + len(differences),
            repaired=self.repaired + repaired,
            differences=(*self.differences, *differences)[:_SHOWN],
        )


class Audit:
    """Reads instances from the table, and what the cache says of each, without taking leases."""

    def __init__(self, store: Store, backend: CoherentBackend, *, retry_s: float) -> None:
        self._store = store
        self._backend = backend
        self._pause_s = max(_PAUSE_S, 1.1 * retry_s)  # by then a node that had failed is tried again
        self._patient = True

    def run(self, *, sample: int | None, rate_per_s: float | None, repair: bool) -> Iterator[VerifyReport]:
        """Yield the report as it stands after each batch; see `CellDirectory.verify`."""
        report = VerifyReport()
        yield report
        for mapped in self._all() if sample is None else self._sampled(sample):
            began = time.monotonic()
            seen = self._look(mapped)
            self._patient = not _unreachable(seen)
            cached = {key: value for key, value in seen.items() if isinstance(value, bytes) or value is Absent.ENDLESS}
            suspects = {key: value for key, value in cached.items() if _cell(value) != mapped[key]}
            differences, lost = self._lasting(suspects)
            report = report.including(
                checked=len(mapped),
                unreachable=len(_unreachable(seen)) + len(lost),
                cached=len(cached) - len(lost),
                repaired=self._repair([one.instance_uuid for one in differences]) if repair else 0,
                differences=differences,
            )
            yield report
            if rate_per_s is not None:
                time.sleep(max(0.0, began + len(mapped) / rate_per_s - time.monotonic()))

    def _all(self) -> Iterator[dict[str, str]]:
        last = None
        while rows := self._store.mappings(project_id=None, cell_uuid=None, after=last, limit=1000):
            last = rows[-1].id
            yield {row.instance_uuid: row.cell_uuid for row in rows if is_canonical(row.instance_uuid)}

    def _sampled(self, size: int) -> Iterator[dict[str, str]]:
        """Walk the index on UUIDs from a random place to its end, and on from its beginning to that place.

        UUIDs are random, so neighbours there have nothing else in common, and it is as likely to look at the one as at
        the other. Those that somebody chose may lie close together: then a sample has many of a group, or none.
        """
        place = self._random_place()
        for after, last in ((place, None), ("", place)):
            while size > 0 and (rows := self._store.mapped_between(after, last, limit=min(size, 1000))):
                after, _ = rows[-1]  # noqa: PLW2901
                mapped = {instance: cell for instance, cell in rows if is_canonical(instance)}
                size -= len(mapped)
                yield mapped

    def _random_place(self) -> str:
        """Return any UUID, or, every other time, one between the first and the last that are mapped.

        Where they were numbered, nearly all UUIDs lie behind the last: every walk from those begins at the first.
        """
        low, high = 0, 2**128 - 1
        if random.getrandbits(1):
            with suppress(TypeError, ValueError):  # the table is empty, or one of the two is no UUID
                low, high = sorted(UUID(end).int for end in self._store.uuid_range())
        return str(UUID(int=random.randint(low, high)))  # noqa: S311 - not a secret

    def _lasting(self, suspects: Mapping[str, Cached]) -> tuple[list[Difference], set[str]]:
        """Look again until only those are left whose old value still stands and still is not what the table says.

        Return also those that could not be looked at again.
        """
        lost: set[str] = set()
        mapped: Mapping[str, str] = {}
        for pause_s in _LOOKS_AFTER_S:
            if not suspects:
                break
            time.sleep(pause_s)
            mapped = self._store.cells_of(list(suspects))
            # The cache is asked after the table: what is seen there has had the time of a read to be settled.
            seen = self._look(suspects)
            lost |= _unreachable(seen)
            suspects = {
                key: value for key, value in suspects.items() if value == seen[key] and _cell(value) != mapped.get(key)
            }
        return [Difference(key, _shown(value), mapped.get(key)) for key, value in suspects.items()], lost

    def _look(self, keys: Collection[str]) -> dict[str, Seen]:
        return self._ask(keys, self._backend.peek_multi, unanswered=Absent.UNREACHABLE)

    def _repair(self, keys: Collection[str]) -> int:
        return sum(self._ask(keys, self._backend.invalidate_multi, unanswered=False).values())

    def _ask(
        self, keys: Collection[str], ask: Callable[[Sequence[str]], Sequence[T]], *, unanswered: T
    ) -> dict[str, T]:
        """Ask, and ask again for what its node did not answer.

        A node that stays away is waited for in one batch, not in all: until one is answered in full, a single try does.
        """
        answers = dict.fromkeys(keys, unanswered)
        for attempt in range(_TRIES if self._patient else 1):
            rest = [key for key, answer in answers.items() if answer is unanswered]
            if not rest:
                break
            if attempt:
                time.sleep(self._pause_s)
            answers.update(zip(rest, ask(rest), strict=True))
        return answers


def _unreachable(seen: Mapping[str, Seen]) -> set[str]:
    return {key for key, value in seen.items() if value in {Absent.UNREACHABLE, Absent.UNVERIFIABLE}}


def _cell(value: Cached) -> str | Undecodable | Absent | None:
    try:
        return decode(value) if isinstance(value, bytes) else value
    except Undecodable as error:
        return error


def _shown(value: Cached) -> str | None:
    if not isinstance(value, bytes):
        return value.value
    cell = _cell(value)
    return f"undecodable {value[:24].hex()}" if isinstance(cell, Undecodable) else str(cell) if cell else None
