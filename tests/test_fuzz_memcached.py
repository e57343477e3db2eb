"""Whatever a memcached sends, in whatever pieces: the right answer, or none and a closed connection."""

from __future__ import annotations

import logging
import re
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cellcache.backends.memcached import MemcachedBackend
from cellcache.codec import FENCE, encode
from cellcache.errors import BackendUnsupported
from cellcache.protocol import Absent, Fence, Fill, Lease, Seen, Settlement
from tests.caches import connected
from tests.scripted import MemcachedConnection, Pieces, ScriptedSocket, in_pieces, memcached

CORPUS = sorted((Path(__file__).parent / "corpus" / "memcached").iterdir())
KEYS = [f"0d4ed1d2-8b8c-4e0a-9a43-{number:012x}" for number in range(5)]
CELL = encode("0d4ed1d2-8b8c-4e0a-9a43-3b1f3ad1e4ab")
UNREACHABLE = Absent.UNREACHABLE
LONGEST_HEADER = 2048

Entry = bytes | Lease | Absent


@pytest.fixture(autouse=True, scope="module")
def _no_log() -> Iterator[None]:
    """Thousands of failures of nodes are expected, and each would be a line."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


# -- a second reader of the protocol, slow and plain, to compare with --------------------------------------------------


@dataclass(frozen=True)
class Plain:
    words: list[bytes]
    body: bytes

    @property
    def entry(self) -> Entry | str:
        """What a lookup makes of it; "lease" for one."""
        if self.words[0] == b"VA" and self.words[-1] == b"W":
            return "lease" if any(word.startswith(b"c") for word in self.words) else UNREACHABLE
        return UNREACHABLE if self.seen is None else self.seen

    @property
    def seen(self) -> Seen:
        """What one who only looks makes of it, and is granted nothing."""
        if self.words[0] != b"VA":
            return None if self.words[0] == b"EN" else UNREACHABLE
        if not self.body and b"Z" in self.words:
            return Absent.LEASED
        return Absent.FENCED if self.body.startswith(FENCE) else self.body


def read(stream: bytes, n: int) -> tuple[list[Plain], bytes] | None:
    """Return the first n replies and what is left, or None where there are no n replies."""
    replies = []
    for _ in range(n):
        header, end, stream = stream.partition(b"\r\n")
        if not end or len(header) > LONGEST_HEADER:
            return None
        words, body = header.split(b" "), b""
        if words[0] == b"VA":
            if len(words) < 2 or not re.fullmatch(rb"[0-9]+", words[1]):
                return None
            size = int(words[1])
            body, end, stream = stream[:size], stream[size : size + 2], stream[size + 2 :]
            if len(body) < size or end != b"\r\n":
                return None
        replies.append(Plain(words, body))
    return replies, stream


def answers(replies: Sequence[Plain], tag: bytes) -> bool:
    """Whether all of these can be replies to the requests with this tag."""
    return all(tag in reply.words or reply.words[0] in {b"EN", b"SERVER_ERROR"} for reply in replies)


def check_entries(got: Sequence[Entry], stream: bytes, connection: MemcachedConnection, tag: bytes = b"O1") -> None:
    """Compare the answer to a lookup of so many keys, the first on its connection, with what the plain reader makes."""
    parsed = read(stream, len(got))
    if parsed is None or not answers(parsed[0], tag):
        assert list(got) == [UNREACHABLE] * len(got)
        assert connection.closed
        return
    replies, left = parsed
    expected = [reply.entry for reply in replies]
    shown = ["lease" if isinstance(entry, Lease) else entry for entry in got]
    if connection.closed and shown == [UNREACHABLE] * len(got):
        # More than was asked for, or a lease without its token: nothing of such a stream is believed.
        assert left or any(reply.words[-1:] == [b"W"] and reply.entry is UNREACHABLE for reply in replies)
        return
    assert shown == expected


# -- what a server may say -------------------------------------------------------------------------------------------

tags = st.sampled_from([b"O1", b"O1", b"O1", b"O1", b"O2", b"O11", b"o1", b"O"])
bodies = st.one_of(
    st.just(CELL), st.just(b"\x01"), st.just(b""), st.binary(max_size=40), st.binary(max_size=20).map(b"\0F".__add__)
)
sizes = st.one_of(
    st.none(), st.sampled_from([b"0", b"1", b"17", b"-1", b"+1", b"99999999", b"1_7", b"\xb2", b"9" * 5000])
)
flags = st.lists(st.sampled_from([b"c1", b"c99", b"c", b"W", b"Z", b"X", b"k", b"b", b"t-1", b""]), max_size=3)


@st.composite
def values(draw: st.DrawFn) -> bytes:
    body, size, tag = draw(bodies), draw(sizes), draw(tags)
    words = [b"VA", b"%d" % len(body) if size is None else size, tag, *draw(flags)]
    return b" ".join(words) + b"\r\n" + body + b"\r\n"


hits = st.builds(b"VA 17 %b c%d\r\n%b\r\n".__mod__, st.tuples(tags, st.integers(0, 10**20), st.just(CELL)))
leases = st.builds(
    b"VA 0 %b c%d %b\r\n\r\n".__mod__, st.tuples(tags, st.integers(0, 99), st.sampled_from([b"W", b"Z"]))
)
lines = st.builds(
    b"%b %b%b\r\n".__mod__,
    st.tuples(
        st.sampled_from(
            [b"HD", b"EX", b"NF", b"NS", b"EN", b"MN", b"VA", b"ERROR", b"SERVER_ERROR", b"CLIENT_ERROR", b""]
        ),
        tags,
        st.sampled_from([b"", b" c5", b" out of memory", b" " * 3000, b"\r\n"]),
    ),
)
words = st.sampled_from([b"EN\r\n", b"\r\n", b"ERROR\r\n", b"SERVER_ERROR out of memory\r\n", b"VA\r\n", b"VA ", b"\n"])
replies = st.one_of(hits, hits, leases, values(), lines, words, st.binary(max_size=60))


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Replies one after the other, sometimes with a piece cut out, put in twice, or a byte changed."""
    stream = bytearray(b"".join(draw(st.lists(replies, max_size=8))))
    for _ in range(draw(st.integers(0, 2)) if stream else 0):
        start = draw(st.integers(0, len(stream) - 1)) if stream else 0
        end = min(len(stream), start + draw(st.integers(1, 12)))
        how = draw(st.sampled_from(["cut", "twice", "change"]))
        if how == "cut":
            del stream[start:end]
        elif how == "twice":
            stream[start:start] = stream[start:end]
        elif stream:
            stream[start] = draw(st.integers(0, 255))
    return bytes(stream)


