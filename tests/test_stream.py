"""The connected socket: which time limits it is given, and who keeps them."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest

from cellcache.backends import stream
from cellcache.backends.stream import Stream

LIMIT_S = 0.25


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
