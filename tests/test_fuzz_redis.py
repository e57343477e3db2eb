"""Whatever a Redis sends, in whatever pieces: the right answer, or none and a closed connection."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cellcache.backends.redis import RedisBackend
from cellcache.backends.resp import facts
from cellcache.codec import FENCE, LEASE, encode
from cellcache.errors import BackendUnsupported
from cellcache.protocol import Absent, Fence, Fill, Lease, Settlement
from tests.caches import connected
from tests.scripted import Pieces, RedisConnection, ScriptedSocket, in_pieces, redis

CORPUS = sorted((Path(__file__).parent / "corpus" / "redis").iterdir())
KEYS = [f"0d4ed1d2-8b8c-4e0a-9a43-{number:012x}" for number in range(5)]
CELL = encode("0d4ed1d2-8b8c-4e0a-9a43-3b1f3ad1e4ab")
UNREACHABLE = Absent.UNREACHABLE

Entry = bytes | Lease | Absent
Reply = bytes | int | str | None


@pytest.fixture(autouse=True, scope="module")
def _no_log() -> Iterator[None]:
    """Thousands of failures of nodes are expected, and each would be a line."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


# -- a second reader of the protocol, slow and plain, to compare with --------------------------------------------------


def read(stream: bytes, n: int) -> tuple[list[Reply], bytes] | None:
    """Return the first n replies and what is left; None where there are no n replies.

    An error about one key is its text; whatever else is an error ends the reading.
    """
    found: list[Reply] = []
    for _ in range(n):
        line, end, stream = stream.partition(b"\r\n")
        kind, rest = line[:1], line[1:]
        if not end:
            return None
        if kind in {b"$", b":"} and rest != b"-1":
            try:
                size = int(rest)
            except ValueError:
                return None
            if kind == b":":
                found.append(size)
                continue
            body, end, stream = stream[: max(0, size)], stream[max(0, size) :][:2], stream[max(0, size) + 2 :]
            if size < 0 or len(body) < size or end != b"\r\n":
                return None
            found.append(body)
        elif kind == b"$":
            found.append(None)
        elif kind == b":":
            found.append(-1)
        elif kind == b"+":
            found.append(rest)
        elif kind == b"-" and rest.split(b" ")[0] in {b"OOM", b"WRONGTYPE"}:
            found.append(rest.decode(errors="replace"))
        else:
            return None
    return found, stream


def meaning(granted: Reply, standing: Reply) -> Entry | str:
    """Return what a lookup makes of its two replies; "odd" where no Redis replies so."""
    if granted == b"OK":
        return "lease"
    if isinstance(granted, str):
        return UNREACHABLE
    if granted is not None or standing is None or isinstance(standing, int):
        return "odd"
    if isinstance(standing, str):
        return b"" if standing.startswith("WRONGTYPE") else UNREACHABLE
    if standing.startswith(FENCE):
        return Absent.FENCED
    return Absent.LEASED if standing.startswith(LEASE) else standing


def check_entries(got: Sequence[Entry], stream: bytes, connection: RedisConnection) -> None:
    """Compare the answer to a lookup of so many keys with what the plain reader makes of the stream."""
    parsed = read(stream, 2 * len(got))
    if parsed is None:
        assert list(got) == [UNREACHABLE] * len(got)
        assert connection.closed
        return
    found, left = parsed
    meant = [meaning(granted, standing) for granted, standing in zip(found[::2], found[1::2], strict=True)]
    shown = ["lease" if isinstance(entry, Lease) else entry for entry in got]
    if connection.closed and shown == [UNREACHABLE] * len(got):
        assert left or "odd" in meant
        return
    assert shown == [UNREACHABLE if one == "odd" else one for one in meant]
    assert "odd" not in meant or connection.closed


# -- what a server may say -------------------------------------------------------------------------------------------