pieces = st.builds(in_pieces, streams(), st.lists(st.integers(1, 60), min_size=1, max_size=4))
lengthy = settings(max_examples=150, deadline=None)


# -- properties ------------------------------------------------------------------------------------------------------


def check_lookup(script: Pieces, again: Pieces) -> None:
    backend, made = memcached(script, again)
    entry = backend.lookup(KEYS[0])
    # A server that hangs up in the middle of its answer is asked once more, over a new connection.
    check_entries([entry], b"".join([script, again][len(made) - 1]), made[-1])
    backend.close()


def check_lookup_multi(script: Pieces, n: int) -> None:
    backend, made = memcached(script)
    check_entries(backend.lookup_multi(KEYS[:n]), b"".join(script), made[0])
    backend.close()
    backend, made = memcached(script)
    peeked = backend.peek_multi(KEYS[:n])
    parsed = read(b"".join(script), n)
    if peeked == [UNREACHABLE] * n and made[0].closed:
        assert parsed is None or parsed[1] or not answers(parsed[0], b"O1") or b" W\r\n" in b"".join(script)
    else:
        assert parsed is not None
        assert peeked == [reply.seen for reply in parsed[0]]
    backend.close()


def check_changes(script: Pieces, n: int) -> None:
    """Nothing is confirmed that the server did not confirm."""
    parsed = read(b"".join(script), n)
    confirmed = [False] * n
    if parsed is not None and answers(parsed[0], b"O1"):
        confirmed = [reply.words[0] == b"HD" for reply in parsed[0]]

    backend, made = memcached(script)
    fences = backend.fence_multi(KEYS[:n])
    for fence, done in zip(fences, confirmed, strict=True):
        assert fence.asked_at is None or (done and fence.asked_at >= made[0].made_at)
    backend.close()

    backend, made = memcached(script)
    asked_at = connected(backend._nodes[0])
    stored = backend.fill_multi([Fill(key, Lease(b"5", asked_at), CELL, 60.0) for key in KEYS[:n]])
    assert all(done or not said for said, done in zip(stored, confirmed, strict=True))
    backend.close()

    backend, made = memcached(script, script, script)
    fence = Fence(b"\0Fmark", b"5", connected(backend._nodes[0]))
    settled = backend.settle_multi([Settlement(key, fence, CELL, 60.0) for key in KEYS[:n]])
    assert [type(one) for one in settled] == [bool] * n
    if not re.search(rb"HD|NF|EN|\0F", b"".join(script)):
        assert settled == [False] * n
    backend.close()

    backend, made = memcached(script, script)
    gone = backend.invalidate_multi(KEYS[:n])
    if not re.search(rb"HD|NF|EN|\0F", b"".join(script)):
        assert gone == [False] * n
    backend.close()


