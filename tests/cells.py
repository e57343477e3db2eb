"""Cells with databases of their own, for tests of what compares the two."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from cellcache import CellDirectory
from cellcache.tables import instance_mapping
from tests.directories import Site, new_cell_database, new_uuids

PROJECT = "project-1"


class Cell:
    """A cell with a database of its own, or another's by its URL, and instances mapped to it two hours ago."""

    def __init__(
        self,
        site: Site,
        directory: CellDirectory,
        path: Path,
        instances: int = 10,
        *,
        name: str = "cell1",
        url: str | None = None,
    ) -> None:
        self.site = site
        self.keys = sorted(new_uuids(instances))  # the order in which they are inserted, and so compared
        self.url = new_cell_database(path, dict.fromkeys(self.keys, 0)) if url is None else url
        self.uuid = directory.create_cell(name, self.url, "fake://").uuid
        directory.map_instances((key, self.uuid, PROJECT) for key in self.keys)
        self.age(hours=2)

    def age(self, **by: float) -> None:
        """Let all mappings be that old."""
        self.site.run(
            instance_mapping.update()
            .where(instance_mapping.c.cell_uuid == self.uuid)
            .values(created_at=datetime.now(UTC) - timedelta(**by))
        )

    def run(self, statement: str, **parameters: Any) -> None:
        engine = create_engine(self.url, poolclass=NullPool)
        with engine.begin() as connection:
            connection.execute(text(statement), parameters)

    def boot(self, keys: Iterable[str | None]) -> None:
        for key in keys:
            self.run("INSERT INTO instances (uuid, deleted) VALUES (:key, 0)", key=key)

    def purge(self, *keys: str) -> None:
        for key in keys:
            self.run("DELETE FROM instances WHERE uuid = :key", key=key)

    def mapped(self) -> set[str]:
        return set(self.site.table())
