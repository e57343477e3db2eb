"""What the directory asks of a cache backend beyond dogpile's own interface: lease, fence, settle.

An entry is absent, a value, a *lease* (a reader is fetching it) or a *fence* (a writer is changing it).
docs/coherence.md says why these four and no fewer. Keys are dogpile's: text, for us the canonical UUID
of an instance. A value is never empty and never begins with a zero byte: such bytes are marks.

No method raises for a cache that is broken: each says in its answer what the node did not do, within the
time limit that the backend was configured with.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable


class Absent(enum.Enum):
    """Why a lookup answered with neither a value nor a lease. Nothing may be stored after any of these.

    Only those who look without taking leases are told of ENDLESS. PASSED_OVER is the read path's own.
    """

    LEASED = "another reader is fetching the value"
    FENCED = "a writer is changing the value"
    UNREACHABLE = "the cache node did not answer"
    UNVERIFIABLE = "nobody can verify an entry yet: the deployment's identity could not be read from the database"
    ENDLESS = "a mark that would stand for longer than any of ours: somebody else's"
    PASSED_OVER = "nothing that could be used, and this lookup does not ask again"


class Lease(NamedTuple):
    """The right to store one value under one key, once.

    It was asked for at `asked_at`, on the monotonic clock, and may be used over any connection that was made by then.
    One that is alive has spoken to one server process all the while, so no restart lies between the grant and the use:
    after a restart the token may be somebody else's.
    """

    token: bytes
    asked_at: float


class Fence(NamedTuple):
    """A writer's mark on an entry. `mark` is unique for ever; `token` makes settling one trip, as that of a lease does.

    With no `asked_at` nobody knows whether it stands: the node did not confirm it.
    """

    mark: bytes
    token: bytes = b""
    asked_at: float | None = None

    @property
    def confirmed(self) -> bool:
        return self.asked_at is not None


Seen = bytes | Absent | None
"""What stands under a key for one who only looks: a value, nothing, or why there is no telling."""

Held = list[Any]
"""An entry in this process's own memory: the value or mark, and when it ends on the monotonic clock.

It is replaced in place by whoever may replace exactly that one: another's has an entry of its own.
"""


class Fill(NamedTuple):
    key: str
    lease: Lease
    value: bytes
    ttl_s: float


class Settlement(NamedTuple):
    """What becomes of a fence: `value` takes its place, or, where that is None, nothing does."""

    key: str
    fence: Fence
    value: bytes | None
    ttl_s: float = 0.0


class NodeStatus(NamedTuple):
    """One cache node as `cellcache doctor` shows it. `trouble` is None where all is well."""

    name: str
    version: str | None
    round_trip_s: float | None
    trouble: str | None
    supported: bool = True  # False: the server answers, but cannot keep the promise


@runtime_checkable
class CoherentBackend(Protocol):
    """A cache that can be kept from ever serving an outdated value."""

    promise: str
    """One line for the log and for `doctor`: how fresh an answer is."""

    @property
    def held(self) -> Mapping[object, Held]:
        """The entries that this process holds itself, by canonical UUID; always the same object.

        An answer found here needs no validation, since only validated keys are in it. Empty where all is on servers.
        """

    @property
    def errors(self) -> int:
        """Requests that failed since the start: time-outs, broken connections, errors, garbled replies."""

    def lookup(self, key: str) -> bytes | Lease | Absent:
        """Return the value, or take the lease on an absent entry in the same round trip."""

    def lookup_multi(self, keys: Sequence[str]) -> list[bytes | Lease | Absent]:
        """Look up many keys, in one round trip per node and 1,000 keys, all nodes at once."""

    def peek_multi(self, keys: Sequence[str]) -> list[Seen]:
        """Say what stands there, and take no lease where nothing does: for those who compare, not for readers."""

    def send_fills(self, fills: Sequence[Fill], refused: Callable[[int], object], *, wait: bool) -> None:
        """Replace each lease by its value if that very lease still stands.

        Without `wait` this does not block for the answer. `refused` is called with the number of those that were not
        stored, now or by a later request over that connection; not at all for those whose connection breaks before.
        """

    def fence_multi(self, keys: Sequence[str]) -> list[Fence]:
        """Overwrite whatever stands there by a fence of one's own; say of each whether its node has confirmed it."""

    def settle_multi(self, settlements: Sequence[Settlement]) -> list[bool]:
        """Replace one's own fences; say which nodes have confirmed that nothing older is left.

        Where the fence is gone (evicted, expired, a restart), what stands in its place is removed, unless it is
        another writer's fence.
        """

    def invalidate_multi(self, keys: Sequence[str], *, deadline: float | None = None) -> list[bool]:
        """Remove what stands there, unless it is a fence that will end in time; say which nodes have confirmed.

        A deadline (on the monotonic clock) is that of a lookup which met what means nothing: it is looked at once more,
        and a node that has not answered by then has failed.
        """

    def check(self) -> list[NodeStatus]:
        """Reach every node, past any circuit breaker. Blocks for at most the time limit per node."""

    def close(self) -> None:
        """Close every connection; those that are in use, when their requests are done."""
