"""One connection to one Redis that is new enough and no replica of a cluster: log in, send commands, read replies.

redis-py makes the connection (addresses, TLS, time limits); its way of packing a command and reading the reply
costs twice what a lookup may, and a handshake of up to five round trips, so the talking is ours.

Redis remembers on disk, and a promoted replica remembers what it was told in time: either may come back with
answers that were corrected since. So the keys of a connection begin with a few bytes of the server's `run_id`, which
is another with each start and on each server: to us, one that has started again is empty.
"""

from __future__ import annotations

import time
from typing import Any

import redis
from redis.connection import AbstractConnection

from cellcache.codec import FENCE, LONGEST_ENTRY
from cellcache.errors import BackendUnsupported
from cellcache.foreign import printable

from .names import demand_address
from .stream import Garbled, Stream

OLDEST_VERSION = (7, 0)  # the first whose SET takes NX together with GET, and whose scripts are told apart by flags
ACL_RULES = "+info +select +set +getrange +pttl +del +evalsha +script|load"
_LONGEST_LINE = 1 << 16
_MARK_RANGE = b"0, 63"  # bytes of what stands there: more than any mark has, and no more of what is no mark
_RUN_TAG_SIZE = 6
_NIL = b"$-1\r\n"
_REFUSED_TO_US = {"NOAUTH", "WRONGPASS", "NOPERM"}
_ABOUT_ONE_KEY = {"OOM", "WRONGTYPE"}

# The flags say "this script writes", whatever it turns out to do: a primary that has become a replica refuses it,
# where it would otherwise confirm that nothing old stands in a cache that nobody reads any more. What GETRANGE refuses
# for another reason than the type of what stands there may be a fence, which must stay: the user lacks +getrange.
_FILL = (
    b"""#!lua
if redis.pcall('GETRANGE', KEYS[1], %b) ~= ARGV[1] then return 0 end
if ARGV[3] == '0' then redis.call('SET', KEYS[1], ARGV[2]) else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return 1
"""
    % _MARK_RANGE
)
_SETTLE = b"""#!lua flags=allow-oom
local standing = redis.pcall('GETRANGE', KEYS[1], %b)
if type(standing) == 'table' and standing.err and not string.find(standing.err, 'WRONGTYPE') then return standing end
if standing == ARGV[1] and ARGV[3] then
  if ARGV[4] == '0' then redis.call('SET', KEYS[1], ARGV[3])
  else redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4]) end
  return 1
end
if standing ~= ARGV[1] and type(standing) == 'string' and string.sub(standing, 1, %d) == '%b' then
  local left_ms = redis.call('PTTL', KEYS[1])
  if left_ms >= 0 and left_ms <= tonumber(ARGV[2]) then return 1 end
end
redis.call('DEL', KEYS[1])
return 1
""" % (_MARK_RANGE, len(FENCE), b"".join(b"\\%03d" % byte for byte in FENCE))


class Refused(OSError):
    """Redis answers, but not to what was asked: it is loading, has become a replica, or does not let us."""

    def __init__(self, text: str) -> None:
        super().__init__(printable(text))
        self.code = text.partition(" ")[0]


class Refusal(str):
    """An error that Redis answers about one key, and that says nothing of the others."""

    __slots__ = ()


Reply = bytes | int | Refusal | None


