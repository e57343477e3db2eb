"""What a directory has counted since it was opened in this process."""

from __future__ import annotations

from dataclasses import dataclass, fields

from cellcache.counter import Counter


class Counters:
    """One counter per event of the read path and the write path."""

    def __init__(self) -> None:
        self.hits = Counter()
        self.misses = Counter()
        self.negative_hits = Counter()
        self.undecodable = Counter()
        self.broken_mappings = Counter()
        self.unreachable = Counter()
        self.fills = Counter()
        self.fills_refused = Counter()
        self.fences = Counter()
        self.fences_failed = Counter()
        self.settles = Counter()
        self.settles_failed = Counter()


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Counters since the directory was opened in this process; a forked child begins at zero."""

    hits: int
    """Lookups answered by the cache with a cell."""
    negative_hits: int
    """Lookups answered by the cache with "not mapped"."""
    misses: int
    """Lookups that went to SQL."""
    unreachable: int
    """Those of the misses whose cache node did not answer, or was not asked because it had just failed."""
    undecodable: int
    """Entries removed because they meant nothing: corrupt, foreign, too long, naming a cell that is no more, or signed
    until a time that is over; and leases and fences that would have stood for longer than any of ours.
    """
    broken_mappings: int
    """Lookups of instances whose mapping names what is no cell; `doctor` names them."""
    fills: int
    """Answers from SQL that were sent to the cache, each to be stored over its lease."""
    fills_refused: int
    """Those of the fills that were not stored, because a writer or another reader had come in between.

    Nobody waits to hear of that: it is counted by the next request of the same thread.
    """
    fences: int
    """Entries that writers fenced."""
    fences_failed: int
    """Entries that could not be fenced, because their node was unreachable."""
    settles: int
    """Fenced entries that were settled after their commit."""
    settles_failed: int
    """Fenced entries that could not be settled; an invalidation row takes care of each."""
    cache_errors: int
    """Requests to the cache that failed: time-outs, broken connections, refusals, garbled replies."""
    sql_reads: int
    """SELECT statements that lookups cost."""
    passes_by_lookups: int
    """Background passes that a lookup had to make, since this process's background thread does not run."""
    invalidations_pending: int | None
    """Invalidations of any process that are due and not delivered; None while the database does not answer."""
    invalidations_oldest_s: float | None
    """The age of the oldest of those, in seconds."""

    def as_dict(self) -> dict[str, int | float | None]:
        return {field.name: getattr(self, field.name) for field in fields(self)}
