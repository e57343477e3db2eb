"""The memcached backend: leases and fences in meta commands, one round trip each, over one or many servers.

On the wire (protocol.txt of memcached 1.6.10 and newer; `b` says that the key is base64 of what is stored):

    mg KEY b v O<n> c N<ttl>           the value, or, where nothing stands, an empty item: the lease
        VA <size> O<n> c<cas>          a value (or, beginning with a zero byte, a fence)
        VA 0 O<n> c<cas> W             absent until now: the lease is yours, this is its token
        VA 0 O<n> c<cas> Z             another reader holds the lease
    ms KEY <size> b O<n> C<cas> T<ttl> store over exactly that item: HD done, EX another stands there, NF none
    ms KEY <size> b O<n> c T<ttl>      store over anything and tell the new item's token: a fence
    md KEY b O<n> C<cas>               remove exactly that item
    mg KEY b s c O<n>                  HD s<size> c<cas>: how large it is, where it may be too large to be ours

A token is good only on connections that were made before it was granted: memcached counts its tokens from 1 again
after a restart, so one of before may match an item of after. A restart breaks those connections, and the token goes
with them.
`O<n>` comes back with the reply and ties it to its request.
"""

from __future__ import annotations

import math
import secrets
from binascii import b2a_base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import Any, NamedTuple, TypeVar

from cellcache.codec import FENCE, MAPPED_SIZE, MARK
from cellcache.errors import BackendUnsupported
from cellcache.protocol import Absent, Fence, Fill, Lease, NodeStatus, Seen, Settlement

from .keys import Placement, RawKeys, prefix_in
from .leasing import LeasingBackend, seconds_in
from .meta import (
    changes_of,
    entries_of,
    in_full,
    is_fence,
    look,
    refusals_in,
    remove,
    seen_of,
    size_of,
    store,
    token_of,
    ttl,
)
from .node import Node
from .stream import TooLong, reason
from .wire import AnyReply, Connection, Reply

_ROOM = 186  # bytes of prefix and raw key, which are 248 in base64: memcached takes 250
_AT_ONCE = 1000  # requests in flight per node: they fit the server's socket buffer, so that sending cannot block
_TLS_RECORD = 12_000  # less than a record of TLS holds, and than memcached reads at a time: 16 KB each
_LOOKS = 8  # how often a removal that loses every race against other clients is tried again


T = TypeVar("T")

_Compose = Callable[[Sequence[int], bytes], bytes]  # the requests for these positions, each with this tag
_Sent = tuple[Node[Connection], Connection, Sequence[int], bytes]  # to whom, for which positions, with which tag
_Read = Callable[[Sequence[AnyReply], float], list[T]]  # what the replies to requests of that moment mean


class _Wanted(NamedTuple):
    """For each node that can be reached, the positions whose keys live there; and how long it took to connect.

    The connections are the caller's, until `_converse` or `send_fills` gives them back.
    """

    nodes: list[tuple[Node[Connection], Connection, Sequence[int]]]
    spent_s: float


