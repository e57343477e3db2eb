"""Count what a call costs, without the contender's help: round trips by a proxy, statements by the server itself.

A round trip is a request that follows an answer: however many packets it takes, and however many commands are in it.
The proxy therefore holds a request back until the client has been silent for a moment. Nothing is timed through it.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from sqlalchemy import create_engine, make_url

_SILENCE_S = 0.003  # behind a chunk that is large enough to be a part of something
_SHORT_SILENCE_S = 0.0005
_LARGE = 4096
_CHUNK = 1 << 18


class CountingProxy:
    """Forwards a port of 127.0.0.1 to a server and counts the round trips of all its connections."""

    def __init__(self, host: str, port: int) -> None:
        self.round_trips = 0
        self._target = (host, port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.host, self.port = self._listening.getsockname()
        self._wake, self._woken = socket.socketpair()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wake.close()
        for thread in self._threads:
            thread.join()
        self._listening.close()
        self._woken.close()

    def _accept(self) -> None:
        while True:
            readable, _, _ = select.select([self._listening, self._woken], [], [])
            if self._woken in readable:
                return
            client, _ = self._listening.accept()
            thread = threading.Thread(target=self._forward, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _forward(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._target) as server, contextlib.suppress(ConnectionError):
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            waiting_for_answer = False
            while True:
                readable, _, _ = select.select([server, client, self._woken], [], [])
                if server in readable:
                    answer = server.recv(_CHUNK)
                    if not answer:
                        return
                    client.sendall(answer)
                    waiting_for_answer = False
                if client in readable:
                    request = b"".join(_until_silent(client))
                    if not request:
                        return
                    if not waiting_for_answer:
                        self.round_trips += 1
                    waiting_for_answer = True
                    server.sendall(request)
                if self._woken in readable:
                    return


def _until_silent(client: socket.socket) -> Iterator[bytes]:
    chunk = client.recv(_CHUNK)
    while chunk:
        yield chunk
        readable, _, _ = select.select([client], [], [], _SILENCE_S if len(chunk) >= _LARGE else _SHORT_SILENCE_S)
        if not readable:
            return
        chunk = client.recv(_CHUNK)


@dataclass(frozen=True, slots=True)
class Statements:
    """A server's counters: statements that read or change rows, and those that only steer transactions."""

    statements: int
    transaction_statements: int


class StatementCounter:
    """Reads MariaDB's or MySQL's own counters of what all clients have sent; other databases are not counted."""

    _ROWS = ("select", "insert", "insert_select", "update", "delete", "replace", "load", "update_multi", "delete_multi")
    _TRANSACTIONS = ("begin", "commit", "rollback", "set_option", "savepoint", "release_savepoint")

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url, isolation_level="AUTOCOMMIT", pool_reset_on_return=None)
        self.counts = make_url(url).get_backend_name() in {"mysql", "mariadb"}
        self._connection = self._engine.connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        self._engine.dispose()

    def read(self) -> Statements:
        if not self.counts:
            return Statements(0, 0)
        rows = self._connection.exec_driver_sql("SHOW GLOBAL STATUS LIKE 'Com\\_%%'").all()
        values = {name.removeprefix("Com_"): int(value) for name, value in rows if value.isdigit()}
        return Statements(
            sum(values.get(name, 0) for name in self._ROWS), sum(values.get(name, 0) for name in self._TRANSACTIONS)
        )