def check_sent_fills(script: Pieces, n: int) -> None:
    """The lookup behind them gets its own reply, or none."""
    backend, made = memcached(script)
    asked_at, refused = connected(backend._nodes[0]), list[int]()
    fills = [Fill(key, Lease(b"5", asked_at), CELL, 60.0) for key in KEYS[:n]]
    backend.send_fills(fills, refused.append, wait=False)
    entry = backend.lookup(KEYS[0])
    stream = b"".join(script)
    parsed = read(stream, n)
    if entry is UNREACHABLE:
        assert made[0].closed or parsed is not None
    elif stream.startswith(b"VA ") and b"O2" in stream.split(b"\r\n")[0]:
        check_entries([entry], stream, made[0], b"O2")  # no memcached answers the second request first; this is its
    else:
        assert parsed is not None
        assert answers(parsed[0], b"O1")
        check_entries([entry], parsed[1], made[0], b"O2")
        assert sum(refused) == sum(reply.words[0] != b"HD" for reply in parsed[0])
    backend.close()


@pytest.mark.slow
@lengthy
@given(pieces, pieces)
@example([b"VA 17 O1 c1\r\n" + CELL + b"\r\n"], [])
@example([b"VA 0 O1 W\r\n\r\n"], [])
@example([b"VA " + b"9" * 5000 + b" O1 c1\r\n"], [])
def test_lookup_answers_rightly_or_not_at_all(script: Pieces, again: Pieces) -> None:
    check_lookup(script, again)


@pytest.mark.slow
@lengthy
@given(pieces, st.integers(1, 5))
@example([b"VA 0 O1 W\r\n\r\n"], 1)
@example([b"VA " + b"9" * 5000 + b" O1 c1\r\n"], 1)
def test_bulk_lookup_answers_rightly_or_not_at_all(script: Pieces, n: int) -> None:
    check_lookup_multi(script, n)


@pytest.mark.slow
@lengthy
@given(pieces, st.integers(1, 3))
@example([b"HD O1\r\n"], 1)
@example([b"VA 17 O1 c1\r\n" + CELL + b"\r\n"], 1)
def test_no_change_is_confirmed_that_the_server_did_not_confirm(script: Pieces, n: int) -> None:
    check_changes(script, n)


@pytest.mark.slow
@lengthy
@given(pieces, st.integers(1, 3))
@example([b"HD O1\r\nVA 17 O2 c1\r\n" + CELL + b"\r\n"], 1)
@example([b"HD O1\r\n", b"EX O1\r\n", b"VA 0 O2 c7 W\r\n\r\n"], 2)
@example([b"HD O1\r\n", b"VA 17 O1 c1\r\n" + CELL + b"\r\n"], 1)
@example([b"SERVER_ERROR out of memory\r\nVA 17 O2 c1\r\n" + CELL + b"\r\n"], 1)
@example([b"VA 17 O2 c1\r\n" + CELL + b"\r\n"], 1)
def test_a_lookup_behind_sent_fills_answers_rightly_or_not_at_all(script: Pieces, n: int) -> None:
    check_sent_fills(script, n)


@pytest.mark.slow
@lengthy
@given(st.binary(max_size=3000))
def test_any_bytes_on_a_real_socket_end_in_an_answer_or_a_closed_connection(stream: bytes) -> None:
    here, there = socket.socketpair()
    backend = MemcachedBackend({"servers": ["scripted:1"], "timeout_s": 5.0})
    connection = MemcachedConnection(here)
    dials = iter([connection])
    backend._nodes[0]._dial = lambda _: next(dials, None) or _refuse()
    with there:
        there.sendall(stream)
        there.shutdown(socket.SHUT_WR)
        check_entries([backend.lookup(KEYS[0])], stream, connection)
    backend.close()


