"""psycopg with limits of our own on every answer, and with times of rows that were written by hand.

The server keeps `statement_timeout`, and the kernel `tcp_user_timeout`; neither helps against a server that has
stopped while its host goes on acknowledging packets, or that somebody else has set up. psycopg itself would wait for
ever, and take whatever comes.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

import psycopg
from psycopg.abc import RV, Buffer, PQGen
from psycopg.types.datetime import TimestampLoader

_BYTES_RECEIVED = struct.Struct("@128xQ")  # in Linux's `struct tcp_info`


def connect_within(limit_s: float, most_bytes: int | None) -> Callable[..., psycopg.Connection[Any]]:
    """Return what to call in the place of `psycopg.connect`: its connections wait at most so long for each answer.

    With `most_bytes` that is for the whole of it, and no answer over TCP may be longer.
    """

    class LimitedConnection(psycopg.Connection[Any]):
        def wait(self, gen: PQGen[RV], *args: Any, **options: Any) -> RV:
            return super().wait(_limited(gen, self, time.monotonic() + limit_s, most_bytes), *args, **options)

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


def _limited(gen: PQGen[RV], connection: psycopg.Connection[Any], deadline: float, most_bytes: int | None) -> PQGen[RV]:
    """Pass everything through; psycopg resumes us several times a second even while nothing arrives."""
    before = _received(connection) if most_bytes else 0
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if time.monotonic() > deadline and (most_bytes or not ready):
                _give_up(connection, "the server did not answer in time")
            if most_bytes and _received(connection) - before > most_bytes:
                _give_up(connection, f"the answer to one statement is longer than {most_bytes:,} bytes")
            wanted = gen.send(ready)
    except StopIteration as done:
        result: RV = done.value
        return result


def _give_up(connection: psycopg.Connection[Any], why: str) -> NoReturn:
    connection.pgconn.finish()  # what comes later must not be taken for the next answer
    raise psycopg.OperationalError(why)


def _received(connection: psycopg.Connection[Any]) -> int:
    """Return the bytes that the kernel has received over this connection; 0 where it does not count them."""
    if sys.platform != "linux":
        return 0
    try:
        with socket.socket(fileno=os.dup(connection.pgconn.socket)) as sock:
            (received,) = _BYTES_RECEIVED.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136))
            return int(received)
    except (OSError, struct.error):  # a Unix socket, an old kernel
        return 0
