"""The mappings' database: create the tables by cellcache's own migrations, and load millions of rows into them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, column, create_engine, insert, make_url, table, text

from benchmarks.instances import Instances, Row
from cellcache import schema

CREATED_AT = "2026-01-01 00:00:00"  # long ago, so that a prune may take them
_AT_ONCE = 100_000

instance_mapping = table(
    "instance_mapping",
    column("id"),
    column("instance_uuid"),
    column("cell_uuid"),
    column("project_id"),
    column("created_at"),
    column("updated_at"),
)
cell_mapping = table(
    "cell_mapping", column("uuid"), column("name"), column("transport_url"), column("database_connection")
)


def create_tables(url: str, instances: Instances, cell_database: str) -> None:
    """Migrate an empty database and create the cells; `cell_database` is the URL of each cell's own."""
    schema.upgrade(url)
    engine = create_engine(url)
    cells = [
        {
            "uuid": uuid,
            "name": f"cell{number}",
            "transport_url": f"rabbit://nova@cell{number}/",
            "database_connection": cell_database,
        }
        for number, uuid in enumerate(instances.cells())
    ]
    with engine.begin() as connection:
        connection.execute(insert(cell_mapping), cells)
    engine.dispose()


def load(url: str, instances: Instances, on_progress: Callable[[int], object]) -> None:
    """Insert all rows, in the fastest way the server has; call `on_progress` with the number of each step."""
    parsed = make_url(url)
    engine = create_engine(parsed, connect_args=_local_files(parsed))
    with engine.connect() as connection:
        for start in range(0, instances.count, _AT_ONCE):
            numbers = range(start, min(start + _AT_ONCE, instances.count))
            insert_rows(connection, map(instances.row, numbers))
            connection.commit()
            on_progress(len(numbers))
    _settle(engine)
    engine.dispose()


def insert_rows(connection: Connection, rows: Iterable[Row]) -> None:
    """Insert rows in one go: LOAD DATA on MySQL and MariaDB, ordinary INSERTs elsewhere. The caller commits."""
    if connection.dialect.name not in {"mysql", "mariadb"}:
        values = [
            {"instance_uuid": row[0], "cell_uuid": row[1], "project_id": row[2], "created_at": CREATED_AT}
            for row in rows
        ]
        connection.execute(insert(instance_mapping), values)
        return
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


def _local_files(url: URL) -> dict[str, bool]:
    return {"local_infile": True} if url.get_driver_name() == "pymysql" else {}


def _settle(engine: Engine) -> None:
    """Let the planner know the table as it is now."""
    statement = "ANALYZE TABLE instance_mapping" if engine.dialect.name in {"mysql", "mariadb"} else "ANALYZE"
    with engine.connect() as connection:
        connection.exec_driver_sql(statement)
        connection.commit()
