"""One write: its statements, its locks, and how it ends."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, Integer, bindparam, delete, exists, false, insert, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from cellcache.database import translated
from cellcache.database_clock import DatabaseTime
from cellcache.errors import CellDisabled, CellExists, CellInUse, CellNotFound, CommitUnknown
from cellcache.model import CellMapping, InstanceMapping
from cellcache.prepared import PreparedInsert
from cellcache.rows import cell_of, instance_of, select_cells, select_mappings
from cellcache.tables import cache_invalidation, cell_mapping, instance_mapping

_insert_mapping = PreparedInsert(
    insert(instance_mapping).from_select(
        ["created_at", "instance_uuid", "cell_uuid", "project_id"],
        select(
            DatabaseTime(),
            bindparam("new_instance_uuid", type_=instance_mapping.c.instance_uuid.type),
            cell_mapping.c.uuid,
            bindparam("new_project_id", type_=instance_mapping.c.project_id.type),
        )
        .where(cell_mapping.c.uuid == bindparam("in_cell_uuid"), cell_mapping.c.disabled == false())
        .with_for_update(read=True, key_share=True),
    ),
    returning=(instance_mapping.c.id, instance_mapping.c.created_at),
)
_insert_invalidation = PreparedInsert(
    insert(cache_invalidation).values(
        created_at=DatabaseTime(),
        deliver_after=DatabaseTime(bindparam("after_s", type_=Integer())),
        instance_uuids=bindparam("joined_uuids", type_=cache_invalidation.c.instance_uuids.type),
    ),
    returning=(cache_invalidation.c.id,),
)


def insert_invalidation(connection: Connection, instance_uuids: Sequence[str], after_s: float) -> int:
    """Record that these entries must go: somebody delivers it after so many seconds. Return the row's id."""
    row = {"after_s": math.ceil(after_s), "joined_uuids": ",".join(instance_uuids)}
    inserted = _insert_invalidation.execute(connection, row)
    return inserted[0] if inserted else 0


class TransactionBroken(Exception):
    """The connection was dead, or a deadlock ended the transaction: nothing was written, and it may be tried again."""


@contextmanager
def begin(engine: Engine, url: str) -> Iterator[Transaction]:
    """Begin; roll back at the end unless `commit` was called.

    Raises TransactionBroken where a second try is in order, and IntegrityError for a unique index.
    """
    try:
        with engine.connect() as connection:
            connection.begin()
            yield Transaction(connection, url)
    except IntegrityError:
        raise
    except DBAPIError as error:
        if error.connection_invalidated or _is_deadlock(error):
            raise TransactionBroken(str(translated(error, url))) from error
        raise translated(error, url) from error
    except (SQLAlchemyError, OSError) as error:
        raise translated(error, url) from error


