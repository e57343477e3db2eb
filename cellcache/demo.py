"""The demonstration: cells, instances, the requests between them, and what each kind of lookup cost.

It writes what a deployment's services would write, asks as they would ask, checks every answer against what it
wrote, and in the end removes what it wrote, and nothing else.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import uuid4

from sqlalchemy import Connection, select

from cellcache import schema
from cellcache.config import Settings
from cellcache.demo_cells import CellDatabase, cell_databases, instances
from cellcache.demo_costs import Cost, measure
from cellcache.demo_databases import name_beside
from cellcache.demo_tables import tables
from cellcache.directory import CellDirectory
from cellcache.errors import CellCacheError, CellInUse, CellNotFound
from cellcache.masking import mask_url

T = TypeVar("T")

_BATCH = 1000
_CELLS = 3
_PROJECTS = 40

_dice = random.Random()  # noqa: S311 - a story, not a secret

Tick = Callable[[int], None]
"""Called with how many more things are done."""


class WrongAnswer(CellCacheError):
    """A lookup answered other than what had been written: the one thing that must not happen."""


class LeftBehind(CellCacheError):
    """Something that the demonstration wrote could not be removed."""


@dataclass(frozen=True, slots=True)
class Prepared:
    revision: str
    cells: dict[str, str]
    """Each cell's name, and its database without the password."""
    instances: int
    seconds: float


@dataclass(frozen=True, slots=True)
class FollowedRequest:
    """One request, station by station."""

    instance_uuid: str
    cell_uuid: str
    cell: str
    database: str
    row: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Served:
    requests: int
    seconds: float
    median_s: float
    hits: int
    misses: int


@dataclass(frozen=True, slots=True)
class Moved:
    instance_uuid: str
    before: str
    after: str
    elsewhere: str | None
    """What another directory over the same shared cache answers next; None where no other can see this cache."""


@dataclass(frozen=True, slots=True)
class Purged:
    cell: str
    marked: int
    purged: int
    spared_as_young: int
    pruned: int
    purged_mapped_before: int
    purged_mapped_after: int
    marked_mapped_after: int


