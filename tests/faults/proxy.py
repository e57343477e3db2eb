"""A TCP proxy between a client and its server, in which anything can go wrong.

    with Proxy(memcached.host, memcached.port) as proxy:
        proxy.on_reply = delayed(0.5)       # every reply, from now on
        proxy.cut()                         # every connection, now

What passes is handed to `on_request` or `on_reply` piece by piece, as it arrives; each is a function that forwards
the piece, or does something else with it. They run in the proxy's own thread and must not block.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, Self, TypeVar

from tests.server_process import reserve_port

T = TypeVar("T")

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of zero seconds: closing sends RST


class Link:
    """One connection of a client, and the proxy's own one to the server behind it."""

    def __init__(self, proxy: Proxy) -> None:
        self.client_port = 0
        self.replied = 0  # bytes of replies that came from the server
        self.memory: dict[str, Any] = {}  # whatever a fault wants to remember about this connection
        self._proxy = proxy
        self._client: asyncio.Transport | None = None
        self._server: asyncio.Transport | None = None
        self._waiting: list[bytes] = []  # requests that came before the server was connected
        self._not_before = {"client": 0.0, "server": 0.0}  # what is delayed stays in order

    def to_server(self, data: bytes, after_s: float = 0.0) -> None:
        self._later("server", self._send_to_server, data, after_s)

    def to_client(self, data: bytes, after_s: float = 0.0) -> None:
        self._later("client", self._send_to_client, data, after_s)

    def cut(self) -> None:
        """Reset both connections at once; what is on its way is lost."""
        for transport in (self._client, self._server):
            if transport is not None:
                sock = transport.get_extra_info("socket")
                if sock is not None and sock.fileno() >= 0:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                transport.abort()
        self._proxy._links.discard(self)

    def _later(self, side: str, send: Callable[[bytes], None], data: bytes, after_s: float) -> None:
        loop = asyncio.get_running_loop()
        at = max(loop.time() + after_s, self._not_before[side])
        if after_s or at > loop.time():
            self._not_before[side] = at + 1e-6
            loop.call_at(at, send, data)
        else:
            send(data)

    def _send_to_server(self, data: bytes) -> None:
        if self._server is None:
            self._waiting.append(data)
        elif not self._server.is_closing():
            self._server.write(data)

    def _send_to_client(self, data: bytes) -> None:
        if self._client is not None and not self._client.is_closing():
            self._client.write(data)

    def _connected(self, server: asyncio.Transport) -> None:
        self._server = server
        if self._client is None or self._client.is_closing():
            server.abort()
        for data in self._waiting:
            server.write(data)
        self._waiting.clear()

    def _ended(self, which: str) -> None:
        """One side has hung up: so does the other, unless the proxy holds connections half-open."""
        if which == "client" or not self._proxy.half_open:
            self._proxy._links.discard(self)
            for transport in (self._client, self._server):
                if transport is not None:
                    transport.close()


