"""The two SELECTs of a lookup, handed to the driver over SQLAlchemy's pool but past its statements and results.

Those are half of what a miss costs. Whatever goes wrong is told apart in one place: `Store`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Any

from sqlalchemy import Engine

from cellcache.kept_connections import refuses_service

Rows = Sequence[tuple[Any, ...]]


class Disconnected(Exception):
    """The pooled connection was dead, as after a restart of the server; it has been thrown away."""

    def __init__(self, driver_error: Exception) -> None:
        self.driver_error = driver_error
        super().__init__(str(driver_error))


class RowLookup:
    """Raises Disconnected, the driver's errors, or the pool's TimeoutError."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._marker = "?" if engine.dialect.paramstyle == "qmark" else "%s"
        self._one = f"SELECT cell_uuid FROM instance_mapping WHERE instance_uuid = {self._marker}"  # noqa: S608
        self._many = "SELECT instance_uuid, cell_uuid FROM instance_mapping WHERE instance_uuid IN ({})"

    def cell_of(self, instance_uuid: str) -> str | None:
        rows = self._fetch(self._one, (instance_uuid,))
        return rows[0][0] if rows else None

    def cells_of(self, instance_uuids: Sequence[str]) -> Iterable[tuple[str, str]]:
        markers = ",".join([self._marker] * len(instance_uuids))
        return [(row[0], row[1]) for row in self._fetch(self._many.format(markers), tuple(instance_uuids))]

    def _fetch(self, statement: str, parameters: tuple[str, ...]) -> Rows:
        connection = self._engine.raw_connection()
        try:
            with closing(connection.cursor()) as cursor:
                cursor.execute(statement, parameters)
                return cursor.fetchall()
        except self._engine.dialect.loaded_dbapi.Error as error:
            gone = self._engine.dialect.is_disconnect(error, connection.dbapi_connection, None)
            if gone or refuses_service(error):
                connection.invalidate(error)
                raise Disconnected(error) from error
            raise
        except BaseException:  # interrupted: the answer may yet come, and the next to ask would be given it
            connection.invalidate()
            raise
        finally:
            connection.close()
