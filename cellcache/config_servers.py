"""What memcached and Redis demand of [cache], and what their protocols cannot carry."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pydantic import SecretStr

from cellcache.known_backends import MEMCACHED

if TYPE_CHECKING:
    from cellcache.config import CacheSettings

_MEMCACHED_LONGEST_S = 30 * 86400.0
_MEMCACHED_LONGEST_LOGIN = 254  # bytes of a line "name:password" in the file that -Y names
# In the handshake a blank ends the name, and the password.
_memcached_name = re.compile(r"[^\0-\x20\x7f:]*").fullmatch
_memcached_password = re.compile(r"[^\0-\x20\x7f]*").fullmatch


def server_contradictions(cache: CacheSettings) -> Iterator[tuple[str, str]]:
    """Yield each key that the servers of this backend cannot do with, or without, and why."""
    yield from _memcached(cache) if cache.backend == MEMCACHED else _redis(cache)
    if cache.username and not cache.password:
        yield "username", "needs password or password_file"
    if cache.timeout_s >= cache.lease_ttl_s:
        yield "timeout_s", f"must be less than lease_ttl_s ({cache.lease_ttl_s:g}); it is in seconds: 0.05 is 50 ms"
    if cache.tls_key and not cache.tls_cert:
        yield "tls_key", "needs tls_cert, the certificate that it belongs to"


def clear(secret: SecretStr | None) -> str:
    """Return a secret as it is; nothing where there is none."""
    return secret.get_secret_value() if secret else ""


def _memcached(cache: CacheSettings) -> Iterator[tuple[str, str]]:
    if not cache.servers:
        yield "servers", 'cellcache.memcached needs at least one, such as ["127.0.0.1:11211"]'
    if len(set(cache.servers)) < len(cache.servers):
        yield "servers", "must name each server once"
    for key in ("ttl_s", "negative_ttl_s", "fence_ttl_s"):
        if getattr(cache, key) > _MEMCACHED_LONGEST_S:
            yield key, "must be at most 2592000, 30 days: memcached takes what is longer for a date in 1970"
    if cache.password and not cache.username:
        yield "username", "must be given with the password: memcached knows no password without a name"
    name, password = cache.username or "", clear(cache.password)
    if not _memcached_name(name):
        yield "username", "must hold no blank, colon or control character: memcached would read another name"
    if not _memcached_password(password):
        yield "password", "must hold no blank or control character: memcached would read another password"
    if len(f"{name}:{password}".encode()) > _MEMCACHED_LONGEST_LOGIN:
        yield "password", f"must be shorter: memcached reads {_MEMCACHED_LONGEST_LOGIN} bytes of name:password"
    sockets = [server for server in cache.servers if server.startswith("unix:")]
    if cache.tls and sockets:
        yield "tls", f"belongs to host:port; what goes through {sockets[0]} is not encrypted"
    for key in ("tls_ca", "tls_cert"):
        if getattr(cache, key) and not cache.tls:
            yield key, "TLS is off: set tls = true as well"


def _redis(cache: CacheSettings) -> Iterator[tuple[str, str]]:
    if not cache.url:
        yield "url", "cellcache.redis needs one, such as redis://127.0.0.1:6379/0"
        return
    parts = urlsplit(clear(cache.url))
    if parts.username and not parts.password and not cache.password:
        yield "url", "names a user without a password; a password alone is written redis://:password@host"
    for key in ("tls", "tls_ca", "tls_cert"):
        if getattr(cache, key) and parts.scheme == "unix":
            yield key, "belongs to rediss://; what goes through a Unix socket is not encrypted"
        elif getattr(cache, key) and parts.scheme != "rediss":
            yield key, "TLS to Redis is asked for in the URL: begin url with rediss://"
