"""psycopg with a time limit of our own on every answer, and with times of rows that were written by hand.

The server keeps `statement_timeout`, and the kernel `tcp_user_timeout`; neither helps against a server that has
stopped while its host goes on acknowledging packets. psycopg itself would wait for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import psycopg
from psycopg.abc import RV, Buffer, PQGen
from psycopg.types.datetime import TimestampLoader


def connect_within(limit_s: float) -> Callable[..., psycopg.Connection[Any]]:
    """Return what to call in the place of `psycopg.connect`: its connections wait at most so long for each answer."""

    class LimitedConnection(psycopg.Connection[Any]):
        def wait(self, gen: PQGen[RV], *args: Any, **options: Any) -> RV:
            return super().wait(_limited(gen, self, time.monotonic() + limit_s), *args, **options)

    return LimitedConnection.connect


class _TimeOrNone(TimestampLoader):
    """Reads as unknown what no `datetime` can hold (infinity, a year before Christ), and fails for no row."""

    def load(self, data: Buffer) -> datetime | None:  # type: ignore[override]
        try:
            return super().load(data)
        except psycopg.DataError:
            return None


def read_any_time(connection: Any) -> None:
    connection.adapters.register_loader("timestamp", _TimeOrNone)


def _limited(gen: PQGen[RV], connection: psycopg.Connection[Any], deadline: float) -> PQGen[RV]:
    """Pass everything through; psycopg resumes us several times a second even while nothing arrives."""
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if time.monotonic() > deadline and not ready:
                connection.pgconn.finish()  # what comes later must not be taken for the next answer
                raise psycopg.OperationalError("the server did not answer in time")
            wanted = gen.send(ready)
    except StopIteration as done:
        result: RV = done.value
        return result