class Demonstration:
    """Use with `with`: entering makes everything, leaving removes it again, unless asked to `keep` it.

    It works where none of our tables is, and others may come to them while it does: only its own rows are removed, and
    what others use by then stays. `left` says in the end, a sentence each, what that is.
    """

    def __init__(self, settings: Settings, *, size: int, keep: bool = False) -> None:
        self._settings = settings
        self._url = settings.database.sqlalchemy_url
        self.size = size
        self._keep = keep
        self._stack = ExitStack()
        self._cells: dict[str, CellDatabase] = {}
        self._where: dict[str, str] = {}
        self.answers_checked = 0
        self.left: list[str] = []

    def __enter__(self) -> Self:
        names = [name_beside(self._url, f"cell{number}") for number in range(1, _CELLS + 1)]
        with ExitStack() as stack:
            stack.enter_context(tables(self._url, names, keep=self._keep, left=self.left))
            databases = stack.enter_context(cell_databases(self._url, names, keep=self._keep))
            self._directory = stack.enter_context(CellDirectory.open(self._settings))
            if not self._keep:
                stack.callback(self._remove_rows)
            for database in databases:
                self._create_cell(database)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stack.close()
        except CellCacheError as failure:
            raise LeftBehind(
                f"not everything that the demonstration wrote could be removed: {failure}; once that is mended, run "
                "it again, and it names what is in its way"
            ) from failure

    def _create_cell(self, database: CellDatabase) -> None:
        uuid = str(uuid4())
        self._cells[uuid] = database  # before it is there: whatever happens in between, it is looked for in the end
        database.in_use = True
        self._directory.create_cell(database.name, database.url, "none:///", uuid)

    def _remove_rows(self) -> None:
        for batch in _batches(self._where):
            self._directory.prune(batch)
        for uuid, database in self._cells.items():
            database.in_use = not self._remove_cell(uuid)
            if database.in_use:
                place = mask_url(database.url)
                self.left.append(f"{database.name} and its database {place}: others have mapped instances to it")

    def _remove_cell(self, uuid: str) -> bool:
        try:
            self._directory.delete_cell(uuid)
        except CellNotFound:
            return True
        except CellInUse:
            return False
        return True

    @property
    def promise(self) -> str:
        return self._directory.promise

    @property
    def place(self) -> str:
        """Where all this happens, without passwords."""
        cache = self._settings.cache
        servers = ", ".join(cache.servers) or (mask_url(cache.url.get_secret_value()) if cache.url else "")
        return f"{mask_url(self._url.render_as_string(hide_password=False))} and {cache.backend} {servers}".strip()

    @property
    def _coherent(self) -> bool:
        """Whether another directory must see a move at once."""
        cache = self._settings.cache
        return cache.backend.startswith("cellcache.") and not cache.local_ttl_s

    def prepare(self, tick: Tick) -> Prepared:
        """Boot the instances in their cells and map them, written through to the cache."""
        started = time.perf_counter()
        cells = list(self._cells)
        projects = [uuid4().hex for _ in range(_PROJECTS)]
        for batch in _batches(range(self.size)):
            rows = [(str(uuid4()), _dice.choice(cells), _dice.choice(projects)) for _ in batch]
            self._where.update((uuid, cell) for uuid, cell, _ in rows)
            self._directory.map_instances(rows)
            for cell, database in self._cells.items():
                database.boot([(uuid, project) for uuid, its_cell, project in rows if its_cell == cell])
            tick(len(batch))
        databases = {database.name: mask_url(database.url) for database in self._cells.values()}
        return Prepared(schema.head(), databases, self.size, time.perf_counter() - started)

    def follow_one_request(self) -> FollowedRequest:
        """Serve one request as the specification draws it, and keep what each station said."""
        uuid = _dice.choice(list(self._where))
        cell = self._directory.resolve_cell(uuid)
        self._check(cell.uuid, self._where[uuid])
        with self._directory.connect_cell(uuid) as connection:
            row = _read_instance(connection, uuid)
        return FollowedRequest(uuid, cell.uuid, cell.name or "", mask_url(cell.database_connection), row)

    def serve(self, requests: int, tick: Tick) -> Served:
        """Serve requests with an empty cache to begin with, for popular instances more often than for others."""
        uuids = list(self._where)
        self._empty_cache(uuids)
        before = self._directory.stats()
        times = []
        started = time.perf_counter()
        for _ in range(requests):
            uuid = uuids[int(_dice.paretovariate(0.6)) % len(uuids)]
            asked = time.perf_counter()
            with self._directory.connect_cell(uuid) as connection:
                row = _read_instance(connection, uuid)
            times.append(time.perf_counter() - asked)
            self._check(row["uuid"], uuid)
            tick(1)
        seconds = time.perf_counter() - started
        after = self._directory.stats()
        return Served(
            requests, seconds, statistics.median(times), after.hits - before.hits, after.misses - before.misses
        )

    def measure(self, rounds: int, tick: Tick) -> list[Cost]:
        """Ask in every way there is, and say what each took."""
        return measure(
            self._directory,
            self._url,
            self._where,
            rounds=rounds,
            empty_cache=self._empty_cache,
            check=self._check,
            tick=tick,
        )

    def move_one(self) -> Moved:
        """Move an instance to another cell, row and mapping, and ask again at once: here, and elsewhere."""
        uuid, before = next(iter(self._where.items()))
        after = next(cell for cell in self._cells if cell != before)
        with ExitStack() as stack:
            others = [stack.enter_context(CellDirectory.open(self._settings))] if self._coherent else []
            for directory in (self._directory, *others):
                self._check(directory.resolve_cell(uuid).uuid, before)
            self._cells[before].hand_over(uuid, self._cells[after])
            self._directory.move_instance(uuid, after)
            self._where[uuid] = after
            seen = [directory.resolve_cell(uuid).uuid for directory in (self._directory, *others)]
        for answer in seen:
            self._check(answer, after)
        names = [self._cells[answer].name for answer in seen]
        return Moved(uuid, self._cells[before].name, names[0], names[1] if others else None)

    def purge_some(self) -> Purged:
        """Delete instances in one cell, purge half of them, and prune the mappings of those that are gone."""
        [(cell, population)] = Counter(self._where.values()).most_common(1)
        mine = (uuid for uuid, its_cell in self._where.items() if its_cell == cell)
        marked = list(islice(mine, min(200, population // 2)))
        purged, spared = marked[::2], marked[1::2]
        self._cells[cell].mark_deleted(marked)
        self._cells[cell].purge(purged)
        mapped_before = self._mapped(purged)
        too_young = self._directory.prune_purged(cell, dry_run=True)
        # Found as on any prune, and then removed by name: others may have mapped instances to this cell meanwhile.
        found = self._directory.prune_purged(cell, older_than_s=0, dry_run=True)
        pruned = self._directory.prune(purged)
        answers = Purged(
            self._cells[cell].name,
            len(marked),
            len(purged),
            len(purged) - too_young.removed,
            pruned,
            mapped_before,
            self._mapped(purged),
            self._mapped(spared),
        )
        self._check(found.removed >= len(purged), expected=True)
        self._check((answers.pruned, answers.purged_mapped_after), (len(purged), 0))
        self._check(answers.marked_mapped_after, len(spared))
        for uuid in purged:
            del self._where[uuid]
        return answers

    def _mapped(self, uuids: Sequence[str]) -> int:
        return len(self._directory.resolve_cells(uuids))

    def _empty_cache(self, uuids: Iterable[str]) -> None:
        for batch in _batches(uuids):
            self._directory.region.delete_multi(batch)

    def _check(self, answer: object, expected: object) -> None:
        self.answers_checked += 1
        if answer != expected:
            raise WrongAnswer(f"asked for what had been written as {expected}, the answer was {answer}: report this")


def _batches(things: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(things)
    while batch := list(islice(iterator, _BATCH)):
        yield batch


def _read_instance(connection: Connection, uuid: str) -> dict[str, Any]:
    return dict(connection.execute(select(instances).where(instances.c.uuid == uuid)).mappings().one())
