"""How a URL is shown to people: without what would let them in.

It is taken apart, and what does not come apart as a URL should is not shown. Rather too much is hidden than too
little: a password that holds `@`, `/` or `,` unescaped takes the host with it.
"""

from __future__ import annotations

import re
from urllib.parse import unquote_plus

MASK = "***"

# Each pattern looks at a character once: a hostile server chooses the texts that they are run over.
_rest_of_url = re.compile(r"://[^\s'\"<>`]+").sub
_TELLING = "pass|pwd|secret|token|key|cred|auth"
_sounds_secret = re.compile(_TELLING, re.IGNORECASE).search
_is_place = re.compile(r"(?:[^:@/?\[\]]++|\[[0-9A-Fa-f:.%]*+\]|:[0-9]*+(?=[,/:.;)]|$))*+").fullmatch


def mask_url(url: str) -> str:
    """Return the URL with its password, and every parameter that sounds like one, replaced by `***`."""
    scheme, separator, rest = url.partition("://")
    return scheme + separator + _masked(rest) if separator else MASK


def sounds_secret(parameter: str) -> bool:
    """Return whether a URL's parameter of this name is masked."""
    return _sounds_secret(unquote_plus(parameter)) is not None


def mask_text(text: str) -> str:
    """Return a message with every URL in it masked: the last guard over texts that others wrote."""
    return _rest_of_url(lambda found: f"://{_masked(found[0].removeprefix('://'))}", text)


def _masked(rest: str) -> str:
    """Mask what stands behind `://`: `user:password@place?parameters`."""
    before, mark, parameters = rest.partition("?")
    credentials, at, place = before.rpartition("@")
    authority, _, _ = place.partition("/")
    if "@" in parameters or not _is_place(authority):
        return MASK  # a password with a `?` in it, or one that stands where the port should: who knows where it ends
    user, colon, _ = credentials.partition(":")
    shown = [_masked_parameter(one) for one in parameters.split("&")]
    return f"{user}{colon and f':{MASK}'}{at}{place}{mark}{'&'.join(shown)}"


def _masked_parameter(parameter: str) -> str:
    """Mask the value, also where another parameter hides in it: some drivers separate them by `;`."""
    name, equals, value = parameter.partition("=")
    hides = sounds_secret(name) or ("=" in unquote_plus(value) and sounds_secret(value))
    return f"{name}={MASK}" if equals and hides else parameter
