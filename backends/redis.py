"""The Redis backend: leases and fences in a lookup of one round trip and two short scripts.

    SET key lease NX PX ms       OK: nothing stood there, and the lease is yours
    GETRANGE key 0 n             in the same round trip; else, the value, with one byte of what is too long to be one
    EVALSHA fill                 store over exactly that lease
    SET key fence PX ms          a fence, whatever stands there
    EVALSHA settle               put a value in the place of one's own fence, or remove what is no other's fence

A lookup is a write to Redis, and meant to be: who cannot change an entry must not believe it either. A primary that
has become a replica, or that refuses writes because its disk is full, takes no fences, so what it holds may be old.

Looking up by SET with GET, one command, costs the same (within 5 % on a loopback connection), and is at the mercy of
who can write there: Redis copies a value whole before it sends the first byte, and 400 MB kept all clients waiting for
250 ms.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from cellcache.codec import FENCE, LEASE, MARK
from cellcache.errors import BackendUnsupported
from cellcache.protocol import Absent, Fence, Fill, Lease, NodeStatus, Seen, Settlement

from .keys import prefix_in, raw_key
from .leasing import LeasingBackend, seconds_in
from .node import Node
from .redis_url import connector, shown
from .resp import ACL_RULES, Connection, Refusal, Refused, Reply, bulks, command, facts
from .stream import Garbled, reason

_AT_ONCE = 1000  # keys in one round trip
_LONGEST_TTL_MS = 10**12
_NO_KEY = -2  # what PTTL says where nothing stands
_PROBE = b"\xff\xff"  # no raw key: in those, 0xFF stands before UTF-8
_ADVICE = {
    "NOPERM": f"give the user the rules {ACL_RULES}, and the keys ~<cache.key_prefix>*",
    "READONLY": "it is a replica: give the address of the primary",
    "OOM": "it is full: set its maxmemory-policy to allkeys-lru, or give it more memory",
    "MISCONF": "repair its disk, or switch its persistence off: a cache needs none",
}

T = TypeVar("T")

_Compose = Callable[[Connection, range], bytes]  # the commands for these positions, over this connection
_Read = Callable[[Sequence[Reply], float], T]  # what the replies to a position of that moment mean


class _Question(NamedTuple, Generic[T]):
    """What to send for each position, and what to make of the `each` replies to it.

    What cannot be read, an OSError, is a failure of the node.
    """

    compose: _Compose
    read: _Read[T]
    each: int = 1


def _is_done(replies: Sequence[Reply], _: float) -> bool:
    return replies[0] == 1


class RedisBackend(LeasingBackend):
    """Arguments: `url` ("redis://", "rediss://", "unix://", as redis-py reads them), `timeout_s`, `ttl_s`,
    `lease_ttl_s`, `fence_ttl_s`, `retry_s`, `key_prefix`, `username`, `password`, `tls_context`, `longest_value` (in
    bytes: what is longer is not read, and is empty to who looks it up).

    A server that does not answer costs one caller at most `timeout_s` (seconds), then nobody anything for `retry_s`.
    """

    promise = "no stale answers: leases and fences on one Redis"

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__(arguments)
        self._timeout_s = seconds_in(arguments, "timeout_s", 0.05)
        retry_s = seconds_in(arguments, "retry_s", 1.0, least=0.0)
        prefix = prefix_in(arguments)
        new_connection = connector(arguments, self._timeout_s)
        name = shown(new_connection())

        def dial(within_s: float) -> Connection:
            return Connection(
                new_connection(), name, prefix, self._timeout_s, within_s, longest_value=self.longest_value
            )

        self._node = Node(name, dial, timeout_s=self._timeout_s, retry_s=retry_s)
        self._lease_options = bulks(b"NX", b"PX", _milliseconds(self.lease_ttl_s))
        self._range = bulks(b"0", b"%d" % self.longest_value)  # one byte more than a value has
        self._longest_mark_ms = _milliseconds(self.longest_mark_s)

    @property
    def errors(self) -> int:
        return self._node.errors

    def lookup(self, key: str) -> bytes | Lease | Absent:
        began = time.monotonic()
        connection = self._node.take(began)
        if connection is None:
            return Absent.UNREACHABLE
        token = LEASE + secrets.token_bytes(8)
        try:
            connection.send(self._lookups(connection, [raw_key(key)], token))
            replies = connection.replies(2, connection.recv(4096), began + self._timeout_s)
            entry = self._entry(replies, token, max(began, connection.made_at))
        except ConnectionError as error:
            another = self._node.broke(connection, error, began)
            if another is None:
                return Absent.UNREACHABLE
            self._node.give_back(another)
            return self.lookup_multi([key])[0]
        except OSError as error:
            self._node.failed(connection, error)
            return Absent.UNREACHABLE
        self._node.give_back(connection)
        self._count_refusals(replies)
        return entry

    def lookup_multi(self, keys: Sequence[str]) -> list[bytes | Lease | Absent]:
        token = LEASE + secrets.token_bytes(8)
        raws = [raw_key(key) for key in keys]

        def compose(connection: Connection, positions: range) -> bytes:
            return self._lookups(connection, raws[positions.start : positions.stop], token)

        entries: list[bytes | Lease | Absent] = [Absent.UNREACHABLE] * len(keys)

        def read(replies: Sequence[Reply], asked_at: float) -> bytes | Lease | Absent:
            return self._entry(replies, token, asked_at)

        for position, entry in self._converse(len(keys), _Question(compose, read, each=2)):
            entries[position] = entry
        return entries

    def peek_multi(self, keys: Sequence[str]) -> list[Seen]:
        def compose(connection: Connection, positions: range) -> bytes:
            names = [connection.prefix + raw_key(keys[position]) for position in positions]
            times_left = [command(b"PTTL", name) for name in names]
            return b"".join([left + self._read(name) + left for name, left in zip(names, times_left, strict=True)])

        seen: list[Seen] = [Absent.UNREACHABLE] * len(keys)

        for position, standing in self._converse(len(keys), _Question(compose, self._seen, each=3)):
            seen[position] = standing
        return seen

    def fill_multi(self, fills: Sequence[Fill]) -> list[bool]:
        def compose(connection: Connection, positions: range) -> bytes:
            return _fills(connection, [fills[position] for position in positions])

        return self._confirmed(len(fills), compose, granted=_asked_at(fills))

    def send_fills(self, fills: Sequence[Fill], refused: Callable[[int], object], *, wait: bool) -> None:
        if wait or len(fills) > _AT_ONCE:
            super().send_fills(fills, refused, wait=True)
            return
        connection = self._node.take_older(_asked_at(fills), time.monotonic())
        if connection is None:
            refused(len(fills))
            return
        try:
            connection.send(_fills(connection, fills))
        except OSError as error:
            self._node.failed(connection, error)
            refused(len(fills))
            return
        connection.owe(len(fills), partial(self._count_refused, refused))
        self._node.give_back(connection)

    def fence_multi(self, keys: Sequence[str]) -> list[Fence]:
        mark = FENCE + secrets.token_bytes(8)
        fences = [Fence(mark)] * len(keys)

        def compose(connection: Connection, positions: range) -> bytes:
            return b"".join([_store(connection, keys[position], mark, self.fence_ttl_s) for position in positions])

        def read(replies: Sequence[Reply], asked_at: float) -> Fence:
            return Fence(mark, asked_at=asked_at if replies[0] == b"OK" else None)

        for position, fence in self._converse(len(keys), _Question(compose, read)):
            fences[position] = fence
        return fences

    def settle_multi(self, settlements: Sequence[Settlement]) -> list[bool]:
        def compose(connection: Connection, positions: range) -> bytes:
            return b"".join([self._settlement(connection, settlements[position]) for position in positions])

        return self._confirmed(len(settlements), compose)

    def invalidate_multi(self, keys: Sequence[str], *, deadline: float | None = None) -> list[bool]:
        def compose(connection: Connection, positions: range) -> bytes:
            return b"".join([self._removal(connection, raw_key(keys[position])) for position in positions])

        return self._confirmed(len(keys), compose, deadline=deadline)

    def store_multi(self, values: Mapping[str, bytes]) -> None:
        items = list(values.items())

        def compose(connection: Connection, positions: range) -> bytes:
            return b"".join([_store(connection, *items[position], self.ttl_s) for position in positions])

        self._confirmed(len(items), compose)

    def check(self) -> list[NodeStatus]:
        name = self._node.name
        try:
            connection = self._node.check()
        except BackendUnsupported as error:
            return [NodeStatus(name, None, None, str(error), supported=False)]
        except OSError as error:
            return [NodeStatus(name, None, None, _explained(error))]
        try:
            began = time.monotonic()
            self._probe(connection)
            took_s = time.monotonic() - began
            return [NodeStatus(name, connection.version, took_s, _memory_trouble(connection))]
        except OSError as error:
            return [NodeStatus(name, connection.version, None, _explained(error))]
        finally:
            connection.close()

    def close(self) -> None:
        self._node.close()

    def _lookups(self, connection: Connection, raws: Sequence[bytes], token: bytes) -> bytes:
        prefix, size = connection.prefix, len(connection.prefix)
        lease = b"\r\n$%d\r\n%b\r\n%b" % (len(token), token, self._lease_options)
        sizes = [size + len(raw) for raw in raws]
        return b"".join([
            b"*6\r\n$3\r\nSET\r\n$%d\r\n%b%b%b*4\r\n$8\r\nGETRANGE\r\n$%d\r\n%b%b\r\n%b"
            % (size, prefix, raw, lease, size, prefix, raw, self._range)
            for raw, size in zip(raws, sizes, strict=True)
        ])  # fmt: skip

    def _read(self, name: bytes) -> bytes:
        return b"*4\r\n%b%b" % (bulks(b"GETRANGE", name), self._range)

    def _removal(self, connection: Connection, raw: bytes) -> bytes:
        return _script(connection.settle, connection, raw, b"", self._longest_mark_ms)

    def _settlement(self, connection: Connection, settlement: Settlement) -> bytes:
        key, fence, value, ttl_s = settlement
        result = () if value is None else (value, _milliseconds(ttl_s))
        return _script(connection.settle, connection, raw_key(key), fence.mark, self._longest_mark_ms, *result)

    def _entry(self, replies: Sequence[Reply], token: bytes, asked_at: float) -> bytes | Lease | Absent:
        granted, standing = replies
        if granted is None:
            return self._standing(standing)
        if granted == b"OK":
            return Lease(token, asked_at)
        if not isinstance(granted, Refusal):
            raise Garbled("an odd reply to a lookup")
        return Absent.UNREACHABLE

    def _seen(self, replies: Sequence[Reply], _: float) -> Seen:
        """Say what stands there, by its time to live before and after: one of the two may be that of a value."""
        before, standing, after = replies
        seen = self._standing(standing)
        if seen in {Absent.LEASED, Absent.FENCED}:
            in_time = any(isinstance(left, int) and 0 <= left <= int(self._longest_mark_ms) for left in (before, after))
            return seen if in_time else Absent.ENDLESS
        return None if seen == b"" and _NO_KEY in (before, after) else seen

    def _standing(self, reply: Reply) -> bytes | Absent:
        if isinstance(reply, bytes):
            if len(reply) > self.longest_value:
                self._node.expect_pause()  # while it is removed: Redis answers nobody until its memory is free
                return b""  # nothing of ours, whatever it is: the caller cannot decode it, and has it removed
            if not reply.startswith(MARK):
                return reply
            if reply.startswith(FENCE):
                return Absent.FENCED
            return Absent.LEASED if reply.startswith(LEASE) else reply
        if not isinstance(reply, Refusal):
            raise Garbled("an odd reply to a lookup")
        if reply.startswith("WRONGTYPE"):
            return b""  # as above
        return Absent.UNREACHABLE

    def _count_refused(self, refused: Callable[[int], object], replies: Sequence[Reply]) -> None:
        if not all(isinstance(reply, int | Refusal) for reply in replies):
            raise Garbled("a value in reply to a fill")
        self._count_refusals(replies)
        refused(sum(reply != 1 for reply in replies))

    def _count_refusals(self, replies: Sequence[Reply]) -> None:
        self._node.count_errors(sum(type(reply) is Refusal for reply in replies))

    def _confirmed(
        self, total: int, compose: _Compose, *, granted: float | None = None, deadline: float | None = None
    ) -> list[bool]:
        confirmed = [False] * total
        for position, done in self._converse(total, _Question(compose, _is_done), granted=granted, deadline=deadline):
            confirmed[position] = done
        return confirmed

    def _converse(
        self, total: int, question: _Question[T], *, granted: float | None = None, deadline: float | None = None
    ) -> Iterator[tuple[int, T]]:
        """Ask for every position, 1,000 in a round trip; yield those that were answered, with what that means.

        With `granted`, over a connection that was made by then, or not at all.
        """
        for start in range(0, total, _AT_ONCE):
            positions = range(start, min(start + _AT_ONCE, total))
            began = time.monotonic()
            by = began + self._timeout_s if deadline is None else min(began + self._timeout_s, deadline)
            if granted is None:
                answers = self._ask_again_if_broken(question, positions, began, by)
            else:
                answers = self._ask(self._node.take_older(granted, began), question, positions, by)
            yield from zip(positions, answers, strict=False)

    def _ask_again_if_broken(self, question: _Question[T], positions: range, began: float, by: float) -> list[T]:
        """Ask once more where the server had hung up, since when it has restarted or the connection was long idle.

        What is asked here may be carried out twice: the second time it changes nothing, or costs a miss.
        """
        connection = self._node.take(began)
        if connection is None:
            return []
        try:
            return self._told(connection, question, positions, by)
        except ConnectionError as error:
            return self._ask(self._node.broke(connection, error, began), question, positions, by)
        except OSError as error:
            self._node.failed(connection, error)
            return []

    def _ask(self, connection: Connection | None, question: _Question[T], positions: range, by: float) -> list[T]:
        if connection is None:
            return []
        try:
            return self._told(connection, question, positions, by)
        except OSError as error:
            self._node.failed(connection, error)
            return []

    def _told(self, connection: Connection, question: _Question[T], positions: range, by: float) -> list[T]:
        """Ask over this connection, and give it back if the replies could be read. Raises OSError."""
        compose, read, each = question
        asked_at = time.monotonic()
        replies = connection.ask(compose(connection, positions), each * len(positions), by)
        found = [read(answer, asked_at) for answer in zip(*[iter(replies)] * each, strict=True)]
        self._node.give_back(connection)
        self._count_refusals(replies)
        return found

    def _probe(self, connection: Connection) -> None:
        """Do what lookups and writes do, on a key that is nobody's."""
        probe = self._lookups(connection, [_PROBE], LEASE + secrets.token_bytes(8))
        probe += command(b"PTTL", connection.prefix + _PROBE) + self._removal(connection, _PROBE)
        for reply in connection.ask(probe, 4):
            if isinstance(reply, Refusal):
                raise Refused(reply)


