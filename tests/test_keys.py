"""What stands for a key on a cache server: the same in every release, within the limits, and no other key's."""

from __future__ import annotations

import hashlib
from binascii import a2b_base64
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cellcache.backends.keys import Placement, RawKeys, raw_key
from cellcache.backends.memcached import MemcachedBackend
from cellcache.backends.redis import RedisBackend
from cellcache.errors import ConfigError

INSTANCE = "0d4ed1d2-8b8c-4e0a-9a43-3b1f3ad1e4ab"
LONGEST_ON_MEMCACHED = 250
LONGEST_PREFIX = 152

# -- what two releases, side by side, must agree on --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "raw", "node", "wire"),
    [
        (INSTANCE, "0d4ed1d28b8c4e0a9a433b1f3ad1e4ab", 2, b"Y2M6DU7R0ouMTgqaQzsfOtHkqw=="),
        (INSTANCE.upper(), "0d4ed1d28b8c4e0a9a433b1f3ad1e4ab", 2, b"Y2M6DU7R0ouMTgqaQzsfOtHkqw=="),
        ("", "ff", 1, b"Y2M6//////////////////////8="),
        ("instance", "ff696e7374616e6365", 0, b"Y2M6/2luc3RhbmNl//////////8="),
        ("x" * 15, "ff787878787878787878787878787878ff", 0, b"Y2M6/3h4eHh4eHh4eHh4eHh4eP8="),
        ("instance of a cell", "ff696e7374616e6365206f6620612063656c6c", 0, b"Y2M6/2luc3RhbmNlIG9mIGEgY2VsbA=="),
        ("\u00e4\ud800" * 4, "ff" + "c3a4eda080" * 4, 2, b"Y2M6/8Ok7aCAw6TtoIDDpO2ggMOk7aCA"),
        (
            "x" * 180,
            "ff9193e047f877f54bbf920ba40aef342664f8a42d58d885a99b8635699e84d353",
            1,
            b"Y2M6/5GT4Ef4d/VLv5ILpArvNCZk+KQtWNiFqZuGNWmehNNT",
        ),
    ],
)
def test_a_key_stands_where_it_always_stood(key: str, raw: str, node: int, wire: bytes) -> None:
    servers = ["10.0.0.1:11211", "10.0.0.2:11211", "unix:/run/memcached.sock"]
    placement = Placement(servers)
    assert raw_key(key).hex() == raw
    assert placement.node_of(raw_key(key)) == node
    backend = MemcachedBackend({"servers": servers, "key_prefix": "cc:"})
    assert backend._wire(key)[0] == wire
    assert MemcachedBackend({"servers": servers})._wire(key)[1].name == servers[node]


def test_each_slot_is_on_the_node_where_it_always_was() -> None:
    servers = ["10.0.0.1:11211", "10.0.0.2:11211", "unix:/run/memcached.sock"]
    table = Placement(servers)._table
    assert len(table) == 4096
    assert hashlib.blake2b(bytes(table), digest_size=16).hexdigest() == "9727fab01c01e5836ef76dbd77668721"
    moved = Placement(servers[::-1])._table
    assert [servers[::-1][node] for node in moved] == [servers[node] for node in table]


# -- within the limits, and apart ------------------------------------------------------------------------------------

prefixes = st.text(max_size=LONGEST_PREFIX).filter(lambda text: len(encoded(text)) <= LONGEST_PREFIX)
texts = st.one_of(
    st.uuids().map(str),
    st.text(max_size=40),
    st.builds(str.__mul__, st.text(min_size=1, max_size=3), st.integers(1, 400)),
)


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def wire(prefix: str, key: str) -> bytes:
    sent: bytes = MemcachedBackend({"key_prefix": prefix})._wire(key)[0]
    return sent


@pytest.mark.slow
@given(prefixes, texts)
@example("myservice:", "u" * 178)
@example("p" * LONGEST_PREFIX, "u" * 400)
def test_prefix_and_key_together_fit_whatever_they_are(prefix: str, key: str) -> None:
    sent = wire(prefix, key)
    assert len(sent) <= LONGEST_ON_MEMCACHED
    assert a2b_base64(sent).startswith(encoded(prefix))
    backend = MemcachedBackend({"key_prefix": prefix})
    assert backend._locate([key, INSTANCE, key])[0] == [sent, wire(prefix, INSTANCE), sent]


