"""fakeredis behind a socket: a Redis without a server, for the quick run.

fakeredis has no INFO, and its Lua does not know the flags in a script's first line; both are answered here.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import socketserver
import threading
from typing import Any, Self

import fakeredis
import redis

from tests.server_process import reserve_port


class FakeRedis:
    """A Redis on a loopback port, in a thread of this process. `info` is what it says of itself.

    The port is its own from `with` to the end, also while it is stopped: other tests that run beside this one would
    else be given it, and answer.
    """

    host = "127.0.0.1"

    def __init__(self, **info: str) -> None:
        self.info = {"redis_version": "7.0.15", "redis_mode": "standalone", **info}
        self._reservation: socket.socket | None = None
        self._server: _Server | None = None

    @property
    def port(self) -> int:
        assert self._reservation is not None
        return int(self._reservation.getsockname()[1])

    @property
    def url(self) -> str:
        return f"redis://{self.host}:{self.port}/0"

    def start(self) -> None:
        self._server = _Server((self.host, self.port), {"run_id": secrets.token_hex(20), **self.info})
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Break every connection and forget everything."""
        if self._server is not None:
            self._server.shutdown()
            self._server.hang_up()
            self._server.server_close()  # waits for the threads
            self._server = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        self._reservation = reserve_port()
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        assert self._reservation is not None
        self._reservation.close()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = False

    def __init__(self, address: tuple[str, int], info: dict[str, str]) -> None:
        super().__init__(address, _Handler)
        self.info = "".join([f"{name}:{value}\r\n" for name, value in info.items()]).encode()
        self.fake = fakeredis.FakeServer(version=(7,))
        self.open: set[_Handler] = set()

    def hang_up(self) -> None:
        for handler in list(self.open):
            handler.hang_up()


class _Handler(socketserver.StreamRequestHandler):
    server: _Server
    disable_nagle_algorithm = True

    def hang_up(self) -> None:
        with contextlib.suppress(OSError):  # its client has hung up, a reply unread
            self.connection.shutdown(2)

    def handle(self) -> None:
        self.server.open.add(self)
        client = fakeredis.FakeRedis(server=self.server.fake, protocol=2)
        fake = client.connection_pool.get_connection()
        try:
            while command := self._read_command():
                self.wfile.write(_encoded(self._reply(fake, command)))
        except ConnectionError:  # the client is gone
            return
        finally:
            self.server.open.discard(self)
            fake.disconnect()
            client.close()

    def _read_command(self) -> list[bytes]:
        parts = []
        for _ in range(int(self.rfile.readline()[1:] or 0)):
            size = int(self.rfile.readline()[1:])
            parts.append(self.rfile.read(size + 2)[:-2])
        return parts

    def _reply(self, fake: Any, command: list[bytes]) -> Any:
        if command[0] == b"INFO":
            return self.server.info
        if command[0] == b"SCRIPT" and command[2].startswith(b"#!lua"):
            command[2] = command[2].partition(b"\n")[2]
        try:
            fake.send_command(*command)
            return fake.read_response(disable_decoding=True)
        except redis.exceptions.NoScriptError as error:
            return redis.ResponseError(f"NOSCRIPT {error}")
        except redis.ResponseError as error:
            return error


def _encoded(reply: Any) -> bytes:
    if reply is None:
        return b"$-1\r\n"
    if isinstance(reply, redis.ResponseError):
        return f"-{reply}\r\n".encode()
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    return b"$%d\r\n%b\r\n" % (len(reply), reply)
