"""From dogpile's text keys to the bytes that a cache node stores, and from those to the node.

A UUID becomes its 16 bytes. Any other text becomes 0xFF and its UTF-8, which can never be the bytes of a UUID
or of another text; one that is too long becomes 0xFF and its hash. Nothing here can fail on what a caller sends, and
nothing of it is sent as text.
"""

from __future__ import annotations

import hashlib
from binascii import Error, a2b_hex
from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

from cellcache.errors import ConfigError

_SLOTS = 4096
_LONGEST = 180
_LONGEST_HASH = 34
_NO_UUID = 17  # bytes, one more than a UUID has


class RawKeys:
    """The bytes that stand for each key, the same in every process and release.

    Behind a prefix they fit into `room`, for both together, and no two keys of two prefixes meet: what stands before
    the last 16 bytes is UTF-8 for a UUID, and holds 0xFF for a text. Raises ConfigError for a prefix that leaves too
    little.
    """

    def __init__(self, prefix: bytes = b"", room: int = _LONGEST) -> None:
        self._longest = min(_LONGEST, room - len(prefix))
        self._shortest = _NO_UUID if prefix else 0
        if self._longest < _LONGEST_HASH:
            raise ConfigError(
                f"key_prefix has {len(prefix)} bytes: give at most {room - _LONGEST_HASH}, or no key fits beside it"
            )

    def one(self, key: str) -> bytes:
        """Return the bytes that stand for a key."""
        if len(key) == 36 and key[8:24:5] == "----":
            try:
                raw = a2b_hex(key.replace("-", ""))
            except (Error, ValueError):
                raw = b""
            if len(raw) == 16:
                return raw
        raw = b"\xff" + key.encode("utf-8", "surrogatepass")
        if len(raw) > self._longest:
            return _hashed(raw)
        return raw.ljust(_NO_UUID if len(raw) == 16 else self._shortest, b"\xff")

    def many(self, keys: Sequence[str]) -> list[bytes]:
        """The same for many keys; where all of them are UUIDs, in one conversion."""
        text, n = "".join(keys), len(keys)
        hyphens = "-" * n
        if (
            set(map(len, keys)) == {36}
            and text.count("-") == 4 * n
            and text[8::36] == text[13::36] == text[18::36] == text[23::36] == hyphens
        ):
            try:
                raw = a2b_hex(text.replace("-", ""))
            except (Error, ValueError):
                return list(map(self.one, keys))
            return [raw[start : start + 16] for start in range(0, 16 * n, 16)]
        return list(map(self.one, keys))


def _hashed(raw: bytes) -> bytes:
    """Return what stands for a long text; whoever seeks long enough finds a hash that is itself a text in UTF-8."""
    digest = hashlib.blake2b(raw, digest_size=32).digest()
    try:
        digest.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return b"\xff" + digest
    return b"\xff" + digest + b"\xff"


raw_key = RawKeys().one


def prefix_in(arguments: Mapping[str, Any]) -> bytes:
    """Return what a region's arguments say shall stand before every key; raise ConfigError if that is no text."""
    prefix = arguments.get("key_prefix") or ""
    if not isinstance(prefix, str):
        raise ConfigError(f"key_prefix = {prefix!r}: must be text")
    return prefix.encode("utf-8", "surrogatepass")


class Placement:
    """Which of several nodes holds a key: rendezvous hashing, worked out once for each of 4,096 slots.

    Every process with the same set of names finds the same node, whatever their order; a name added to n takes
    about 1 key in n + 1 and moves no other. A node that is down keeps its keys: were they to move and come back,
    they would come back with what they held before, which is how a cache goes stale.
    """

    def __init__(self, names: Sequence[str]) -> None:
        if len(names) == 1:
            self._table = [0] * _SLOTS
            return

        def weight(name: str, slot: int) -> bytes:
            return hashlib.blake2b(b"%b %d" % (name.encode(), slot), digest_size=8).digest()

        self._table = [max(range(len(names)), key=lambda node: weight(names[node], slot)) for slot in range(_SLOTS)]

    def node_of(self, raw: bytes) -> int:
        return self._table[crc32(raw) % _SLOTS]

    def nodes_of(self, raws: Sequence[bytes]) -> list[int]:
        table = self._table
        return [table[crc32(raw) % _SLOTS] for raw in raws]
