"""What a call costs: its SQL statements and its cache round trips, counted where they leave this process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import Engine, event


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

    @contextmanager
    def count(self, ports: set[int]) -> Iterator[Costs]:
        """Count until the end of the `with`: SQL statements, and requests to servers on these ports."""
        costs = Costs()
        self.ports = ports

        def executed(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
            if _counts():
                costs.statements.append(statement)

        event.listen(Engine, "before_cursor_execute", executed)
        self._running.append(costs)
        try:
            yield costs
        finally:
            self._running.remove(costs)
            event.remove(Engine, "before_cursor_execute", executed)

    @staticmethod
    def _port(sock: socket.socket) -> int:
        try:
            peer = sock.getpeername()
        except OSError:
            return 0
        return peer[1] if isinstance(peer, tuple) else 0


def _counts() -> bool:
    return threading.current_thread().name != "cellcache"