class Transaction:
    """One write under way. Row locks are held from each statement on until the commit."""

    def __init__(self, connection: Connection, url: str) -> None:
        self._connection = connection
        self._url = url
        self.in_doubt = False
        """Whether the commit was asked for and never answered: the connection broke, or the caller was interrupted."""

    def commit(self) -> None:
        """Commit; raise CommitUnknown where the database did not say whether it did."""
        self.in_doubt = True
        try:
            self._connection.commit()
        except DBAPIError as error:
            if not self._connection.invalidated:
                # SQLAlchemy takes the transaction for ended; SQLite, whose file was busy, has it open still.
                self._connection.invalidate()
            if error.connection_invalidated or not _was_refused(error):
                raise CommitUnknown(
                    f"{translated(error, self._url)}; this was during the commit, so it may have happened: read again"
                ) from error
            self.in_doubt = False
            raise
        self.in_doubt = False

    def insert_mapping(self, instance_uuid: str, cell_uuid: str, project_id: str) -> InstanceMapping:
        """Insert one row, in the same statement that makes sure of the cell and keeps it from being deleted."""
        row = {
            "new_instance_uuid": instance_uuid,
            "in_cell_uuid": cell_uuid,
            "new_project_id": project_id,
        }
        inserted = _insert_mapping.execute(self._connection, row)
        if inserted is None:
            self.require_cells([cell_uuid])
            raise CellNotFound(cell_uuid)  # it came only now: the caller may try again
        new_id, created_at = inserted
        return InstanceMapping(
            id=new_id,
            instance_uuid=instance_uuid,
            cell_uuid=cell_uuid,
            project_id=project_id,
            created_at=created_at,
            updated_at=None,
        )

    def insert_mappings(self, rows: Iterable[tuple[str, str, str]], created_at: datetime) -> None:
        self._connection.execute(
            insert(instance_mapping),
            [
                {"created_at": created_at, "instance_uuid": row[0], "cell_uuid": row[1], "project_id": row[2]}
                for row in rows
            ],
        )

    def require_cells(self, cell_uuids: Iterable[str]) -> datetime:
        """Keep these cells from being deleted until the commit; raise CellNotFound or CellDisabled.

        Return the database's time, by which what is put into them is dated.
        """
        wanted = sorted(set(cell_uuids))
        query = (
            select(cell_mapping.c.uuid, cell_mapping.c.disabled, DatabaseTime())
            .where(cell_mapping.c.uuid.in_(wanted))
            .order_by(cell_mapping.c.uuid)
            .with_for_update(read=True, key_share=True)
        )
        rows = self._connection.execute(query).all()
        disabled = {row[0]: row[1] for row in rows}
        for cell_uuid in wanted:
            if cell_uuid not in disabled:
                raise CellNotFound(cell_uuid)
            if disabled[cell_uuid]:
                raise CellDisabled(cell_uuid)
        time: datetime = rows[0][2]
        return time

    def lock_mappings(self, instance_uuids: Sequence[str]) -> dict[str, InstanceMapping]:
        """Lock those of the rows that exist, always in the same order, and return them as they are now."""
        query = (
            select_mappings.where(instance_mapping.c.instance_uuid.in_(sorted(instance_uuids)))
            .order_by(instance_mapping.c.instance_uuid)
            .with_for_update()
        )
        return {row.instance_uuid: instance_of(row) for row in self._connection.execute(query)}

    def set_cell(self, mapping: InstanceMapping, cell_uuid: str, updated_at: datetime) -> InstanceMapping:
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
        """Record that these entries must go, if the write is committed; see `insert_invalidation`."""
        return insert_invalidation(self._connection, instance_uuids, after_s)

    def insert_cell(self, cell: CellMapping) -> CellMapping:
        """Insert a cell; return it with the time that it has been given. Raises CellExists."""
        try:
            self._connection.execute(
                insert(cell_mapping).values(
                    created_at=DatabaseTime(),
                    uuid=cell.uuid,
                    name=cell.name,
                    database_connection=cell.database_connection,
                    transport_url=cell.transport_url,
                    disabled=cell.disabled,
                )
            )
        except IntegrityError as error:
            raise CellExists(cell.uuid) from error
        return cell_of(self._connection.execute(select_cells.where(cell_mapping.c.uuid == cell.uuid)).one())

    def update_cell(self, cell_uuid: str, changes: Mapping[str, Any]) -> None:
        result = self._connection.execute(
            update(cell_mapping).where(cell_mapping.c.uuid == cell_uuid).values(**changes, updated_at=DatabaseTime())
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


def _was_refused(error: DBAPIError) -> bool:
    """Return whether the database itself said no, so that nothing was committed: an error with a number of its own.

    PyMySQL's errors of 2000 to 2999 are the client's: the answer was not understood, or never came.
    """
    cause = error.orig
    number = cause.args[0] if cause is not None and cause.args else None
    return (
        isinstance(cause, sqlite3.Error)
        or bool(getattr(cause, "sqlstate", None))
        or (isinstance(number, int) and number > 0 and not 2000 <= number < 3000)
    )


def _is_deadlock(error: DBAPIError) -> bool:
    """MySQL's 1213 and 1467, PostgreSQL's 40P01 and 40001. A lock wait that timed out is not one: no second try.

    1467 is what InnoDB says to an INSERT ... SELECT that a deadlock ended while it waited for the next id.
    """
    cause = error.orig
    return getattr(cause, "sqlstate", None) in {"40P01", "40001"} or (
        cause is not None and bool(cause.args) and cause.args[0] in {1213, 1467}
    )
