"""The dogpile.cache backends that a deployment may name: ours, and those of dogpile's that never unpickle.

Whoever can write to a cache chooses what is read from it, and to unpickle that is to run it. dogpile's interface does
not tell whether a backend or its driver unpickles, so each of these was looked at, and
tests/test_hostile_entries.py tries each. Entry points are not asked: any distribution can have one, of any name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dogpile.cache import register_backend

MEMORY, MEMCACHED, REDIS = "cellcache.memory", "cellcache.memcached", "cellcache.redis"
PYMEMCACHE = "dogpile.cache.pymemcache"

OURS: Mapping[str, tuple[str, str]] = {  # module and class
    MEMORY: ("cellcache.backends.memory", "MemoryBackend"),
    MEMCACHED: ("cellcache.backends.memcached", "MemcachedBackend"),
    REDIS: ("cellcache.backends.redis", "RedisBackend"),
}
OTHERS: Mapping[str, tuple[str, str]] = {
    "dogpile.cache.null": ("dogpile.cache.backends.null", "NullBackend"),
    "dogpile.cache.memory": ("dogpile.cache.backends.memory", "MemoryBackend"),
    "dogpile.cache.memory_pickle": ("dogpile.cache.backends.memory", "MemoryPickleBackend"),  # but no bytes of ours
    "dogpile.cache.dbm": ("dogpile.cache.backends.file", "DBMBackend"),
    PYMEMCACHE: ("dogpile.cache.backends.memcached", "PyMemcacheBackend"),  # with BytesAlone
    "dogpile.cache.redis": ("dogpile.cache.backends.redis", "RedisBackend"),
    "dogpile.cache.redis_sentinel": ("dogpile.cache.backends.redis", "RedisSentinelBackend"),
    "dogpile.cache.redis_cluster": ("dogpile.cache.backends.redis", "RedisClusterBackend"),
    "dogpile.cache.valkey": ("dogpile.cache.backends.valkey", "ValkeyBackend"),
    "dogpile.cache.valkey_sentinel": ("dogpile.cache.backends.valkey", "ValkeySentinelBackend"),
    "dogpile.cache.valkey_cluster": ("dogpile.cache.backends.valkey", "ValkeyClusterBackend"),
}


class BytesAlone:
    """pymemcache's serializer, in the place of dogpile's default: bytes both ways, whatever an item's flags say."""

    def serialize(self, key: Any, value: bytes) -> tuple[bytes, int]:  # noqa: ARG002
        return value, 0

    def deserialize(self, key: Any, value: bytes, flags: int) -> bytes:  # noqa: ARG002
        return value


def register(name: str) -> None:
    """Have dogpile find this backend where it is known to be: others write to its registry, too."""
    register_backend(name, *{**OURS, **OTHERS}[name])  # type: ignore[no-untyped-call]