bodies = st.one_of(
    st.just(CELL),
    st.just(b""),
    st.binary(max_size=40),
    st.sampled_from([FENCE, LEASE, b"\0", b"\0X"]).flatmap(lambda mark: st.binary(max_size=12).map(mark.__add__)),
)
sizes = st.sampled_from(
    [b"0", b"1", b"17", b"-1", b"-2", b"-99", b"+1", b"1_7", b" 3", b"", b"x", b"9" * 5000, b"99999999"]
)
texts = st.sampled_from([b"OK", b"QUEUED", b"", b"PONG", b"redis_version:7.0.15"])
errors = st.sampled_from(
    [
        b"OOM command not allowed",
        b"WRONGTYPE Operation against a key",
        b"NOSCRIPT No matching script",
        b"NOPERM this user has no permissions",
        b"NOAUTH Authentication required.",
        b"READONLY You can't write against a read only replica.",
        b"LOADING Redis is loading",
        b"ERR \xff\xfe",
        b"",
    ]
)
hits = st.builds(lambda body: b"$%d\r\n%b\r\n" % (len(body), body), bodies)
replies = st.one_of(
    hits,
    hits.map(b"$-1\r\n".__add__),
    hits.map(b"$-1\r\n".__add__),
    st.just(b"+OK\r\n$10\r\n\0L01234567\r\n"),
    st.just(b"$-1\r\n"),
    st.builds(lambda size, body: b"$%b\r\n%b\r\n" % (size, body), sizes, bodies),
    st.builds(lambda number: b":%b\r\n" % number, st.one_of(sizes, st.integers().map(b"%d".__mod__))),
    st.builds(lambda text: b"+%b\r\n" % text, texts),
    st.builds(lambda text: b"-%b\r\n" % text, errors),
    st.sampled_from([b"*1\r\n", b"\r\n", b"_\r\n", b"#t\r\n", b">2\r\n", b"$", b"\n"]),
    st.binary(max_size=60),
)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Replies one after the other, sometimes with a piece cut out or a byte changed."""
    stream = bytearray(b"".join(draw(st.lists(replies, max_size=8))))
    for _ in range(draw(st.integers(0, 2))):
        if stream:
            start = draw(st.integers(0, len(stream) - 1))
            if draw(st.booleans()):
                del stream[start : start + draw(st.integers(1, 12))]
            else:
                stream[start] = draw(st.integers(0, 255))
    return bytes(stream)


pieces = st.builds(in_pieces, streams(), st.lists(st.integers(1, 60), min_size=1, max_size=4))
lengthy = settings(max_examples=150, deadline=None)


# -- properties ------------------------------------------------------------------------------------------------------


def check_lookup(script: Pieces, again: Pieces) -> None:
    backend, made = redis(script, again)
    entry = backend.lookup(KEYS[0])
    # A server that hangs up in the middle of its answer is asked once more, over a new connection.
    check_entries([entry], b"".join([script, again][len(made) - 1]), made[-1])
    backend.close()


def check_lookup_multi(script: Pieces, n: int) -> None:
    backend, made = redis(script)
    check_entries(backend.lookup_multi(KEYS[:n]), b"".join(script), made[0])
    backend.close()


def check_changes(script: Pieces, n: int) -> None:
    """Nothing is confirmed that the server did not confirm."""
    stream = b"".join(script)
    parsed = read(stream, n)
    ones = [False] * n if parsed is None else [one == 1 and isinstance(one, int) for one in parsed[0]]
    placed = [False] * n if parsed is None else [one == b"OK" for one in parsed[0]]

    backend, made = redis(script)
    fences = backend.fence_multi(KEYS[:n])
    for fence, done in zip(fences, placed, strict=True):
        assert fence.asked_at is None or (done and fence.asked_at >= made[0].made_at)
    backend.close()

    backend, _ = redis(script)
    asked_at = connected(backend._node)
    fills = [Fill(key, Lease(b"token", asked_at), CELL, 60.0) for key in KEYS[:n]]
    check_confirmed(backend, backend.fill_multi(fills), ones)

    backend, _ = redis(script)
    fence = Fence(FENCE + b"mark")
    check_confirmed(backend, backend.settle_multi([Settlement(key, fence, None) for key in KEYS[:n]]), ones)

    backend, _ = redis(script)
    check_confirmed(backend, backend.invalidate_multi(KEYS[:n]), ones)


def check_sent_fills(script: Pieces, n: int) -> None:
    """The lookup behind them gets its own reply, or none."""
    backend, made = redis(script)
    asked_at, refused = connected(backend._node), list[int]()
    fills = [Fill(key, Lease(b"token", asked_at), CELL, 60.0) for key in KEYS[:n]]
    backend.send_fills(fills, refused.append, wait=False)
    entry = backend.lookup(KEYS[0])
    parsed = read(b"".join(script), n)
    if parsed is not None and all(
        isinstance(one, int) or str(one).startswith(("OOM", "WRONGTYPE")) for one in parsed[0]
    ):
        check_entries([entry], parsed[1], made[0])
        assert entry is UNREACHABLE or sum(refused) == sum(one != 1 for one in parsed[0])
    else:
        assert entry is UNREACHABLE
        assert made[0].closed
    backend.close()


def check_confirmed(backend: RedisBackend, said: Sequence[bool], confirmed: Sequence[bool]) -> None:
    assert all(done or not one for one, done in zip(said, confirmed, strict=True))
    backend.close()


@pytest.mark.slow
@lengthy
@given(pieces, pieces)
@example([b"$-1\r\n$" + b"9" * 5000 + b"\r\n"], [])
def test_lookup_answers_rightly_or_not_at_all(script: Pieces, again: Pieces) -> None:
    check_lookup(script, again)


@pytest.mark.slow
@lengthy
@given(pieces, st.integers(1, 5))
@example([b":1\r\n", b"$-1\r\n"], 2)
def test_bulk_lookup_answers_rightly_or_not_at_all(script: Pieces, n: int) -> None:
    check_lookup_multi(script, n)


@pytest.mark.slow
@lengthy
@given(pieces, st.integers(1, 3))
def test_no_change_is_confirmed_that_the_server_did_not_confirm(script: Pieces, n: int) -> None:
    check_changes(script, n)


@pytest.mark.slow
@lengthy
@given(pieces, st.integers(1, 3))
@example([b":1\r\n$-1\r\n$17\r\n" + CELL + b"\r\n"], 1)
@example([b":1\r\n", b":0\r\n", b"+OK\r\n", b"$0\r\n\r\n"], 2)
@example([b"-OOM command not allowed\r\n", b"$-1\r\n$17\r\n" + CELL + b"\r\n"], 1)
@example([b"$17\r\n" + CELL + b"\r\n", b":1\r\n"], 1)
def test_a_lookup_behind_sent_fills_answers_rightly_or_not_at_all(script: Pieces, n: int) -> None:
    check_sent_fills(script, n)


@pytest.mark.slow
@lengthy
@given(st.binary(max_size=300))
def test_any_text_about_a_server_can_be_read(info: bytes) -> None:
    assert all(isinstance(name, str) for name in facts(info))


infos = st.builds(
    lambda version, mode, run: b"# Server\r\nredis_version:%b\r\nredis_mode:%b\r\nrun_id:%b\r\n" % (version, mode, run),
    st.sampled_from([b"7.0.15", b"6.2.0", b"7", b"x.y", b"", b"9" * 5000]),
    st.sampled_from([b"standalone", b"cluster", b""]),
    st.sampled_from([b"ab" * 20, b"zz" * 20, b"", b"ab", b"\xff"]),
).map(lambda info: b"$%d\r\n%b\r\n" % (len(info), info))


@pytest.mark.slow
@lengthy
@given(st.lists(st.one_of(infos, replies), max_size=5))
@example([b"$63\r\nredis_version:7.0.15\r\nrun_id:%b\r\n" % (b"ab" * 16), b"\r\n", b"$1\r\na\r\n$1\r\nb\r\n"])
def test_handshake_ends_in_a_server_that_is_known_or_an_error(script: list[bytes]) -> None:
    connection = RedisConnection(ScriptedSocket(script))
    try:
        connection._handshake("scripted", b"prefix", time.monotonic() + 10.0)
    except (OSError, BackendUnsupported):
        pass
    else:
        assert int(connection.version.split(".")[0]) >= 7
        assert connection.prefix.startswith(b"prefix")
        assert len(connection.prefix) == len(b"prefix") + 6
    finally:
        connection.close()


# -- the corpus ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_corpus(path: Path, size: int) -> None:
    data = path.read_bytes()
    script = in_pieces(data, [max(size, len(data) // 1000)])
    for before in (b"", b"$-1\r\n", b"+OK\r\n"):
        check_lookup([before, *script], [])
        check_lookup([], [before, *script])
    for n in (1, 2, 3):
        check_lookup_multi(script, n)
        check_changes(script, n)
        check_sent_fills(script, n)
