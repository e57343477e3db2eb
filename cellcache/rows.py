"""From rows to the records that callers see, and what every statement on the tables has in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import select

from cellcache.model import CellMapping, InstanceMapping
from cellcache.tables import cell_mapping, instance_mapping

T = TypeVar("T")

IN_ONE_STATEMENT = 1000

select_mappings = select(
    instance_mapping.c.id,
    instance_mapping.c.instance_uuid,
    instance_mapping.c.cell_uuid,
    instance_mapping.c.project_id,
    instance_mapping.c.created_at,
    instance_mapping.c.updated_at,
)
select_cells = select(
    cell_mapping.c.uuid,
    cell_mapping.c.name,
    cell_mapping.c.database_connection,
    cell_mapping.c.transport_url,
    cell_mapping.c.disabled,
    cell_mapping.c.created_at,
    cell_mapping.c.updated_at,
)


def batches(items: Iterable[T], size: int = IN_ONE_STATEMENT) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def instance_of(row: Any) -> InstanceMapping:
    return InstanceMapping(
        id=row.id,
        instance_uuid=row.instance_uuid,
        cell_uuid=row.cell_uuid,
        project_id=row.project_id,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def cell_of(row: Any) -> CellMapping:
    return CellMapping(
        uuid=row.uuid,
        name=row.name,
        database_connection=row.database_connection,
        transport_url=row.transport_url,
        disabled=row.disabled,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
