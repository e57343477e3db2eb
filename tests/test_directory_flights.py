"""Concurrent misses of one instance in one process: one SQL read, and never an answer older than the question."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from cellcache import (
    CellDirectory,
    CellMapping,
    CommitUnknown,
    DatabaseUnavailable,
    InstanceNotMapped,
    MappedCellNotFound,
    SchemaError,
)
from cellcache.flights import Flight, Flights, beginning
from cellcache.protocol import Absent, Lease
from tests.caches import eventually
from tests.directories import CACHES, HERE, THERE, Site, open_site

PROJECT = "project-1"
PATIENCE_S = 30.0


@pytest.fixture(params=CACHES)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, request.param) as site:
        yield site


@pytest.fixture
def key(site: Site) -> str:
    """An instance that is mapped, and not in the cache."""
    key = str(uuid4())
    site.open().map_instance(key, HERE, PROJECT)
    site.cache.evict(key)
    return key


class SlowReads:
    """Holds the SQL reads of a directory after they have read, and counts who has joined a flight."""

    def __init__(self, directory: CellDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reading = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.joined = 0
        self.reads = 0
        self._lock = threading.Lock()
        store, flights = directory._store, directory._read_through._flights
        read, join = store.cell_of, flights.join

        def slow_read(key: str) -> str | None:
            answer = read(key)
            with self._lock:
                self.reads += 1
            self.reading.release()
            assert self.go_on.wait(PATIENCE_S)
            return answer

        def counted_join(keys: Iterable[str], **about: Any) -> Any:
            joined = join(keys, **about)
            with self._lock:
                self.joined += 1
            return joined

        monkeypatch.setattr(store, "cell_of", slow_read)
        monkeypatch.setattr(flights, "join", counted_join)

    def wait_for_read(self) -> None:
        assert self.reading.acquire(timeout=PATIENCE_S)

    def wait_for_joined(self, n: int) -> None:
        assert eventually(lambda: self.joined == n, PATIENCE_S)


@pytest.fixture
def directory(site: Site) -> CellDirectory:
    directory = site.open()
    directory.get_cell(HERE)
    return directory


@pytest.fixture
def slow(directory: CellDirectory, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowReads]:
    slow = SlowReads(directory, monkeypatch)
    yield slow
    slow.go_on.set()


@pytest.fixture
def pool(slow: SlowReads) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(16)
    yield pool
    slow.go_on.set()
    pool.shutdown()


def cell(future: Future[CellMapping]) -> str:
    return future.result(PATIENCE_S).uuid


def test_concurrent_misses_cost_one_read(
    directory: CellDirectory, key: str, slow: SlowReads, pool: ThreadPoolExecutor
) -> None:
    futures = [pool.submit(directory.resolve_cell, key)]
    slow.wait_for_read()
    futures += [pool.submit(directory.resolve_cell, key) for _ in range(15)]
    slow.wait_for_joined(16)
    slow.go_on.set()
    assert [cell(future) for future in futures] == [HERE] * 16
    assert slow.reads == directory.stats().sql_reads == 1
    assert directory.stats().fills == 1


@pytest.mark.slow
def test_misses_at_the_same_instant_cost_one_read(
    directory: CellDirectory, key: str, slow: SlowReads, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever holds the lease may be aboard and not the leader; its fill has 5 ms to arrive, here a second.
    monkeypatch.setattr("cellcache.read_through._PAUSES_S", (0.01,) * 100)
    futures = [pool.submit(directory.resolve_cell, key) for _ in range(16)]
    slow.wait_for_joined(16)
    slow.go_on.set()
    assert [cell(future) for future in futures] == [HERE] * 16
    assert slow.reads == directory.stats().sql_reads == 1


def test_who_is_told_of_a_lease_before_its_holder_is_waits_for_that_holder(
    site: Site, directory: CellDirectory, key: str, slow: SlowReads, pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A is granted the lease; B is told so and is first at the flight; A comes aboard, B reads, A stores."""
    lease_of_a, b_waits = _held_back(directory, monkeypatch), threading.Event()
    monkeypatch.setattr("cellcache.read_through._PAUSES_S", _Pauses(b_waits, PATIENCE_S))
    a = pool.submit(directory.resolve_cell, key)
    lease_of_a.granted.wait(PATIENCE_S)
    b = pool.submit(directory.resolve_cell, key)
    assert b_waits.wait(PATIENCE_S)
    lease_of_a.go_on.set()
    slow.go_on.set()
    assert cell(a) == cell(b) == HERE
    assert slow.reads == 1
    assert directory.stats().fills == 1


