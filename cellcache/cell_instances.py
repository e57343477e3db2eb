"""The `instances` table of a cell's own database, of which nothing is certain but its column `uuid`.

What comes from there is bounded, as somebody else owns it: each answer in time and in bytes, and the look at every row.
A UUID there may be in upper case, without hyphens, or of the database's own type; a row may hold none. Each statement
is a transaction of its own: a snapshot that grows old would hide rows created since.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from time import monotonic
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import BindParameter, Engine, Select, bindparam, column, func, select, table
from sqlalchemy.types import NullType

from cellcache.database import DATABASE_ERRORS, LONGEST_ANSWER, translated
from cellcache.errors import DatabaseUnavailable
from cellcache.masking import mask_url
from cellcache.rows import IN_ONE_STATEMENT, batches

_AT_EACH_END = 2000
_LONGEST_SCAN_S = 900.0  # of every row: a hundred million take less
_MOST_ODD = 100_000
_PAGE = 10_000

_instances = table("instances", column("uuid"))
_uuid = _instances.c.uuid
_with_uuid = select(_uuid).where(_uuid.is_not(None))


class Sample(NamedTuple):
    """Some of a cell's own instances, by canonical UUID, and how many rows were met that hold no UUID."""

    uuids: list[str]
    rows_without_uuid: int


class CellInstances:
    """Asks the database behind `engine`. Raises DatabaseUnavailable and SchemaError."""

    def __init__(self, engine: Engine, url: str) -> None:
        self._engine = engine
        self._url = url

    def sample(self) -> Sample:
        """Return all instances, or of more than some thousand those at both ends of the order of their UUIDs.

        That order is no order at all for random UUIDs, and leads to the oldest and the youngest for those made from
        the time.
        """
        met = self._values(_with_uuid.order_by(_uuid).limit(_AT_EACH_END))
        if len(met) == _AT_EACH_END:
            met = list({*met, *self._values(_with_uuid.order_by(_uuid.desc()).limit(_AT_EACH_END))})
        (nulls,) = self._values(select(func.count()).select_from(_instances).where(_uuid.is_(None)))
        uuids = [_uuid_in(_text(value)) for value in met]
        return Sample(list({uuid for uuid in uuids if uuid is not None}), nulls + uuids.count(None))

    def those_there(self, uuids: Sequence[str]) -> set[str]:
        """Return those of the canonical UUIDs that have a row, deleted or not, however it writes them."""
        there = self._named(uuids)
        missing = [uuid for uuid in uuids if uuid not in there]
        # For databases that compare by case. An index serves this, as it would not serve `lower(uuid)`.
        there |= self._named(form for uuid in missing for form in _other_forms(uuid))
        if not there.issuperset(missing):
            there |= self._oddly_written
        return there.intersection(uuids)

    def _named(self, texts: Iterable[str]) -> set[str]:
        there: set[str] = set()
        for part in batches(texts, IN_ONE_STATEMENT):
            found = self._values(select(_uuid).where(_uuid.in_(_untyped(part, expanding=True))))
            there.update(uuid for value in found if (uuid := _uuid_in(_text(value))) is not None)
        return there

    @cached_property
    def _oddly_written(self) -> frozenset[str]:
        """The instances that no list of texts finds: those in both cases at once, in braces, between blanks.

        There are none as a rule, and only a look at every row can tell: it is taken once, where something is to go.
        """
        odd: set[str] = set()
        for text in map(_text, self._all()):
            uuid = _uuid_in(text)
            if uuid is not None and text != uuid and text not in _other_forms(uuid):
                odd.add(uuid)
                if len(odd) > _MOST_ODD:
                    raise self._refusal(f"more than {_MOST_ODD:,} UUIDs that are written oddly")
        return frozenset(odd)

    def _all(self) -> Iterator[Any]:
        """Yield what every row holds as its UUID, in pages, so that no statement meets a time limit."""
        query = _with_uuid.order_by(_uuid).limit(_PAGE)
        ends_at = monotonic() + _LONGEST_SCAN_S
        page = self._values(query)
        while page:
            yield from page
            if monotonic() > ends_at:
                raise self._refusal(f"more rows than can be looked at in {_LONGEST_SCAN_S:g} s")
            page = self._values(query.where(_uuid > _untyped(page[-1])))

    def _values(self, query: Select[Any]) -> list[Any]:
        try:
            with self._engine.connect() as connection:
                values, left = [], LONGEST_ANSWER
                for value in connection.scalars(query):
                    values.append(value)
                    left -= len(value) if isinstance(value, str | bytes) else 0
                    if left < 0:
                        raise self._refusal(f"UUIDs of more than {LONGEST_ANSWER:,} bytes in one answer")
                return values
        except DATABASE_ERRORS as error:
            raise translated(error, self._url, tables="instances") from error

    def _refusal(self, what: str) -> DatabaseUnavailable:
        return DatabaseUnavailable(
            f"database {mask_url(self._url)} has {what} in its table instances, as no cell's has; it is asked no more"
        )


def _untyped(value: Any, *, expanding: bool = False) -> BindParameter[Any]:
    """Bind a value as it is: SQLAlchemy would make it a VARCHAR, which PostgreSQL does not compare with a UUID."""
    return bindparam(None, value, type_=NullType(), expanding=expanding)


def _text(value: object) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)


def _uuid_in(text: str) -> str | None:
    """Return the UUID that a row means, canonical. More is taken for one than we would store: who is found is kept."""
    try:
        return str(UUID(text.strip()))
    except ValueError:
        return None


def _other_forms(uuid: str) -> tuple[str, str, str]:
    digits = uuid.replace("-", "")
    return uuid.upper(), digits, digits.upper()
