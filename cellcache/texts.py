"""Texts that callers give us to store: such as every database takes, or InvalidValue before any is asked."""

from __future__ import annotations

import re

from cellcache.errors import InvalidValue

LONGEST_NAME = 255
LONGEST_URL = 1 << 20

_refused_by_some_database = re.compile("[\0\ud800-\udfff]").search


def demand_text(what: str, value: object, *, longest: int, shortest: int = 1, secret: bool = False) -> str:
    """Return a text of so many characters, without NUL and lone surrogates; `secret` ones are never quoted."""
    if isinstance(value, str) and shortest <= len(value) <= longest and not _refused_by_some_database(value):
        return value
    shown = "" if secret else f" {repr(value)[:40]}"
    raise InvalidValue(f"{what}{shown} is not a text of {shortest} to {longest} characters that a database can hold")
