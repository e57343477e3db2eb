"""A cell's own database, as far as a request needs it: the `instances` table with one row per instance."""

from __future__ import annotations

from sqlalchemy import Column, Integer, MetaData, String, Table, bindparam, create_engine, insert, select

from benchmarks.instances import Instances

ROWS = 20_000  # the first so many instances have a row: a request asks for one of those

instances_table = Table(
    "instances",
    MetaData(),
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("uuid", String(36), nullable=False, unique=True),
    Column("deleted", Integer),
    Column("project_id", String(255)),
    Column("host", String(255)),
    Column("display_name", String(255)),
    mysql_engine="InnoDB",
)

ROW_OF_ONE = select(instances_table).where(instances_table.c.uuid == bindparam("key"))


def create_cell(url: str, instances: Instances) -> None:
    """Create and fill the database that all cells of a run share."""
    engine = create_engine(url)
    instances_table.create(engine)
    with engine.begin() as connection:
        for start in range(0, min(ROWS, instances.count), 1000):
            numbers = range(start, min(start + 1000, instances.count))
            connection.execute(insert(instances_table), [_row(instances, number) for number in numbers])
    engine.dispose()


def _row(instances: Instances, number: int) -> dict[str, object]:
    return {
        "uuid": instances.uuid(number),
        "deleted": 0,
        "project_id": instances.project(number),
        "host": f"compute-{number % 500}",
        "display_name": f"server-{number}",
    }
