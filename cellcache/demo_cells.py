"""The demonstration's cells: a database each, with the part of Nova's `instances` table that a request reads.

On SQLite they are files beside the main database, on a server databases beside it, all named `<its name>_cell<n>`.
Nothing that was there before is touched, and what was made is removed again.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from sqlalchemy import (
    URL,
    Column,
    Connection,
    DateTime,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    delete,
    insert,
    select,
    update,
)

from cellcache.database import database_errors
from cellcache.demo_tables import open_patiently, remove_sqlite
from cellcache.errors import ConfigError, DatabaseUnavailable

_metadata = MetaData()

instances = Table(
    "instances",
    _metadata,
    Column("created_at", DateTime),
    Column("updated_at", DateTime),
    Column("deleted_at", DateTime),
    Column("deleted", Integer, nullable=False, default=0),
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("uuid", String(36), nullable=False, unique=True),
    Column("project_id", String(255)),
    Column("user_id", String(255)),
    Column("display_name", String(255)),
    Column("host", String(255)),
    Column("vm_state", String(255)),
    Column("vcpus", Integer),
    Column("memory_mb", Integer),
)


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None, microsecond=0)


@dataclass(frozen=True, slots=True)
class CellDatabase:
    """One cell's database, as the services inside the cell would write it."""

    name: str
    url: str
    engine: Engine

    def boot(self, uuids_and_projects: Iterable[tuple[str, str]]) -> None:
        """Insert a row for each instance, as a build does."""
        rows = [
            {
                "created_at": _now(),
                "deleted": 0,
                "uuid": uuid,
                "project_id": project_id,
                "user_id": uuid4().hex,
                "display_name": f"vm-{uuid[:8]}",
                "host": f"{self.name}-host{random.randrange(1, 41):02}",  # noqa: S311
                "vm_state": "active",
                "vcpus": 2,
                "memory_mb": 4096,
            }
            for uuid, project_id in uuids_and_projects
        ]
        if rows:
            with self._begin() as connection:
                connection.execute(insert(instances), rows)

    def hand_over(self, uuid: str, other: CellDatabase) -> None:
        """Move an instance's row to another cell, as a resize across cells does."""
        with self._begin() as source, other._begin() as target:
            row = dict(source.execute(select(instances).where(instances.c.uuid == uuid)).mappings().one())
            del row["id"]
            row |= {"host": f"{other.name}-host01", "updated_at": _now()}
            target.execute(insert(instances), row)
            source.execute(delete(instances).where(instances.c.uuid == uuid))

    def mark_deleted(self, uuids: Sequence[str]) -> None:
        """Delete instances as their owners do: the rows stay, marked."""
        with self._begin() as connection:
            connection.execute(
                update(instances)
                .where(instances.c.uuid.in_(uuids))
                .values(deleted=instances.c.id, deleted_at=_now(), vm_state="deleted")
            )

    def purge(self, uuids: Sequence[str]) -> None:
        """Remove rows altogether, as an operator's purge does, long after the instances were deleted."""
        with self._begin() as connection:
            connection.execute(delete(instances).where(instances.c.uuid.in_(uuids)))

    @contextmanager
    def _begin(self) -> Iterator[Connection]:
        with database_errors(self.url), self.engine.begin() as connection:
            yield connection


@contextmanager
def cell_databases(url: URL, *, count: int = 3, keep: bool = False) -> Iterator[list[CellDatabase]]:
    """Make the cells' databases beside the main one, and remove them in the end, unless asked to `keep` them."""
    with ExitStack() as stack:
        cells = []
        for number in range(1, count + 1):
            name = _name_beside(url, number)
            _create(url, name)
            if not keep:
                stack.callback(_drop, url, name)
            own = url.set(database=name)
            engine = open_patiently(own)
            stack.callback(engine.dispose)
            with database_errors(str(own)):
                _metadata.create_all(engine)
            cells.append(CellDatabase(f"cell{number}", own.render_as_string(hide_password=False), engine))
        yield cells


def _name_beside(url: URL, number: int) -> str:
    """Return the name of a database, on SQLite of a file, beside the main one."""
    if not url.database:
        raise ConfigError("database.url: the demonstration needs one that names a database")
    if url.get_backend_name() != "sqlite":
        return f"{url.database}_cell{number}"
    path = Path(url.database)
    return str(path.with_name(f"{path.stem}_cell{number}{path.suffix}"))


def _create(url: URL, name: str) -> None:
    if url.get_backend_name() == "sqlite":
        if Path(name).exists():
            raise ConfigError(f"{name} is there already, and the demonstration leaves it alone: move it away")
        return
    try:
        _administer(url, "CREATE DATABASE", name)
    except DatabaseUnavailable as error:
        raise ConfigError(
            f"cannot create database {name}: {error}; the demonstration needs to, and no such database"
        ) from error


def _drop(url: URL, name: str) -> None:
    if url.get_backend_name() == "sqlite":
        remove_sqlite(name)
    else:
        _administer(url, "DROP DATABASE", name)


def _administer(url: URL, statement: str, name: str) -> None:
    engine = open_patiently(url, use="read")  # in autocommit: PostgreSQL creates no database inside a transaction
    try:
        with database_errors(str(url)), engine.connect() as connection:
            quoted = connection.dialect.identifier_preparer.quote_identifier(name)
            connection.exec_driver_sql(f"{statement} {quoted}")
    finally:
        engine.dispose()
