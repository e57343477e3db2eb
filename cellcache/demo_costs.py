"""What each kind of lookup costs, all kinds asked in turn so that they meet the same moods of the machine."""

from __future__ import annotations

import random
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import uuid4

from sqlalchemy import URL, bindparam, select

from cellcache.demo_databases import open_patiently
from cellcache.directory import CellDirectory
from cellcache.errors import InstanceNotMapped
from cellcache.tables import instance_mapping

T = TypeVar("T")

_FEW = 200
_MANY = 1000

Check = Callable[[object, object], None]
"""Called with each answer and what it should be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one kind of call took: `lookups` instances in each of `calls` calls."""

    kind: str
    lookups: int
    calls: int
    median_s: float
    p99_s: float
    of_sql: float
    """The median as a share of the same question put straight to SQL."""
    from_cache: float
    """The share of lookups that the cache answered."""


def measure(
    directory: CellDirectory,
    url: URL,
    where: Mapping[str, str],
    *,
    rounds: int,
    empty_cache: Callable[[list[str]], None],
    check: Check,
    tick: Callable[[int], None],
) -> list[Cost]:
    """Ask for one instance and for many: straight from SQL, missing, hitting, and for what is not mapped."""
    uuids, few, many = list(where), min(_FEW, len(where)), min(_MANY, len(where))
    clock = _Clock(directory)
    with _straight_from_sql(url) as (one_row, many_rows):
        for _ in range(rounds):
            chosen = random.sample(uuids, few)
            empty_cache(chosen)
            for uuid in chosen:
                check(clock.time("sql", one_row, uuid), where[uuid])
            for kind in ("miss", "hit"):
                with clock.hits(kind):
                    for uuid in chosen:
                        check(clock.time(kind, directory.resolve_cell, uuid).uuid, where[uuid])
            strangers = [str(uuid4()) for _ in range(few)]
            for kind in ("not mapped, first", "not mapped, again"):
                with clock.hits(kind):
                    for stranger in strangers:
                        check(clock.time(kind, _cell_or_none(directory), stranger), None)
            chosen = random.sample(uuids, many)
            expected = {uuid: where[uuid] for uuid in chosen}
            empty_cache(chosen)
            check(clock.time("sql at once", many_rows, chosen), expected)
            for kind in ("miss at once", "hit at once"):
                with clock.hits(kind):
                    found = clock.time(kind, directory.resolve_cells, chosen)
                check({uuid: cell.uuid for uuid, cell in found.items()}, expected)
            tick(1)
    return clock.costs(many)


class _Clock:
    """Times calls by their kind, and counts how many of the lookups the cache has answered."""

    def __init__(self, directory: CellDirectory) -> None:
        self._directory = directory
        self._times: dict[str, list[float]] = defaultdict(list)
        self._hits: Counter[str] = Counter()

    def time(self, kind: str, question: Callable[[Any], T], key: object) -> T:
        started = time.perf_counter()
        answer = question(key)
        self._times[kind].append(time.perf_counter() - started)
        return answer

    @contextmanager
    def hits(self, kind: str) -> Iterator[None]:
        before = self._directory.stats()
        yield
        after = self._directory.stats()
        self._hits[kind] += after.hits - before.hits + after.negative_hits - before.negative_hits

    def costs(self, at_once: int) -> list[Cost]:
        median = {kind: statistics.median(times) for kind, times in self._times.items()}
        costs = []
        for kind, times in self._times.items():
            lookups, straight = (at_once, "sql at once") if kind.endswith("at once") else (1, "sql")
            costs.append(
                Cost(
                    kind=kind,
                    lookups=lookups,
                    calls=len(times),
                    median_s=median[kind],
                    p99_s=sorted(times)[(len(times) - 1) * 99 // 100],
                    of_sql=median[kind] / median[straight],
                    from_cache=self._hits[kind] / (lookups * len(times)),
                )
            )
        return costs


def _cell_or_none(directory: CellDirectory) -> Callable[[str], str | None]:
    def resolve(uuid: str) -> str | None:
        try:
            return directory.resolve_cell(uuid).uuid
        except InstanceNotMapped:
            return None

    return resolve


@contextmanager
def _straight_from_sql(url: URL) -> Iterator[tuple[Callable[[str], str | None], Callable[[list[str]], dict[str, str]]]]:
    """Give the two questions as one puts them without cellcache, as lean as SQLAlchemy and its pool allow."""
    engine = open_patiently(url, use="read")
    mapping = instance_mapping.c
    of_one = select(mapping.cell_uuid).where(mapping.instance_uuid == bindparam("uuid"))
    of_many = select(mapping.instance_uuid, mapping.cell_uuid).where(
        mapping.instance_uuid.in_(bindparam("uuids", expanding=True))
    )

    def one(uuid: str) -> str | None:
        with engine.connect() as connection:
            return connection.scalar(of_one, {"uuid": uuid})

    def many(uuids: list[str]) -> dict[str, str]:
        with engine.connect() as connection:
            return {row[0]: row[1] for row in connection.execute(of_many, {"uuids": uuids})}

    try:
        yield one, many
    finally:
        engine.dispose()
