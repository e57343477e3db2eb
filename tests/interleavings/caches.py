"""The caches, seen and disturbed from behind: what stands under a key, an eviction, a restart.

All of it over connections of the test's own, so that looking changes nothing and is no step of any operation.
"""

from __future__ import annotations

import abc
import os
import socket
import subprocess
import time
from binascii import b2a_base64
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import redis
from sqlalchemy import make_url

from cellcache.backends.keys import raw_key
from cellcache.backends.memory import MemoryBackend
from cellcache.backends.redis import RedisBackend
from cellcache.codec import FENCE, MARK, decode
from cellcache.database_identity import database_identity
from tests.servers import Redis

_MOST_TO_COUNT_UP_TO = 3000


class Entry(NamedTuple):
    """What stands under a key; `cell_uuid` is what a value says, None being "not mapped"."""

    kind: Literal["absent", "value", "lease", "fence"]
    raw: bytes = b""
    cell_uuid: str | None = None


ABSENT = Entry("absent")


def entry_of(raw: bytes | None) -> Entry:
    if raw is None:
        return ABSENT
    if raw.startswith(FENCE):
        return Entry("fence", raw)
    if not raw or raw.startswith(MARK):
        return Entry("lease", raw)
    return Entry("value", raw, decode(raw))


class Cache(abc.ABC):
    """One kind of cache under one key prefix."""

    settings: dict[str, Any]
    restarts: ClassVar[bool] = True

    def fresh(self) -> None:  # noqa: B027 - nothing to do for most
        """Prepare for one schedule with a restart, which may cost the operations their connections."""

    def peek(self, key: str) -> Entry:
        return entry_of(self.raw(key))

    @abc.abstractmethod
    def raw(self, key: str) -> bytes | None: ...

    @abc.abstractmethod
    def evict(self, key: str) -> None: ...

    @abc.abstractmethod
    def restart(self) -> None:
        """Lose everything and every connection; the next token is again the first of this schedule."""

    @abc.abstractmethod
    def close(self) -> None: ...


class MemoryCache(Cache):
    """The store that all directories of this process over one database share."""

    restarts = False  # it ends with its process

    def __init__(self, database_url: str) -> None:
        self.settings = {"backend": "cellcache.memory"}
        self._insider = MemoryBackend({"name": database_identity(make_url(database_url))})

    def raw(self, key: str) -> bytes | None:
        raw: bytes | None = self._insider._standing(key, 0.0)
        return raw

    def evict(self, key: str) -> None:
        self._insider._stores.get().entries.pop(key, None)

    def restart(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._insider.close()


class QuickMemcached:
    """A memcached that is killed and back within some ten milliseconds: one thread, little memory, a Unix socket."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "memcached.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def restart(self) -> socket.socket:
        """Kill it if it runs, start it, and return a connection to it."""
        self.close()
        user = ["-u", "root"] if not os.geteuid() else []
        small = ["-t", "1", "-m", "8", "-o", "hashpower=12,no_lru_maintainer,no_lru_crawler"]
        command = ["setpriv", "--pdeathsig=KILL", "memcached", "-U", "0", "-s", str(self.path), *small, *user]
        self._process = subprocess.Popen(command)
        deadline = time.monotonic() + 30.0
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(self.path))
                return connection
            except OSError:
                connection.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.0005)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self.path.unlink(missing_ok=True)


class MemcachedCache(Cache):
    """A real memcached, really restarted.

    After a restart it counts its tokens from 1 again. To meet the worst case, in which a token of before stands for
    something else afterwards, it is then made to count up to where it stood when the schedule began.
    """

    def __init__(self, server: QuickMemcached) -> None:
        self._server = server
        self._socket = server.restart()
        self._began_at = 0
        self.settings = {"backend": "cellcache.memcached", "servers": [f"unix:{server.path}"]}

    def fresh(self) -> None:
        self._began_at = self._token()
        if self._began_at >= _MOST_TO_COUNT_UP_TO:
            self._start_again()
            self._began_at = self._token()

    def raw(self, key: str) -> bytes | None:
        header, _, rest = self._ask(b"mg %b b v\r\n" % self._wire(key)).partition(b"\r\n")
        return rest[: int(header.split()[1])] if header.startswith(b"VA") else None

    def evict(self, key: str) -> None:
        self._ask(b"md %b b\r\n" % self._wire(key))

    def restart(self) -> None:
        self._start_again()
        while (missing := self._began_at - self._token()) > 0:
            self._socket.sendall(b"ms probe 1 q\r\nx\r\n" * (missing - 1))
        assert missing == 0

    def close(self) -> None:
        self._socket.close()

    def _start_again(self) -> None:
        self._socket.close()
        self._socket = self._server.restart()

    def _token(self) -> int:
        return int(self._ask(b"ms probe 1 c\r\nx\r\n").split(b" c")[1])

    def _ask(self, request: bytes) -> bytes:
        self._socket.sendall(request)
        reply = self._socket.recv(4096)
        while not reply.endswith(b"\r\n"):
            reply += self._socket.recv(4096)
        return reply

    @staticmethod
    def _wire(key: str) -> bytes:
        return b2a_base64(raw_key(key), newline=False)


class RedisCache(Cache):
    """A real Redis. A restart is all connections closed, and all keys and scripts gone.

    A true one would change its run id as well, by which the backend tells the keys of before from those of after:
    without that help, what was won before the restart has one protection less.
    """

    def __init__(self, server: Redis) -> None:
        self.settings = {"backend": "cellcache.redis", "url": server.url}
        self._client = redis.Redis.from_url(server.url, single_connection_client=True)
        backend = RedisBackend({"url": server.url, "timeout_s": 10.0})
        connection = backend._node.check()
        self._prefix = connection.prefix
        connection.close()

    def raw(self, key: str) -> bytes | None:
        raw = self._client.get(self._prefix + raw_key(key))
        assert raw is None or isinstance(raw, bytes)
        return raw

    def evict(self, key: str) -> None:
        self._client.delete(self._prefix + raw_key(key))

    def restart(self) -> None:
        self._client.execute_command("CLIENT KILL TYPE normal SKIPME yes")
        self._client.flushall()
        self._client.script_flush()

    def close(self) -> None:
        self._client.close()
