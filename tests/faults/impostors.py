"""Servers that are not what the configuration says: of another protocol, mute, or endless."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Self

Behaviour = Callable[[socket.socket, threading.Event], None]


class Impostor:
    """Takes connections and treats each as `behaviour` has it, in a thread per connection, until closed."""

    host = "127.0.0.1"

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self._closing = threading.Event()
        self._listener = socket.create_server((self.host, 0), backlog=50)
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, name=f"impostor {self.port}", daemon=True)]
        self._threads[0].start()

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(0.2)
        with connection, contextlib.suppress(OSError):
            self._behaviour(connection, self._closing)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()


def http(connection: socket.socket, closing: threading.Event) -> None:
    """What a web server says to whoever does not speak HTTP."""
    connection.recv(4096)
    body = b"<html><body>400 Bad Request</body></html>\r\n"
    connection.sendall(
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body
    )


def mute(connection: socket.socket, closing: threading.Event) -> None:
    """Reads everything, says nothing."""
    while not closing.is_set():
        with contextlib.suppress(TimeoutError):
            if not connection.recv(65536):
                return


def endless(connection: socket.socket, closing: threading.Event) -> None:
    """Sends data without an end and without a line's end, as fast as it is read."""
    while not closing.is_set():
        with contextlib.suppress(TimeoutError):
            connection.sendall(b"x" * 4096)


def chatty(connection: socket.socket, closing: threading.Event) -> None:
    """Greets first, as a mail server does, and answers each line with one that means nothing."""
    connection.sendall(b"220 mail.example.org ready\r\n")
    while not closing.is_set():
        with contextlib.suppress(TimeoutError):
            if not connection.recv(4096):
                return
            connection.sendall(b"500 what?\r\n")


def trickling(connection: socket.socket, closing: threading.Event) -> None:
    """Sends a byte now and then: never silent for as long as a time limit, never done."""
    while not closing.wait(0.03):
        connection.sendall(b"V")
