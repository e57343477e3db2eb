"""Any other dogpile backend, as the directory uses it: no leases, no fences, so only the weaker promise.

Reads store what they found, writes delete before and after their commit. That leaves the windows that
docs/coherence.md lists: a reader that is overtaken by a writer stores an old answer, which lasts for its
time-to-live.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from dogpile.cache import CacheRegion
from dogpile.cache.api import NO_VALUE

from cellcache.codec import NOT_MAPPED, decode, encode
from cellcache.foreign import printable
from cellcache.masking import mask_text
from cellcache.protocol import Absent, Fence, Fill, Held, Lease, NodeStatus, Seen, Settlement

log = logging.getLogger(__name__)


class PlainBackend:
    """Gives a region over any dogpile backend the shape of a CoherentBackend, without its strength."""

    promise = (
        "not coherent: this backend has no compare-and-swap, so an answer may be outdated for its time-to-live; "
        "cellcache.memcached and cellcache.redis have no such window"
    )

    held: Mapping[object, Held] = MappingProxyType({})

    def __init__(self, region: CacheRegion, *, ttl_s: float, negative_ttl_s: float) -> None:
        self.errors = 0
        self._region = region
        self._ttl_s = ttl_s
        self._negative_ttl_s = negative_ttl_s
        self._lease = Lease(b"", 0.0)

    def lookup(self, key: str) -> bytes | Lease | Absent:
        return self.lookup_multi([key])[0]

    def lookup_multi(self, keys: Sequence[str]) -> list[bytes | Lease | Absent]:
        found: list[Any] = []
        if not self._succeeds(lambda: found.extend(self._get_multi(keys, self._ttl_s))):
            return [Absent.UNREACHABLE] * len(keys)
        entries: list[bytes | Lease | Absent] = [
            self._lease if cell_uuid is NO_VALUE else encode(cell_uuid) for cell_uuid in found
        ]
        negative = [position for position, entry in enumerate(entries) if entry == NOT_MAPPED]
        if negative:  # dogpile checks ages against one limit per call
            young: list[Any] = []
            if not self._succeeds(
                lambda: young.extend(self._get_multi([keys[p] for p in negative], self._negative_ttl_s))
            ):
                young = [NO_VALUE] * len(negative)
            for position, answer in zip(negative, young, strict=True):
                if answer is NO_VALUE:
                    entries[position] = self._lease
        return entries

    def peek_multi(self, keys: Sequence[str]) -> list[Seen]:
        return [None if isinstance(entry, Lease) else entry for entry in self.lookup_multi(keys)]

    def send_fills(self, fills: Sequence[Fill], refused: Callable[[int], object], *, wait: bool) -> None:  # noqa: ARG002
        values = {fill.key: decode(fill.value) for fill in fills}
        if not self._succeeds(lambda: self._region.set_multi(values)):
            refused(len(fills))

    def fence_multi(self, keys: Sequence[str]) -> list[Fence]:
        return [Fence(b"", asked_at=0.0 if done else None) for done in self.invalidate_multi(keys)]

    def settle_multi(self, settlements: Sequence[Settlement]) -> list[bool]:
        return self.invalidate_multi([one.key for one in settlements])

    def invalidate_multi(self, keys: Sequence[str], *, deadline: float | None = None) -> list[bool]:  # noqa: ARG002
        return [self._succeeds(lambda: self._region.delete_multi(list(keys)))] * len(keys)

    def check(self) -> list[NodeStatus]:
        name = type(self._region.actual_backend).__name__
        before = self.errors
        self._succeeds(lambda: self._region.get("00000000-0000-0000-0000-000000000000"))
        return [NodeStatus(name, None, None, "does not answer" if self.errors > before else None)]

    def close(self) -> None:
        """Do nothing: dogpile's interface has no close; the driver's connections go with the region."""

    def _get_multi(self, keys: Sequence[str], ttl_s: float) -> Iterable[Any]:
        answers: Iterable[Any] = self._region.get_multi(list(keys), expiration_time=ttl_s)  # type: ignore[no-untyped-call]
        return answers

    def _succeeds(self, work: Callable[[], object]) -> bool:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - whatever a foreign backend raises, a lookup goes on
            self.errors += 1
            if self.errors == 1 or self.errors % 1000 == 0:
                log.warning(
                    "cache backend failed (%d times so far): %s: %s",
                    self.errors,
                    type(error).__name__,
                    mask_text(printable(error)),
                )
            return False
        return True
