"""What a caller may send in place of a UUID, and what a shell sends where a variable is not set."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

BLANKS = ["", "  ", "\t", "\N{NO-BREAK SPACE}", "\N{ZERO WIDTH SPACE}\ufeff"]
"""Texts in which there is nothing to see."""

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
