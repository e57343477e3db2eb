"""A TCP relay in front of a server, which tampers with what the server replies."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Self


class Relay:
    """Listens on a loopback port and passes everything on, replies through `tamper` (None: break the connection)."""

    host = "127.0.0.1"

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server((self.host, 0))
        self.port: int = self._listener.getsockname()[1]
        self.tamper: Callable[[bytes], bytes | None] = lambda reply: reply
        self.connections = 0
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listener.close()
        for one in self._sockets:
            _hang_up(one)
        for thread in self._threads[1:]:
            thread.join()
        for one in self._sockets:
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection((self.host, self._target))
            self.connections += 1
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets += [client, server]
            for source, sink, change in ((client, server, _as_it_is), (server, client, self._tampered)):
                thread = threading.Thread(target=_pass_on, args=(source, sink, change))
                self._threads.append(thread)
                thread.start()

    def _tampered(self, reply: bytes) -> bytes | None:
        return self.tamper(reply)


def _as_it_is(request: bytes) -> bytes | None:
    return request


def _pass_on(source: socket.socket, sink: socket.socket, change: Callable[[bytes], bytes | None]) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(1 << 16):
            changed = change(chunk)
            if changed is None:
                break
            sink.sendall(changed)
    _hang_up(source)
    _hang_up(sink)


def _hang_up(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
