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
from cellcache.demo_databases import drop, make, open_patiently

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


@dataclass(slots=True)
class CellDatabase:
    """One cell's database, as the services inside the cell would write it."""

    name: str
    url: str
    engine: Engine
    in_use: bool = False
    """Whether a cell mapping leads to it: others may have mapped instances to that cell."""

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
def cell_databases(url: URL, names: Sequence[str], *, keep: bool) -> Iterator[list[CellDatabase]]:
    """Make the cells' databases, and in the end remove those that no cell leads to, unless asked to `keep` them."""
    with ExitStack() as stack:
        cells = []
        for number, name in enumerate(names, 1):
            own = url.set(database=name)
            cell = CellDatabase(f"cell{number}", own.render_as_string(hide_password=False), open_patiently(own))
            make(url, name)
            stack.callback(_leave, cell, url, name, keep=keep)
            with database_errors(cell.url):
                _metadata.create_all(cell.engine)
            cells.append(cell)
        yield cells


def _leave(cell: CellDatabase, url: URL, name: str, *, keep: bool) -> None:
    cell.engine.dispose()
    if not keep and not cell.in_use:
        drop(url, name)
