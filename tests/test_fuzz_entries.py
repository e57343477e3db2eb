"""Whatever bytes stand in the cache, whatever is given for a UUID: the right answer, or the one error for it."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cellcache.agreement import Agreement
from cellcache.backends.keys import RawKeys, raw_key
from cellcache.codec import NOT_MAPPED, VERSION, Undecodable, decode, encode
from cellcache.database_clock import KnownTime
from cellcache.errors import InvalidUUID
from cellcache.model import canonical_uuid, canonical_uuids
from cellcache.signing import SIGNATURE_SIZE, Signer
from tests.hostile import HOSTILE_VALUES

CORPUS = sorted((Path(__file__).parent / "corpus" / "entries").iterdir())
RIGHT = {"cell", "not-mapped", "cell-of-zeros", "cell-of-ones"}
INSTANCE = "0d4ed1d2-8b8c-4e0a-9a43-3b1f3ad1e4ab"
TTL_S = 3600.0
SIGNER = Signer([b"k" * 32, b"p" * 32], "", Agreement(INSTANCE, KnownTime(0.0, 1.0)))

entries = st.one_of(
    st.binary(max_size=64),
    st.binary(min_size=16, max_size=16).map(b"\x01".__add__),
    st.sampled_from([path.read_bytes() for path in CORPUS]).flatmap(
        lambda entry: st.builds(lambda at: entry[:at] + b"?" + entry[at + 1 :], st.integers(0, 40))
    ),
)


def check_entry(entry: bytes) -> None:
    """Decoding and encoding are each other's reverse, and nothing is taken for signed that is not."""
    try:
        assert encode(decode(entry)) == entry
    except Undecodable:
        assert entry != NOT_MAPPED
    with pytest.raises(Undecodable):
        decode(SIGNER.verified(INSTANCE, entry))
    assert SIGNER.verified(INSTANCE, SIGNER.signed(INSTANCE, entry, TTL_S)) == VERSION + entry[1:]


@pytest.mark.slow
@given(entries)
def test_any_entry_is_decoded_or_undecodable(entry: bytes) -> None:
    check_entry(entry)


@pytest.mark.slow
@given(st.none() | st.uuids().map(str), st.uuids().map(str), st.uuids().map(str), st.integers(0, 10_000))
def test_signed_entry_verifies_for_its_own_instance_alone_and_only_as_it_is(
    cell: str | None, instance: str, other: str, bit: int
) -> None:
    entry = SIGNER.signed(instance, encode(cell), TTL_S)
    assert decode(SIGNER.verified(instance, entry)) == cell
    flipped = bytearray(entry)
    flipped[bit // 8 % len(entry)] ^= 1 << bit % 8
    forgeries = [(instance, bytes(flipped)), (instance, entry[:-1]), (instance, entry + b"\0"), (instance, entry[1:])]
    forgeries += [(other, entry)] if other != instance else []
    for key, forged in forgeries:
        with pytest.raises(Undecodable):
            decode(SIGNER.verified(key, forged))


@pytest.mark.slow
@given(st.binary(max_size=80), st.binary(min_size=SIGNATURE_SIZE, max_size=SIGNATURE_SIZE))
def test_signature_cannot_be_guessed_by_chance(value: bytes, signature: bytes) -> None:
    with pytest.raises(Undecodable):
        decode(SIGNER.verified(INSTANCE, value + signature))


# -- UUIDs -----------------------------------------------------------------------------------------------------------

_digits = st.text("0123456789abcdefABCDEF", min_size=32, max_size=32)
_hyphenated = _digits.map(lambda text: "-".join([text[:8], text[8:12], text[12:16], text[16:20], text[20:]]))
_nearly = st.text("0123456789abcdefABCDEF-{}ghx_+ \n\0\u0660\uff11", min_size=30, max_size=40)
texts = st.one_of(_digits, _hyphenated, _nearly, st.text(max_size=50), st.uuids().map(str))
anything = st.one_of(texts, st.binary(max_size=40), st.none(), st.integers(), st.floats(), st.uuids(), st.tuples(texts))


@pytest.mark.slow
@given(anything)
@example("{" + INSTANCE + "}")
@example("urn:uuid:" + INSTANCE)
def test_anything_is_a_uuid_in_its_one_form_or_invalid(value: Any) -> None:
    try:
        key = canonical_uuid(value)
    except InvalidUUID:
        return
    assert key == str(uuid.UUID(key))
    assert uuid.UUID(str(value)) == uuid.UUID(key)
    assert canonical_uuid(key) == canonical_uuids([value])[0] == key


@pytest.mark.slow
@given(st.lists(st.one_of(texts, st.sampled_from([value for value in HOSTILE_VALUES if isinstance(value, str)]))))
def test_many_are_treated_as_each_of_them_is(values: list[str]) -> None:
    try:
        each = [canonical_uuid(value) for value in values]
    except InvalidUUID:
        with pytest.raises(InvalidUUID):
            canonical_uuids(values)
        return
    assert canonical_uuids(values) == list(dict.fromkeys(each))


@pytest.mark.slow
@given(st.lists(texts, unique=True))
def test_no_two_keys_are_stored_as_one(keys: list[str]) -> None:
    raws = RawKeys().many(keys)
    assert raws == [raw_key(key) for key in keys]
    meant = {uuid.UUID(key).bytes if len(raw) == 16 else key for key, raw in zip(keys, raws, strict=True)}
    assert len(set(raws)) == len(meant)


# -- the corpus ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_corpus(path: Path) -> None:
    entry = path.read_bytes()
    check_entry(entry)
    if path.name in RIGHT:
        decode(entry)
    else:
        with pytest.raises(Undecodable):
            decode(entry)
