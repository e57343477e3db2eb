"""Which backends each key of [cache] belongs to. One that does nothing where it stands is an error, not an ornament."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import Secret, SecretStr

from cellcache.known_backends import MEMCACHED, MEMORY, OURS, REDIS

_OTHERS = "other dogpile.cache backends"
_SERVERS = (MEMCACHED, REDIS)
_OWNERS: Mapping[str, tuple[str, ...]] = {
    "servers": (MEMCACHED,),
    "url": (REDIS,),
    "username": _SERVERS,
    "password": _SERVERS,
    "timeout_s": _SERVERS,
    "retry_s": _SERVERS,
    "lease_ttl_s": tuple(OURS),
    "key_prefix": _SERVERS,
    "on_unreachable": (*_SERVERS, _OTHERS),
    "max_entries": tuple(OURS),
    "local_ttl_s": _SERVERS,
    "signing_key": _SERVERS,
    "previous_signing_key": _SERVERS,
    "tls": _SERVERS,
    "tls_ca": _SERVERS,
    "tls_cert": _SERVERS,
    "tls_key": _SERVERS,
    "arguments": (_OTHERS,),
}
"""The keys that are not here belong to every backend."""


def strays(backend: str, written: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Yield each key that somebody has set and the backend does not use, and to whom it belongs."""
    kind = backend if backend in OURS else _OTHERS
    here = f"cache.backend is {backend}" + ("" if "backend" in written else ", the default")
    for key, owners in _OWNERS.items():
        name = f"{key}_file" if f"{key}_file" in written else key
        if kind not in owners and _says_something(written.get(name)):
            yield name, f"belongs to {_listed(owners)}; {here}"
    if backend in _SERVERS and "max_entries" in written and not written.get("local_ttl_s"):
        yield "max_entries", f"belongs to {MEMORY}, or to local_ttl_s, which is not set; {here}"


def _says_something(value: object) -> bool:
    return bool(value.get_secret_value() if isinstance(value, Secret | SecretStr) else value)


def _listed(names: tuple[str, ...]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
