"""Texts that callers give us to store: such as every database takes, or InvalidValue before any is asked."""

from __future__ import annotations

import re

from cellcache.errors import InvalidValue

LONGEST_NAME = 255
LONGEST_URL = 1 << 20

_begins_like_a_url = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,63}://").match
_refused_by_some_database = re.compile("[\0\ud800-\udfff]").search


def demand_text(what: str, value: object, *, longest: int, shortest: int = 1, secret: bool = False) -> str:
    """Return a text of so many characters, without NUL and lone surrogates; `secret` ones are never quoted."""
    if isinstance(value, str) and shortest <= len(value) <= longest and not _refused_by_some_database(value):
        return value
    shown = "" if secret else f" {repr(value)[:40]}"
    raise InvalidValue(f"{what}{shown} is not a text of {shortest} to {longest} characters that a database can hold")


def demand_transport_url(value: object) -> str:
    """Return the URL of a message queue; what is none could not be shown without its password."""
    text = demand_text("transport_url", value, longest=LONGEST_URL, secret=True)
    if not _begins_like_a_url(text):
        raise InvalidValue(
            "transport_url is not a URL: write it as rabbit://user:password@host:5672/virtual_host, or as none:///"
        )
    return text
