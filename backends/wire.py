"""One connection to one memcached: made by pymemcache (addresses, TLS, time limits), which has no meta commands.

So the talking is ours.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import lru_cache
from itertools import count
from ssl import SSLContext
from typing import NamedTuple

from pymemcache.client.base import Client  # type: ignore[import-untyped, unused-ignore]

from cellcache.codec import LONGEST_ENTRY, MAPPED_SIZE
from cellcache.errors import BackendUnsupported

from .names import demand_address
from .stream import Garbled, Stream, TooLong

OLDEST_VERSION = (1, 6, 10)  # the first whose meta commands are stable
_LONGEST_HEADER = 2048
_LONGEST_SIZE = 10  # digits: no item is larger than 1 GB


class Reply(NamedTuple):
    """A reply's first line in words, and the data block that follows a `VA`."""

    words: list[bytes]
    body: bytes


Hit = tuple[bytes, bytes]
"""The tag and the value of a reply that holds a cell: what most replies are, without their other words."""


class Grant(NamedTuple):
    """The tag and the token of a reply that grants a lease: what most replies are where the cache is cold."""

    tag: bytes
    token: bytes


AnyReply = Reply | Hit | Grant


class Connection(Stream[AnyReply]):
    """A connected, authenticated socket to a memcached that is new enough. Used by one request at a time.

    Making one takes at most `within_s`, for each address of the host; a request takes `timeout_s`. Raises OSError (of
    which a time-out and Garbled are kinds) or BackendUnsupported.
    """

    _client: Client | None = None  # an interruption may come before it is made

    def __init__(
        self,
        server: str | tuple[str, int],
        timeout_s: float,
        within_s: float,
        *,
        tls_context: SSLContext | None = None,
        credentials: str | None = None,
        value_size: int = MAPPED_SIZE,
        longest_value: int = LONGEST_ENTRY,
    ) -> None:
        self.over_tls = tls_context is not None
        self._server = server
        self._hits, self._each_hit = _patterns(value_size)
        self._longest_value = longest_value
        self.opaque = count(1).__next__
        deadline = time.monotonic() + within_s
        self._client = Client(server, no_delay=True, tls_context=tls_context)
        try:
            left_s = within_s if isinstance(server, str) else demand_address(server[0], within_s)
            self._client.connect_timeout = self._client.timeout = left_s
            self._client._connect()  # noqa: SLF001 - its commands connect too, but wait for ever for the end of a line
            super().__init__(self._client.sock, timeout_s)
            self.version = self._handshake(credentials, deadline)
        except BaseException:
            self.close()
            raise

    def __del__(self) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        return self._client is None or self._client.sock is None

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def _parse(self, buffer: bytes, start: int, replies: list[AnyReply], expected: int) -> int:
        while len(replies) < expected:
            hits = self._hits(buffer, start) if expected > 1 else None
            if hits is not None:
                replies.extend(self._each_hit(buffer, start, hits.end()))
                start = hits.end()
                continue
            grants = _grants(buffer, start) if expected > 1 else None
            if grants is not None:
                replies.extend(map(Grant._make, _each_grant(buffer, start, grants.end())))
                start = grants.end()
                continue
            done = _done(buffer, start)
            if done is not None:
                reply, size = Reply([b"HD", done[1]], b""), len(done[1]) + 5
                replies.extend([reply] * ((done.end() - start) // size))
                start = done.end()
                continue
            parsed = _parse(buffer, start, self._longest_value)
            if parsed is None:
                break
            reply, start = parsed
            replies.append(reply)
        return start

    def _handshake(self, credentials: str | None, deadline: float) -> str:
        """Log in where memcached asks for it (-Y): one that does not would store the password, as the item `auth`.

        Return the version.
        """
        words = self._words(b"version\r\n", deadline)
        if words[0] == b"CLIENT_ERROR" and credentials is not None:
            login = credentials.encode()
            self._demand(b"STORED", self._words(b"set auth 0 0 %d\r\n%b\r\n" % (len(login), login), deadline))
            words = self._words(b"version\r\n", deadline)
        self._demand(b"VERSION", words)
        version = words[-1].decode("ascii", "replace")
        if _numbers(version) < OLDEST_VERSION:
            needed = ".".join(map(str, OLDEST_VERSION))
            raise BackendUnsupported(
                f"memcached at {self._shown()} is version {version}; leases need the meta commands of {needed} or newer"
            )
        return version

    def _words(self, request: bytes, deadline: float) -> list[bytes]:
        self.send(request)
        (reply,) = self.replies(1, deadline=deadline)
        if not isinstance(reply, Reply):
            raise Garbled("a value in reply to a handshake")
        return reply.words

    def _demand(self, expected: bytes, words: list[bytes]) -> None:
        if words[0] == b"CLIENT_ERROR":
            raise BackendUnsupported(
                f"memcached at {self._shown()} refuses us ({b' '.join(words[1:]).decode(errors='replace')}); are "
                "cache.username and cache.password right?"
            )
        if words[0] != expected:
            raise Garbled(f"no memcached answers at {self._shown()}: {b' '.join(words)[:60]!r}")

    def _shown(self) -> str:
        return self._server if isinstance(self._server, str) else "{}:{}".format(*self._server)


_grants = re.compile(rb"(?:VA 0 O\d+ c\d+ W\r\n\r\n)+").match
_each_grant = re.compile(rb"VA 0 (O\d+) c(\d+) W\r\n\r\n").findall
_done = re.compile(rb"HD (O\d+)\r\n(?:HD \1\r\n)*").match


@lru_cache
def _patterns(size: int) -> tuple[Callable[..., re.Match[bytes] | None], Callable[..., list[Hit]]]:
    """Match a run of values of this size, and find each of them: most replies to a bulk lookup are such runs."""
    hit = rb"VA %d (O\d+) c\d+\r\n([^\0].{%d})\r\n" % (size, size - 1)
    run = rb"(?:%b)+" % hit.replace(b"(", b"(?:")
    return re.compile(run, re.DOTALL).match, re.compile(hit, re.DOTALL).findall


def _parse(buffer: bytes, start: int, longest_value: int) -> tuple[Reply, int] | None:
    """Return the reply that begins at `start` and where the next one does, or None while it is incomplete."""
    end = buffer.find(b"\r\n", start)
    if (end if end >= 0 else len(buffer)) - start > _LONGEST_HEADER:
        raise Garbled("no end of line")
    if end < 0:
        return None
    words = buffer[start:end].split(b" ")
    if words[0] != b"VA":
        return Reply(words, b""), end + 2
    if len(words) < 2 or not words[1].isdigit() or len(words[1]) > _LONGEST_SIZE:
        raise Garbled("a value without a size, or of one that no memcached holds")
    size = int(words[1])
    if size > longest_value:
        raise TooLong(f"a value of {size:,} bytes")
    after = end + 2 + size
    if len(buffer) < after + 2:
        return None
    if buffer[after : after + 2] != b"\r\n":
        raise Garbled("a value that does not end where it should")
    return Reply(words, buffer[end + 2 : after]), after + 2


def _numbers(version: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in version.split(".")[:3])
    except ValueError:
        return ()
