"""Runs inside Nova's environment, where nothing of ours is installed: does what it reads from its input, and times it.

One JSON object a line: {"do": "get", "with": [...]} is answered by the microseconds of each call. "core-…" is the same
statement through SQLAlchemy Core on the same table, in this process: it ties Nova's times to everyone else's.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from typing import Any

import oslo_messaging
import sqlalchemy as sa
from nova import conf, context, objects
from nova.db import migration
from nova.db.api import api as api_database

CONF = conf.CONF


def main() -> None:
    url = os.environ["NOVA_API_DATABASE"]
    CONF([], project="nova", default_config_files=[], default_config_dirs=[])
    CONF.set_override("connection", url, group="api_database")
    api_database.configure(CONF)
    if sys.argv[1:] == ["migrate"]:
        migration.db_sync(database="api")
        return
    oslo_messaging.TransportURL.parse(CONF, "rabbit://")  # registers the options that a CellMapping looks at
    objects.register_all()
    work = Work(url)
    gc.disable()
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        call = getattr(work, request["do"].replace("-", "_"))
        times = []
        for argument in request["with"]:
            began = time.perf_counter_ns()
            answer = call(argument)
            times.append((time.perf_counter_ns() - began) / 1000)
        gc.collect()
        print(json.dumps({"us": times, "last": answer}), flush=True)


class Work:
    def __init__(self, url: str) -> None:
        self._context = context.get_admin_context()
        self._engine = sa.create_engine(url)
        self._cells = {cell.id: cell for cell in objects.CellMappingList.get_all(self._context)}
        table = sa.table(
            "instance_mappings",
            sa.column("instance_uuid"),
            sa.column("cell_id"),
            sa.column("project_id"),
            sa.column("user_id"),
            sa.column("queued_for_delete"),
        )
        self._one = sa.select(table.c.cell_id).where(table.c.instance_uuid == sa.bindparam("key"))
        self._many = sa.select(table.c.instance_uuid, table.c.cell_id).where(
            table.c.instance_uuid.in_(sa.bindparam("keys", expanding=True))
        )
        self._insert = sa.insert(table)
        self._delete = sa.delete(table).where(table.c.instance_uuid == sa.bindparam("key"))

    def get(self, key: str) -> Any:
        return objects.InstanceMapping.get_by_instance_uuid(self._context, key).cell_mapping.id

    def core_get(self, key: str) -> Any:
        with self._engine.connect() as connection:
            return connection.scalar(self._one, {"key": key})

    def get_many(self, keys: list[str]) -> int:
        return len(objects.InstanceMappingList.get_by_instance_uuids(self._context, keys))

    def core_get_many(self, keys: list[str]) -> int:
        with self._engine.connect() as connection:
            return len({row[0]: row[1] for row in connection.execute(self._many, {"keys": keys})})

    def create(self, row: tuple[str, int, str]) -> None:
        key, cell_id, project_id = row
        objects.InstanceMapping(
            self._context,
            instance_uuid=key,
            cell_mapping=self._cells[cell_id],
            project_id=project_id,
            user_id="user",
            queued_for_delete=False,
        ).create()

    def core_create(self, row: tuple[str, int, str]) -> None:
        key, cell_id, project_id = row
        values = {"instance_uuid": key, "cell_id": cell_id, "project_id": project_id}
        with self._engine.begin() as connection:
            connection.execute(self._insert, {**values, "user_id": "user", "queued_for_delete": False})

    def destroy(self, key: str) -> None:
        objects.InstanceMapping(self._context, instance_uuid=key).destroy()

    def core_destroy(self, key: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(self._delete, {"key": key})


main()
