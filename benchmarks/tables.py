"""The mappings' database: load millions of rows, then bring the table up to date by cellcache's own migrations.

In that order, because it is what a deployment does that has the table already, and because it is faster.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

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
    column,
    create_engine,
    insert,
    make_url,
    table,
    text,
)

from benchmarks.instances import Instances, Row
from cellcache import schema

CREATED_AT = "2026-01-01 00:00:00"  # long ago, so that a prune may take them
_AT_ONCE = 100_000

instance_mapping = Table(
    "instance_mapping",
    MetaData(),
    Column("created_at", DateTime),
    Column("updated_at", DateTime),
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("instance_uuid", String(36), nullable=False),
    Column("cell_uuid", String(36), nullable=False),
    Column("project_id", String(255), nullable=False),
    mysql_engine="InnoDB",
    mysql_charset="utf8mb4",
    mysql_collate="utf8mb4_bin",
)
"""The table as the specification has it, without our indexes."""

cell_mapping = table(
    "cell_mapping", column("uuid"), column("name"), column("transport_url"), column("database_connection")
)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A database whose table is full, and what its migration cost."""

    url: str
    migration_s: float
    bytes_before: int
    bytes_after: int


def load(url: str, instances: Instances, cell_database: str, on_progress: Callable[[int], object]) -> Loaded:
    """Fill an empty database in the fastest way it has, migrate it, and create the cells.

    `cell_database` is the URL of every cell's own. Calls `on_progress` with the number of rows of each step.
    """
    parsed = make_url(url)
    engine = create_engine(parsed, connect_args=local_files(parsed))
    instance_mapping.create(engine)
    with engine.connect() as connection:
        for start in range(0, instances.count, _AT_ONCE):
            numbers = range(start, min(start + _AT_ONCE, instances.count))
            insert_rows(connection, map(instances.row, numbers))
            connection.commit()
            on_progress(len(numbers))
    before = _size(engine)
    began = time.monotonic()
    schema.upgrade(url)
    took_s = time.monotonic() - began
    after = _size(engine)
    with engine.begin() as connection:
        connection.execute(insert(cell_mapping), [_cell(uuid, cell_database) for uuid in instances.cells()])
    engine.dispose()
    return Loaded(url, took_s, before, after)


def insert_rows(connection: Connection, rows: Iterable[Row]) -> None:
    """Insert rows by LOAD DATA; the caller commits."""
    with tempfile.NamedTemporaryFile("w", suffix=".tsv", delete=False) as file:
        file.writelines("\t".join(row) + "\n" for row in rows)
    path = Path(file.name)
    try:
        connection.execute(
            text(
                f"LOAD DATA LOCAL INFILE '{path}' INTO TABLE instance_mapping CHARACTER SET ascii "
                f"(instance_uuid, cell_uuid, project_id) SET created_at = '{CREATED_AT}'"
            )
        )
    finally:
        path.unlink()


def local_files(url: URL) -> dict[str, bool]:
    """Return the connection's arguments that allow LOAD DATA LOCAL."""
    return {"local_infile": True} if url.get_driver_name() == "pymysql" else {}


def _cell(uuid: str, database: str) -> dict[str, str]:
    return {
        "uuid": uuid,
        "name": f"cell-{uuid[:8]}",
        "transport_url": f"rabbit://nova@{uuid[:8]}/",
        "database_connection": database,
    }


def _size(engine: Engine) -> int:
    """Return what the table and its indexes take, as the server estimates it."""
    with engine.connect() as connection:
        connection.exec_driver_sql("ANALYZE TABLE instance_mapping").all()
        found = connection.exec_driver_sql(
            "SELECT data_length + index_length FROM information_schema.tables "
            "WHERE table_schema = database() AND table_name = 'instance_mapping'"
        ).scalar_one()
    return int(found)