class _Client(asyncio.Protocol):
    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._link = Link(proxy)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        proxy, link = self._proxy, self._link
        link._client = transport
        link.client_port = transport.get_extra_info("peername")[1]
        proxy.accepted += 1
        proxy._links.add(link)
        if proxy.on_connect(link):
            task = asyncio.get_running_loop().create_task(self._connect())
            proxy._tasks.add(task)
            task.add_done_callback(proxy._tasks.discard)

    async def _connect(self) -> None:
        link = self._link
        try:
            await asyncio.get_running_loop().create_connection(lambda: _Server(self._proxy, link), *self._proxy.target)
        except OSError:
            link.cut()

    def data_received(self, data: bytes) -> None:
        self._proxy.requests += 1
        self._proxy.on_request(self._link, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._link._ended("client")


class _Server(asyncio.Protocol):
    def __init__(self, proxy: Proxy, link: Link) -> None:
        self._proxy = proxy
        self._link = link

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._link._connected(transport)

    def data_received(self, data: bytes) -> None:
        self._proxy.on_reply(self._link, data)
        self._link.replied += len(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._link._ended("server")


Fault = Callable[[Link, bytes], None]


class Proxy:
    """Listens on a loopback port of its own for its whole life; `target` may be changed at any time."""

    host = "127.0.0.1"

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self.accepted = 0
        """Connections that clients have made."""
        self.requests = 0
        """Pieces that clients have sent."""
        self.half_open = False
        """Whether a client's connection stays when its server has hung up."""
        self.on_connect: Callable[[Link], bool] = connect
        self.on_request: Fault = forward_request
        self.on_reply: Fault = forward_reply
        self._links: set[Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reservation = reserve_port()  # keeps the port ours while nobody listens
        self.port: int = self._reservation.getsockname()[1]
        self._listening: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy {self.port}", daemon=True)
        self._thread.start()
        self.accept()

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def connections(self) -> int:
        """How many there are now."""
        return self._call(lambda: len(self._links))

    def accept(self) -> None:
        """Take connections again after `refuse`."""
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()

    def refuse(self) -> None:
        """Cut every connection and refuse new ones."""

        def stop_listening() -> None:
            if self._listening is not None:
                self._listening.close()
                self._listening = None

        self._call(stop_listening)
        self.cut()

    def cut(self, chosen: Callable[[Link], bool] = lambda _: True) -> int:
        """Reset the connections that there are, or those chosen; return how many."""

        def cut_now() -> int:
            links = [link for link in self._links if chosen(link)]
            for link in links:
                link.cut()
            return len(links)

        return self._call(cut_now)

    def heal(self) -> None:
        """Forward everything as it should be. Connections that are in a bad way stay so until they end."""
        self.on_connect, self.on_request, self.on_reply = connect, forward_request, forward_reply
        self.half_open = False
        self.accept()

    def close(self) -> None:
        if self._loop.is_closed():
            return
        self.refuse()
        asyncio.run_coroutine_threadsafe(self._finish(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._reservation.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _listen(self) -> None:
        if self._listening is None:
            self._listening = await self._loop.create_server(
                lambda: _Client(self), self.host, self.port, reuse_address=True, backlog=200
            )

    async def _finish(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # transports that were aborted tell their protocols in the next turn
        await asyncio.sleep(0)

    def _call(self, work: Callable[[], T]) -> T:
        async def run() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()


def connect(link: Link) -> bool:
    return True


def silent(link: Link) -> bool:
    """Take the connection and leave it at that: nothing behind it answers."""
    return False


def forward_request(link: Link, data: bytes) -> None:
    link.to_server(data)


def forward_reply(link: Link, data: bytes) -> None:
    link.to_client(data)


def swallow(link: Link, data: bytes) -> None:
    """As if it had been sent into a cable that is cut: no answer, no error."""


def delayed(seconds: float) -> Fault:
    """Replies that come late."""
    return lambda link, data: link.to_client(data, after_s=seconds)


def cut_after(size: int) -> Fault:
    """Let so many bytes of each reply through, then reset the connection."""

    def fault(link: Link, data: bytes) -> None:
        link.to_client(data[:size])
        # A reset overtakes what was sent just before it; give that a moment to arrive.
        asyncio.get_running_loop().call_later(0.01, link.cut)

    return fault


def dripping(pause_s: float) -> Fault:
    """Replies of one byte at a time."""

    def fault(link: Link, data: bytes) -> None:
        for position in range(len(data)):
            link.to_client(data[position : position + 1], after_s=pause_s * (position + 1))

    return fault


def replaced(reply: bytes) -> Fault:
    """Something else in place of each reply."""
    return lambda link, data: link.to_client(reply)


def garbled(link: Link, data: bytes) -> None:
    """The reply with every byte turned round: the right length, no sense."""
    link.to_client(bytes(255 - byte for byte in data))


def shifted(link: Link, data: bytes) -> None:
    """Answer each request with the reply to the one before it."""
    before = link.memory.get("reply")
    link.memory["reply"] = data
    link.to_client(data if before is None else before)
