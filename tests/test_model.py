"""The one form in which a UUID is kept, and the records that callers see."""

from __future__ import annotations

import dataclasses
import traceback
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellcache import CellCacheError, CellMapping, InstanceMapping, InvalidUUID
from cellcache.model import canonical_uuid, canonical_uuids
from tests.hostile import HOSTILE

CANONICAL = "0d4ed1d2-8b8c-4e0a-9a43-3b1f3ad1e4ab"
OTHER = "f0000000-0000-4000-8000-00000000000f"

FORMS: list[Any] = [
    CANONICAL,
    CANONICAL.upper(),
    CANONICAL.title(),
    CANONICAL.replace("-", ""),
    CANONICAL.replace("-", "").upper(),
    uuid.UUID(CANONICAL),
]


@pytest.mark.parametrize("form", FORMS, ids=repr)
def test_every_form_of_a_uuid_is_one_key(form: Any) -> None:
    assert canonical_uuid(form) == CANONICAL
    assert canonical_uuids([form]) == [CANONICAL]


def test_forms_of_one_uuid_in_one_call_are_one_key() -> None:
    assert canonical_uuids([*FORMS, OTHER, *FORMS]) == [CANONICAL, OTHER]


def test_many_uuids_keep_the_order_of_their_first_appearance() -> None:
    keys = [str(uuid.uuid4()) for _ in range(50)]
    assert canonical_uuids(iter(keys + keys[::-1])) == keys


def test_no_uuids_are_no_keys() -> None:
    assert canonical_uuids([]) == []


@pytest.mark.parametrize("value", HOSTILE)
def test_anything_else_is_not_a_uuid(value: Any) -> None:
    with pytest.raises(InvalidUUID):
        canonical_uuid(value)


@pytest.mark.parametrize("value", HOSTILE)
def test_anything_else_among_good_ones_is_found(value: Any) -> None:
    for rows in ([value], [CANONICAL, value], [value, CANONICAL], [CANONICAL, value, OTHER]):
        with pytest.raises(InvalidUUID):
            canonical_uuids(rows)


def test_two_uuids_and_a_newline_in_one_element_are_not_two_uuids() -> None:
    both = f"{CANONICAL}\n{OTHER}"
    for rows in ([both], [both, ""], ["", both], [both, both], [both, CANONICAL], [both, "", CANONICAL]):
        with pytest.raises(InvalidUUID):
            canonical_uuids(rows)


def test_uuid_cut_in_two_elements_is_not_a_uuid() -> None:
    for at in range(37):
        with pytest.raises(InvalidUUID):
            canonical_uuids([CANONICAL[:at], CANONICAL[at:]])


def test_one_text_in_place_of_many_is_not_taken_apart_into_keys() -> None:
    with pytest.raises(InvalidUUID):
        canonical_uuids(CANONICAL)


@given(st.text(max_size=40) | st.text(alphabet="0123456789abcdefABCDEF-\n", min_size=30, max_size=40))
def test_what_is_accepted_is_what_the_standard_library_reads_as_the_same_uuid(value: str) -> None:
    try:
        key = canonical_uuid(value)
    except InvalidUUID:
        assert canonical_or_none([value]) is None
        return
    assert key == str(uuid.UUID(value))
    assert canonical_or_none([value]) == [key]


@given(
    st.lists(st.uuids().map(str) | st.sampled_from(["", "\n", CANONICAL + "\n", f"{CANONICAL}\n{OTHER}"]), max_size=6)
)
def test_bulk_and_single_agree(values: list[str]) -> None:
    try:
        expected: list[str] | None = list(dict.fromkeys(canonical_uuid(value) for value in values))
    except InvalidUUID:
        expected = None
    assert canonical_or_none(values) == expected


def canonical_or_none(values: list[str]) -> list[str] | None:
    try:
        return canonical_uuids(values)
    except InvalidUUID:
        return None


def test_error_says_what_was_given_in_one_short_line() -> None:
    with pytest.raises(InvalidUUID, match=r"not a UUID: 'a\\r\\nb'; give 32 hexadecimal digits") as caught:
        canonical_uuid("a\r\nb")
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, CellCacheError)
    with pytest.raises(InvalidUUID) as caught:
        canonical_uuid("x" * 100_000)
    assert len(str(caught.value)) < 200


def cell() -> CellMapping:
    return CellMapping(
        uuid=CANONICAL,
        name="cell1",
        database_connection="mysql+pymysql://nova:hush@db/nova_cell1",
        transport_url="rabbit://nova:shush@mq/",
    )


def test_cell_does_not_show_its_urls() -> None:
    for shown in (repr(cell()), str(cell()), f"{cell()}", repr([cell()]), repr({CANONICAL: cell()})):
        assert "hush" not in shown
        assert "nova" not in shown
        assert CANONICAL in shown


def test_cell_in_a_traceback_does_not_show_its_urls() -> None:
    error = LookupError(cell())
    assert "hush" not in "".join(traceback.format_exception(error))


def test_records_are_frozen() -> None:
    mapping = InstanceMapping(
        id=1,
        instance_uuid=OTHER,
        cell_uuid=CANONICAL,
        project_id="p",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        updated_at=None,
    )
    for record, field in ((cell(), "name"), (mapping, "cell_uuid")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, field, "x")
        assert not hasattr(record, "__dict__")


def test_equal_records_are_equal_and_hash_alike() -> None:
    assert cell() == cell()
    assert len({cell(), cell()}) == 1
