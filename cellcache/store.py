"""Every SQL statement that cellcache runs: reads in autocommit, writes in a transaction of their own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import (
    Connection,
    bindparam,
    delete,
    exists,
    false,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from cellcache.config import DatabaseSettings
from cellcache.counter import Counter
from cellcache.database import database_errors, open_engine, translated
from cellcache.errors import (
    CellDisabled,
    CellExists,
    CellInUse,
    CellNotFound,
    CommitUnknown,
    DatabaseUnavailable,
)
from cellcache.model import CellMapping, InstanceMapping
from cellcache.row_lookup import Disconnected, RowLookup
from cellcache.tables import cache_invalidation, cell_mapping, instance_mapping

T = TypeVar("T")

IN_ONE_STATEMENT = 1000

_mappings = select(
    instance_mapping.c.id,
    instance_mapping.c.instance_uuid,
    instance_mapping.c.cell_uuid,
    instance_mapping.c.project_id,
    instance_mapping.c.created_at,
    instance_mapping.c.updated_at,
)
_changed_at = func.coalesce(instance_mapping.c.updated_at, instance_mapping.c.created_at)
_cells = select(
    cell_mapping.c.uuid,
    cell_mapping.c.name,
    cell_mapping.c.database_connection,
    cell_mapping.c.transport_url,
    cell_mapping.c.disabled,
    cell_mapping.c.created_at,
    cell_mapping.c.updated_at,
)


# Statements of the hot write path, put together once: that takes longer than to send them.
_insert_mapping = insert(instance_mapping).from_select(
    ["created_at", "instance_uuid", "cell_uuid", "project_id"],
    select(
        bindparam("new_created_at", type_=instance_mapping.c.created_at.type),
        bindparam("new_instance_uuid", type_=instance_mapping.c.instance_uuid.type),
        cell_mapping.c.uuid,
        bindparam("new_project_id", type_=instance_mapping.c.project_id.type),
    )
    .where(cell_mapping.c.uuid == bindparam("in_cell_uuid"), cell_mapping.c.disabled == false())
    .with_for_update(read=True, key_share=True),
)
_insert_mapping_returning = _insert_mapping.returning(instance_mapping.c.id)
_insert_invalidation = insert(cache_invalidation)


class Invalidation(NamedTuple):
    """A row of `cache_invalidation`: the instances of one write whose cache entries must still go."""

    id: int
    created_at: datetime
    deliver_after: datetime
    instance_uuids: list[str]


@dataclass(frozen=True, slots=True)
class Waiting:
    """How many invalidations are due and not delivered, and the age of the oldest in seconds."""

    count: int
    oldest_s: float | None


class TransactionBroken(Exception):
    """The connection was dead, or a deadlock ended the transaction: nothing was written, and it may be tried again."""


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def batches(items: Iterable[T], size: int = IN_ONE_STATEMENT) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


class Store:
    """The database of the mappings. Every method blocks for at most the time limits of `settings`, times its
    statements, and raises DatabaseUnavailable or SchemaError; threads may share it.
    """

    def __init__(self, settings: DatabaseSettings) -> None:
        self.url = settings.connection_url
        self.reads = Counter()  # statements that lookups cost
        limits: dict[str, float] = {"timeout_s": settings.timeout_s, "connect_timeout_s": settings.connect_timeout_s}
        self._reading = open_engine(self.url, pool_size=settings.pool_size, use="read", **limits)
        self._timeout_s = settings.timeout_s
        self._rows = RowLookup(self._reading)
        self._driver_error: type[Exception] = self._reading.dialect.loaded_dbapi.Error
        self._writing = open_engine(self.url, pool_size=settings.pool_size, use="write", **limits)

    def close(self) -> None:
        self._reading.dispose()
        self._writing.dispose()

    def forget_connections(self) -> None:
        self._reading.dispose(close=False)
        self._writing.dispose(close=False)

    # -- reads -----------------------------------------------------------------------------------------------

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
        query = _mappings.where(instance_mapping.c.instance_uuid == instance_uuid)
        rows = self._read(lambda connection: connection.execute(query).all())
        return _instance(rows[0]) if rows else None

    def mappings(
        self,
        *,
        project_id: str | None,
        cell_uuid: str | None,
        after: int | None,
        limit: int,
        unchanged_since: datetime | None = None,
    ) -> list[InstanceMapping]:
        """Return up to `limit` rows in the order of `id`, beginning behind `after`."""
        query = _mappings.order_by(instance_mapping.c.id).limit(limit)
        if project_id is not None:
            query = query.where(instance_mapping.c.project_id == project_id)
        if cell_uuid is not None:
            query = query.where(instance_mapping.c.cell_uuid == cell_uuid)
        if after is not None:
            query = query.where(instance_mapping.c.id > after)
        if unchanged_since is not None:
            query = query.where(_changed_at <= unchanged_since)
        return [_instance(row) for row in self._read(lambda connection: connection.execute(query).all())]

    def id_range(self) -> tuple[int, int]:
        """Return the least and the greatest `id`; zeros for an empty table."""
        query = select(func.min(instance_mapping.c.id), func.max(instance_mapping.c.id))
        first, last = self._read(lambda connection: connection.execute(query).one())
        return first or 0, last or 0

    def cells(self) -> list[CellMapping]:
        query = _cells.order_by(cell_mapping.c.id)
        return [_cell(row) for row in self._read(lambda connection: connection.execute(query).all())]

    def count_by_cell(self) -> dict[str, int]:
        query = select(instance_mapping.c.cell_uuid, func.count()).group_by(instance_mapping.c.cell_uuid)
        return {row[0]: row[1] for row in self._read(lambda connection: connection.execute(query).all())}

    def _look_up(self, work: Callable[[], T]) -> T:
        began = time.monotonic()
        try:
            return work()
        except Disconnected as error:
            if time.monotonic() - began > self._timeout_s / 2:  # it died of a time limit: the caller has waited enough
                raise translated(error.driver_error, self.url) from error
        except (SQLAlchemyError, self._driver_error, OSError) as error:
            raise translated(error, self.url) from error
        # A restart of the server leaves every pooled connection dead: find that out for all of them, then ask again.
        self._read(lambda connection: connection.execute(text("SELECT 1")))
        try:
            return work()
        except (SQLAlchemyError, self._driver_error, OSError) as error:
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
            except (SQLAlchemyError, OSError) as error:
                raise translated(error, self.url) from error
        raise AssertionError

    # -- invalidations -----------------------------------------------------------------------------------------

    def invalidations(self, *, limit: int, after: int = 0, due: bool = False) -> list[Invalidation]:
        """Return the oldest invalidations behind `after`; with `due`, those whose time has come."""
        table = cache_invalidation
        query = select(table.c.id, table.c.created_at, table.c.deliver_after, table.c.instance_uuids)
        query = query.where(table.c.id > after).order_by(table.c.id).limit(limit)
        if due:
            query = query.where(table.c.deliver_after <= now())
        rows = self._read(lambda connection: connection.execute(query).all())
        return [Invalidation(row[0], row[1], row[2], row[3].split(",")) for row in rows]

    def waiting_invalidations(self) -> Waiting:
        query = select(func.count(), func.min(cache_invalidation.c.created_at)).where(
            cache_invalidation.c.deliver_after <= now()
        )
        count, oldest = self._read(lambda connection: connection.execute(query).one())
        return Waiting(count, None if oldest is None else (now() - oldest).total_seconds())

    def forget_invalidations(self, ids: Sequence[int]) -> None:
        with database_errors(self.url), self._reading.connect() as connection:
            for batch in batches(ids):
                connection.execute(delete(cache_invalidation).where(cache_invalidation.c.id.in_(batch)))

    def add_invalidation(self, instance_uuids: Sequence[str], after_s: float) -> None:
        """Record, outside any write, that these entries must go."""
        with database_errors(self.url), self._reading.connect() as connection:
            connection.execute(insert(cache_invalidation).values(_invalidation_row(instance_uuids, after_s)))

    # -- writes --------------------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Begin; roll back at the end unless `commit` was called.

        Raises TransactionBroken where a second try is in order, and IntegrityError for a unique index.
        """
        try:
            with self._writing.connect() as connection:
                connection.begin()
                yield Transaction(connection, self.url)
        except IntegrityError:
            raise
        except DBAPIError as error:
            if error.connection_invalidated or _is_deadlock(error):
                raise TransactionBroken(str(translated(error, self.url))) from error
            raise translated(error, self.url) from error
        except (SQLAlchemyError, OSError) as error:
            raise translated(error, self.url) from error

    @contextmanager
    def change_cells(self) -> Iterator[Transaction]:
        """The same for a change of `cell_mapping`, which nobody tries again."""
        try:
            with self.transaction() as transaction:
                yield transaction
        except TransactionBroken as error:
            raise DatabaseUnavailable(f"{error}; nothing was written") from error


