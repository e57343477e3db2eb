"""Texts that callers give us to store: such as every database takes, or InvalidValue before any is asked."""

from __future__ import annotations

import re
import unicodedata

from cellcache.errors import InvalidValue
from cellcache.foreign import shown

LONGEST_NAME = 255
LONGEST_URL = 1 << 20

_begins_like_a_url = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,63}://").match
_SEEN = ("L", "N", "P", "S", "Cs")  # the last: a byte that is no UTF-8, which is no blank though it is no letter
_refused_by_some_database = re.compile("[\0\ud800-\udfff]").search


def is_blank(text: str) -> bool:
    """Return whether there is nothing to see in it: no letter, digit, punctuation mark or symbol.

    That is what a shell makes of a variable that is not set, and "no restriction" is what it must never mean.
    """
    return not any(unicodedata.category(character).startswith(_SEEN) for character in text)


def demand_text(what: str, value: object, *, longest: int, secret: bool = False) -> str:
    """Return a text that is not blank and has no NUL and no lone surrogates; `secret` ones are never quoted."""
    if isinstance(value, str) and len(value) <= longest and not (_refused_by_some_database(value) or is_blank(value)):
        return value
    quoted = "" if secret else f" {shown(value)}"
    raise InvalidValue(
        f"{what}{quoted} is not a text of 1 to {longest} characters that a database can hold and people can see"
    )


def demand_host(name: str) -> None:
    """Raise ValueError for two dots in a row, or more than 63 characters between two: no resolver can be asked then.

    Python would say so with an error that is not an OSError, wherever the name is first used.
    """
    try:
        name.encode("idna")
    except UnicodeError:
        raise ValueError("names a host that cannot be: 1 to 63 characters stand between its dots") from None


def demand_transport_url(value: object) -> str:
    """Return the URL of a message queue; what is none could not be shown without its password."""
    text = demand_text("transport_url", value, longest=LONGEST_URL, secret=True)
    if not _begins_like_a_url(text):
        raise InvalidValue(
            "transport_url is not a URL: write it as rabbit://user:password@host:5672/virtual_host, or as none:///"
        )
    return text
