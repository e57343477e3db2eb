"""The dogpile.cache region that a deployment configures, and what the directory needs of its backend.

The region is keyed by instance UUID and holds the UUID of the cell, or None for "not mapped". Over our own backends
every region is coherent; over any other the directory does what dogpile's interface allows (see plain.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dogpile.cache import CacheRegion, make_region
from dogpile.cache.api import NO_VALUE, CachedValue, CantDeserializeException
from dogpile.cache.proxy import ProxyBackend
from dogpile.cache.region import RegionInvalidationStrategy, value_version

from cellcache.codec import Undecodable, decode, encode
from cellcache.config import CacheSettings
from cellcache.errors import BackendUnsupported, CellCacheError, ConfigError
from cellcache.known_backends import MEMORY, PYMEMCACHE, BytesAlone, register
from cellcache.local import LocalLayer
from cellcache.model import canonical_uuid
from cellcache.plain import PlainBackend
from cellcache.protocol import CoherentBackend
from cellcache.signing import SignedBackend, Signing


def open_region(settings: CacheSettings, *, name: str, signing: Signing | None) -> tuple[CacheRegion, CoherentBackend]:
    """Return the region and its backend as the directory uses it; nothing is connected yet.

    `name` tells the in-process stores of different databases apart; no other backend is told it. Raises ConfigError for
    arguments that the backend cannot be made with.
    """
    region = make_region(name="cellcache", key_mangler=canonical_uuid, serializer=encode, deserializer=_decode_or_miss)
    register(settings.backend)
    arguments = settings.backend_arguments()
    if settings.backend == MEMORY:
        arguments["name"] = name
    elif settings.backend == PYMEMCACHE:
        arguments["serde"] = BytesAlone()
    try:
        region.configure(settings.backend, arguments=arguments, region_invalidator=_NoRegionInvalidation())
    except ImportError as error:
        raise ConfigError(
            f"cache.backend: {settings.backend} needs a package that is not installed: {error}"
        ) from error
    except KeyError as error:
        raise ConfigError(f"cache.arguments: {settings.backend} needs an argument {error}") from error
    except ConfigError:
        raise
    except (AttributeError, OSError, TypeError, ValueError) as error:  # its text may quote a secret argument
        raise ConfigError(
            f"cache.arguments: {settings.backend} cannot be made with these ({type(error).__name__})"
        ) from None
    backend = region.actual_backend
    if isinstance(backend, CoherentBackend):
        # The compact form replaces dogpile's own, which puts JSON in front of every value.
        region.serializer = region.deserializer = None
        region.wrap(_CompactValues(signing, ttl_s=settings.ttl_s))
        return region, _layered(backend, signing, settings)
    return region, PlainBackend(region, ttl_s=settings.ttl_s, negative_ttl_s=settings.negative_ttl_s)


def _layered(backend: CoherentBackend, signing: Signing | None, settings: CacheSettings) -> CoherentBackend:
    """Put the layers that a deployment chose in front of its backend."""
    if signing is not None:
        backend = SignedBackend(backend, signing)
    if settings.local_ttl_s:
        backend = LocalLayer(backend, ttl_s=settings.local_ttl_s, max_entries=settings.max_entries)
    return backend


def demand_support(backend: CoherentBackend) -> None:
    """Raise BackendUnsupported if a server that answers cannot keep the promise; one that is down may come later."""
    for node in backend.check():
        if not node.supported:
            raise BackendUnsupported(node.trouble or node.name)


def _decode_or_miss(value: bytes) -> str | None:
    try:
        return decode(value)
    except Undecodable as error:
        raise CantDeserializeException from error


class _NoRegionInvalidation(RegionInvalidationStrategy):
    """Entries carry no time of creation, so "everything before now" cannot be told from the rest."""

    def invalidate(self, hard: bool = True) -> None:  # noqa: ARG002
        raise CellCacheError("a cellcache region cannot be invalidated as a whole: delete its keys, or flush the cache")

    def _never(self, timestamp: float = 0.0) -> bool:  # noqa: ARG002
        return False

    is_invalidated = is_hard_invalidated = is_soft_invalidated = _never
    was_hard_invalidated = was_soft_invalidated = _never


class _CompactValues(ProxyBackend):
    """Between the region and one of our backends: a version byte and 16 bytes in place of dogpile's JSON."""

    proxied: Any

    def __init__(self, signing: Signing | None, *, ttl_s: float) -> None:
        self._signing = signing
        self._ttl_s = ttl_s

    def get(self, key: str) -> Any:
        return self._value(key, self.proxied.get_serialized(key))

    def get_multi(self, keys: Iterable[str]) -> Sequence[Any]:
        keys = list(keys)
        values = self.proxied.get_serialized_multi(keys)
        return [self._value(key, value) for key, value in zip(keys, values, strict=True)]

    def set(self, key: str, value: Any) -> None:
        self.set_multi({key: value})

    def set_multi(self, mapping: Mapping[str, Any]) -> None:
        entries = {key: encode(value.payload) for key, value in mapping.items()}
        if self._signing is not None:
            signer = self._signing.obtain()
            if signer is None:
                return
            entries = {key: signer.signed(key, entry, self._ttl_s) for key, entry in entries.items()}
        self.proxied.set_serialized_multi(entries)

    def _value(self, key: str, value: Any) -> Any:
        if value is NO_VALUE:
            return NO_VALUE
        if self._signing is not None:
            signer = self._signing.obtain()
            if signer is None:
                return self.proxied.pass_over(key)
            value = signer.verified(key, value)
        try:
            payload = decode(value)
        except Undecodable:
            self.proxied.delete(key)
            return NO_VALUE
        return CachedValue(payload, {"ct": time.time(), "v": value_version})