def _script(sha: bytes, connection: Connection, raw: bytes, *arguments: bytes) -> bytes:
    return b"*%d\r\n$7\r\nEVALSHA\r\n$40\r\n%b\r\n$1\r\n1\r\n%b" % (
        len(arguments) + 4,
        sha,
        bulks(connection.prefix + raw, *arguments),
    )


def _asked_at(fills: Sequence[Fill]) -> float:
    """Return by when a connection must have been made: its server has neither started nor been demoted since."""
    return min((fill.lease.asked_at for fill in fills), default=0.0)


def _fills(connection: Connection, fills: Sequence[Fill]) -> bytes:
    return b"".join([
        _script(connection.fill, connection, raw_key(key), lease.token, value, _milliseconds(ttl_s))
        for key, lease, value, ttl_s in fills
    ])  # fmt: skip


def _store(connection: Connection, key: str, value: bytes, ttl_s: float) -> bytes:
    expiry = (b"PX", _milliseconds(ttl_s)) if ttl_s else ()
    return command(b"SET", connection.prefix + raw_key(key), value, *expiry)


def _milliseconds(seconds: float) -> bytes:
    """0, for ever, stays 0; what else, from one millisecond to 31 years: Redis refuses what overflows."""
    return b"%d" % (round(min(max(1, seconds * 1000), _LONGEST_TTL_MS)) if seconds else 0)


def _memory_trouble(connection: Connection) -> str | None:
    (reply,) = connection.ask(command(b"INFO", b"memory"))
    memory = facts(reply) if isinstance(reply, bytes) else {}
    if memory.get("maxmemory_policy") == "noeviction" and memory.get("maxmemory") != "0":
        return "its maxmemory-policy is noeviction: once it is full it answers nothing; set the policy to allkeys-lru"
    return None


def _explained(error: OSError) -> str:
    if not isinstance(error, Refused):
        return f"does not answer ({reason(error)}); is it running, and is the address right?"
    in_script = "The user executing the script can't" in str(error)  # Redis 7.0 gives that no code of its own
    advice = _ADVICE.get("NOPERM" if in_script else error.code)
    return f"answers, but {error}" + (f"; {advice}" if advice else "")
