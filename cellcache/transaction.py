"""One write: its statements, its locks, and how it ends."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
    Integer,
    Select,
    bindparam,
    delete,
    exists,
    false,
    insert,
    select,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError, IntegrityError

from cellcache.database import DATABASE_ERRORS, translated
from cellcache.database_clock import DatabaseTime
from cellcache.errors import CellDisabled, CellExists, CellInUse, CellNotFound, CommitUnknown, InvalidValue
from cellcache.foreign import shown
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
        .where(
            cell_mapping.c.uuid == bindparam("in_cell_uuid"),
            cell_mapping.c.disabled == false(),
            ~exists().where(instance_mapping.c.instance_uuid == bindparam("new_instance_uuid")),
        )
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


def _these_mappings(instance_uuids: Sequence[str]) -> Select[Any]:
    return select_mappings.where(instance_mapping.c.instance_uuid.in_(sorted(instance_uuids))).order_by(
        instance_mapping.c.instance_uuid
    )


class TransactionBroken(Exception):
    """Nothing was written, and it may be tried again.

    The connection was dead, a deadlock ended the transaction, or another was faster: the next try finds its row.
    """


@contextmanager
def begin(engine: Engine, url: str) -> Iterator[Transaction]:
    """Begin; roll back at the end unless `commit` was called.

    Raises TransactionBroken where a second try is in order.
    """
    try:
        with engine.connect() as connection:
            try:
                connection.begin()
                yield Transaction(connection, url)
            except Exception:
                raise
            except BaseException:  # interrupted, perhaps while the server is doing something
                connection.invalidate()
                raise
    except DBAPIError as error:
        if error.connection_invalidated or _is_deadlock(error) or isinstance(error, IntegrityError):
            raise TransactionBroken(str(translated(error, url))) from error
        raise translated(error, url) from error
    except DATABASE_ERRORS as error:
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

    def insert_mapping(self, instance_uuid: str, cell_uuid: str, project_id: str) -> InstanceMapping | None:
        """Insert one row, in the same statement that makes sure of the cell and keeps it from being deleted.

        Return None, and take no `id`, where the instance is mapped already, or the cell is not there or is disabled.
        """
        row = {
            "new_instance_uuid": instance_uuid,
            "in_cell_uuid": cell_uuid,
            "new_project_id": project_id,
        }
        inserted = _insert_mapping.execute(self._connection, row)
        if inserted is None:
            return None
        new_id, created_at = inserted
        return InstanceMapping(
            id=new_id,
            instance_uuid=instance_uuid,
            cell_uuid=cell_uuid,
            project_id=project_id,
            created_at=created_at,
            updated_at=None,
        )

    def insert_mappings(self, rows: Iterable[tuple[str, str, str]], created_at: datetime) -> int:
        """Insert those of the rows whose instance is not mapped; return how many there were.

        In the order of their UUIDs: whoever waits for another's row holds lower ones alone, so no two wait for each
        other. And past what others have inserted meanwhile: on InnoDB those who wait for a row that is rolled back all
        get a shared lock in its place, and then each waits for the others.
        """
        ordered = sorted(rows)
        values = [
            {"created_at": created_at, "instance_uuid": row[0], "cell_uuid": row[1], "project_id": row[2]}
            for row in ordered
        ]
        dialect = self._connection.dialect.name
        if dialect == "postgresql":  # where many rows at once are only counted if they are returned
            statement = postgresql.insert(instance_mapping).on_conflict_do_nothing().returning(instance_mapping.c.id)
            return len(self._connection.execute(statement, values).all())
        ignoring = insert(instance_mapping).prefix_with("OR IGNORE" if dialect == "sqlite" else "IGNORE")
        created = self._connection.execute(ignoring, values).rowcount
        if dialect != "sqlite" and created == len(ordered):
            self._demand_stored({row[0]: row[2] for row in ordered if not row[2].isascii()})
        return created

    def _demand_stored(self, projects: Mapping[str, str]) -> None:
        """Raise InvalidValue where MySQL stored `?` for letters that its table lacks: IGNORE passes over that, too."""
        if not projects:
            return
        for instance_uuid, mapping in self.mappings(list(projects)).items():
            if mapping.project_id != (project := projects[instance_uuid]):
                raise InvalidValue(f"project_id {shown(project)}: the table instance_mapping cannot hold this text")

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

    def mappings(self, instance_uuids: Sequence[str]) -> dict[str, InstanceMapping]:
        """Return those of the rows that exist, as they are now."""
        return self._mappings(_these_mappings(instance_uuids))

    def lock_mappings(self, instance_uuids: Sequence[str]) -> dict[str, InstanceMapping]:
        """Lock those of the rows that exist, always in the same order, and return them as they are now."""
        return self._mappings(_these_mappings(instance_uuids).with_for_update())

    def passed_over_mappings(self, instance_uuids: Sequence[str]) -> dict[str, InstanceMapping]:
        """Return rows that `insert_mappings` found there already or inserted; until the commit nobody changes them.

        InnoDB has locked them when it found them, and to lock them again here it might scan, and wait for, others'.
        """
        query = _these_mappings(instance_uuids)
        if self._connection.dialect.name == "postgresql":
            query = query.with_for_update(read=True)
        return self._mappings(query)

    def _mappings(self, query: Select[Any]) -> dict[str, InstanceMapping]:
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
