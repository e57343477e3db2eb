"""PyMySQL with limits of our own on a whole answer: its time limit is one for each piece of it that arrives.

The server keeps `max_statement_time`, but one that somebody else has set up need not: a row a second has no end.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any, NoReturn

import pymysql
from pymysql.connections import Connection
from pymysql.constants import CR


def connect_within(limit_s: float, most_bytes: int) -> Callable[..., Connection[Any]]:
    """Return what to call in the place of `pymysql.connect`: no answer takes longer, or is longer."""

    class LimitedConnection(Connection):
        _rfile: Any
        _sock: Any
        _read_timeout: float | None

        def connect(self, sock: Any = None) -> None:
            self._expect_an_answer()
            super().connect(sock)

        def _execute_command(self, command: int, sql: str | bytes) -> None:
            self._expect_an_answer()
            super()._execute_command(command, sql)  # type: ignore[misc]

        def _expect_an_answer(self) -> None:
            self._deadline = monotonic() + limit_s
            self._left = most_bytes

        def _read_bytes(self, num_bytes: int) -> bytes:
            """Do as PyMySQL's own, piece by piece."""
            self._left -= num_bytes
            if self._left < 0:
                self._give_up(f"the answer to one statement is longer than {most_bytes:,} bytes")
            data = bytearray()
            while len(data) < num_bytes:
                left_s = self._deadline - monotonic()
                if left_s <= 0:
                    self._give_up(f"the answer to one statement was not complete within {limit_s:g} s")
                self._sock.settimeout(min(left_s, self._read_timeout or left_s))
                try:
                    piece = self._rfile.read1(num_bytes - len(data))
                except OSError as error:
                    self._give_up(f"Lost connection to MySQL server during query ({error})")
                except BaseException:
                    self._force_close()  # type: ignore[attr-defined]
                    raise
                if not piece:
                    self._give_up("Lost connection to MySQL server during query")
                data += piece
            return bytes(data)

        def _give_up(self, why: str) -> NoReturn:
            self._force_close()  # type: ignore[attr-defined]
            raise pymysql.err.OperationalError(CR.CR_SERVER_LOST, why)

    return LimitedConnection
