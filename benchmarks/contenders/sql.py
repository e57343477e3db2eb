"""The table alone: SQLAlchemy Core and bare PyMySQL. What a lookup costs without any cache."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pymysql
from sqlalchemy import Engine, bindparam, create_engine, delete, func, insert, make_url, select, update

from benchmarks.cells import ROW_OF_ONE
from benchmarks.contenders.base import Contender
from benchmarks.instances import Row
from benchmarks.tables import cell_mapping
from benchmarks.tables import instance_mapping as table
from benchmarks.world import Place

PAGE = 100  # instances in one page of a listing

CELL_OF_ONE = select(table.c.cell_uuid).where(table.c.instance_uuid == bindparam("key"))
CELLS_OF_MANY = select(table.c.instance_uuid, table.c.cell_uuid).where(
    table.c.instance_uuid.in_(bindparam("keys", expanding=True))
)
_PAGE = select(table).where(table.c.project_id == bindparam("project")).order_by(table.c.id).limit(PAGE)
_CELL_AND_DATABASE = (
    select(cell_mapping.c.uuid, cell_mapping.c.database_connection)
    .join(table, table.c.cell_uuid == cell_mapping.c.uuid)
    .where(table.c.instance_uuid == bindparam("key"))
)
_INSERT = insert(table)
_DELETE_ONE = delete(table).where(table.c.instance_uuid == bindparam("key"))
_DELETE_MANY = delete(table).where(table.c.instance_uuid.in_(bindparam("keys", expanding=True)))
_UPDATE = (
    update(table)
    .where(table.c.instance_uuid == bindparam("key"))
    .values(cell_uuid=bindparam("cell"), updated_at=func.now())
)


class Core(Contender):
    key = "sql.core"
    title = "SQLAlchemy Core, pooled"
    family = "sql"
    how = "engine.connect() / engine.begin() from the default pool for each call, as in the SQLAlchemy tutorial"
    shares_threads = True

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.engine = create_engine(place.database, pool_size=40)
        self._cell: Engine | None = None

    def lookup(self, key: str) -> Any:
        with self.engine.connect() as connection:
            return connection.scalar(CELL_OF_ONE, {"key": key})

    def lookup_many(self, keys: Sequence[str]) -> dict[str, Any]:
        with self.engine.connect() as connection:
            return {row[0]: row[1] for row in connection.execute(CELLS_OF_MANY, {"keys": keys})}

    def create(self, row: Row) -> None:
        with self.engine.begin() as connection:
            connection.execute(_INSERT, _named(row))

    def create_many(self, rows: Sequence[Row]) -> None:
        with self.engine.begin() as connection:
            connection.execute(_INSERT, [_named(row) for row in rows])

    def move(self, change: tuple[str, str]) -> None:
        with self.engine.begin() as connection:
            connection.execute(_UPDATE, {"key": change[0], "cell": change[1]})

    def prune(self, keys: Sequence[str]) -> None:
        with self.engine.begin() as connection:
            if len(keys) == 1:
                connection.execute(_DELETE_ONE, {"key": keys[0]})
            else:
                connection.execute(_DELETE_MANY, {"keys": keys})

    def listing(self, project_id: str) -> Sequence[Any]:
        with self.engine.connect() as connection:
            return connection.execute(_PAGE, {"project": project_id}).all()

    def request(self, key: str) -> Any:
        """The mapping, the cell's mapping, and the instance's row, each from its table."""
        with self.engine.connect() as connection:
            connection.execute(_CELL_AND_DATABASE, {"key": key}).one()
        with self._cell_engine().connect() as connection:
            return connection.execute(ROW_OF_ONE, {"key": key}).one()

    def _cell_engine(self) -> Engine:
        if self._cell is None:
            self._cell = create_engine(self.place.cell_database)
        return self._cell

    def close(self) -> None:
        self.engine.dispose()
        if self._cell is not None:
            self._cell.dispose()


class CellRow(Contender):
    key = "row"
    title = "the row alone, its cell being known"
    family = "sql"
    how = "the SELECT in the cell's database that every request ends with, through SQLAlchemy Core"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._engine = create_engine(place.cell_database)

    def request(self, key: str) -> Any:
        with self._engine.connect() as connection:
            return connection.execute(ROW_OF_ONE, {"key": key}).one()

    def close(self) -> None:
        self._engine.dispose()


class HeldCore(Contender):
    key = "sql.core-autocommit"
    title = "SQLAlchemy Core, pooled, autocommit"
    family = "sql"
    how = 'isolation_level="AUTOCOMMIT" and pool_reset_on_return=None: no ROLLBACK when a connection is given back'
    shares_threads = True

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.engine = create_engine(
            place.database, isolation_level="AUTOCOMMIT", pool_reset_on_return=None, pool_size=40
        )

    def lookup(self, key: str) -> Any:
        with self.engine.connect() as connection:
            return connection.scalar(CELL_OF_ONE, {"key": key})

    def lookup_many(self, keys: Sequence[str]) -> dict[str, Any]:
        with self.engine.connect() as connection:
            return {row[0]: row[1] for row in connection.execute(CELLS_OF_MANY, {"keys": keys})}

    def close(self) -> None:
        self.engine.dispose()


class BarePyMySQL(Contender):
    key = "sql.pymysql"
    title = "PyMySQL, one held connection"
    family = "sql"
    how = "cursor.execute on a connection that stays open; no pool, not safe for threads"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        url = make_url(place.database)
        self._connection = pymysql.connect(
            host=url.host,
            port=url.port or 3306,
            user=url.username,
            password=url.password or "",
            database=url.database,
            autocommit=True,
        )

    def lookup(self, key: str) -> Any:
        with self._connection.cursor() as cursor:
            cursor.execute("SELECT cell_uuid FROM instance_mapping WHERE instance_uuid = %s", (key,))
            row = cursor.fetchone()
            return row[0] if row else None

    def lookup_many(self, keys: Sequence[str]) -> dict[str, Any]:
        with self._connection.cursor() as cursor:
            cursor.execute(
                "SELECT instance_uuid, cell_uuid FROM instance_mapping WHERE instance_uuid IN %s", (tuple(keys),)
            )
            return {row[0]: row[1] for row in cursor.fetchall()}

    def create(self, row: Row) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO instance_mapping (instance_uuid, cell_uuid, project_id, created_at) "
                "VALUES (%s, %s, %s, now())",
                row,
            )

    def close(self) -> None:
        self._connection.close()


def _named(row: Row) -> dict[str, object]:
    """The time comes from us: `now()` among the values would keep PyMySQL from sending many rows in one statement."""
    now = datetime.now(UTC).replace(tzinfo=None, microsecond=0)
    return {"instance_uuid": row[0], "cell_uuid": row[1], "project_id": row[2], "created_at": now}
