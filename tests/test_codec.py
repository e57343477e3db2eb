"""What stands in the cache, byte by byte."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellcache.codec import FENCE, LEASE, MARK, NOT_MAPPED, VERSION, Undecodable, decode, encode

CELL = "0d4ed1d2-8b8c-4e0a-9a43-3b1f3ad1e4ab"

RAISE_THE_VERSION = (
    "The bytes of a cache entry have changed. While a fleet is being upgraded, old and new processes share one cache, "
    "and each would misread the other. If the change is meant: raise cellcache.codec.VERSION, so that each takes the "
    "other's entries for misses, and write the new bytes here."
)


def test_bytes_of_an_entry_are_those_of_this_version() -> None:
    assert encode(CELL) == bytes.fromhex("01 0d4ed1d28b8c4e0a9a433b1f3ad1e4ab"), RAISE_THE_VERSION
    assert encode(None) == bytes.fromhex("01"), RAISE_THE_VERSION
    assert decode(bytes.fromhex("01 0d4ed1d28b8c4e0a9a433b1f3ad1e4ab")) == CELL, RAISE_THE_VERSION
    assert decode(bytes.fromhex("01")) is None, RAISE_THE_VERSION


def test_entry_is_smaller_than_24_bytes() -> None:
    assert len(encode(CELL)) < 24
    assert len(encode(None)) < 24


@given(st.none() | st.uuids().map(str))
def test_what_is_encoded_is_decoded(cell_uuid: str | None) -> None:
    assert decode(encode(cell_uuid)) == cell_uuid


@pytest.mark.slow
@given(
    st.binary(max_size=64)
    | st.binary(min_size=17, max_size=17)
    | st.binary(min_size=16, max_size=16).map(VERSION.__add__)
)
def test_any_bytes_are_an_entry_of_ours_or_undecodable(value: bytes) -> None:
    try:
        decoded = decode(value)
    except Undecodable:
        assert value != NOT_MAPPED
        assert not (value.startswith(VERSION) and len(value) == 17)
        return
    assert encode(decoded) == value


@given(st.none() | st.uuids().map(str))
def test_no_value_can_be_taken_for_a_mark(cell_uuid: str | None) -> None:
    assert not encode(cell_uuid).startswith(MARK)
    assert FENCE.startswith(MARK)
    assert LEASE.startswith(MARK)
    assert FENCE != LEASE


def test_every_other_version_is_undecodable() -> None:
    for version in set(range(256)) - set(VERSION):
        for value in (bytes([version]), bytes([version]) + UUID(CELL).bytes):
            with pytest.raises(Undecodable):
                decode(value)


def test_entry_that_is_cut_off_or_too_long_is_undecodable() -> None:
    for size in (0, *range(2, 17), *range(18, 40), 100_000):
        with pytest.raises(Undecodable):
            decode(VERSION * size)


def test_what_is_undecodable_is_not_quoted_in_full() -> None:
    with pytest.raises(Undecodable) as caught:
        decode(b"x" * 1_000_000)
    assert len(str(caught.value)) < 100
