"""What stands in the cache: one version byte and the cell's 16 bytes, or the version byte alone for "not mapped".

A signed entry is longer, and has a version of its own: signing.py.

The version stands in the value and not in the key, so that while a fleet is being upgraded an old process
still fences and removes what a new one stored. A version that is not ours is a miss.

Bytes that begin with zero are marks of the protocol (fences; on some backends leases), never values.
"""

from __future__ import annotations

from functools import lru_cache
from uuid import UUID

VERSION = b"\x01"
NOT_MAPPED = VERSION
MARK = b"\x00"
FENCE = MARK + b"F"
LEASE = MARK + b"L"

MAPPED_SIZE = len(VERSION) + 16
LONGEST_ENTRY = 1024
"""No release writes an entry of more bytes, signature and all: what is longer is somebody else's, and is not read."""


class Undecodable(ValueError):
    """The bytes are not an entry of this version: corrupt, foreign, or written by another release."""


@lru_cache(maxsize=4096)  # one object for each cell, however many instances it has in this process's memory
def encode(cell_uuid: str | None) -> bytes:
    """Return the value that says "in this cell", or, for None, "not mapped"."""
    return NOT_MAPPED if cell_uuid is None else VERSION + UUID(cell_uuid).bytes


def decode(value: bytes) -> str | None:
    """Return the cell's UUID, or None for "not mapped"; raise Undecodable for anything else."""
    if value == NOT_MAPPED:
        return None
    if len(value) != MAPPED_SIZE or not value.startswith(VERSION):
        raise Undecodable(value[:24])
    return str(UUID(bytes=value[1:]))
