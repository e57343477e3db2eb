"""The kinds of value that a key of the configuration can have: how each is read, and what it must look like.

Whatever is wrong with a URL is said without quoting it: it may hold a password in any place, most of all where it
is malformed.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable
from ipaddress import IPv6Address
from typing import Annotated, Any
from urllib.parse import urlsplit

from annotated_types import Ge, Gt, Le
from pydantic import AfterValidator, AllowInfNan, BeforeValidator, Secret, SecretStr

from cellcache.arguments import LONGEST_S
from cellcache.database_url import ESCAPE, parsed_database_url
from cellcache.known_backends import OTHERS, OURS
from cellcache.texts import demand_host
from cellcache.tls import verifying_url

_MEMCACHED_PORT = 11211
_server_parts = re.compile(r"(?:\[([^]]*)]|([A-Za-z0-9_.-]+))(?::([0-9]{1,5}))?").fullmatch


def _check_database_url(text: str) -> None:
    url = parsed_database_url(text)
    verifying_url(url)
    if url.get_backend_name() == "sqlite":
        return
    if "@" in f"{url.host}{url.database}":
        raise ValueError(f"has more than one '@'; {ESCAPE}")
    if not url.database:
        raise ValueError("names no database: write driver://user:password@host:port/database")


def _check_redis_url(text: str) -> None:
    allowed = "must be redis://host:port/0, rediss://host:port/0 (with TLS) or unix:///path/to/socket"
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise ValueError(f"{allowed}, the port a number up to 65535; {ESCAPE}") from None
    if url.scheme not in {"redis", "rediss", "unix"} or port == 0:
        raise ValueError(allowed)
    if url.netloc.count("@") > 1 or "@" in url.path + url.query or url.fragment:
        raise ValueError(f"{allowed}; {ESCAPE}")
    demand_host(url.hostname or "")
    if url.scheme == "unix":
        if url.hostname or not url.path.strip("/"):
            raise ValueError("must name the socket by its full path: unix:///run/redis/redis.sock")
    elif not re.fullmatch(r"/?|/[0-9]+", url.path):
        raise ValueError("must end in the number of a database, or in none: redis://host:6379/0")


def _full_server_address(text: str) -> str:
    """Return a memcached server's address in its one form, with the port.

    Where a key lives is computed from this form, so two ways of writing one address must come out as one.
    """
    allowed = "must be host:port, [IPv6 address]:port or unix:/path/to/socket"
    if text.startswith("unix:"):
        if not text.startswith("unix:/") or text == "unix:/":
            raise ValueError(allowed)
        return text
    parts = _server_parts(text)
    if parts is None:
        raise ValueError(f"{allowed}; an IPv6 address stands in brackets" if text.count(":") > 1 else allowed)
    ipv6, host, port = parts[1], parts[2], int(parts[3] or _MEMCACHED_PORT)
    if not 1 <= port <= 65535:
        raise ValueError(f"{allowed}, the port from 1 to 65535")
    demand_host(host or "")
    try:
        return f"{host.lower()}:{port}" if host else f"[{IPv6Address(ipv6)}]:{port}"
    except ValueError:
        raise ValueError(f"{allowed}; what stands in the brackets is no IPv6 address") from None


def _check_backend(name: str) -> str:
    if name not in {*OURS, *OTHERS}:
        near = difflib.get_close_matches(f"cellcache.{name.rpartition('.')[2]}", OURS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"must be {', '.join(OURS)}, or one of dogpile.cache's that never unpickle, and so run, what others can "
            f"write to a cache: {', '.join(OTHERS)}{hint}"
        )
    return name


def _check_key_prefix(text: str) -> str:
    if not re.fullmatch("[!-~]{0,32}", text):
        raise ValueError("must be at most 32 printable ASCII characters, without spaces")
    return text


def _not_a_flag(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number")  # noqa: TRY004 - pydantic takes a TypeError for a bug
    return value


def _as_list(value: object) -> object:
    """Read a list from text, as the environment gives it: JSON, or commas between its items."""
    if not isinstance(value, str):
        if not isinstance(value, list | tuple):
            raise ValueError('must be a list of addresses: ["127.0.0.1:11211"]')  # noqa: TRY004 - as above
        return value
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):  # "[::1]:11211,[::2]:11211" begins like JSON and is none
        parsed = None
    return parsed if isinstance(parsed, list) else [item for item in map(str.strip, value.split(",")) if item]


def _as_table(value: object) -> object:
    try:
        table = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict | Secret):
        raise ValueError("must be a table of arguments, [cache.arguments]; in the environment, JSON")  # noqa: TRY004
    return table


def _checked_by(check: Callable[[str], None]) -> AfterValidator:
    def checked(secret: SecretStr) -> SecretStr:
        check(secret.get_secret_value())
        return secret

    return AfterValidator(checked)


Seconds = Annotated[float, BeforeValidator(_not_a_flag), Gt(0), Le(LONGEST_S), AllowInfNan(allow_inf_nan=False)]
Wait = Annotated[Seconds, Le(86_400)]
"""How long something is waited for: a socket takes 24 days at most."""
Count = Annotated[int, BeforeValidator(_not_a_flag), Ge(1), Le(2**31 - 1)]
DatabaseUrl = Annotated[SecretStr, _checked_by(_check_database_url)]
RedisUrl = Annotated[SecretStr, _checked_by(_check_redis_url)]
Backend = Annotated[str, AfterValidator(_check_backend)]
Server = Annotated[str, AfterValidator(_full_server_address)]
Servers = Annotated[tuple[Server, ...], BeforeValidator(_as_list)]
KeyPrefix = Annotated[str, AfterValidator(_check_key_prefix)]
Arguments = Annotated[Secret[dict[str, Any]], BeforeValidator(_as_table)]
