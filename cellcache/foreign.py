"""What others wrote, as people are shown it: a server's reply, a driver's error, a row, a file, a caller's argument.

It may hold whatever a terminal obeys (a title, the clipboard, colours), lines that look like ours, or megabytes.
"""

from __future__ import annotations

import reprlib

LONGEST = 2000

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60


def printable(text: object) -> str:
    """Return a text as one line that cannot steer a terminal, and no longer than people read."""
    whole = str(text)
    if len(whole) > LONGEST:
        return f"{printable(whole[:LONGEST])}... ({len(whole):,} characters)"
    if whole.isprintable():
        return whole
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in whole)


def shown(value: object) -> str:
    """Return a refused value as an error's text quotes it: short, whatever it is."""
    if isinstance(value, bytes | bytearray):
        value = value[: _short.maxstring]
    try:
        return _short.repr(value)
    except Exception:  # noqa: BLE001 - its own `repr` fails, as that of an int of 5,000 digits does
        return f"something of type {type(value).__name__}"
