"""Meta commands, one at a time: what is sent for a change, and what the replies mean."""

from __future__ import annotations

from collections.abc import Sequence

from cellcache.codec import FENCE
from cellcache.protocol import Absent, Lease, Seen

from .stream import Garbled
from .wire import AnyReply, Grant, Reply

_LONGEST_TTL_S = 30 * 86400


def ttl(seconds: float) -> int:
    """0, for ever, stays 0; what else, from one second to 30 days: what is longer memcached takes for a date."""
    return round(min(max(1, seconds), _LONGEST_TTL_S)) if seconds else 0


def store(wire: bytes, value: bytes, tag: bytes, over: bytes, ttl_s: float) -> bytes:
    """`over`: b" C<token>" for exactly that item, b" c" to learn the new token, b"" for neither."""
    return b"ms %b %d b %b%b T%d\r\n%b\r\n" % (wire, len(value), tag, over, ttl(ttl_s), value)


def remove(wire: bytes, tag: bytes, token: bytes) -> bytes:
    return b"md %b b %b C%b\r\n" % (wire, tag, token)


def look(wire: bytes, tag: bytes, flags: bytes) -> bytes:
    """The tag comes last, which keeps the replies from being parsed as hits: those would lose their other words."""
    return b"mg %b b %b %b\r\n" % (wire, flags, tag)


def refusals_in(replies: Sequence[AnyReply], tag: bytes) -> int:
    """Return how many times the server refused (out of memory); raise Garbled for what does not answer `tag`."""
    refusals = 0
    for reply in [reply for reply in replies if reply[0] != tag]:  # a hit and a grant, which most are, begin with it
        if not isinstance(reply, Reply):
            raise Garbled("the reply to another request")
        if reply.words[0] == b"SERVER_ERROR":
            refusals += 1
        elif tag not in reply.words and reply.words[0] != b"EN":
            raise Garbled(f"unexpected reply {b' '.join(reply.words)[:60]!r}")
    return refusals


def in_full(reply: AnyReply) -> Reply:
    if isinstance(reply, Reply):
        return reply
    raise Garbled("a cell in reply to a change")


def changes_of(replies: Sequence[AnyReply], _: float) -> list[Reply]:
    return [in_full(reply) for reply in replies]


def token_of(reply: Reply) -> bytes:
    for word in reply.words:
        if word.startswith(b"c"):
            return word[1:]
    raise Garbled("a reply without a token")


def size_of(reply: Reply) -> int:
    """Return the size that a look tells without the value; 0 where nothing stands."""
    return next((_number(word[1:]) for word in reply.words[1:] if word.startswith(b"s")), 0)


def is_fence(reply: Reply, longest_mark_s: float) -> bool:
    """Return whether a fence stands there that ends in time; what does not end, or too late, is no fence of ours."""
    return reply.body.startswith(FENCE) and not _is_endless(reply, longest_mark_s)


def _is_endless(reply: Reply, longest_mark_s: float) -> bool:
    left_s = next((_number(word[1:]) for word in reply.words if word.startswith(b"t")), 0)
    return left_s < 0 or left_s > longest_mark_s


def _number(word: bytes) -> int:
    try:
        return int(word)
    except ValueError:
        raise Garbled(f"not a number: {word[:60]!r}") from None


def entries_of(replies: Sequence[AnyReply], asked_at: float) -> list[bytes | Lease | Absent]:
    return [reply[1] if type(reply) is tuple else _entry(reply, asked_at) for reply in replies]


def _entry(reply: AnyReply, asked_at: float) -> bytes | Lease | Absent:
    if isinstance(reply, Grant):
        return Lease(reply.token, asked_at)
    reply = in_full(reply)
    if reply.words[0] == b"VA" and reply.words[-1] == b"W":
        return Lease(token_of(reply), asked_at)
    seen = _seen(reply)
    return Absent.UNREACHABLE if seen is None else seen  # nothing, and no lease: no answer to what was asked


def seen_of(replies: Sequence[AnyReply], longest_mark_s: float) -> list[Seen]:
    """Return what those who only look are told: also of marks that do not end in time."""
    return [reply[1] if type(reply) is tuple else _seen_by_lookers(in_full(reply), longest_mark_s) for reply in replies]


def _seen_by_lookers(reply: Reply, longest_mark_s: float) -> Seen:
    seen = _seen(reply)
    return Absent.ENDLESS if seen in {Absent.LEASED, Absent.FENCED} and _is_endless(reply, longest_mark_s) else seen


def _seen(reply: Reply) -> Seen:
    words, body = reply
    if words[0] != b"VA":
        return None if words[0] == b"EN" else Absent.UNREACHABLE
    if not body and b"Z" in words:
        return Absent.LEASED
    if body.startswith(FENCE):
        return Absent.FENCED
    return body  # also what is empty, or begins like a mark, and is none: the caller cannot decode it