class MemcachedBackend(LeasingBackend):
    """Arguments: `servers` ("host:port", "[v6]:port", "unix:/path"), `timeout_s`, `ttl_s`, `lease_ttl_s`,
    `fence_ttl_s`, `retry_s`, `key_prefix`, `tls_context`, `username`, `password`, `value_size` (of most values, in
    bytes: runs of them are parsed fastest), `longest_value` (in bytes: what is longer is not read, and is empty to who
    looks it up). No entry is kept for longer than 30 days.

    A server that does not answer costs one caller at most `timeout_s` (seconds), then nobody anything for `retry_s`.
    """

    promise = "no stale answers: leases and fences on every memcached server"

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__(arguments)
        self._prefix = prefix_in(arguments)
        raw_keys = RawKeys(self._prefix, _ROOM)
        self._raw_key, self._raw_keys = raw_keys.one, raw_keys.many
        servers: Sequence[str] = arguments.get("servers") or ["127.0.0.1:11211"]
        self._timeout_s = seconds_in(arguments, "timeout_s", 0.05)
        retry_s = seconds_in(arguments, "retry_s", 1.0, least=0.0)
        username, password = arguments.get("username"), arguments.get("password")
        credentials = None if username is None else f"{username} {password or ''}"

        def node(server: str) -> Node[Connection]:
            address = _address(server)

            def dial(within_s: float) -> Connection:
                return Connection(
                    address,
                    self._timeout_s,
                    within_s,
                    tls_context=arguments.get("tls_context"),
                    credentials=credentials,
                    value_size=arguments.get("value_size", MAPPED_SIZE),
                    longest_value=self.longest_value,
                )

            return Node(server, dial, timeout_s=self._timeout_s, retry_s=retry_s)

        self._nodes = [node(server) for server in servers]
        self._node = self._nodes[0] if len(servers) == 1 else None
        self._placement = Placement(servers)
        self._get_tail = b" c N%d\r\n" % ttl(self.lease_ttl_s)

    @property
    def errors(self) -> int:
        return sum(node.errors for node in self._nodes)

    def lookup(self, key: str) -> bytes | Lease | Absent:
        wire, node = self._wire(key)
        began = monotonic()
        connection = node.take(began)
        if connection is None:
            return Absent.UNREACHABLE
        try:
            try:
                entry = self._get(node, connection, wire, began)
            except ConnectionError as error:
                another = node.broke(connection, error, began)
                if another is None:
                    return Absent.UNREACHABLE
                connection = another
                entry = self._get(node, connection, wire, began)
        except TooLong:
            connection.close()
            return b""  # nothing of ours, whatever it is: the caller cannot decode it, and has it removed
        except OSError as error:
            node.failed(connection, error)
            return Absent.UNREACHABLE
        node.give_back(connection)
        return entry

    def _get(self, node: Node[Connection], connection: Connection, wire: bytes, began: float) -> bytes | Lease | Absent:
        tag = b"O%d" % connection.opaque()
        connection.send(b"mg " + wire + b" b v " + tag + self._get_tail)
        received = connection.recv(512)
        header, _, rest = received.partition(b"\r\n")
        words, value = header.split(b" "), rest[:-2]
        if words == [b"VA", b"%d" % len(value), tag, words[-1]] and value[:1] > MARK and rest.endswith(b"\r\n"):
            return value  # it came in one piece, and so do nearly all
        if not received:
            raise ConnectionResetError("closed by the server")
        replies = connection.replies(1, received, began + self._timeout_s)
        node.count_errors(refusals_in(replies, tag))
        return entries_of(replies, max(began, connection.made_at))[0]

    def lookup_multi(self, keys: Sequence[str]) -> list[bytes | Lease | Absent]:
        return self._get_multi(keys, self._get_tail, entries_of)

    def peek_multi(self, keys: Sequence[str]) -> list[Seen]:
        return self._get_multi(keys, b" c t\r\n", lambda replies, _: seen_of(replies, self.longest_mark_s))

    def _get_multi(self, keys: Sequence[str], flags: bytes, read: _Read[T]) -> list[T | Absent]:
        wires, wanted = self._locate(keys)
        entries: list[T | Absent] = [Absent.UNREACHABLE] * len(keys)

        def compose(positions: Sequence[int], tag: bytes) -> bytes:
            tail = b" b v " + tag + flags
            return b"mg " + (tail + b"mg ").join([wires[position] for position in positions]) + tail

        for positions, found in self._look(wires, wanted, compose, read):
            for position, entry in zip(positions, found, strict=True):
                entries[position] = entry
        return entries

    def fill_multi(self, fills: Sequence[Fill]) -> list[bool]:
        wanted, compose = self._fills(fills)
        stored = [False] * len(fills)
        for position, reply in self._outcomes(wanted, compose):
            stored[position] = reply.words[0] == b"HD"
        return stored

    def send_fills(self, fills: Sequence[Fill], refused: Callable[[int], object], *, wait: bool) -> None:
        if wait or len(fills) > _AT_ONCE:
            super().send_fills(fills, refused, wait=True)
            return
        wanted, compose = self._fills(fills)
        sent = self._send_from(0, wanted, compose)
        for node, connection, batch, tag in sent:
            connection.owe(len(batch), partial(_count_refused, refused, node, tag))
            node.give_back(connection)
        refused(len(fills) - sum(len(batch) for _, _, batch, _ in sent))

    def _fills(self, fills: Sequence[Fill]) -> tuple[_Wanted, _Compose]:
        wires, wanted = self._locate([fill.key for fill in fills], [fill.lease.asked_at for fill in fills])

        def compose(positions: Sequence[int], tag: bytes) -> bytes:
            return b"".join(
                [store(wires[p], fills[p].value, tag, b" C" + fills[p].lease.token, fills[p].ttl_s) for p in positions]
            )

        return wanted, compose

    def fence_multi(self, keys: Sequence[str]) -> list[Fence]:
        wires, wanted = self._locate(keys)
        mark = FENCE + secrets.token_bytes(8)
        fences = [Fence(mark)] * len(keys)

        def compose(positions: Sequence[int], tag: bytes) -> bytes:
            return b"".join([store(wires[p], mark, tag, b" c", self.fence_ttl_s) for p in positions])

        def read(replies: Sequence[AnyReply], asked_at: float) -> list[Fence]:
            changes = changes_of(replies, asked_at)
            return [Fence(mark, token_of(one), asked_at) if one.words[0] == b"HD" else Fence(mark) for one in changes]

        for positions, placed in self._converse(wanted, compose, read):
            for position, fence in zip(positions, placed, strict=True):
                fences[position] = fence
        return fences

    def settle_multi(self, settlements: Sequence[Settlement]) -> list[bool]:
        wires, wanted = self._locate([one.key for one in settlements], [_asked_at(one.fence) for one in settlements])
        settled = [False] * len(settlements)

        def compose(positions: Sequence[int], tag: bytes) -> bytes:
            requests = []
            for position in positions:
                _, fence, value, ttl_s = settlements[position]
                if value is None:
                    requests.append(remove(wires[position], tag, fence.token))
                else:
                    requests.append(store(wires[position], value, tag, b" C" + fence.token, ttl_s))
            return b"".join(requests)

        for position, reply in self._outcomes(wanted, compose):
            settled[position] = reply.words[0] in {b"HD", b"NF"}
        # The rest: fences that were lost or replaced, and those whose connection broke, token and all.
        rest = [position for position, done in enumerate(settled) if not done]
        removed = self._remove_unless_fenced(
            [settlements[p].key for p in rest], [settlements[p].fence.mark for p in rest]
        )
        for position, done in zip(rest, removed, strict=True):
            settled[position] = done
        return settled

    def invalidate_multi(self, keys: Sequence[str], *, deadline: float | None = None) -> list[bool]:
        return self._remove_unless_fenced(keys, [b""] * len(keys), deadline)

    def store_multi(self, values: Mapping[str, bytes]) -> None:
        keys, bodies = list(values), list(values.values())
        wires, wanted = self._locate(keys)

        def compose(positions: Sequence[int], tag: bytes) -> bytes:
            return b"".join([store(wires[p], bodies[p], tag, b"", self.ttl_s) for p in positions])

        for _ in self._outcomes(wanted, compose):
            pass

    def check(self) -> list[NodeStatus]:
        return [_status(node) for node in self._nodes]

    def close(self) -> None:
        for node in self._nodes:
            node.close()

    def _wire(self, key: str) -> tuple[bytes, Node[Connection]]:
        raw = self._raw_key(key)
        node = self._node or self._nodes[self._placement.node_of(raw)]
        return b2a_base64(self._prefix + raw, newline=False), node

    def _locate(self, keys: Sequence[str], asked_at: Sequence[float] | None = None) -> tuple[list[bytes], _Wanted]:
        """Return each key as it is sent, and for each node that can be reached the positions of its keys.

        With `asked_at`, when the token for each key was asked for, only those positions count whose token means
        something over the connection that is taken.
        """
        raws = self._raw_keys(keys)
        wires = [b2a_base64(self._prefix + raw, newline=False) for raw in raws]
        at_nodes = self._positions(raws)
        nodes = []
        began = monotonic()
        for node, positions in at_nodes.items():
            if asked_at is None:
                connection = node.take_idle(began)
            else:
                connection = node.take_older(max(asked_at[p] for p in positions), began)
            if connection is None:
                continue
            if asked_at is not None:
                positions = [p for p in positions if connection.made_at <= asked_at[p]]  # noqa: PLW2901
            nodes.append((node, connection, positions))
        return wires, _Wanted(nodes, monotonic() - began)

    def _positions(self, raws: Sequence[bytes]) -> dict[Node[Connection], Sequence[int]]:
        """Return for each node which of the keys live on it."""
        if self._node is not None:
            return {self._node: range(len(raws))} if raws else {}
        positions: list[list[int]] = [[] for _ in self._nodes]
        for position, at in enumerate(self._placement.nodes_of(raws)):
            positions[at].append(position)
        return {node: chosen for node, chosen in zip(self._nodes, positions, strict=True) if chosen}

    def _outcomes(
        self, wanted: _Wanted, compose: _Compose, deadline: float | None = None
    ) -> Iterator[tuple[int, Reply]]:
        """Send one change for each position; yield those that were answered, with what became of them."""
        for positions, replies in self._converse(wanted, compose, changes_of, deadline):
            yield from zip(positions, replies, strict=True)

    def _look(
        self,
        wires: Sequence[bytes],
        wanted: _Wanted,
        compose: _Compose,
        read: _Read[T],
        deadline: float | None = None,
    ) -> Iterator[tuple[Sequence[int], list[T]]]:
        """Ask for the values of every position, as `_converse` does; what is too long to be ours is an empty value.

        Where a node has sent such a one, the sizes of that and all that were to follow are asked for first.
        """
        unread: dict[Node[Connection], Sequence[int]] = {}
        yield from self._converse(wanted, compose, read, deadline, unread)
        for node, positions in unread.items():
            began = monotonic()
            connection = node.take_idle(began)
            if connection is None:
                continue
            by = began + self._timeout_s if deadline is None else deadline
            asked_at = monotonic()
            too_long, rest = self._by_size(wires, _Wanted([(node, connection, positions)], 0.0), by)
            yield list(too_long), read(list(too_long.values()), asked_at)
            connection = node.take_idle(began)
            if connection is not None:
                yield from self._converse(_Wanted([(node, connection, rest)], 0.0), compose, read, by)

    def _by_size(
        self, wires: Sequence[bytes], wanted: _Wanted, deadline: float
    ) -> tuple[dict[int, AnyReply], Sequence[int]]:
        """Return the positions of what is too long, each with a reply in its place, and those of the rest."""
        too_long: dict[int, AnyReply] = {}
        rest: list[int] = []

        def compose(positions: Sequence[int], tag: bytes) -> bytes:
            return b"".join([look(wires[position], tag, b"s c") for position in positions])

        for position, reply in self._outcomes(wanted, compose, deadline):
            if size_of(reply) > self.longest_value:
                too_long[position] = Reply([b"VA", b"0", *reply.words[1:]], b"")
            else:
                rest.append(position)
        return too_long, rest

    def _converse(
        self,
        wanted: _Wanted,
        compose: _Compose,
        read: _Read[T],
        deadline: float | None = None,
        unread: dict[Node[Connection], Sequence[int]] | None = None,
    ) -> Iterator[tuple[Sequence[int], list[T]]]:
        """Ask for every position, all nodes at once; yield what `read` makes of the replies, 1,000 of a node at a time.

        Those are one round trip: the requests of every node are sent before any node's replies are read. What cannot be
        read, an OSError, is a failure of the node; but with `unread`, a value too long to be ours only ends the
        conversation with it, and there the positions are left that have no answer.
        """
        left_s = self._timeout_s - wanted.spent_s
        positions_of = {node: positions for node, _, positions in wanted.nodes}
        for start in range(0, max((len(positions) for _, _, positions in wanted.nodes), default=0), _AT_ONCE):
            asked_at = monotonic()
            sent = self._send_from(start, wanted, compose)
            by = monotonic() + left_s
            if deadline is not None:
                by = min(by, deadline)
            for node, connection, batch, tag in sent:
                try:
                    replies = connection.replies(len(batch), deadline=by)
                    node.count_errors(refusals_in(replies, tag))
                    found = read(replies, asked_at)
                except OSError as error:
                    if unread is not None and isinstance(error, TooLong):
                        connection.close()
                        unread[node] = positions_of[node][start:]
                    else:
                        node.failed(connection, error)
                    continue
                yield batch, found
            left_s = self._timeout_s
        for node, connection, _ in wanted.nodes:
            if not connection.closed:
                node.give_back(connection)

    def _send_from(self, start: int, wanted: _Wanted, compose: _Compose) -> list[_Sent]:
        """Send the next 1,000 requests of every node."""
        sent = []
        for node, connection, positions in wanted.nodes:
            batch = positions[start : start + _AT_ONCE]
            if batch and not connection.closed:
                tag = b"O%d" % connection.opaque()
                try:
                    _send(connection, compose, batch, tag)
                    sent.append((node, connection, batch, tag))
                except OSError as error:
                    node.failed(connection, error)
        return sent

    def _remove_unless_fenced(
        self, keys: Sequence[str], own_marks: Sequence[bytes], deadline: float | None = None
    ) -> list[bool]:
        """Remove what stands there unless it is another writer's fence; say of which that is certain.

        Look, then remove exactly what was seen; where it has changed in between, and there is no deadline, look again.
        """
        certain = [False] * len(keys)
        undecided = list(range(len(keys)))
        for _ in range(_LOOKS if deadline is None else 1):
            if not undecided:
                break
            doomed: list[tuple[int, Reply, float]] = []
            for position, (seen, asked_at) in self._see(keys, undecided, deadline):
                fenced = is_fence(seen, self.longest_mark_s) and seen.body != own_marks[position]
                if seen.words[0] == b"EN" or fenced:
                    certain[position] = True
                elif seen.words[0] == b"VA":
                    doomed.append((position, seen, asked_at))
            removed = self._remove_seen(keys, doomed, deadline)
            for position in removed:
                certain[position] = True
            undecided = [position for position, _, _ in doomed if not certain[position]]
        return certain

    def _see(
        self, keys: Sequence[str], positions: Sequence[int], deadline: float | None
    ) -> Iterator[tuple[int, tuple[Reply, float]]]:
        """Look at what stands there without taking a lease; yield what was answered, and when it was asked."""
        wires, wanted = self._locate([keys[position] for position in positions])

        def compose(chosen: Sequence[int], tag: bytes) -> bytes:
            return b"".join([look(wires[at], tag, b"v c t") for at in chosen])

        def read(replies: Sequence[AnyReply], asked_at: float) -> list[tuple[Reply, float]]:
            return [(reply, asked_at) for reply in changes_of(replies, asked_at)]

        for chosen, seen in self._look(wires, wanted, compose, read, deadline):
            yield from zip([positions[at] for at in chosen], seen, strict=True)

    def _remove_seen(
        self, keys: Sequence[str], doomed: Sequence[tuple[int, Reply, float]], deadline: float | None
    ) -> list[int]:
        """Remove exactly what was seen; return the positions where nothing of it is left."""
        wires, wanted = self._locate(
            [keys[position] for position, _, _ in doomed], [asked_at for _, _, asked_at in doomed]
        )

        def compose(chosen: Sequence[int], tag: bytes) -> bytes:
            return b"".join([remove(wires[at], tag, token_of(doomed[at][1])) for at in chosen])

        return [
            doomed[at][0] for at, reply in self._outcomes(wanted, compose, deadline) if reply.words[0] in {b"HD", b"NF"}
        ]


