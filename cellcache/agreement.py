"""What the processes of one deployment agree on: it stands in their database, in the table `cache_agreement`.

One row now, `deployment`: a random UUID that tells this deployment from every other. Whoever finds none writes one.
"""

from __future__ import annotations

from contextlib import suppress
from time import monotonic
from typing import NamedTuple
from uuid import uuid4

from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import IntegrityError

from cellcache.database_clock import DatabaseTime, KnownTime
from cellcache.errors import SchemaError
from cellcache.model import is_canonical
from cellcache.tables import cache_agreement

DEPLOYMENT = "deployment"

_select = select(cache_agreement.c.value, DatabaseTime()).where(cache_agreement.c.name == DEPLOYMENT)


class Agreement(NamedTuple):
    """What one reading of the table brought, and the database's time, which came with it."""

    deployment: str
    time: KnownTime


def read_agreement(connection: Connection) -> Agreement:
    """Read it over a connection in autocommit: one statement, and two more for the first process of a deployment.

    Raises SchemaError for an identity that is none.
    """
    asked_at = monotonic()
    row = connection.execute(_select).one_or_none()
    if row is None:
        first = {"name": DEPLOYMENT, "value": str(uuid4()), "since": DatabaseTime()}
        with suppress(IntegrityError):  # another process has come in between: its identity is everybody's
            connection.execute(insert(cache_agreement).values(first))
        asked_at = monotonic()
        row = connection.execute(_select).one()
    deployment, time = str(row[0]), row[1]
    if not is_canonical(deployment):
        raise SchemaError(
            f"the row {DEPLOYMENT!r} of cache_agreement holds {deployment[:40]!r}, which is no UUID: delete it, and "
            "the next process that opens the directory writes one"
        )
    return Agreement(deployment, KnownTime.between(time, asked_at, monotonic()))
