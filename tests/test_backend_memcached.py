"""What is memcached's own about the memcached backend: its version, requests cut in half, removals that lose a race."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import pytest

from cellcache.backends.memcached import MemcachedBackend
from cellcache.backends.wire import OLDEST_VERSION
from cellcache.codec import FENCE
from cellcache.errors import BackendUnsupported
from cellcache.protocol import Absent, Fence, Settlement
from tests import scripted
from tests.scripted import MemcachedConnection, ScriptedSocket

KEYS = ["0d4ed1d2-8b8c-4e0a-9a43-3b1f3ad1e4ab", "0d4ed1d2-8b8c-4e0a-9a43-3b1f3ad1e4ac"]
ABSENT = "EN"
CHANGED = "EX"
REMOVED = "HD"
GONE = "NF"


@pytest.mark.parametrize(("version", "supported"), [("1.6.9", False), ("1.5.22", False), ("1.6.10", True)])
def test_it_is_asked_for_its_version(version: str, supported: bool) -> None:
    connection = MemcachedConnection(ScriptedSocket([f"VERSION {version}\r\n".encode()]))
    if supported:
        assert connection._handshake(None, float("inf")) == version
    else:
        with pytest.raises(BackendUnsupported, match=rf"is version {version}; leases need .* 1\.6\.10 or newer"):
            connection._handshake(None, float("inf"))
    assert OLDEST_VERSION == (1, 6, 10)


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
    assert [entry for entry in backend.peek_multi(KEYS) if entry is Absent.UNREACHABLE] == []


def answering(*replies: str | bytes) -> MemcachedBackend:
    """A backend over a memcached that gives these replies, one to each request; bytes are what stands there."""
    pieces = []
    for reply, number in zip(replies, count(1)):
        if isinstance(reply, bytes):
            pieces.append(b"VA %d c5 O%d\r\n%b\r\n" % (len(reply), number, reply))
        else:
            pieces.append(f"{reply} O{number}\r\n".encode())
    backend, _ = scripted.memcached(pieces)
    return backend


LOOKS = 8


@pytest.mark.parametrize(
    ("replies", "certain"),
    [
        ([ABSENT], True),
        ([b"value", REMOVED], True),
        ([b"value", GONE], True),
        ([FENCE + b"another's"], True),
        ([b"value", CHANGED, ABSENT], True),
        ([b"value", CHANGED, b"newer", REMOVED], True),
        ([b"value", CHANGED, FENCE + b"another's"], True),
        ([b"value", CHANGED] * (LOOKS - 1) + [b"value", REMOVED], True),
        ([b"value", CHANGED] * LOOKS, False),
        ([b"value", "SERVER_ERROR"], False),
        (["SERVER_ERROR"], False),
        ([b"value"], False),
    ],
    ids=str,
)
def test_removal_is_certain_once_nothing_is_left_of_what_was_seen(
    replies: Sequence[str | bytes], certain: bool
) -> None:
    """What has changed since the look may be as old as that: a reader may have filled it over an older lease."""
    assert answering(*replies).invalidate_multi(KEYS[:1]) == [certain]


@pytest.mark.parametrize(
    ("replies", "certain"),
    [
        ([FENCE + b"mine", REMOVED], True),
        ([FENCE + b"mine", CHANGED, ABSENT], True),
        ([FENCE + b"mine", CHANGED] * LOOKS, False),
        ([FENCE + b"another's"], True),
    ],
    ids=str,
)
def test_so_is_that_of_ones_own_fence(replies: Sequence[str | bytes], certain: bool) -> None:
    settlement = Settlement(KEYS[0], Fence(FENCE + b"mine"), None)
    assert answering(*replies).settle_multi([settlement]) == [certain]
