"""The connected socket: which time limits it is given, and that one on which a request broke off is not used again."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest

from cellcache.backends import stream
from cellcache.backends.stream import Stream
from cellcache.backends.wire import OLDEST_VERSION
from cellcache.errors import BackendUnsupported
from cellcache.protocol import Absent
from tests import scripted
from tests.scripted import MemcachedConnection, ScriptedSocket

LIMIT_S = 0.25
KEYS = ["0d4ed1d2-8b8c-4e0a-9a43-3b1f3ad1e4ab", "0d4ed1d2-8b8c-4e0a-9a43-3b1f3ad1e4ac"]


class Line(Stream[bytes]):  # type: ignore[misc, unused-ignore]
    """A stream whose replies are bytes."""

    def close(self) -> None:
        self._sock.close()

    def _parse(self, buffer: bytes, start: int, replies: list[bytes], expected: int) -> int:
        replies += [buffer[at : at + 1] for at in range(start, len(buffer))]
        return len(buffer)


class PatchedSocket(socket.socket):
    """What a library puts in place of Python's: its threads share one of the kernel's, which must not wait."""


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    with here, there:
        yield here, there


def kernel_limits(sock: socket.socket) -> list[float]:
    """How long a recv and a send may wait in the kernel, in seconds; 0 is for ever."""
    limits = []
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        seconds, microseconds = struct.unpack("@ll", sock.getsockopt(socket.SOL_SOCKET, option, 16))
        limits.append(seconds + microseconds / 1_000_000)
    return limits


def test_kernel_keeps_the_limits_of_a_plain_socket(pair: tuple[socket.socket, socket.socket]) -> None:
    Line(pair[0], LIMIT_S)
    assert pair[0].gettimeout() is None
    assert kernel_limits(pair[0]) == pytest.approx([LIMIT_S] * 2, abs=0.01)


@pytest.mark.parametrize("left_s", [0.0, -3.0, 1e-9])
def test_limit_that_has_passed_is_not_for_ever(pair: tuple[socket.socket, socket.socket], left_s: float) -> None:
    line = Line(pair[0], LIMIT_S)
    line.limit_next(left_s)
    assert all(0 < limit < LIMIT_S for limit in kernel_limits(pair[0]))
    with pytest.raises(BlockingIOError):
        line.recv(1)
    assert kernel_limits(pair[0]) == pytest.approx([LIMIT_S] * 2, abs=0.01)


def test_patched_socket_waits_in_its_own_way(pair: tuple[socket.socket, socket.socket]) -> None:
    """gevent's and eventlet's yield to others while they wait: the kernel would stop all of them."""
    with PatchedSocket(fileno=pair[0].detach()) as sock:
        line = Line(sock, LIMIT_S)
        assert sock.gettimeout() == LIMIT_S
        assert kernel_limits(sock) == [0.0, 0.0]
        line.limit_next(0.0)
        assert sock.gettimeout() == pytest.approx(0.001)


def test_so_does_every_socket_once_pythons_own_are_patched(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream.socket, "socket", PatchedSocket)
    with PatchedSocket(fileno=pair[0].detach()) as sock:
        Line(sock, LIMIT_S)
        assert sock.gettimeout() == LIMIT_S


class JammedSocket(ScriptedSocket):
    """Takes half of a request, and no more in time."""

    def sendall(self, data: bytes) -> None:
        super().sendall(data[: len(data) // 2])
        raise TimeoutError("timed out")


def test_connection_that_took_half_a_request_is_not_used_again() -> None:
    backend, _ = scripted.memcached()
    jammed = MemcachedConnection(JammedSocket([]))
    sound = MemcachedConnection(ScriptedSocket([b"EN\r\n" * 2]))
    connections = iter([jammed, sound])
    backend._nodes[0]._dial = lambda _within_s: next(connections)
    assert backend.peek_multi(KEYS) == [Absent.UNREACHABLE] * 2
    assert jammed.closed
    assert backend.errors == 1
    assert backend.peek_multi(KEYS) == [None, None]


@pytest.mark.parametrize(("version", "supported"), [("1.6.9", False), ("1.5.22", False), ("1.6.10", True)])
def test_memcached_is_asked_for_its_version(version: str, supported: bool) -> None:
    connection = MemcachedConnection(ScriptedSocket([f"VERSION {version}\r\n".encode()]))
    if supported:
        assert connection._handshake(None, float("inf")) == version
    else:
        with pytest.raises(BackendUnsupported, match=rf"is version {version}; leases need .* 1\.6\.10 or newer"):
            connection._handshake(None, float("inf"))
    assert OLDEST_VERSION == (1, 6, 10)