class Connection(Stream[Reply]):
    """A connected, authenticated connection; `prefix` stands before every key.

    Making one takes at most `within_s`, for each address of the host; a request takes `timeout_s`. Raises OSError (of
    which Refused is a kind) or BackendUnsupported.
    """

    _connection: Any = None  # an interruption may come before it is there

    def __init__(
        self,
        connection: AbstractConnection,
        shown: str,
        key_prefix: bytes,
        timeout_s: float,
        within_s: float,
        *,
        longest_value: int = LONGEST_ENTRY,
    ) -> None:
        self._connection = connection
        self._longest = max(longest_value + 1, _LONGEST_LINE)  # of a value, one byte more is asked for, to tell
        deadline = time.monotonic() + within_s
        host: str | None = getattr(connection, "host", None)  # a Unix socket has none
        left_s = within_s if host is None else demand_address(host, within_s)
        connection.socket_timeout = connection.socket_connect_timeout = left_s
        try:
            connection.connect()  # type: ignore[no-untyped-call, unused-ignore]
        except redis.RedisError as error:
            raise ConnectionError(str(error)) from error
        sock: Any = connection._sock  # noqa: SLF001 - redis-py has no other way to hand it out
        super().__init__(sock, timeout_s)
        try:
            self._handshake(shown, key_prefix, deadline)
        except BaseException:
            self.close()
            raise

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.disconnect()  # type: ignore[no-untyped-call, unused-ignore]

    def _handshake(self, shown: str, key_prefix: bytes, deadline: float) -> None:
        """Log in, choose the database and ask who this is, in one round trip; leave the scripts there, in another."""
        connection = self._connection
        login: list[bytes] = []
        if connection.username or connection.password:
            user = (connection.username.encode(),) if connection.username else ()
            login.append(command(b"AUTH", *user, (connection.password or "").encode()))
        if connection.db:
            login.append(command(b"SELECT", b"%d" % connection.db))
        load = [command(b"SCRIPT", b"LOAD", script) for script in (_FILL, _SETTLE)]
        try:
            told = facts(self._told([*login, command(b"INFO", b"server")], deadline)[-1])
            self.version = told.get("valkey_version") or told.get("redis_version", "")
            self.prefix = key_prefix + _run_tag(told, shown)
            self.fill, self.settle = self._told(load, deadline)
        except Refused as error:
            if error.code not in _REFUSED_TO_US:
                raise
            raise BackendUnsupported(
                f"Redis at {shown} refuses us: {error}; are the user and password right, and does the user have the "
                f"rules {ACL_RULES}?"
            ) from error

    def _told(self, commands: list[bytes], deadline: float) -> list[bytes]:
        self.send(b"".join(commands))
        replies = [reply for reply in self.replies(len(commands), deadline=deadline) if isinstance(reply, bytes)]
        if len(replies) < len(commands):
            raise Garbled("these are not the replies of a Redis")
        return replies

    def _parse(self, buffer: bytes, start: int, replies: list[Reply], expected: int) -> int:
        while len(replies) < expected:
            if buffer.startswith(_NIL, start):  # half of the replies to a lookup that hits
                replies.append(None)
                start += len(_NIL)
                continue
            end = buffer.find(b"\r\n", start)
            if end < 0:
                if len(buffer) - start > _LONGEST_LINE:
                    raise Garbled("no end of line")
                break
            kind, line = buffer[start : start + 1], buffer[start + 1 : end]
            if kind == b"$":
                size = _integer(line)
                if size > self._longest:
                    raise Garbled("more than was asked for")
                after = end + 2 + size
                if len(buffer) < after + 2:
                    break
                if buffer[after : after + 2] != b"\r\n" or after < end + 2:
                    raise Garbled("a value that does not end where it should")
                replies.append(buffer[end + 2 : after])
                start = after + 2
                continue
            if kind == b"+":
                replies.append(line)
            elif kind == b":":
                replies.append(_integer(line))
            elif kind == b"-":
                replies.append(_refusal(line.decode(errors="replace")))
            else:
                raise Garbled(f"unexpected reply {buffer[start : start + 60]!r}")
            start = end + 2
        return start


def command(*parts: bytes) -> bytes:
    """Return a command as Redis reads it."""
    return b"*%d\r\n%b" % (len(parts), bulks(*parts))


def bulks(*parts: bytes) -> bytes:
    """Return parts of a command as Redis reads them."""
    return b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts])


def _refusal(text: str) -> Refusal:
    code = text.partition(" ")[0]
    if code in _ABOUT_ONE_KEY:
        return Refusal(text)
    if code == "NOSCRIPT":  # somebody has flushed them; the next connection loads them again
        raise ConnectionResetError(text)
    raise Refused(text)


def _integer(line: bytes) -> int:
    try:
        return int(line)
    except ValueError:
        raise Garbled(f"not a number: {line[:60]!r}") from None


def facts(info: bytes) -> dict[str, str]:
    """Return what a reply to INFO says."""
    lines = [line.partition(":") for line in info.decode(errors="replace").splitlines()]
    return {name: value.strip() for name, _, value in lines}


def _numbers(version: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in version.split(".")[:2])
    except ValueError:
        return ()


def _run_tag(told: dict[str, str], shown: str) -> bytes:
    """Return what is another after each start; refuse a server that cannot keep the promise."""
    if _numbers(told.get("redis_version", "")) < OLDEST_VERSION:
        version, needed = told.get("redis_version", "unknown"), ".".join(map(str, OLDEST_VERSION))
        raise BackendUnsupported(f"Redis at {shown} is version {version}; leases need {needed} or newer, or any Valkey")
    mode = told.get("redis_mode", "standalone")
    if mode != "standalone":
        raise BackendUnsupported(f"Redis at {shown} is a {mode}; give the address of one primary, without a cluster")
    try:
        tag = bytes.fromhex(told.get("run_id", ""))[:_RUN_TAG_SIZE]
    except ValueError:
        tag = b""
    if len(tag) < _RUN_TAG_SIZE:
        raise BackendUnsupported(f"Redis at {shown} hides its run_id, by which we notice that it has started again")
    return tag
