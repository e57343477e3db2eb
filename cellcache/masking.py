"""How a URL is shown to people: without what would let them in.

Rather too much is hidden than too little: a password that holds `@`, `/` or `,` unescaped takes the host with it.
"""

from __future__ import annotations

import re

MASK = "***"

_url_in_text = re.compile(r"\b[a-zA-Z][a-zA-Z0-9+.-]*://[^\s'\"<>`]+").sub
_TELLING = "pass|pwd|secret|token|key|cred|auth"
_sounds_secret = re.compile(_TELLING, re.IGNORECASE).search
_secret_parameter = re.compile(rf"([?&;][^=&;\s]*(?:{_TELLING})[^=&;\s]*=)[^&;\s]*", re.IGNORECASE).sub


def mask_url(url: str) -> str:
    """Return the URL with its password, and every parameter that sounds like one, replaced by `***`."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    credentials, at, place = rest.rpartition("@")
    user, colon, _ = credentials.partition(":")
    shown = f"{user}{colon and f':{MASK}'}{at}{place}"
    return scheme + separator + _secret_parameter(rf"\g<1>{MASK}", shown)


def sounds_secret(parameter: str) -> bool:
    """Return whether a URL's parameter of this name is masked."""
    return _sounds_secret(parameter) is not None


def mask_text(text: str) -> str:
    """Return a message with every URL in it masked: the last guard over texts that others wrote."""
    return _url_in_text(lambda found: mask_url(found[0]), text)
