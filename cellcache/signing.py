"""Signed entries: who can write to the cache and lacks the key can make entries go, not make them lie.

An entry is a value with the version of signed entries in the place of its own, the second in which it is over, and the
signature: keyed BLAKE2b over what the entry is for (the key prefix, the deployment, the instance) and all of the above.
So it is worthless under another instance or prefix, in another deployment, and later. Seconds are those of the
database's clock, since hosts' clocks differ. What this does not stop is in docs/security.md.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from hashlib import blake2b
from hmac import compare_digest
from time import monotonic
from uuid import UUID

from cellcache.agreement import Agreement
from cellcache.codec import MAPPED_SIZE, VERSION
from cellcache.errors import CellCacheError
from cellcache.protocol import Absent, CoherentBackend, Fence, Fill, Held, Lease, NodeStatus, Seen, Settlement

log = logging.getLogger(__name__)

SIGNED_VERSION = b"\x02"
UNTIL_SIZE = 5  # seconds since 1970 for 34,000 years: whatever a database's clock shows, it fits
SIGNATURE_SIZE = 16
SIGNED_SIZE = MAPPED_SIZE + UNTIL_SIZE + SIGNATURE_SIZE
"""Of the entry of an instance that is mapped."""

FORGED = b"\xff"
OVER = b"\xfe"
"""In place of a value, where there is none: no release's version bytes, so a reader discards them as any garbage."""

_RETRY_S = 1.0


class Signer:
    """Signs with the first key and accepts the signature of any, so that keys can be changed one after the other."""

    def __init__(self, keys: Sequence[bytes], prefix: str, agreement: Agreement) -> None:
        # What is signed is of fixed length, or its length stands in front, or it stands last: no two read the same.
        # Whatever else an entry is to be for, an epoch, say, joins these.
        purpose = bytes([len(prefix)]) + prefix.encode() + UUID(agreement.deployment).bytes
        # The longest that BLAKE2b takes is 64 bytes; whatever a deployment gives becomes a key of 32.
        secrets = [blake2b(key, digest_size=32, person=b"cellcache-key").digest() for key in keys]
        self._begun = [blake2b(purpose, key=secret, digest_size=SIGNATURE_SIZE) for secret in secrets]
        self._earliest_s, self._latest_s = agreement.time

    def signed(self, key: str, value: bytes, ttl_s: float) -> bytes:
        """Return the entry for a value that the cache is to hold for `ttl_s`; `key` is an instance's canonical UUID.

        It is over no sooner than the cache drops it, though memcached rounds to whole seconds. Readers go by the
        earliest that the database's clock can show, so it is theirs for up to four seconds and two round trips more.
        """
        until = math.ceil(monotonic() + self._latest_s) + math.ceil(ttl_s)
        body = SIGNED_VERSION + value[1:] + until.to_bytes(UNTIL_SIZE)
        signature = self._begun[0].copy()
        signature.update(key.encode() + body)
        return body + signature.digest()

    def verified(self, key: str, entry: bytes) -> bytes:
        """Return the value, or FORGED or OVER."""
        body, given = entry[:-SIGNATURE_SIZE], entry[-SIGNATURE_SIZE:]
        signed = key.encode() + body
        for begun in self._begun:
            signature = begun.copy()
            signature.update(signed)
            if compare_digest(signature.digest(), given):
                if int.from_bytes(body[-UNTIL_SIZE:]) < monotonic() + self._earliest_s:
                    return OVER
                return VERSION + body[1:-UNTIL_SIZE]
        return FORGED


class Signing:
    """The signer, made anew with each reading of the agreement; there is none before the first."""

    def __init__(self, keys: Sequence[bytes], prefix: str, read: Callable[[], Agreement]) -> None:
        self.signer: Signer | None = None
        self._keys = keys
        self._prefix = prefix
        self._read = read
        self._next_try_at = -math.inf
        self._warned = False

    def refresh(self) -> None:
        """Read the agreement. Raises DatabaseUnavailable, or SchemaError where its table or identity is missing."""
        self.signer = Signer(self._keys, self._prefix, self._read())

    def obtain(self) -> Signer | None:
        """Return the signer; while there is none, read the agreement first, but once a second at most."""
        if self.signer is None and monotonic() >= self._next_try_at:
            self._next_try_at = monotonic() + _RETRY_S
            try:
                self.refresh()
            except CellCacheError as error:
                if not self._warned:
                    log.warning("lookups go to SQL, as entries cannot be signed or verified yet: %s", error)
                self._warned = True
        return self.signer


class SignedBackend:
    """A CoherentBackend whose values are signed on their way into another one and verified on their way out.

    Before there is a signer it leaves what stands in the cache alone, and asks for nothing.
    """

    held: dict[object, Held] = {}  # noqa: RUF012 - nothing is ever put in

    def __init__(self, backend: CoherentBackend, signing: Signing) -> None:
        self.promise = f"{backend.promise}; entries are signed"
        self._backend = backend
        self._signing = signing

    @property
    def errors(self) -> int:
        return self._backend.errors

    def lookup(self, key: str) -> bytes | Lease | Absent:
        signer = self._signing.signer or self._signing.obtain()
        if signer is None:
            return Absent.UNVERIFIABLE
        entry = self._backend.lookup(key)
        return signer.verified(key, entry) if isinstance(entry, bytes) else entry

    def lookup_multi(self, keys: Sequence[str]) -> list[bytes | Lease | Absent]:
        signer = self._signing.obtain()
        if signer is None:
            return [Absent.UNVERIFIABLE] * len(keys)
        verified = signer.verified
        entries = zip(keys, self._backend.lookup_multi(keys), strict=True)
        return [verified(key, entry) if isinstance(entry, bytes) else entry for key, entry in entries]

    def peek_multi(self, keys: Sequence[str]) -> list[Seen]:
        """Say of an entry that is over that nothing stands there: no reader takes it for an answer."""
        signer = self._signing.obtain()
        if signer is None:
            return [Absent.UNVERIFIABLE] * len(keys)
        verified = signer.verified
        entries = zip(keys, self._backend.peek_multi(keys), strict=True)
        seen = [verified(key, entry) if isinstance(entry, bytes) else entry for key, entry in entries]
        return [None if value is OVER else value for value in seen]

    def send_fills(self, fills: Sequence[Fill], refused: Callable[[int], object], *, wait: bool) -> None:
        signer = self._signing.obtain()
        if signer is None:
            refused(len(fills))
            return
        signed = [fill._replace(value=signer.signed(fill.key, fill.value, fill.ttl_s)) for fill in fills]
        self._backend.send_fills(signed, refused, wait=wait)

    def fence_multi(self, keys: Sequence[str]) -> list[Fence]:
        return self._backend.fence_multi(keys)

    def settle_multi(self, settlements: Sequence[Settlement]) -> list[bool]:
        signer = self._signing.obtain()
        return self._backend.settle_multi([_signed_settlement(one, signer) for one in settlements])

    def invalidate_multi(self, keys: Sequence[str], *, deadline: float | None = None) -> list[bool]:
        return self._backend.invalidate_multi(keys, deadline=deadline)

    def check(self) -> list[NodeStatus]:
        return self._backend.check()

    def close(self) -> None:
        self._backend.close()


def _signed_settlement(settlement: Settlement, signer: Signer | None) -> Settlement:
    """Without a signer nothing takes the fence's place."""
    if settlement.value is None:
        return settlement
    value = None if signer is None else signer.signed(settlement.key, settlement.value, settlement.ttl_s)
    return settlement._replace(value=value)
