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
from typing import Any

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

_Compose = Callable[[Connection, range], bytes]  # the commands for these positions, over this connection


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
        connection = self._node.connection(began)
        if connection is None:
            return Absent.UNREACHABLE
        token = LEASE + secrets.token_bytes(8)
        try:
            connection.send(self._lookups(connection, [raw_key(key)], token))
            granted, standing = connection.replies(2, connection.recv(4096), began + self._timeout_s)
        except ConnectionError as error:
            if self._node.broke(connection, error, began) is None:
                return Absent.UNREACHABLE
            return self.lookup_multi([key])[0]
        except OSError as error:
            self._node.failed(connection, error)
            return Absent.UNREACHABLE
        except BaseException:
            self._node.interrupted(connection)
            raise
        self._node.errors += isinstance(granted, Refusal) or isinstance(standing, Refusal)
        return self._entry(granted, standing, token, connection)

    def lookup_multi(self, keys: Sequence[str]) -> list[bytes | Lease | Absent]:
        token = LEASE + secrets.token_bytes(8)
        raws = [raw_key(key) for key in keys]

        def compose(connection: Connection, positions: range) -> bytes:
            return self._lookups(connection, raws[positions.start : positions.stop], token)

        entries: list[bytes | Lease | Absent] = [Absent.UNREACHABLE] * len(keys)
        for position, (granted, standing), connection in self._converse(len(keys), compose, each=2):
            entries[position] = self._entry(granted, standing, token, connection)
        return entries

    def peek_multi(self, keys: Sequence[str]) -> list[Seen]:
        def compose(connection: Connection, positions: range) -> bytes:
            names = [connection.prefix + raw_key(keys[position]) for position in positions]
            times_left = [command(b"PTTL", name) for name in names]
            return b"".join([left + self._read(name) + left for name, left in zip(names, times_left, strict=True)])

        seen: list[Seen] = [Absent.UNREACHABLE] * len(keys)
        for position, (before, standing, after), connection in self._converse(len(keys), compose, each=3):
            seen[position] = self._seen(standing, (before, after), connection)
        return seen

    def fill_multi(self, fills: Sequence[Fill]) -> list[bool]:
        usable = _granted_over(self._node.connection(time.monotonic()), fills)
        stored = [False] * len(fills)

        def compose(connection: Connection, positions: range) -> bytes:
            return _fills(connection, [fills[usable[position]] for position in positions])

        for position, (reply,), _ in self._converse(len(usable), compose):
            stored[usable[position]] = reply == 1
        return stored

    def send_fills(self, fills: Sequence[Fill], refused: Callable[[int], object], *, wait: bool) -> None:
        connection = self._node.idle_connection(time.monotonic())
        usable = _granted_over(connection, fills)
        if wait or connection is None or not usable or len(fills) > _AT_ONCE:
            super().send_fills(fills, refused, wait=True)
            return
        try:
            connection.send(_fills(connection, [fills[position] for position in usable]))
            connection.owe(len(usable), partial(self._count_refused, refused))
            refused(len(fills) - len(usable))
        except OSError as error:
            self._node.failed(connection, error)
            refused(len(fills))
        except BaseException:
            self._node.interrupted(connection)
            raise

    def fence_multi(self, keys: Sequence[str]) -> list[Fence]:
        mark = FENCE + secrets.token_bytes(8)
        fences = [Fence(mark)] * len(keys)

        def compose(connection: Connection, positions: range) -> bytes:
            return b"".join([_store(connection, keys[position], mark, self.fence_ttl_s) for position in positions])

        for position, (reply,), connection in self._converse(len(keys), compose):
            if reply == b"OK":
                fences[position] = Fence(mark, connection=connection)
        return fences

    def settle_multi(self, settlements: Sequence[Settlement]) -> list[bool]:
        def compose(connection: Connection, positions: range) -> bytes:
            return b"".join([self._settlement(connection, settlements[position]) for position in positions])

        return self._confirmed(len(settlements), compose)

    def invalidate_multi(self, keys: Sequence[str], *, deadline: float | None = None) -> list[bool]:
        def compose(connection: Connection, positions: range) -> bytes:
            return b"".join([self._removal(connection, raw_key(keys[position])) for position in positions])

        return self._confirmed(len(keys), compose, deadline)

    def store_multi(self, values: Mapping[str, bytes]) -> None:
        items = list(values.items())

        def compose(connection: Connection, positions: range) -> bytes:
            return b"".join([_store(connection, *items[position], self.ttl_s) for position in positions])

        for _ in self._converse(len(items), compose):
            pass

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

    def forget_connections(self) -> None:
        self._node.forget_connections()

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

    def _entry(self, granted: Reply, standing: Reply, token: bytes, connection: Connection) -> bytes | Lease | Absent:
        if granted is None:
            return self._standing(standing, connection)
        if granted == b"OK":
            return Lease(token, connection)
        if not isinstance(granted, Refusal):
            self._node.failed(connection, Garbled("an odd reply to a lookup"))
        return Absent.UNREACHABLE

    def _seen(self, standing: Reply, left_ms: Sequence[Reply], connection: Connection) -> Seen:
        """Say what stands there, by its time to live before and after: one of the two may be that of a value."""
        seen = self._standing(standing, connection)
        if seen in {Absent.LEASED, Absent.FENCED}:
            in_time = any(isinstance(left, int) and 0 <= left <= int(self._longest_mark_ms) for left in left_ms)
            return seen if in_time else Absent.ENDLESS
        return None if seen == b"" and _NO_KEY in left_ms else seen

    def _standing(self, reply: Reply, connection: Connection) -> bytes | Absent:
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
            self._node.failed(connection, Garbled("an odd reply to a lookup"))
        elif reply.startswith("WRONGTYPE"):
            return b""  # as above
        return Absent.UNREACHABLE

    def _count_refused(self, refused: Callable[[int], object], replies: Sequence[Reply]) -> None:
        if not all(isinstance(reply, int | Refusal) for reply in replies):
            raise Garbled("a value in reply to a fill")
        self._node.errors += sum(isinstance(reply, Refusal) for reply in replies)
        refused(sum(reply != 1 for reply in replies))

    def _confirmed(self, total: int, compose: _Compose, deadline: float | None = None) -> list[bool]:
        confirmed = [False] * total
        for position, (reply,), _ in self._converse(total, compose, deadline=deadline):
            confirmed[position] = reply == 1
        return confirmed

    def _converse(
        self, total: int, compose: _Compose, *, each: int = 1, deadline: float | None = None
    ) -> Iterator[tuple[int, Sequence[Reply], Connection]]:
        """Ask for every position, 1,000 in a round trip; yield those that were answered, with `each` replies."""
        for start in range(0, total, _AT_ONCE):
            positions = range(start, min(start + _AT_ONCE, total))
            connection, replies = self._ask(compose, positions, each, deadline)
            if connection is not None:
                self._node.errors += sum(type(reply) is Refusal for reply in replies)
                for position, answer in zip(positions, zip(*[iter(replies)] * each, strict=True), strict=True):
                    yield position, answer, connection

    def _ask(
        self, compose: _Compose, positions: range, each: int, deadline: float | None
    ) -> tuple[Connection | None, list[Reply]]:
        """Ask once more where the server had hung up, since when it has restarted or the connection was long idle.

        What is asked here may be carried out twice: the second time it changes nothing, or costs a miss.
        """
        began = time.monotonic()
        connection = self._node.connection(began)
        for again in (True, False):
            if connection is None:
                break
            try:
                by = began + self._timeout_s if deadline is None else min(began + self._timeout_s, deadline)
                return connection, connection.ask(compose(connection, positions), each * len(positions), by)
            except ConnectionError as error:
                if not again:
                    self._node.failed(connection, error)
                    break
                connection = self._node.broke(connection, error, began)
            except OSError as error:
                self._node.failed(connection, error)
                break
            except BaseException:
                self._node.interrupted(connection)
                raise
        return None, []

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


def _granted_over(connection: Connection | None, fills: Sequence[Fill]) -> list[int]:
    """Return whose lease is still good: on another connection that server may have been demoted and promoted since."""
    return [position for position, fill in enumerate(fills) if fill.lease.connection is connection]


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
