"""Signed entries: who can write to the cache and lacks the key can make entries go, not make them lie.

The signature is keyed BLAKE2b over the instance's UUID and the value, so a valid entry of one instance is worthless
under another. What it does not stop is in docs/security.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from hmac import compare_digest

from cellcache.protocol import Absent, CoherentBackend, Fence, Fill, Held, Lease, NodeStatus, Seen, Settlement

SIGNATURE_SIZE = 16
_UNVERIFIED = b"\xff"  # no release's version byte: the reader discards it as it does any other garbage


class Signer:
    """Signs with the first key and accepts the signature of any, so that keys can be changed one after the other."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        # The longest that BLAKE2b takes is 64 bytes; whatever a deployment gives becomes a key of 32.
        self._keys = [blake2b(key, digest_size=32, person=b"cellcache-key").digest() for key in keys]

    def signed(self, key: str, value: bytes) -> bytes:
        return value + _signature(self._keys[0], key, value)

    def verified(self, key: str, entry: bytes) -> bytes:
        """Return the value without its signature, or bytes that no reader takes for a value."""
        value, signature = entry[:-SIGNATURE_SIZE], entry[-SIGNATURE_SIZE:]
        if any(compare_digest(signature, _signature(secret, key, value)) for secret in self._keys):
            return value
        return _UNVERIFIED


def _signature(secret: bytes, key: str, value: bytes) -> bytes:
    return blake2b(key.encode() + value, key=secret, digest_size=SIGNATURE_SIZE).digest()


class SignedBackend:
    """A CoherentBackend whose values are signed on their way into another one and verified on their way out."""

    held: dict[object, Held] = {}  # noqa: RUF012 - nothing is ever put in

    def __init__(self, backend: CoherentBackend, signer: Signer) -> None:
        self.promise = f"{backend.promise}; entries are signed"
        self._backend = backend
        self._signer = signer

    @property
    def errors(self) -> int:
        return self._backend.errors

    def lookup(self, key: str) -> bytes | Lease | Absent:
        entry = self._backend.lookup(key)
        return self._signer.verified(key, entry) if isinstance(entry, bytes) else entry

    def lookup_multi(self, keys: Sequence[str]) -> list[bytes | Lease | Absent]:
        verified = self._signer.verified
        entries = zip(keys, self._backend.lookup_multi(keys), strict=True)
        return [verified(key, entry) if isinstance(entry, bytes) else entry for key, entry in entries]

    def peek_multi(self, keys: Sequence[str]) -> list[Seen]:
        verified = self._signer.verified
        entries = zip(keys, self._backend.peek_multi(keys), strict=True)
        return [verified(key, entry) if isinstance(entry, bytes) else entry for key, entry in entries]

    def send_fills(self, fills: Sequence[Fill], refused: Callable[[int], object], *, wait: bool) -> None:
        signed = self._signer.signed
        self._backend.send_fills(
            [fill._replace(value=signed(fill.key, fill.value)) for fill in fills], refused, wait=wait
        )

    def fence_multi(self, keys: Sequence[str]) -> list[Fence]:
        return self._backend.fence_multi(keys)

    def settle_multi(self, settlements: Sequence[Settlement]) -> list[bool]:
        signed = self._signer.signed
        return self._backend.settle_multi(
            [one if one.value is None else one._replace(value=signed(one.key, one.value)) for one in settlements]
        )

    def invalidate_multi(self, keys: Sequence[str]) -> list[bool]:
        return self._backend.invalidate_multi(keys)

    def check(self) -> list[NodeStatus]:
        return self._backend.check()

    def forget_connections(self) -> None:
        self._backend.forget_connections()

    def close(self) -> None:
        self._backend.close()
