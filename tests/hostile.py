"""What a caller may send in place of a UUID or of anything else, and what a shell sends where a variable is not set."""

from __future__ import annotations

import math
import uuid
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

BLANKS = ["", "  ", "\t", "\N{NO-BREAK SPACE}", "\N{ZERO WIDTH SPACE}\ufeff"]
"""Texts in which there is nothing to see."""

STEERING = (
    "\x1b]0;owned\x07\x1b]52;c;b3duZWQ=\x07\x9b31m\r\ncellcache: all is well\u2028[/b][red]"
    "\N{RIGHT-TO-LEFT OVERRIDE}\N{PARAGRAPH SEPARATOR}\udcff" + "long " * 12_000
)
"""A title and a clipboard for a terminal, a line that looks like one of ours, markup that ends nothing, and 60 KB."""

_GOOD = "0d4ed1d2-8b8c-4e0a-9a43-3b1f3ad1e4ab"
_FULLWIDTH = {ord(digit): ord(digit) + 0xFEE0 for digit in "0123456789abcdef"}
_ARABIC_INDIC = {ord(digit): 0x660 + int(digit) for digit in "0123456789"}

_VALUES: dict[str, Any] = {
    "empty": "",
    "a word": "cell1",
    "a newline behind": _GOOD + "\n",
    "a newline before": "\n" + _GOOD,
    "a space behind": _GOOD + " ",
    "a space within": _GOOD[:10] + " " + _GOOD[11:],
    "two with a newline": f"{_GOOD}\n{_GOOD}",
    "two with a space": f"{_GOOD} {_GOOD}",
    "a command": f"{_GOOD}\r\nflush_all\r\n",
    "a command of the same length": "\r\nflush_all\r\n".center(36, "0"),
    "another command": "x b v\r\nmd x\r\n",
    "a Redis command": "*1\r\n$8\r\nFLUSHALL\r\n",
    "NUL": "\0",
    "NUL behind": _GOOD + "\0",
    "NUL within": _GOOD[:-1] + "\0",
    "long": "a" * 100_000,
    "long and hexadecimal": _GOOD * 2700,
    "one digit short": _GOOD[:-1],
    "one digit more": _GOOD + "0",
    "not hexadecimal": _GOOD[:-1] + "g",
    "hyphens elsewhere": "0d4ed1d28-b8c-4e0a-9a43-3b1f3ad1e4ab",
    "too few hyphens": _GOOD.replace("-", "", 1),
    "nothing but hyphens": "-" * 36,
    "braces": "{" + _GOOD + "}",
    "URN": "urn:uuid:" + _GOOD,
    "hexadecimal prefix": "0x" + _GOOD.replace("-", "")[2:],
    "underscores": "0d4ed1d2_8b8c_4e0a_9a43_3b1f3ad1e4ab",
    "a sign": "+" + _GOOD.replace("-", "")[1:],
    "fullwidth digits": _GOOD.translate(_FULLWIDTH),
    "one fullwidth digit": _GOOD[:-1] + "\uff42",
    "Arabic-Indic digits": _GOOD.translate(_ARABIC_INDIC),
    "Cyrillic a": _GOOD.replace("a", "\u0430"),
    "a lone surrogate": _GOOD[:-1] + "\ud800",
    "an SQL text": "' OR 1=1 --",
    "bytes": _GOOD.encode(),
    "the 16 bytes": uuid.UUID(_GOOD).bytes,
    "bytearray": bytearray(_GOOD, "ascii"),
    "None": None,
    "an int": uuid.UUID(_GOOD).int,
    "zero": 0,
    "a float": 1.5,
    "a list": [_GOOD],
    "a tuple": (_GOOD,),
    "a set": {_GOOD},
    "a dict": {_GOOD: _GOOD},
    "an object": object(),
    "a class": uuid.UUID,
}

HOSTILE = [pytest.param(value, id=name) for name, value in _VALUES.items()]
HOSTILE_VALUES = list(_VALUES.values())


class _Unprintable:
    """Not even to be shown in an error's text."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


UNPRINTABLE: list[Any] = [10**5000, [10**5000], {"a": _Unprintable()}, _Unprintable()]
"""Python refuses to write the first as a number."""

_TEXTS = [
    "\N{RIGHT-TO-LEFT OVERRIDE}1lleC", "\udcff", "x" * 100_000, "%s%n", "a,b;c'd\"e", "../..", "head+1", "9" * 30,
    "nan", "sqlite://", "mysql+pymysql://h..x/d", "mysql+pymysql://h:99999999999/d", "postgresql+psycopg://[",
]  # fmt: skip
_NUMBERS = [
    True, False, 0, -1, 2**31, 2**63, -(2**63) - 1, 0.5, math.nan, math.inf, -math.inf, 1e308, 5e-324, Decimal("NaN"),
    Decimal(10), Fraction(1, 3), 1j,
]  # fmt: skip
_OTHERS = [
    b"",
    b"\xff",
    datetime.min.replace(tzinfo=UTC),
    date.max,
    Path("a\0b"),
    Ellipsis,
    NotImplemented,
    print,
    iter(()),
]

_LEAVES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([*BLANKS, *_TEXTS, *_NUMBERS, *_OTHERS, *HOSTILE_VALUES]),
    st.text(max_size=30),
    st.integers(),
    st.floats(),
    st.binary(max_size=20),
)

ANYTHING = st.recursive(
    _LEAVES,
    lambda some: st.lists(some, max_size=3) | st.tuples(some, some, some) | st.dictionaries(st.text(max_size=5), some),
    max_leaves=4,
)
"""Whatever a caller may send in place of anything."""

_WORDS = [
    "-", "--", "-1", "0", "1", "9" * 5000, "inf", "1e999", "9999999d", "\x1b[2J", "\r\n", "[bold]", "[/]", "/", ".",
    "\\", "redis://h..x", "a:b@c:d@e",
]  # fmt: skip

WORDS = st.one_of(
    st.sampled_from([*BLANKS, *_TEXTS, *_WORDS, *(value for value in HOSTILE_VALUES if isinstance(value, str))]),
    st.text(max_size=30),
).map(lambda text: text.replace("\0", ""))
"""Whatever a shell may hand to a command: bytes that are no UTF-8 among them, but no NUL."""