versions = st.sampled_from([b"1.6.18", b"1.6.9", b"1.7", b"2", b"1.6.x", b"", b"\xff", b"9" * 5000, b"-1.-1.-1"])
greetings = st.lists(
    st.one_of(versions.map(lambda version: b"VERSION %b\r\n" % version), lines, words, hits, st.just(b"STORED\r\n"))
)


@pytest.mark.slow
@lengthy
@given(greetings, st.sampled_from([None, "nova secret", "nova \u20ac"]))
@example([b"CLIENT_ERROR unauthenticated\r\n", b"STORED\r\n", b"VERSION 1.6.18\r\n"], "nova secret")
def test_handshake_ends_in_a_version_that_is_new_enough_or_an_error(
    script: list[bytes], credentials: str | None
) -> None:
    sock = ScriptedSocket(script)
    connection = MemcachedConnection(sock)
    try:
        version = connection._handshake(credentials, time.monotonic() + 10.0)
    except (OSError, BackendUnsupported):
        assert b"secret" not in b"".join(sock.sent) or b"CLIENT_ERROR" in b"".join(script)
    else:
        assert b"VERSION %b\r\n" % version.encode() in b"".join(script)
        assert tuple(int(part) for part in version.split(".")[:3]) >= (1, 6, 10)
    finally:
        connection.close()


def _refuse() -> Any:
    raise ConnectionRefusedError


@dataclass(frozen=True)
class Fault:
    """What becomes of one reply on its way."""

    kind: str
    at: int


faults = st.builds(
    Fault, st.sampled_from(["none", "none", "none", "lose", "twice", "cut", "late", "garble"]), st.integers(0, 40)
)


class Server:
    """Takes fills, and answers each lookup with a value that names its key.

    On the line replies get lost, doubled, cut and late.
    """

    def __init__(self, faults_: Sequence[Fault]) -> None:
        self.faults = list(faults_)
        self.held_back = b""
        self.pending = b""

    def sendall(self, request: bytes) -> None:
        for line in request.splitlines():
            if not line.startswith((b"mg", b"ms")):
                continue  # the value of a fill
            command, key, _, _, tag, *_ = line.split(b" ")
            reply = b"HD %b\r\n" % tag if command == b"ms" else b"VA 25 %b c7\r\n\x01%b\r\n" % (tag, key[:24])
            fault = self.faults.pop(0) if self.faults else Fault("none", 0)
            at = fault.at % len(reply)
            late, self.held_back = self.held_back, b""
            sent = {
                "lose": b"",
                "twice": reply + reply,
                "cut": reply[:at],
                "late": b"",
                "garble": reply[:at] + b"?" + reply[at + 1 :],
            }
            self.pending += late + sent.get(fault.kind, reply)
            if fault.kind == "late":
                self.held_back = reply

    def recv(self, size: int) -> bytes:
        if not self.pending:
            raise TimeoutError("timed out")
        piece, self.pending = self.pending[:size], self.pending[size:]
        return piece

    def settimeout(self, seconds: float | None) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.mark.slow
@lengthy
@given(st.lists(faults, max_size=30), st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=20))
def test_no_lookup_gets_the_answer_to_another(faults_: list[Fault], order: list[tuple[int, bool]]) -> None:
    line = Server(faults_)
    backend = MemcachedBackend({"servers": ["scripted:1"], "timeout_s": 5.0, "retry_s": 0.0})

    def dial(_within_s: float) -> MemcachedConnection:
        line.pending = line.held_back = b""  # a new connection: what was under way on the old one is lost
        return MemcachedConnection(line)

    backend._nodes[0]._dial = dial
    for number, after_a_fill in order:
        if after_a_fill:
            lease = Lease(b"5", connected(backend._nodes[0]))
            backend.send_fills([Fill(KEYS[4 - number], lease, CELL, 60.0)], lambda _: None, wait=False)
        entry = backend.lookup(KEYS[number])
        if isinstance(entry, bytes) and not any(fault.kind == "garble" for fault in faults_):
            assert entry[1:] == backend._wire(KEYS[number])[0]
    backend.close()


# -- the corpus ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_corpus(path: Path, size: int) -> None:
    data = path.read_bytes()
    script = in_pieces(data, [max(size, len(data) // 1000)])
    check_lookup(script, [])
    check_lookup([], script)
    for n in (1, 2, 3):
        check_lookup_multi(script, n)
        check_changes(script, n)
        check_sent_fills(script, n)