@pytest.mark.parametrize("length", range(140, 200))
@pytest.mark.parametrize("prefix", ["", "p", "myservice:", "p" * 32, "p" * LONGEST_PREFIX])
def test_a_text_is_sent_as_it_is_or_hashed_by_its_length_with_the_prefix(prefix: str, length: int) -> None:
    raw = a2b_base64(wire(prefix, "u" * length)).removeprefix(prefix.encode())
    as_it_is = b"\xff" + b"u" * length
    if len(as_it_is) <= 180 and len(prefix + "u" * length) + 1 <= 186:
        assert raw == as_it_is
    else:
        assert raw == b"\xff" + hashlib.blake2b(as_it_is, digest_size=32).digest()


def meaning(key: str) -> str | bytes:
    raw = raw_key(key)
    return raw if len(raw) == 16 else key


@st.composite
def neighbours(draw: st.DrawFn) -> tuple[tuple[str, str], tuple[str, str]]:
    """A pair of prefix and key, and one that is made from the same bytes, taken apart elsewhere."""
    prefix, more, text = (
        draw(st.text("ab", max_size=3)),
        draw(st.text("ab", max_size=3)),
        draw(st.text("ab", max_size=16)),
    )
    body = encoded(more) + b"\xff" + encoded(text)
    as_uuid = str(UUID(bytes=body.ljust(16, draw(st.sampled_from([b"a", b"\xff"])))[:16]))
    return (prefix + more, draw(st.sampled_from([text, more + text]))), (prefix, draw(st.sampled_from([as_uuid, text])))


@pytest.mark.slow
@given(neighbours() | st.tuples(st.tuples(prefixes, texts), st.tuples(prefixes, texts)))
@example((("a", "b" * 14), ("", str(UUID(bytes=b"a\xff" + b"b" * 14)))))
def test_no_two_pairs_of_prefix_and_key_are_sent_as_one(pairs: tuple[tuple[str, str], tuple[str, str]]) -> None:
    (prefix, key), (other_prefix, other_key) = pairs
    same = (prefix, meaning(key)) == (other_prefix, meaning(other_key))
    assert (wire(prefix, key) == wire(other_prefix, other_key)) == same


@pytest.mark.parametrize("prefix", ["", "p:"])
def test_a_hash_that_happens_to_be_a_text_is_not_that_text(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Blake:
        def __init__(self, raw: bytes, digest_size: int) -> None:
            self._size = digest_size

        def digest(self) -> bytes:
            return b"t" * self._size

    monkeypatch.setattr("cellcache.backends.keys.hashlib.blake2b", Blake)
    raw_keys = RawKeys(prefix.encode(), 186)
    assert raw_keys.one("long" * 100) == b"\xff" + b"t" * 32 + b"\xff"
    assert raw_keys.one("t" * 32) == b"\xff" + b"t" * 32


# -- prefixes that cannot be -----------------------------------------------------------------------------------------


def test_a_prefix_that_leaves_no_room_for_a_key_is_refused() -> None:
    MemcachedBackend({"key_prefix": "p" * LONGEST_PREFIX})
    for prefix in ("p" * (LONGEST_PREFIX + 1), "\u00e4" * 77, "p" * 100_000):
        with pytest.raises(
            ConfigError, match=rf"^key_prefix has [0-9]+ bytes: give at most {LONGEST_PREFIX}, or no key"
        ):
            MemcachedBackend({"key_prefix": prefix})


@pytest.mark.parametrize("backend", [MemcachedBackend, RedisBackend])
def test_a_prefix_is_a_text_or_refused(backend: type[MemcachedBackend | RedisBackend]) -> None:
    for prefix in ("", None, "\ud800"):
        backend({"key_prefix": prefix})
    with pytest.raises(ConfigError, match=r"^key_prefix = b'p': must be text$"):
        backend({"key_prefix": b"p"})
