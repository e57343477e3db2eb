"""Cell directories that stand for processes, with a stop before each step that others could notice."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any
from unittest import mock

from sqlalchemy import Connection, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from cellcache import CellDirectory, Settings, invalidations
from cellcache import directory as directory_module
from cellcache.backends.node import Node
from cellcache.flights import Flight, Flights, beginning
from cellcache.protocol import Fence
from cellcache.store import Store
from tests.caches import nodes_of
from tests.interleavings.scheduler import Abandoned, Kind, Operation, current, stop

REQUESTS = ("lookup", "lookup_multi", "send_fills", "fence_multi", "settle_multi", "invalidate_multi")


class RowLock:
    """Who is between the beginning of a write and its end.

    On SQLite a writer waits there for any other; on MariaDB and PostgreSQL it waits, one statement later, for those
    that hold the same row. A schedule has one row, so in all three the next to wait is the next to write.
    """

    def __init__(self) -> None:
        self.holder: Operation | None = None

    def is_free(self) -> bool:
        return self.holder is None


class Process:
    """One cellcache process. Each of its operations runs in a thread of its own; they share its connections."""

    def __init__(self, settings: Settings, lock: RowLock, threads: int) -> None:
        self.directory = CellDirectory(settings)  # not `open`: its background thread would go by the clock
        self.directory._here().cells.refresh()
        self.threads: list[Executor] = [ThreadPoolExecutor(1) for _ in range(threads)]
        stop_at_statements(self.directory._here().store, lock)
        if self.nodes:
            _stop_at_requests(self.directory, "poll")
            for node in self.nodes:
                _stop_at_wire(node)
        else:
            _stop_at_requests(self.directory, "cache")
            _put_before(self.directory._here(), "held", lambda: stop("cache", "look into the memory"))

    @property
    def nodes(self) -> list[Node[Any]]:
        return nodes_of(self.directory._here().backend)

    def connect(self) -> None:
        """Let there be a free connection that lives for each thread: no operation spends its first step on that.

        Who was abandoned in the midst of a request has kept his, and after a restart all are lost.
        """
        for node in self.nodes:
            connections = [node.take_idle(time.monotonic()) for _ in self.threads]
            for connection in connections:
                assert connection is not None
                node.give_back(connection)

    def forget_invalidations(self) -> None:
        """Deliver nothing more of its own, as if it had been killed."""
        invalidations = self.directory._here().invalidations
        invalidations._settled.clear()
        invalidations._unsettled.clear()
        invalidations._unrecorded.clear()

    def close(self) -> None:
        for thread in self.threads:
            thread.shutdown()
        self.directory.close()


@contextmanager
def stops_in_flights() -> Iterator[None]:
    """Stop where the threads of one process meet; and let rows be delivered as soon as they are committed."""
    join, end, take_off, land = Flights.join, Flights.end, Flight.take_off, Flight.land
    wait: Callable[[Flight[Any]], Any] = Flight.wait

    def stop_and_begin() -> int:
        stop("flight", "ask")
        return beginning()

    def stop_and_join(flights: Flights[Any], own: Flight[Any], keys: Iterable[str], **about: Any) -> Any:
        stop("flight", "join a flight")
        return join(flights, own, keys, **about)

    def stop_and_end(flights: Flights[Any], flight: Flight[Any]) -> None:
        operation = current()
        if operation is not None and operation.abandoned:
            return  # it was killed, and ends nothing
        if flight.keys:  # else it has ended, or was never anybody's
            stop("flight", "end the flight")
        end(flights, flight)

    def stop_and_take_off(flight: Flight[Any]) -> None:
        stop("flight", "take off")
        take_off(flight)

    def stop_and_land(flight: Flight[Any], answers: Any) -> None:
        stop("flight", "land")
        land(flight, answers)

    def stop_and_wait(flight: Flight[Any]) -> Any:
        stop("flight", "wait for the flight", flight._over.is_set)
        return wait(flight)

    with (
        mock.patch.object(directory_module, "beginning", stop_and_begin),
        mock.patch.object(Flights, "join", stop_and_join),
        mock.patch.object(Flights, "end", stop_and_end),
        mock.patch.object(Flight, "take_off", stop_and_take_off),
        mock.patch.object(Flight, "land", stop_and_land),
        mock.patch.object(Flight, "wait", stop_and_wait),
        mock.patch.object(invalidations, "GRACE_S", -3600.0),
    ):
        yield


def _put_before(owner: object, name: str, work: Callable[[], None]) -> None:
    """Let a method do something else first."""
    method = getattr(owner, name)

    def both(*arguments: Any, **more: Any) -> Any:
        work()
        return method(*arguments, **more)

    setattr(owner, name, both)


def _stop_at_requests(directory: CellDirectory, kind: Kind) -> None:
    backend = directory._here().backend

    def stopping(name: str, request: Callable[..., Any]) -> Callable[..., Any]:
        def ask(*what: Any, **more: Any) -> Any:
            stop(kind, name)
            operation = current()
            if operation is not None:
                operation.does_not_wait = not more.get("wait", True)
            answer = request(*what, **more)
            if operation is not None:
                operation.does_not_wait = False
            if operation is not None and name == "fence_multi":
                fences: list[Fence] = answer
                operation.unfenced = not all(fence.confirmed for fence in fences)
            return answer

        return ask

    for name in REQUESTS:
        setattr(backend, name, stopping(name, getattr(backend, name)))
    directory._here().lookup = backend.lookup


def _stop_at_wire(node: Node[Any]) -> None:
    dial = node._dial

    def dial_and_stop(within_s: float) -> Any:
        connection = dial(within_s)
        connection.under_way = []
        send_now, is_idle = connection.send, connection.is_idle

        def stopping(request: Callable[..., Any]) -> Callable[..., Any]:
            def ask(message: bytes, *rest: Any, **more: Any) -> Any:
                land_late()
                stop("cache", _words(message))
                _arrive_all(connection)
                return request(message, *rest, **more)

            return ask

        send_and_wait = stopping(send_now)

        def send(message: bytes) -> None:
            operation = current()
            if operation is not None and operation.does_not_wait:
                operation.late.append(Late(connection, send_now, message))
            else:
                send_and_wait(message)

        def look(deadline: float | None = None) -> bool:
            _arrive_all(connection)
            return bool(is_idle(deadline))

        connection.send, connection.ask, connection.is_idle = send, stopping(connection.ask), look
        return connection

    node._dial = dial_and_stop


class Late:
    """What was sent without waiting for the answer, and is on its way for as long as it can be.

    That is until its operation is over or sends something more, or anybody uses that connection, on which it comes
    first.
    """

    def __init__(self, connection: Any, send: Callable[[bytes], None], message: bytes) -> None:
        self.label = _words(message)
        self._connection = connection
        self._send = send
        self._message = message
        connection.under_way.append(self)

    def arrive(self) -> None:
        """Arrive, unless it has."""
        if self not in self._connection.under_way:
            return
        self._connection.under_way.remove(self)
        with suppress(OSError):  # the server has restarted
            self._send(self._message)
            answered = select.poll()
            answered.register(self._connection._sock, select.POLLIN)
            answered.poll()

    def get_lost(self) -> None:
        """Never arrive: its sender was killed. The connection goes on to serve another schedule."""
        if self in self._connection.under_way:
            self._connection.under_way.remove(self)
            self._connection._owed.clear()


def _arrive_all(connection: Any) -> None:
    for late in list(connection.under_way):
        late.arrive()


def land_late() -> None:
    """Let what this operation has sent without waiting arrive."""
    operation = current()
    while operation is not None and operation.late:
        late = operation.late.pop(0)
        try:
            stop("cache", late.label)
        except Abandoned:
            late.get_lost()
            raise
        late.arrive()


def _words(message: bytes) -> str:
    """Tell a request by its command: memcached's first word; what stands behind Redis' first length."""
    return (message.split(b"\r\n")[2] if message.startswith(b"*") else message.split()[0]).decode()


def stop_at_statements(store: Store, lock: RowLock) -> None:
    """Stop before each statement and each commit, and keep track of the lock."""
    reading, writing = store._reading, store._writing

    def begin(_connection: Connection) -> None:
        stop("begin", "BEGIN", lock.is_free)
        lock.holder = current()

    def roll_back(_connection: Connection) -> None:
        operation = current()
        if operation is not None:
            operation.rolled_back = True

    def write(connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("BEGIN"):  # SQLite's, in which a writer waits for any other
            begin(connection)
        else:
            stop("local", statement.split(maxsplit=1)[0])

    def read(_c: Connection, _cursor: object, statement: str, *_: object) -> None:
        verb = statement.split(maxsplit=1)[0]
        if "cache_invalidation" in statement:
            stop("rows", f"{verb} invalidations", lock.is_free if verb != "SELECT" else lambda: True)
        else:
            stop("read" if "FROM instance_mapping" in statement else "local", verb)

    def hurry(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA synchronous = OFF")
        cursor.close()

    _put_before(writing.dialect, "do_commit", lambda: stop("commit", "COMMIT"))
    for look_up in ("cell_of", "cells_of"):  # one statement each, which SQLAlchemy's events do not see
        _put_before(store, look_up, lambda: stop("read", "SELECT"))
    event.listen(writing, "rollback", roll_back)
    event.listen(writing, "before_cursor_execute", write)
    event.listen(reading, "before_cursor_execute", read)
    if writing.dialect.name == "sqlite":
        event.listen(reading, "connect", hurry)
        event.listen(writing, "connect", hurry)
    else:
        event.listen(writing, "begin", begin)