class Transaction:
    """One write under way. Row locks are held from each statement on until the commit."""

    def __init__(self, connection: Connection, url: str) -> None:
        self._connection = connection
        self._url = url
        self.in_doubt = False
        """Whether the commit was asked for and never answered: the connection broke, or the caller was interrupted."""

    def commit(self) -> None:
        """Commit; raise CommitUnknown where the connection broke in the middle of it."""
        self.in_doubt = True
        try:
            self._connection.commit()
        except DBAPIError as error:
            if error.connection_invalidated:
                raise CommitUnknown(
                    f"{translated(error, self._url)}; this was during the commit, so it may have happened: read again"
                ) from error
            self.in_doubt = False
            raise
        self.in_doubt = False

    def insert_mapping(self, instance_uuid: str, cell_uuid: str, project_id: str) -> InstanceMapping:
        """Insert one row, in the same statement that makes sure of the cell and keeps it from being deleted."""
        created_at = now()
        row = {
            "new_created_at": created_at,
            "new_instance_uuid": instance_uuid,
            "in_cell_uuid": cell_uuid,
            "new_project_id": project_id,
        }
        if self._connection.dialect.insert_returning:
            new_id = self._connection.scalar(_insert_mapping_returning, row)
        else:
            result = self._connection.execute(_insert_mapping, row)
            new_id = result.lastrowid if result.rowcount else None
        if new_id is None:
            self.require_cells([cell_uuid])
            raise CellNotFound(cell_uuid)  # it came only now: the caller may try again
        return InstanceMapping(
            id=new_id,
            instance_uuid=instance_uuid,
            cell_uuid=cell_uuid,
            project_id=project_id,
            created_at=created_at,
            updated_at=None,
        )

    def insert_mappings(self, rows: Iterable[tuple[str, str, str]]) -> None:
        created_at = now()
        self._connection.execute(
            insert(instance_mapping),
            [
                {"created_at": created_at, "instance_uuid": row[0], "cell_uuid": row[1], "project_id": row[2]}
                for row in rows
            ],
        )

    def require_cells(self, cell_uuids: Iterable[str]) -> None:
        """Keep these cells from being deleted until the commit; raise CellNotFound or CellDisabled."""
        wanted = sorted(set(cell_uuids))
        query = (
            select(cell_mapping.c.uuid, cell_mapping.c.disabled)
            .where(cell_mapping.c.uuid.in_(wanted))
            .order_by(cell_mapping.c.uuid)
            .with_for_update(read=True, key_share=True)
        )
        disabled = {row[0]: row[1] for row in self._connection.execute(query)}
        for cell_uuid in wanted:
            if cell_uuid not in disabled:
                raise CellNotFound(cell_uuid)
            if disabled[cell_uuid]:
                raise CellDisabled(cell_uuid)

    def lock_mappings(self, instance_uuids: Sequence[str]) -> dict[str, InstanceMapping]:
        """Lock those of the rows that exist, always in the same order, and return them as they are now."""
        query = (
            _mappings.where(instance_mapping.c.instance_uuid.in_(sorted(instance_uuids)))
            .order_by(instance_mapping.c.instance_uuid)
            .with_for_update()
        )
        return {row.instance_uuid: _instance(row) for row in self._connection.execute(query)}

    def set_cell(self, mapping: InstanceMapping, cell_uuid: str) -> InstanceMapping:
        updated_at = now()
        self._connection.execute(
            update(instance_mapping)
            .where(instance_mapping.c.id == mapping.id)
            .values(cell_uuid=cell_uuid, updated_at=updated_at)
        )
        return replace(mapping, cell_uuid=cell_uuid, updated_at=updated_at)

    def delete_mappings(self, mappings: Iterable[InstanceMapping]) -> None:
        ids = sorted(mapping.id for mapping in mappings)
        self._connection.execute(delete(instance_mapping).where(instance_mapping.c.id.in_(ids)))

    def add_invalidation(self, instance_uuids: Sequence[str], after_s: float) -> int:
        """Record that these entries must go; somebody delivers it after so many seconds unless it is forgotten."""
        result = self._connection.execute(_insert_invalidation, _invalidation_row(instance_uuids, after_s))
        key = result.inserted_primary_key
        return int(key[0]) if key is not None else 0

    def insert_cell(self, cell: CellMapping) -> None:
        try:
            self._connection.execute(
                insert(cell_mapping).values(
                    created_at=cell.created_at,
                    uuid=cell.uuid,
                    name=cell.name,
                    database_connection=cell.database_connection,
                    transport_url=cell.transport_url,
                    disabled=cell.disabled,
                )
            )
        except IntegrityError as error:
            raise CellExists(cell.uuid) from error

    def update_cell(self, cell_uuid: str, changes: Mapping[str, Any]) -> None:
        result = self._connection.execute(
            update(cell_mapping).where(cell_mapping.c.uuid == cell_uuid).values(**changes, updated_at=now())
        )
        if not result.rowcount:
            raise CellNotFound(cell_uuid)

    def delete_cell(self, cell_uuid: str) -> None:
        """Delete a cell that no mapping names. Writers that map into it hold its row, so none can slip in."""
        query = select(cell_mapping.c.id).where(cell_mapping.c.uuid == cell_uuid).with_for_update()
        if self._connection.scalar(query) is None:
            raise CellNotFound(cell_uuid)
        if self._connection.scalar(select(exists().where(instance_mapping.c.cell_uuid == cell_uuid))):
            raise CellInUse(cell_uuid)
        self._connection.execute(delete(cell_mapping).where(cell_mapping.c.uuid == cell_uuid))


def _invalidation_row(instance_uuids: Sequence[str], after_s: float) -> dict[str, Any]:
    return {
        "created_at": now(),
        "deliver_after": now() + timedelta(seconds=after_s),
        "instance_uuids": ",".join(instance_uuids),
    }


def _instance(row: Any) -> InstanceMapping:
    return InstanceMapping(
        id=row.id,
        instance_uuid=row.instance_uuid,
        cell_uuid=row.cell_uuid,
        project_id=row.project_id,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _cell(row: Any) -> CellMapping:
    return CellMapping(
        uuid=row.uuid,
        name=row.name,
        database_connection=row.database_connection,
        transport_url=row.transport_url,
        disabled=row.disabled,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _is_deadlock(error: DBAPIError) -> bool:
    """MySQL's 1213, PostgreSQL's 40P01 and 40001. A lock wait that timed out is not one: it is not tried again."""
    cause = error.orig
    return getattr(cause, "sqlstate", None) in {"40P01", "40001"} or (
        cause is not None and bool(cause.args) and cause.args[0] == 1213
    )
