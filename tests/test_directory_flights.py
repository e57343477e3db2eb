"""Concurrent misses of one instance in one process: one SQL read, and never an answer older than the question."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from cellcache import (
    CellCacheError,
    CellDirectory,
    CellMapping,
    CommitUnknown,
    DatabaseUnavailable,
    InstanceNotMapped,
    MappedCellNotFound,
    SchemaError,
)
from cellcache.flights import Flight, Flights, Lead, beginning
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
        store, flights = directory._here().store, directory._here().read_through._flights
        read, join = store.cell_of, flights.join

        def slow_read(key: str) -> str | None:
            answer = read(key)
            with self._lock:
                self.reads += 1
            self.reading.release()
            assert self.go_on.wait(PATIENCE_S)
            return answer

        def counted_join(own: Flight[Any], keys: Iterable[str], **about: Any) -> Any:
            joined = join(own, keys, **about)
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
    read, reading, asked_for = directory._here().store.cells_of, threading.Semaphore(0), list[str]()

    def slow_read(keys: list[str]) -> Mapping[str, str]:
        asked_for.extend(keys)
        answers = read(keys)
        reading.release()
        assert slow.go_on.wait(PATIENCE_S)
        return answers

    monkeypatch.setattr(directory._here().store, "cells_of", slow_read)
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
    [DatabaseUnavailable("it is away"), SchemaError("no table"), CommitUnknown("odd")],
    ids=lambda error: type(error).__name__,
)
def test_waiters_get_an_error_of_the_leaders_kind(
    directory: CellDirectory, key: str, pool: ThreadPoolExecutor, slow: SlowReads, error: CellCacheError,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def fail(_key: str) -> str:
        slow.reading.release()
        assert slow.go_on.wait(PATIENCE_S)
        raise error

    monkeypatch.setattr(directory._here().store, "cell_of", fail)
    futures = [pool.submit(directory.resolve_cell, key)]
    slow.wait_for_read()
    futures += [pool.submit(directory.resolve_cell, key) for _ in range(7)]
    slow.wait_for_joined(8)
    slow.go_on.set()
    errors = [future.exception(PATIENCE_S) for future in futures]
    leaders = [one for one in errors if one is error]
    waiters = [one for one in errors if one is not error]
    assert len(leaders) == 1
    assert [type(one) for one in waiters] == [type(error)] * 7
    assert {str(one) for one in waiters} == {str(error)}


class TooLate(BaseException):
    """As gevent.Timeout, SystemExit and KeyboardInterrupt are."""


@pytest.mark.slow
@pytest.mark.parametrize("many", [False, True], ids=["one by one", "in bulk"])
@pytest.mark.parametrize("error", [TooLate(), ZeroDivisionError("a bug")], ids=lambda error: type(error).__name__)
def test_who_waits_for_an_interrupted_reader_reads_for_himself_one_for_the_rest(
    directory: CellDirectory, key: str, pool: ThreadPoolExecutor, slow: SlowReads, error: BaseException, many: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    read, interrupt, reads = directory._here().store.cell_of, threading.Event(), list[str]()

    def read_and_be_interrupted_once(key: str) -> str | None:
        reads.append(key)
        if len(reads) == 1:
            slow.reading.release()
            assert interrupt.wait(PATIENCE_S)
            raise error
        return read(key)

    monkeypatch.setattr(directory._here().store, "cell_of", read_and_be_interrupted_once)
    leader = pool.submit(directory.resolve_cell, key)
    slow.wait_for_read()
    look_up = (lambda: directory.resolve_cells([key])[key]) if many else (lambda: directory.resolve_cell(key))
    others = [pool.submit(look_up) for _ in range(15)]
    slow.wait_for_joined(16)
    interrupt.set()
    slow.wait_for_joined(16 + 15)
    slow.go_on.set()
    assert leader.exception(PATIENCE_S) is error
    assert [cell(other) for other in others] == [HERE] * 15
    assert len(reads) == 2


def test_waiters_for_an_instance_that_is_mapped_to_no_cell_get_that_error_and_others_land(
    site: Site, directory: CellDirectory, key: str, slow: SlowReads, pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    bad = str(uuid4())
    site.open().map_instance(bad, HERE, PROJECT)
    site.run(f"UPDATE instance_mapping SET cell_uuid = 'cell1' WHERE instance_uuid = '{bad}'")
    site.cache.evict(bad)
    read = directory._here().store.cells_of

    def slow_read(keys: list[str]) -> dict[str, str]:
        answers = read(keys)
        slow.reading.release()
        assert slow.go_on.wait(PATIENCE_S)
        return answers

    monkeypatch.setattr(directory._here().store, "cells_of", slow_read)
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
        patch.setattr(directory._here().store, "cell_of", fail)
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
    waited, send_fills = list[bool](), directory._here().backend.send_fills

    def send(*arguments: Any, wait: bool) -> None:
        waited.append(wait)
        send_fills(*arguments, wait=wait)

    monkeypatch.setattr(directory._here().backend, "send_fills", send)
    futures = [pool.submit(directory.resolve_cell, key)]
    slow.wait_for_read()
    futures += [pool.submit(directory.resolve_cell, key) for _ in range(waiters)]
    slow.wait_for_joined(1 + waiters)
    slow.go_on.set()
    assert [cell(future) for future in futures] == [HERE] * (1 + waiters)
    assert waited == [waiters > 0]


def test_nobody_waits_for_a_read_that_takes_longer_than_two_statements_may(
    site: Site, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits for a connection of the pool, or for a new one, and then for its answer."""
    directory = site.open(database={"timeout_s": 3.0, "connect_timeout_s": 2.0})
    directory.get_cell(HERE)
    longest_s, now = 2 * (3.0 + 3.0 + 2.0), [1000.0]
    monkeypatch.setattr("cellcache.flights.time", SimpleNamespace(monotonic=lambda: now[0]))
    slow = SlowReads(directory, monkeypatch)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(directory.resolve_cell, key)
        slow.wait_for_read()
        (flight,) = directory._here().read_through._flights._flights.values()
        now[0] += longest_s - 0.1
        assert not flight.is_over
        now[0] += 0.2
        second = pool.submit(directory.resolve_cell, key)
        slow.wait_for_read()
        slow.go_on.set()
        assert cell(first) == cell(second) == HERE


