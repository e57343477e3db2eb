"""What one lookup did: the steps of the real read path, each with what it answered and how long it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cellcache.cells import Cells
from cellcache.codec import Undecodable, decode
from cellcache.config import Settings
from cellcache.errors import CellNotFound, InstanceNotMapped
from cellcache.flights import beginning
from cellcache.model import CellMapping
from cellcache.protocol import Absent, CoherentBackend, Lease
from cellcache.read_through import Entry, ReadThrough
from cellcache.statistics import Counters
from cellcache.store import Store


@dataclass(frozen=True, slots=True)
class Step:
    """One thing the lookup did. `seconds` is its time alone."""

    what: str
    found: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer, who gave it, and the steps on the way there. Without a cell, `error` is what a lookup raises."""

    instance_uuid: str
    cell: CellMapping | None
    source: Literal["cache", "sql"]
    steps: tuple[Step, ...]
    error: InstanceNotMapped | CellNotFound | None = None


def explain(key: str, *, store: Store, backend: CoherentBackend, cells: Cells, settings: Settings) -> Explanation:
    """Look an instance up as `resolve_cell` does, and keep a record. It is not counted in the statistics."""
    steps: list[Step] = []
    timed_backend: Any = _Timed(backend, _CACHE_STEPS, steps)
    timed_store: Any = _Timed(store, _SQL_STEPS, steps)
    timed_cells: Any = _Timed(cells, _CELLS_STEPS, steps)
    read_through = ReadThrough(timed_store, timed_backend, timed_cells, Counters(), settings)
    cell: CellMapping | None = None
    reason: InstanceNotMapped | CellNotFound | None = None
    began, asked_at = time.monotonic(), beginning()
    try:
        cell = read_through.resolve(key, timed_backend.lookup(key), asked_at, began)
    except (InstanceNotMapped, CellNotFound) as error:
        reason = error
    asked_sql = any(step.what == _SQL_STEPS["cell_of"][0] for step in steps)
    return Explanation(key, cell, "sql" if asked_sql else "cache", tuple(steps), reason)


def _entry(entry: Entry) -> str:
    if isinstance(entry, Absent):
        return entry.value
    if isinstance(entry, Lease):
        return "nothing; the lease to store the answer is ours"
    try:
        cell_uuid = decode(entry)
    except Undecodable:
        return "bytes that mean nothing here: another release's, over, or not signed by this deployment"
    return "not mapped" if cell_uuid is None else f"cell {cell_uuid}"


_Describe = Mapping[str, tuple[str, Callable[[Any], str]]]

_CACHE_STEPS: _Describe = {
    "lookup": ("ask the cache", _entry),
    "send_fills": ("send the answer to the cache", lambda _: "to be stored if our lease still stands"),
    "peek_multi": ("look at its mark again", lambda seen: seen[0].value if isinstance(seen[0], Absent) else "gone"),
    "invalidate_multi": ("remove the entry", lambda done: "removed" if all(done) else "the cache did not answer"),
}
_SQL_STEPS: _Describe = {
    "cell_of": ("ask instance_mapping", lambda cell_uuid: "no row" if cell_uuid is None else f"cell {cell_uuid}"),
}
_CELLS_STEPS: _Describe = {
    "get": ("look up the cell mapping", lambda cell: cell.name or "a cell without a name"),
    "named_in_cache": ("look up the cell mapping", lambda cell: cell.name or "a cell without a name"),
}


class _Timed:
    """Stands in for one part of the read path, and writes down what the described methods answer."""

    def __init__(self, part: object, described: _Describe, steps: list[Step]) -> None:
        self._part = part
        self._described = described
        self._steps = steps

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._part, name)
        if name not in self._described:
            return method
        what, describe = self._described[name]

        def timed(*arguments: Any, **more: Any) -> Any:
            started = time.perf_counter()
            try:
                answer = method(*arguments, **more)
            except CellNotFound as error:
                self._steps.append(Step(what, str(error), time.perf_counter() - started))
                raise
            self._steps.append(Step(what, describe(answer), time.perf_counter() - started))
            return answer

        return timed
