"""Every SQL statement that cellcache runs: reads in autocommit, writes in a transaction of their own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import NamedTuple, TypeVar

from sqlalchemy import (
    Connection,
    delete,
    func,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError

from cellcache.agreement import Agreement, read_agreement
from cellcache.config import DatabaseSettings
from cellcache.counter import Counter
from cellcache.database import DATABASE_ERRORS, close_engine, database_errors, open_engine, translated
from cellcache.database_clock import DatabaseTime
from cellcache.errors import (
    DatabaseUnavailable,
)
from cellcache.model import CANONICAL, CellMapping, InstanceMapping, is_canonical
from cellcache.row_lookup import Disconnected, RowLookup
from cellcache.rows import (
    batches,
    cell_of,
    instance_of,
    select_cells,
    select_mappings,
)
from cellcache.tables import cache_invalidation, cell_mapping, instance_mapping
from cellcache.transaction import Transaction, TransactionBroken, begin, insert_invalidation

T = TypeVar("T")


class Invalidation(NamedTuple):
    """A row of `cache_invalidation`: the instances of one write whose cache entries must still go.

    `due` is whether `deliver_after` had come when the row was read: by the database's clock, as all times here.
    """

    id: int
    created_at: datetime
    deliver_after: datetime
    instance_uuids: list[str]
    due: bool


@dataclass(frozen=True, slots=True)
class Waiting:
    """How many invalidations are due and not delivered, and the age of the oldest in seconds."""

    count: int
    oldest_s: float | None


class Store:
    """The database of the mappings. Every method blocks for at most the time limits of `settings`, times its
    statements, and raises DatabaseUnavailable or SchemaError; threads may share it.
    """

    def __init__(self, settings: DatabaseSettings) -> None:
        self.url = settings.connection_url
        self.reads = Counter()  # statements that lookups cost
        open_ = partial(
            open_engine,
            self.url,
            pool_size=settings.pool_size,
            timeout_s=settings.timeout_s,
            connect_timeout_s=settings.connect_timeout_s,
        )
        self._reading = open_(use="read")
        self._timeout_s = settings.timeout_s
        self._rows = RowLookup(self._reading)
        self._driver_error: type[Exception] = self._reading.dialect.loaded_dbapi.Error
        self._writing = open_(use="write")

    def close(self) -> None:
        close_engine(self._reading)
        close_engine(self._writing)

    # -- reads -----------------------------------------------------------------------------------------------

    def now(self) -> datetime:
        """Return the database's time, in whole seconds."""
        time_: datetime = self._read(lambda connection: connection.execute(select(DatabaseTime())).scalar_one())
        return time_

    def agreement(self) -> Agreement:
        """Return what the deployment has agreed on; write its identity where there is none yet."""
        return self._read(read_agreement)

    def cell_of(self, instance_uuid: str) -> str | None:
        """Return the UUID of the instance's cell, or None where it is not mapped."""
        self.reads.add()
        return self._look_up(lambda: self._rows.cell_of(instance_uuid))

    def cells_of(self, instance_uuids: Sequence[str]) -> dict[str, str]:
        """Return the UUID of each mapped instance's cell; one statement per 1,000."""
        found: dict[str, str] = {}
        for batch in batches(instance_uuids):
            self.reads.add()
            found.update(self._look_up(lambda: self._rows.cells_of(batch)))  # noqa: B023 - called at once
        return found

    def mapping(self, instance_uuid: str) -> InstanceMapping | None:
        query = select_mappings.where(instance_mapping.c.instance_uuid == instance_uuid)
        rows = self._read(lambda connection: connection.execute(query).all())
        return instance_of(rows[0]) if rows else None

    def mappings(
        self, *, project_id: str | None, cell_uuid: str | None, after: int | None, limit: int
    ) -> list[InstanceMapping]:
        """Return up to `limit` rows in the order of `id`, beginning behind `after`."""
        query = select_mappings.order_by(instance_mapping.c.id).limit(limit)
        if project_id is not None:
            query = query.where(instance_mapping.c.project_id == project_id)
        if cell_uuid is not None:
            query = query.where(instance_mapping.c.cell_uuid == cell_uuid)
        if after is not None:
            query = query.where(instance_mapping.c.id > after)
        return [instance_of(row) for row in self._read(lambda connection: connection.execute(query).all())]

    def mapped_between(self, after: str, last: str | None, *, limit: int) -> list[tuple[str, str]]:
        """Return up to `limit` instances and their cells in the order of the index on instances' UUIDs.

        They stand behind `after` and, unless it is None, not behind `last`.
        """
        uuid = instance_mapping.c.instance_uuid
        query = select(uuid, instance_mapping.c.cell_uuid).where(uuid > after).order_by(uuid).limit(limit)
        if last is not None:
            query = query.where(uuid <= last)
        return [(row[0], row[1]) for row in self._read(lambda connection: connection.execute(query).all())]

    def uuid_range(self) -> tuple[str | None, str | None]:
        """Return the first and the last UUID in that index; Nones for an empty table."""
        uuid = instance_mapping.c.instance_uuid
        first, last = self._read(lambda connection: connection.execute(select(func.min(uuid), func.max(uuid))).one())
        return first, last

    def cells(self) -> list[CellMapping]:
        query = select_cells.order_by(cell_mapping.c.id)
        return [cell_of(row) for row in self._read(lambda connection: connection.execute(query).all())]

    def count_by_cell(self) -> dict[str, int]:
        query = select(instance_mapping.c.cell_uuid, func.count()).group_by(instance_mapping.c.cell_uuid)
        return {row[0]: row[1] for row in self._read(lambda connection: connection.execute(query).all())}

    def mappings_without_cell(self, *, limit: int) -> list[InstanceMapping]:
        """Return up to `limit` mappings that name what is no cell.

        A statement for each text that they name, whatever the number of mappings: each skips along the index on cells.
        """
        cells = {cell.uuid for cell in self.cells() if is_canonical(cell.uuid)}
        next_text = select(func.min(instance_mapping.c.cell_uuid))
        found: list[InstanceMapping] = []
        text_ = self._read(lambda connection: connection.scalar(next_text))
        while text_ is not None and len(found) < limit:
            if text_ not in cells:
                found += self.mappings(project_id=None, cell_uuid=text_, after=None, limit=limit - len(found))
            query = next_text.where(instance_mapping.c.cell_uuid > text_)
            text_ = self._read(lambda connection: connection.scalar(query))  # noqa: B023 - called at once
        return found

    def mappings_without_uuid(self, *, limit: int) -> list[InstanceMapping]:
        """Return up to `limit` mappings whose own UUID is none, which no lookup finds. Reads every mapping's."""
        query = select_mappings.where(~instance_mapping.c.instance_uuid.regexp_match(f"^{CANONICAL}$")).limit(limit)
        return [instance_of(row) for row in self._read(lambda connection: connection.execute(query).all())]

    def _look_up(self, work: Callable[[], T]) -> T:
        began = time.monotonic()
        try:
            return work()
        except Disconnected as error:
            if time.monotonic() - began > self._timeout_s / 2:  # it died of a time limit: the caller has waited enough
                raise translated(error.driver_error, self.url) from error
        except (*DATABASE_ERRORS, self._driver_error) as error:
            raise translated(error, self.url) from error
        # A restart of the server leaves every pooled connection dead: find that out for all of them, then ask again.
        self._read(lambda connection: connection.execute(text("SELECT 1")))
        try:
            return work()
        except (*DATABASE_ERRORS, self._driver_error) as error:
            raise translated(error, self.url) from error
        except Disconnected as error:
            raise translated(error.driver_error, self.url) from error

    def _read(self, work: Callable[[Connection], T]) -> T:
        """Run one statement in a snapshot of its own; once more if its pooled connection proved to be dead.

        Not once more if it died of a time limit: the caller has waited for that already.
        """
        began = time.monotonic()
        for last in (False, True):
            try:
                with self._reading.connect() as connection:
                    return work(connection)
            except DBAPIError as error:
                waited = time.monotonic() - began > self._timeout_s / 2
                if last or waited or not error.connection_invalidated:
                    raise translated(error, self.url) from error
            except DATABASE_ERRORS as error:
                raise translated(error, self.url) from error
        raise AssertionError

    # -- invalidations -----------------------------------------------------------------------------------------

    def invalidations(self, *, limit: int, after: int = 0, due: bool = False) -> list[Invalidation]:
        """Return the oldest invalidations behind `after`; with `due`, those whose time has come."""
        table = cache_invalidation
        is_due = table.c.deliver_after <= DatabaseTime()
        query = select(table.c.id, table.c.created_at, table.c.deliver_after, table.c.instance_uuids, is_due)
        query = query.where(table.c.id > after).order_by(table.c.id).limit(limit)
        if due:
            query = query.where(is_due)
        rows = self._read(lambda connection: connection.execute(query).all())
        return [Invalidation(row[0], row[1], row[2], row[3].split(","), row[4]) for row in rows]

    def waiting_invalidations(self) -> Waiting:
        query = select(func.count(), func.min(cache_invalidation.c.created_at), DatabaseTime()).where(
            cache_invalidation.c.deliver_after <= DatabaseTime()
        )
        count, oldest, now = self._read(lambda connection: connection.execute(query).one())
        return Waiting(count, None if oldest is None else (now - oldest).total_seconds())

    def forget_invalidations(self, ids: Sequence[int]) -> None:
        with database_errors(self.url), self._reading.connect() as connection:
            for batch in batches(ids):
                connection.execute(delete(cache_invalidation).where(cache_invalidation.c.id.in_(batch)))

    def add_invalidation(self, instance_uuids: Sequence[str], after_s: float) -> int:
        """Record, outside any write, that these entries must go; return the row's id."""
        with database_errors(self.url), self._reading.connect() as connection:
            return insert_invalidation(connection, instance_uuids, after_s)

    # -- writes --------------------------------------------------------------------------------------------------

    def transaction(self) -> AbstractContextManager[Transaction]:
        """Begin a write; see `transaction.begin`."""
        return begin(self._writing, self.url)

    @contextmanager
    def change_cells(self) -> Iterator[Transaction]:
        """The same for a change of `cell_mapping`, which nobody tries again."""
        try:
            with self.transaction() as transaction:
                yield transaction
        except TransactionBroken as error:
            raise DatabaseUnavailable(f"{error}; nothing was written") from error