def test_who_is_granted_a_lease_and_comes_after_the_read_takes_its_answer_and_lets_the_lease_go(
    site: Site, directory: CellDirectory, key: str, slow: SlowReads, pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A asks; B, told of A's lease, waits in vain for A and reads; then A learns of its lease. One read, none stored.

    B read after A asked, so its answer is right for A; whether it read after A's lease was granted, A cannot tell.
    """
    lease_of_a = _held_back(directory, monkeypatch)
    a = pool.submit(directory.resolve_cell, key)
    lease_of_a.granted.wait(PATIENCE_S)
    b = pool.submit(directory.resolve_cell, key)
    slow.wait_for_read()
    lease_of_a.go_on.set()
    slow.wait_for_joined(2)
    slow.go_on.set()
    assert cell(a) == cell(b) == HERE
    assert slow.reads == 1
    assert directory.stats().fills == 0
    assert directory.resolve_cell(key).uuid == HERE  # the lease stands in nobody's way
    assert directory.stats().fills == 1


def test_misses_of_many_at_once_and_of_one_share_a_read(
    site: Site, directory: CellDirectory, key: str, slow: SlowReads, pool: ThreadPoolExecutor
) -> None:
    one = pool.submit(directory.resolve_cell, key)
    slow.wait_for_read()
    many = pool.submit(directory.resolve_cells, [key])
    slow.wait_for_joined(2)
    slow.go_on.set()
    assert cell(one) == many.result(PATIENCE_S)[key].uuid == HERE
    assert directory.stats().sql_reads == 1


@pytest.mark.slow
def test_many_that_overlap_are_each_read_once(
    site: Site, directory: CellDirectory, pool: ThreadPoolExecutor, slow: SlowReads, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [str(uuid4()) for _ in range(30)]
    site.open().map_instances((key, HERE, PROJECT) for key in keys)
    for key in keys:
        site.cache.evict(key)
    read, reading, asked_for = directory._store.cells_of, threading.Semaphore(0), list[str]()

    def slow_read(keys: list[str]) -> Mapping[str, str]:
        asked_for.extend(keys)
        answers = read(keys)
        reading.release()
        assert slow.go_on.wait(PATIENCE_S)
        return answers

    monkeypatch.setattr(directory._store, "cells_of", slow_read)
    first = pool.submit(directory.resolve_cells, keys[:20])
    assert reading.acquire(timeout=PATIENCE_S)
    second = pool.submit(directory.resolve_cells, keys[10:])
    assert reading.acquire(timeout=PATIENCE_S)
    slow.go_on.set()
    assert first.result(PATIENCE_S).keys() == set(keys[:20])
    assert second.result(PATIENCE_S).keys() == set(keys[10:])
    assert sorted(asked_for) == sorted(keys)
    assert directory.stats().sql_reads == 2
    assert directory.stats().fills == 30


def test_concurrent_misses_of_what_is_not_mapped_cost_one_read(
    directory: CellDirectory, slow: SlowReads, pool: ThreadPoolExecutor
) -> None:
    absent = str(uuid4())
    futures = [pool.submit(directory.resolve_cell, absent)]
    slow.wait_for_read()
    futures += [pool.submit(directory.resolve_cell, absent) for _ in range(15)]
    slow.wait_for_joined(16)
    slow.go_on.set()
    assert all(isinstance(future.exception(PATIENCE_S), InstanceNotMapped) for future in futures)
    assert slow.reads == 1


def test_misses_of_different_instances_do_not_wait_for_each_other(
    directory: CellDirectory, key: str, slow: SlowReads, pool: ThreadPoolExecutor
) -> None:
    futures = [pool.submit(directory.resolve_cell, one) for one in (key, str(uuid4()), str(uuid4()))]
    for _ in futures:
        slow.wait_for_read()
    assert slow.reads == 3
    slow.go_on.set()
    assert cell(futures[0]) == HERE


def test_next_miss_after_a_read_reads_again(site: Site, directory: CellDirectory, key: str) -> None:
    for _ in range(2):
        assert directory.resolve_cell(key).uuid == HERE
        site.cache.evict(key)
    assert directory.stats().sql_reads == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [DatabaseUnavailable("it is away"), SchemaError("no table"), CommitUnknown("odd"), ZeroDivisionError("a bug")],
    ids=lambda error: type(error).__name__,
)
def test_waiters_get_an_error_of_the_leaders_kind(
    directory: CellDirectory, key: str, pool: ThreadPoolExecutor, slow: SlowReads, error: Exception,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def fail(_key: str) -> str:
        slow.reading.release()
        assert slow.go_on.wait(PATIENCE_S)
        raise error

    monkeypatch.setattr(directory._store, "cell_of", fail)
    futures = [pool.submit(directory.resolve_cell, key)]
    slow.wait_for_read()
    futures += [pool.submit(directory.resolve_cell, key) for _ in range(7)]
    slow.wait_for_joined(8)
    slow.go_on.set()
    errors = [future.exception(PATIENCE_S) for future in futures]
    leaders = [one for one in errors if one is error]
    waiters = [one for one in errors if one is not error]
    assert len(leaders) == 1
    expected = DatabaseUnavailable if isinstance(error, ZeroDivisionError) else type(error)
    assert [type(one) for one in waiters] == [expected] * 7
    if expected is type(error):
        assert {str(one) for one in waiters} == {str(error)}


def test_waiters_for_an_instance_that_is_mapped_to_no_cell_get_that_error_and_others_land(
    site: Site, directory: CellDirectory, key: str, slow: SlowReads, pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    bad = str(uuid4())
    site.open().map_instance(bad, HERE, PROJECT)
    site.run(f"UPDATE instance_mapping SET cell_uuid = 'cell1' WHERE instance_uuid = '{bad}'")
    site.cache.evict(bad)
    read = directory._store.cells_of

    def slow_read(keys: list[str]) -> dict[str, str]:
        answers = read(keys)
        slow.reading.release()
        assert slow.go_on.wait(PATIENCE_S)
        return answers

    monkeypatch.setattr(directory._store, "cells_of", slow_read)
    leader = pool.submit(directory.resolve_cells, [bad, key])
    slow.wait_for_read()
    of_bad = [pool.submit(directory.resolve_cell, bad) for _ in range(3)]
    of_both = [pool.submit(directory.resolve_cells, [key, bad]) for _ in range(3)]
    of_good = [pool.submit(directory.resolve_cell, key) for _ in range(3)]
    slow.wait_for_joined(10)
    slow.go_on.set()
    for bulk in [leader, *of_both]:
        assert [(one, found.uuid) for one, found in bulk.result(PATIENCE_S).items()] == [(key, HERE)]
    assert [cell(future) for future in of_good] == [HERE] * 3
    errors = [future.exception(PATIENCE_S) for future in of_bad]
    assert [(type(error), str(bad) in str(error)) for error in errors] == [(MappedCellNotFound, True)] * 3
    assert directory.stats().broken_mappings == 7
    assert site.cache.backend().peek_multi([bad]) == [None]


def test_miss_after_a_failed_read_reads_again(
    site: Site, directory: CellDirectory, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_key: str) -> str:
        raise DatabaseUnavailable("it is away")

    with monkeypatch.context() as patch:
        patch.setattr(directory._store, "cell_of", fail)
        with pytest.raises(DatabaseUnavailable):
            directory.resolve_cell(key)
    assert directory.resolve_cell(key).uuid == HERE


@pytest.mark.slow
def test_waiter_takes_no_answer_that_is_older_than_its_question(
    site: Site, directory: CellDirectory, key: str, slow: SlowReads, pool: ThreadPoolExecutor
) -> None:
    """A reads the row and stops; a move returns; B asks, misses and joins A: B must not be told what A has read."""
    first = pool.submit(directory.resolve_cell, key)
    slow.wait_for_read()
    site.open().move_instance(key, THERE)
    _let_another_process_take_the_lease(site, key)
    second = pool.submit(directory.resolve_cell, key)
    slow.wait_for_joined(2)
    slow.go_on.set()
    assert cell(second) == THERE
    assert cell(first) == HERE  # it asked before the move: either answer is right, and this is what it had read


@pytest.mark.slow
def test_waiter_that_asked_before_a_prune_was_made_is_told_after_it(
    site: Site, directory: CellDirectory, key: str, slow: SlowReads, pool: ThreadPoolExecutor
) -> None:
    first = pool.submit(directory.resolve_cell, key)
    slow.wait_for_read()
    site.open().prune([key])
    _let_another_process_take_the_lease(site, key)
    second = pool.submit(directory.resolve_cell, key)
    slow.wait_for_joined(2)
    slow.go_on.set()
    assert isinstance(second.exception(PATIENCE_S), InstanceNotMapped)
    assert cell(first) == HERE


@pytest.mark.slow
def test_many_waiters_behind_an_outdated_read_are_all_told_the_new_answer(
    site: Site, directory: CellDirectory, key: str, slow: SlowReads, pool: ThreadPoolExecutor
) -> None:
    first = pool.submit(directory.resolve_cell, key)
    slow.wait_for_read()
    site.open().move_instance(key, THERE)
    _let_another_process_take_the_lease(site, key)
    others = [pool.submit(directory.resolve_cell, key) for _ in range(8)]
    slow.wait_for_joined(9)
    slow.go_on.set()
    assert [cell(future) for future in others] == [THERE] * 8
    assert cell(first) == HERE
    assert directory.stats().fills == 1  # by the first, whose lease is gone
    assert site.cache.backend().peek_multi([key]) == [Absent.LEASED]  # the other process holds it still


def test_outdated_read_is_not_stored(site: Site, directory: CellDirectory, key: str, slow: SlowReads) -> None:
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(directory.resolve_cell, key)
        slow.wait_for_read()
        site.open().move_instance(key, THERE)
        site.cache.evict(key)
        slow.go_on.set()
        assert cell(first) == HERE
        assert cell(thread.submit(directory.resolve_cell, key)) == THERE
    assert (directory.stats().fills, directory.stats().fills_refused) == (2, 1)


@pytest.mark.parametrize("waiters", [0, 1])
def test_fill_is_waited_for_where_others_may_look_for_it(
    directory: CellDirectory, key: str, slow: SlowReads, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch,
    waiters: int,
) -> None:  # fmt: skip
    """Who cannot take the answer asks the cache for it: a fill that is still on its way would cost one more read."""
    waited, send_fills = list[bool](), directory._backend.send_fills

    def send(*arguments: Any, wait: bool) -> None:
        waited.append(wait)
        send_fills(*arguments, wait=wait)

    monkeypatch.setattr(directory._backend, "send_fills", send)
    futures = [pool.submit(directory.resolve_cell, key)]
    slow.wait_for_read()
    futures += [pool.submit(directory.resolve_cell, key) for _ in range(waiters)]
    slow.wait_for_joined(1 + waiters)
    slow.go_on.set()
    assert [cell(future) for future in futures] == [HERE] * (1 + waiters)
    assert waited == [waiters > 0]


def test_waiter_waits_as_long_as_two_statements_may_take(site: Site, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits for a connection of the pool, or for a new one, and then for its answer."""
    directory = site.open(database={"timeout_s": 3.0, "connect_timeout_s": 2.0})
    directory.get_cell(HERE)
    slow, limits, wait = SlowReads(directory, monkeypatch), list[float](), Flight.wait

    def limited(flight: Flight[str], limit_s: float) -> Mapping[str, str]:
        limits.append(limit_s)
        return wait(flight, limit_s)

    monkeypatch.setattr(Flight, "wait", limited)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(directory.resolve_cell, key)
        slow.wait_for_read()
        second = pool.submit(directory.resolve_cell, key)
        assert eventually(lambda: limits, PATIENCE_S)
        slow.go_on.set()
        assert cell(first) == cell(second) == HERE
    assert limits == pytest.approx([2 * (3.0 + 3.0 + 2.0)], rel=0.1)


@pytest.mark.slow
def test_who_holds_the_lease_does_not_wait_for_a_read_that_cannot_be_stored(
    site: Site, directory: CellDirectory, key: str, slow: SlowReads
) -> None:
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as another:
        first = one.submit(directory.resolve_cell, key)
        slow.wait_for_read()
        site.cache.evict(key)  # the first one's lease is gone
        second = another.submit(directory.resolve_cell, key)
        slow.wait_for_read()
        slow.go_on.set()
        assert cell(first) == cell(second) == HERE
        assert cell(one.submit(directory.resolve_cell, key)) == HERE
        assert cell(another.submit(directory.resolve_cell, key)) == HERE
    assert (directory.stats().fills, directory.stats().fills_refused) == (2, 1)


def _let_another_process_take_the_lease(site: Site, key: str) -> None:
    site.cache.evict(key)
    other = site.cache.backend(ttl_s=60)
    assert isinstance(other.lookup(key), Lease)
    assert other.lookup(key) is Absent.LEASED


class _Pauses(tuple[float, ...]):
    """How long a reader without the lease waits: until somebody comes aboard, or a long time; tells that it waits."""

    def __new__(cls, waits: threading.Event, limit_s: float) -> _Pauses:
        pauses = super().__new__(cls, [0.001] * int(limit_s * 1000))
        pauses._waits = waits
        return pauses

    _waits: threading.Event

    def __iter__(self) -> Iterator[float]:
        self._waits.set()
        return super().__iter__()


class _HeldBack:
    def __init__(self) -> None:
        self.granted, self.go_on = threading.Event(), threading.Event()


def _held_back(directory: CellDirectory, monkeypatch: pytest.MonkeyPatch) -> _HeldBack:
    """Hold the first lookup back between its reply and what it does with it."""
    held_back, lookup = _HeldBack(), directory._lookup

    def look_up(key: str) -> Any:
        entry = lookup(key)
        if not held_back.granted.is_set():
            assert isinstance(entry, Lease)
            held_back.granted.set()
            assert held_back.go_on.wait(PATIENCE_S)
        return entry

    monkeypatch.setattr(directory, "_lookup", look_up)
    return held_back


# -- the flight itself -------------------------------------------------------------------------------------------


def test_waiting_ends_with_an_error_when_the_limit_is_over() -> None:
    flight: Flight[str] = Flight()
    with pytest.raises(DatabaseUnavailable, match=r"the database did not answer within 0\.01 s"):
        flight.wait(0.01)


def test_interrupted_leader_leaves_the_others_an_error() -> None:
    flight: Flight[str] = Flight()
    flight.fail(KeyboardInterrupt())
    with pytest.raises(DatabaseUnavailable, match="interrupted"):
        flight.wait(PATIENCE_S)


def join(flights: Flights[str], *keys: str, leased: bool = False) -> tuple[Flight[str], dict[str, Flight[str]]]:
    return flights.join(keys, leased=keys if leased else (), asked_at=beginning())


def test_flight_that_has_ended_is_joined_by_nobody() -> None:
    flights: Flights[str] = Flights()
    first, others = join(flights, "k")
    assert (first.keys, others) == (["k"], {})
    own, others = join(flights, "k", "l")
    assert (own.keys, others) == (["l"], {"k": first})
    flights.end(first)
    second, others = join(flights, "k")
    assert (second.keys, others) == (["k"], {})


def test_end_of_a_flight_that_was_replaced_leaves_the_other() -> None:
    flights: Flights[str] = Flights()
    first, _ = join(flights, "k", leased=True)
    first.take_off()
    second, others = join(flights, "k", leased=True)
    assert (second.keys, others) == (["k"], {})
    flights.end(first)
    assert join(flights, "k")[1] == {"k": second}


def test_holder_of_a_lease_waits_for_a_read_that_has_not_begun() -> None:
    flights: Flights[str] = Flights()
    first, _ = join(flights, "k")
    granted_at = beginning()
    own, others = join(flights, "k", leased=True)
    assert (own.keys, others, first.leased) == ([], {"k": first}, {"k"})
    assert not first.began_after(granted_at)
    first.take_off()
    assert first.began_after(granted_at)


def test_every_waiter_gets_the_answer() -> None:
    flight: Flight[str] = Flight()
    wait: Callable[[], Mapping[str, str]] = lambda: flight.wait(PATIENCE_S)  # noqa: E731
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(wait) for _ in range(4)]
        flight.land({"k": "answer"})
        assert [future.result(PATIENCE_S) for future in waiting] == [{"k": "answer"}] * 4