@pytest.mark.parametrize("inner", ["the same instance", "another", "in bulk", "a write"])
def test_what_comes_in_while_its_own_thread_reads_waits_for_nobody(
    directory: CellDirectory, key: str, inner: str, slow: SlowReads, pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A signal handler or a finalizer; whom it waited for might be waiting for the read that it has stopped."""
    theirs, new, answers = str(uuid4()), str(uuid4()), list[object]()
    directory.map_instance(theirs, THERE, PROJECT)
    directory._here().backend.invalidate_multi([theirs])
    another = pool.submit(directory.resolve_cell, theirs)
    slow.wait_for_read()
    read = type(directory._here().store).cell_of
    work: dict[str, Callable[[], object]] = {
        "the same instance": lambda: directory.resolve_cell(key).uuid == HERE,
        "another": lambda: directory.resolve_cell(theirs).uuid == THERE,
        "in bulk": lambda: directory.resolve_cells([key, theirs]).keys() == {key, theirs},
        "a write": lambda: directory.map_instance(new, THERE, PROJECT).cell_uuid == THERE,
    }

    def read_and_be_stopped_once(key: str) -> str | None:
        if not answers:
            answers.append("it has begun")
            answers.append(work[inner]())
        return read(directory._here().store, key)

    monkeypatch.setattr(directory._here().store, "cell_of", read_and_be_stopped_once)
    assert directory.resolve_cell(key).uuid == HERE
    assert answers == ["it has begun", True]
    assert not another.done()
    slow.go_on.set()
    assert cell(another) == THERE
    assert not directory._here().read_through._flights._flights


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
    held_back, lookup = _HeldBack(), directory._here().lookup

    def look_up(key: str) -> Any:
        entry = lookup(key)
        if not held_back.granted.is_set():
            assert isinstance(entry, Lease)
            held_back.granted.set()
            assert held_back.go_on.wait(PATIENCE_S)
        return entry

    monkeypatch.setattr(directory._here(), "lookup", look_up)
    return held_back


# -- the flight itself -------------------------------------------------------------------------------------------


def test_waiting_ends_with_an_error_when_the_limit_is_over() -> None:
    flight: Flight[str] = Flight(0.01)
    with pytest.raises(DatabaseUnavailable, match="the database did not answer the read that this one waited for"):
        flight.wait()


def test_abandoned_flight_has_no_answers_unless_it_has_landed() -> None:
    flight: Flight[str] = Flight(PATIENCE_S)
    flight.abandon()
    assert flight.is_over
    assert flight.wait() == {}
    landed: Flight[str] = Flight(PATIENCE_S)
    landed.land({"k": "answer"})
    landed.abandon()
    assert landed.wait() == {"k": "answer"}


def test_every_waiter_gets_the_answer() -> None:
    flight: Flight[str] = Flight(PATIENCE_S)
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(flight.wait) for _ in range(4)]
        flight.land({"k": "answer"})
        assert [future.result(PATIENCE_S) for future in waiting] == [{"k": "answer"}] * 4


@pytest.fixture
def flights() -> Flights[str]:
    return Flights(longest_s=PATIENCE_S)


Joined = tuple[Lead[str], Flight[str], dict[str, Flight[str]]]
Join = Callable[..., Joined]


@pytest.fixture
def join() -> Iterator[Join]:
    """Joins as a thread of its own does, which lives until the test is over: a number that is free is used again."""
    with ExitStack() as threads:

        def join(flights: Flights[str], *keys: str, leased: bool = False) -> Joined:
            def begin_and_join() -> Joined:
                lead = flights.begin()
                own = lead.__enter__()
                return lead, own, flights.join(own, keys, leased=keys if leased else (), asked_at=beginning())

            return threads.enter_context(ThreadPoolExecutor(1)).submit(begin_and_join).result(PATIENCE_S)

        yield join


def test_flight_that_has_ended_is_joined_by_nobody(flights: Flights[str], join: Join) -> None:
    _lead, first, others = join(flights, "k")
    assert (first.keys, others) == (["k"], {})
    _another, own, others = join(flights, "k", "l")
    assert (own.keys, others) == (["l"], {"k": first})
    flights.end(first)
    _third, second, others = join(flights, "k")
    assert (second.keys, others) == (["k"], {})


def test_end_of_a_flight_that_was_replaced_leaves_the_other(flights: Flights[str], join: Join) -> None:
    _lead, first, _ = join(flights, "k", leased=True)
    first.take_off()
    _another, second, others = join(flights, "k", leased=True)
    assert (second.keys, others) == (["k"], {})
    flights.end(first)
    assert join(flights, "k")[2] == {"k": second}


def test_holder_of_a_lease_waits_for_a_read_that_has_not_begun(flights: Flights[str], join: Join) -> None:
    _lead, first, _ = join(flights, "k")
    granted_at = beginning()
    _another, own, others = join(flights, "k", leased=True)
    assert (own.keys, others, first.leased) == ([], {"k": first}, {"k"})
    assert not first.began_after(granted_at)
    first.take_off()
    assert first.began_after(granted_at)


def test_flight_that_nobody_leads_any_more_is_over(flights: Flights[str], join: Join) -> None:
    """Its leader was interrupted where not even the end of its `with` block was reached."""
    lead, first, _ = join(flights, "k")
    _another, _, others = join(flights, "k")
    assert others == {"k": first}
    del lead
    assert eventually(lambda: first.is_over, PATIENCE_S)
    assert first.wait() == {}
    _next, second, _ = join(flights, "k")
    assert second.keys == ["k"]


def test_flight_that_is_overdue_is_replaced(join: Join) -> None:
    flights: Flights[str] = Flights(longest_s=-1.0)
    _lead, first, _ = join(flights, "k")
    _another, second, others = join(flights, "k")
    assert (second.keys, others) == (["k"], {})
    flights.end(first)
    assert flights._flights == {"k": second}


def test_thread_that_leads_a_flight_waits_for_no_other(flights: Flights[str], join: Join) -> None:
    _theirs, other, _ = join(flights, "l")
    with flights.begin() as own:
        assert flights.join(own, ["k"], leased=(), asked_at=beginning()) == {}
        with flights.begin() as inner:
            assert flights.join(inner, ["k", "l", "m"], leased=(), asked_at=beginning()) == {}
            assert inner.keys == ["k", "l", "m"]
        assert not own.is_over
    with flights.begin() as later:
        assert flights.join(later, ["k", "l"], leased=(), asked_at=beginning()) == {}
    assert other.keys == ["l"]
    assert flights._flights == {}


def test_flight_is_over_at_whichever_line_its_leader_is_interrupted(
    flights: Flights[str], join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever misses next reads, in the same thread or another. What comes in a finalizer Python does not raise."""
    unraisable = list[type[BaseException] | None]()
    monkeypatch.setattr(sys, "unraisablehook", lambda what: unraisable.append(what.exc_type))

    def fly() -> None:
        with flights.begin() as own:
            flights.join(own, ["k", "l"], leased=["k"], asked_at=beginning())
            own.take_off()
            if own.keys:
                flights.end(own)
                own.land({"k": "answer"})

    lines = 0
    while interrupted_at(lines, fly, "cellcache/flights.py"):
        with flights.begin() as own:
            assert flights.join(own, ["k", "l"], leased=[], asked_at=beginning()) == {}, f"after {lines} lines"
        assert join(flights, "k", "l")[2] == {}, f"after {lines} lines"
        lines += 1
    assert lines > 20
    assert set(unraisable) <= {TooLate}
    assert flights._flights == {}


def interrupted_at(number: int, work: Callable[[], object], file: str) -> bool:
    """Interrupt this thread's work at its line of that number in a file; return whether it has come so far."""
    left = [number]

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename.endswith(file):
            if event == "line":
                if not left[0]:
                    sys.settrace(None)
                    raise TooLate
                left[0] -= 1
            return trace
        return None if event == "call" and frame.f_code is not work.__code__ else trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except TooLate:
        return True
    finally:
        sys.settrace(before)
    return False