def _asked_at(fence: Fence) -> float:
    return -math.inf if fence.asked_at is None else fence.asked_at  # no token: it must be looked for


def _send(connection: Connection, compose: _Compose, positions: Sequence[int], tag: bytes) -> None:
    """Send the requests for these positions; over TLS, so that each record holds whole requests.

    memcached waits for its socket to become readable even while OpenSSL holds the rest of a record that it has read in
    part: it would then answer what is in there only when something more arrives (seen with 1.6.18).
    """
    request = compose(positions, tag)
    if connection.over_tls and len(request) > _TLS_RECORD and len(positions) > 1:
        half = len(positions) // 2
        _send(connection, compose, positions[:half], tag)
        _send(connection, compose, positions[half:], tag)
    else:
        connection.send(request)


def _count_refused(
    refused: Callable[[int], object], node: Node[Connection], tag: bytes, replies: Sequence[AnyReply]
) -> None:
    node.count_errors(refusals_in(replies, tag))
    refused(sum(in_full(reply).words[0] != b"HD" for reply in replies))


def _address(server: str) -> str | tuple[str, int]:
    if server.startswith("unix:"):
        return server.removeprefix("unix:")
    host, _, port = server.rpartition(":")
    if not host:
        return server, 11211
    return host.strip("[]"), int(port)


def _status(node: Node[Connection]) -> NodeStatus:
    try:
        connection = node.check()
        began = monotonic()
        connection.ask(b"mn\r\n")
        took_s = monotonic() - began
        connection.close()
    except BackendUnsupported as error:
        return NodeStatus(node.name, None, None, str(error), supported=False)
    except OSError as error:
        return NodeStatus(
            node.name, None, None, f"does not answer ({reason(error)}); is it running, and is the address right?"
        )
    return NodeStatus(node.name, connection.version, took_s, None)
