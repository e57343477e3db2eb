"""The floor: what memcached and a socket cost in Python, with no library in between.

The requests are the very ones that cellcache sends, made before the clock starts; the replies are read and not parsed.
"""

from __future__ import annotations

import socket
from binascii import a2b_hex, b2a_base64
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from benchmarks.contenders.base import Contender, batches
from benchmarks.instances import Instances
from benchmarks.world import Place, split_address

_TAIL = b" b v O1 c N5\r\n"


class BareSocket(Contender):
    key = "socket"
    title = "bare socket, mg (the floor)"
    family = "memcached"
    turned = 4
    how = "one sendall of a prepared `mg` and one recv, nothing parsed"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._socket = socket.create_connection(split_address(place.memcached[0]))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sendall, self._recv = self._socket.sendall, self._socket.recv

    def lookup(self, request: bytes) -> bytes:
        self._sendall(request)
        return self._recv(4096)

    def lookup_many(self, request: bytes) -> bytes:
        self._sendall(request)
        received = b""
        while not received.endswith(b"MN\r\n"):
            received += self._recv(1 << 18)
        return received

    def argument(self, key: str) -> bytes:
        return b"mg " + _wire(super().argument(key)) + _TAIL

    def argument_many(self, keys: Sequence[str]) -> bytes:
        """`mn` at the end answers `MN`, so that the end of the answers is seen without parsing them."""
        return b"".join(map(self.argument, keys)) + b"mn\r\n"

    def store(self, instances: Instances, numbers: Sequence[int]) -> None:
        for batch in batches(numbers):
            for number in batch:
                value = b"\x01" + UUID(instances.cell(number)).bytes
                self._sendall(
                    b"ms %b %d b q\r\n%b\r\n" % (_wire(super().argument(instances.uuid(number))), len(value), value)
                )
            self._sendall(b"mn\r\n")
            if self._recv(64) != b"MN\r\n":
                raise ConnectionError("memcached did not store what the floor is measured with")

    def cell_of(self, answer: Any) -> str | None:
        header, _, rest = answer.partition(b"\r\n")
        size = int(header.split()[1])
        return str(UUID(bytes=rest[1:size]))

    def cells_of(self, answer: Any, keys: Sequence[str]) -> dict[str, str | None]:
        cells: dict[str, str | None] = {}
        for key in keys:
            header, _, answer = answer.partition(b"\r\n")
            size = int(header.split()[1])
            cells[key] = str(UUID(bytes=answer[1:size]))
            answer = answer[size + 2 :]
        return cells

    def close(self) -> None:
        self._socket.close()


def _wire(key: str) -> bytes:
    return b2a_base64(a2b_hex(key.replace("-", "")), newline=False)
