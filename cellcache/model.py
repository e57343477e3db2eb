"""The two records that callers see, and the one form in which a UUID is kept."""

from __future__ import annotations

import re
from binascii import a2b_hex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from cellcache.arguments import demand_many
from cellcache.errors import InvalidUUID

CANONICAL = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_is_canonical = re.compile(CANONICAL, re.ASCII).fullmatch
_is_uuid = re.compile(rf"[0-9a-f]{{32}}|{CANONICAL}", re.ASCII | re.IGNORECASE).fullmatch


def canonical_uuid(value: object) -> str:
    """Return a UUID as 36 lower-case characters with hyphens, or raise InvalidUUID.

    Nothing that has not come through here reaches the cache or the database as a key.
    """
    if type(value) is str and _is_canonical(value):
        return value
    if isinstance(value, UUID):
        return str(value)
    if not isinstance(value, str) or not _is_uuid(value):
        raise InvalidUUID(value)
    return str(UUID(value))


def is_canonical(text: str) -> bool:
    """Return whether this is a UUID in its one form. What the tables hold in another is none: every statement compares
    texts, so no write would find it.
    """
    return _is_canonical(text) is not None


def canonical_uuids(values: Iterable[object]) -> list[str]:
    """The same for many, each once, in the order of their first appearance."""
    keys = list(demand_many("UUIDs", values))
    if not _are_canonical(keys):
        keys = list(map(canonical_uuid, keys))
    return list(dict.fromkeys(keys))


def _are_canonical(values: Sequence[Any]) -> bool:
    """Judge all of them at once, in a third of the time that a regular expression takes."""
    if set(map(type, values)) != {str} or set(map(len, values)) != {36}:
        return False
    text = "".join(values)
    digits = text.replace("-", "")
    if not (
        text[8::36] == text[13::36] == text[18::36] == text[23::36] == "-" * len(values)
        and len(digits) == 32 * len(values)
        and digits == digits.lower()
    ):
        return False
    try:
        a2b_hex(digits)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class CellMapping:
    """One cell: how to reach its database and its message queue.

    Both URLs hold credentials, so neither is in `repr`. Times are UTC.
    """

    uuid: str
    name: str | None
    database_connection: str = field(repr=False)
    transport_url: str = field(repr=False)
    disabled: bool = False
    created_at: datetime | None = field(default=None, repr=False)
    updated_at: datetime | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceMapping:
    """One row of `instance_mapping`: the instance, its cell, its project. Times are UTC; `id` orders listings."""

    id: int
    instance_uuid: str
    cell_uuid: str
    project_id: str
    created_at: datetime | None
    updated_at: datetime | None


class NewMapping(NamedTuple):
    """What `map_instances` takes for each instance; a plain tuple of three will do."""

    instance_uuid: str | UUID
    cell_uuid: str | UUID
    project_id: str
