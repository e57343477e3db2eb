"""What callers give us beside texts: numbers, switches, many of something; InvalidValue before anything is done."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from typing import Any

from cellcache.errors import InvalidValue
from cellcache.foreign import shown

LARGEST_ID = (1 << 63) - 1
"""The largest whole number that every database takes."""

LONGEST_S = 36_525 * 86_400.0
"""A hundred years: no clock, calendar or timer that it is handed to overflows."""

LARGEST_PAGE = 100_000
"""The most rows to ask for at once."""


def demand_whole(what: str, value: Any, *, least: int, most: int) -> int:
    """Return a whole number; True and False are none."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not least <= number <= most:
        raise InvalidValue(f"{what} {shown(value)} is not a whole number from {least:,} to {most:,}")
    return number


def demand_number(what: str, value: Any, *, least: float, most: float) -> float:
    """Return a number, which need not be whole; NaN and infinity are none."""
    try:
        number = math.nan if isinstance(value, bool | str | bytes) else float(value)
    except (OverflowError, TypeError, ValueError):
        number = math.nan
    if not least <= number <= most:
        raise InvalidValue(f"{what} {shown(value)} is not a number from {least:,g} to {most:,.0f}")
    return number


def demand_switch(what: str, value: Any) -> bool:
    """Return True or False, and take nothing else for either: a blank text, say, would be a False that nobody meant."""
    if not isinstance(value, bool):
        raise InvalidValue(f"{what} {shown(value)} is neither True nor False")
    return value


def demand_many(what: str, values: Any) -> Iterator[Any]:
    """Iterate over what can be; what goes wrong in a caller's own generator stays the caller's."""
    try:
        iterator: Iterator[Any] = iter(values)
    except TypeError:
        raise InvalidValue(f"{what} must be many, a list say; {shown(values)} is not") from None
    return iterator
