"""What a call costs: its SQL statements and its cache round trips, counted where they leave this process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy.pool.base import _ConnectionFairy


@dataclass
class Costs:
    """`statements` is the SQL; `requests` has the port of the cache server for each send of a request or many."""

    statements: list[str] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)

    @property
    def sql(self) -> int:
        return len(self.statements)

    @property
    def round_trips(self) -> int:
        return len(self.requests)


class Meter:
    """Counts what all threads but a directory's own do. To be made before the connections that it is to see."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ports: set[int] = set()
        self._running: list[Costs] = []
        send = socket.socket.sendall

        def sendall(sock: socket.socket, *arguments: Any) -> None:
            # One send is one round trip: a backend sends all that it has for a node, then waits for the replies.
            port = self._port(sock)
            for costs in self._running:
                if port in self.ports and _counts():
                    costs.requests.append(port)
            send(sock, *arguments)

        monkeypatch.setattr(socket.socket, "sendall", sendall)
        make_cursor = _ConnectionFairy.cursor

        def cursor(connection: _ConnectionFairy, *arguments: Any) -> Any:
            return _Cursor(make_cursor(connection, *arguments), self._executed)

        monkeypatch.setattr(_ConnectionFairy, "cursor", cursor)

    @contextmanager
    def count(self, ports: set[int]) -> Iterator[Costs]:
        """Count until the end of the `with`: SQL statements, and requests to servers on these ports."""
        costs = Costs()
        self.ports = ports
        self._running.append(costs)
        try:
            yield costs
        finally:
            self._running.remove(costs)

    def _executed(self, statement: str) -> None:
        for costs in self._running:
            if _counts():
                costs.statements.append(statement)

    @staticmethod
    def _port(sock: socket.socket) -> int:
        try:
            peer = sock.getpeername()
        except OSError:
            return 0
        return peer[1] if isinstance(peer, tuple) else 0


class _Cursor:
    """A DBAPI cursor that tells what it is about to execute, whoever asks it to: SQLAlchemy or our own code."""

    def __init__(self, cursor: Any, tell: Callable[[str], None]) -> None:
        self._cursor = cursor
        self._tell = tell

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    def execute(self, statement: str, *parameters: Any) -> Any:
        self._tell(statement)
        return self._cursor.execute(statement, *parameters)

    def executemany(self, statement: str, *parameters: Any) -> Any:
        self._tell(statement)
        return self._cursor.executemany(statement, *parameters)


def _counts() -> bool:
    return threading.current_thread().name != "cellcache"
