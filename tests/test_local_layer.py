"""The local layer: an in-process copy in front of a shared cache, which adds its time-to-live of staleness, no more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from cellcache import CellDirectory
from cellcache.codec import encode
from cellcache.errors import InstanceNotMapped
from cellcache.local import LocalLayer
from cellcache.protocol import Absent, CoherentBackend, Fence, Lease, Settlement
from tests.costs import Meter
from tests.directories import HERE, SHARED_CACHES, THERE, Site, new_uuids, open_site
from tests.inserted import Inserted

TTL_S = 5.0
ANSWER = encode(HERE)
KEY = "0d4ed1d2-8b8c-4e0a-9a43-3b1f3ad1e4ab"


class Clock:
    """The time as the layer and the directory see it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("cellcache.local.monotonic", clock)
    monkeypatch.setattr("cellcache.directory.monotonic", clock)
    return clock


@pytest.fixture(params=SHARED_CACHES)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, request.param) as site:
        yield site


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Meter:
    return Meter(monkeypatch)


def cell_of(directory: CellDirectory, instance: str) -> str | None:
    try:
        return directory.resolve_cell(instance).uuid
    except InstanceNotMapped:
        return None


def one_by_one(directory: CellDirectory, instances: Sequence[str]) -> list[str | None]:
    return [cell_of(directory, instance) for instance in instances]


def in_bulk(directory: CellDirectory, instances: Sequence[str]) -> list[str | None]:
    found = directory.resolve_cells(instances)
    return [found[instance].uuid if instance in found else None for instance in instances]


Resolve = Callable[[CellDirectory, Sequence[str]], list[str | None]]
RESOLVE = [one_by_one, in_bulk]


# -- how old an answer can be ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("resolve", RESOLVE)
def test_write_of_another_directory_is_seen_after_the_time_to_live_at_most(
    site: Site, resolve: Resolve, clock: Clock
) -> None:
    writer, reader = site.open(), site.open(local_ttl_s=TTL_S)
    moved, pruned = new_uuids(2)
    writer.map_instances([(moved, HERE, "project"), (pruned, HERE, "project")])
    assert resolve(reader, [moved, pruned]) == [HERE, HERE]
    asked_at = clock.now
    writer.move_instance(moved, THERE)
    writer.prune([pruned])
    clock.now = asked_at + TTL_S - 0.001
    assert resolve(reader, [moved, pruned]) == [HERE, HERE], "that is what it is for"
    clock.now = asked_at + TTL_S
    assert resolve(reader, [moved, pruned]) == [THERE, None]
    clock.now += 1000.0
    assert resolve(reader, [moved, pruned]) == [THERE, None]


@pytest.mark.parametrize("resolve", RESOLVE)
def test_hits_do_not_put_the_end_off(site: Site, resolve: Resolve, clock: Clock) -> None:
    writer, reader = site.open(), site.open(local_ttl_s=TTL_S)
    (instance,) = new_uuids(1)
    writer.map_instance(instance, HERE, "project")
    assert resolve(reader, [instance]) == [HERE]
    asked_at = clock.now
    writer.move_instance(instance, THERE)
    for _ in range(49):
        clock.now += 0.1
        assert resolve(reader, [instance]) == [HERE]
    clock.now = asked_at + TTL_S
    assert resolve(reader, [instance]) == [THERE]


@pytest.mark.parametrize("resolve", RESOLVE)
def test_create_of_another_directory_is_seen_after_the_time_to_live_at_most(
    site: Site, resolve: Resolve, clock: Clock
) -> None:
    writer, reader = site.open(), site.open(local_ttl_s=TTL_S)
    (instance,) = new_uuids(1)
    assert [resolve(reader, [instance]) for _ in range(3)] == [[None]] * 3
    writer.map_instance(instance, HERE, "project")
    clock.now += TTL_S
    assert resolve(reader, [instance]) == [HERE]


@pytest.mark.slow
@pytest.mark.parametrize("resolve", RESOLVE)
def test_own_writes_are_seen_at_once(site: Site, resolve: Resolve, clock: Clock) -> None:
    directory, other = site.open(local_ttl_s=TTL_S), site.open(local_ttl_s=TTL_S)
    instances = new_uuids(3)
    assert resolve(directory, instances) == [None] * 3
    assert resolve(directory, instances) == [None] * 3, "held"
    directory.map_instance(instances[0], HERE, "project")
    directory.map_instances((instance, HERE, "project") for instance in instances[1:])
    for _ in range(2):
        assert resolve(directory, instances) == [HERE] * 3
    directory.move_instance(instances[0], THERE)
    assert resolve(directory, instances) == [THERE, HERE, HERE]
    directory.prune(instances[:2])
    for _ in range(2):
        assert resolve(directory, instances) == [None, None, HERE]
    assert resolve(other, instances) == [None, None, HERE]


def test_delivered_invalidation_takes_the_instance_out(site: Site, clock: Clock) -> None:
    directory = site.open(local_ttl_s=TTL_S)
    (instance,) = new_uuids(1)
    directory.map_instance(instance, HERE, "project")
    assert one_by_one(directory, [instance]) == [HERE]
    site.run(f"UPDATE instance_mapping SET cell_uuid = '{THERE}' WHERE instance_uuid = '{instance}'")
    assert one_by_one(directory, [instance]) == [HERE]
    directory._here().backend.invalidate_multi([instance])
    assert one_by_one(directory, [instance]) == [THERE]


def test_time_to_live_counts_from_before_the_cache_was_asked(clock: Clock) -> None:
    """An answer that was a second on its way may be a second old when it comes."""
    shared = Shared(clock, takes_s=1.0)
    layer = layered(shared)
    layer.lookup(KEY)
    assert layer.held[KEY][1] == 1000.0 + TTL_S
    layer = layered(shared)
    clock.now = 2000.0
    layer.lookup_multi([KEY])
    assert layer.held[KEY][1] == 2000.0 + TTL_S


@pytest.mark.parametrize("how", ["lookup", "lookup_multi"])
@pytest.mark.parametrize("write", ["fence_multi", "settle_multi", "invalidate_multi"])
def test_answer_that_was_asked_for_before_a_write_of_this_process_is_not_held_after_it(
    how: str, write: str, clock: Clock
) -> None:
    """reader: asks, is answered; writer: fences, commits, settles, returns; reader: holds; writer: looks up."""
    shared = Shared(clock)
    layer = layered(shared)
    arguments = {
        "fence_multi": [KEY],
        "settle_multi": [Settlement(KEY, Fence(b"mark", b"", 0.0), None)],
        "invalidate_multi": [KEY],
    }
    shared.meanwhile = lambda: getattr(layer, write)(arguments[write])
    answer = layer.lookup(KEY) if how == "lookup" else layer.lookup_multi([KEY])[0]
    assert answer == ANSWER
    assert KEY not in layer.held
    shared.meanwhile = lambda: None
    layer.lookup(KEY)
    assert KEY in layer.held


def test_own_write_is_seen_though_another_thread_was_reading_what_was_before_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = site.open(local_ttl_s=TTL_S)
    (instance,) = new_uuids(1)
    directory.map_instance(instance, HERE, "project")
    layer = cast("Any", directory._here().backend)
    lookup, answered, written = layer._backend.lookup, threading.Event(), threading.Event()

    def slow(key: str) -> Any:
        entry = lookup(key)
        if threading.current_thread() is reader:
            answered.set()
            assert written.wait(20)
        return entry

    monkeypatch.setattr(layer._backend, "lookup", slow)
    reader = threading.Thread(target=directory.resolve_cell, args=(instance,))
    reader.start()
    assert answered.wait(20)
    directory.move_instance(instance, THERE)
    written.set()
    reader.join()
    assert cell_of(directory, instance) == THERE


# -- what it holds ---------------------------------------------------------------------------------------------------


class Shared:
    """A shared cache that always has the same answer; `meanwhile` happens while it is on its way."""

    promise = "none"
    held: dict[object, Any] = {}  # noqa: RUF012 - nothing is ever put in
    errors = 0

    def __init__(self, clock: Clock, answer: bytes | Lease | Absent = ANSWER, takes_s: float = 0.0) -> None:
        self.answer = answer
        self.asked: list[str] = []
        self.meanwhile: Callable[[], object] = lambda: None
        self._clock = clock
        self._takes_s = takes_s

    def lookup(self, key: str) -> bytes | Lease | Absent:
        return self.lookup_multi([key])[0]

    def lookup_multi(self, keys: Sequence[str]) -> list[bytes | Lease | Absent]:
        self.asked += keys
        self._clock.now += self._takes_s
        self.meanwhile()
        return [self.answer] * len(keys)

    def fence_multi(self, keys: Sequence[str]) -> list[Fence]:
        return [Fence(b"")] * len(keys)

    def settle_multi(self, settlements: Sequence[Settlement]) -> list[bool]:
        return [True] * len(settlements)

    def invalidate_multi(self, keys: Sequence[str], *, deadline: float | None = None) -> list[bool]:
        return [True] * len(keys)

    def close(self) -> None:
        pass


def layered(shared: Shared, *, max_entries: int = 100) -> LocalLayer:
    return LocalLayer(cast("CoherentBackend", shared), ttl_s=TTL_S, max_entries=max_entries)


@pytest.mark.parametrize("answer", [Lease(b"token", 0.0), *Absent], ids=str)
def test_nothing_but_answers_is_held(answer: Lease | Absent, clock: Clock) -> None:
    layer = layered(Shared(clock, answer))
    assert layer.lookup(KEY) == answer
    assert layer.lookup_multi([KEY]) == [answer]
    assert layer.held == {}


def test_latest_entries_stay_and_no_more_than_allowed(clock: Clock) -> None:
    shared = Shared(clock)
    layer = layered(shared, max_entries=10)
    keys = new_uuids(25)
    for key in keys[:15]:
        layer.lookup(key)
        assert len(layer.held) <= 10
    assert list(layer.held) == keys[5:15]
    layer.lookup_multi(keys)
    assert len(layer.held) == 10
    assert list(layer.held) == keys[15:]
    shared.asked.clear()
    layer.lookup_multi(keys)
    assert shared.asked == keys[:15]


def test_lookup_that_comes_in_while_its_thread_holds_an_answer_does_not_wait(clock: Clock) -> None:
    """A signal handler's, or a finalizer's."""
    layer = layered(Shared(clock))
    with layer._lock:
        assert layer.lookup(KEY) == ANSWER
        assert layer.invalidate_multi([KEY]) == [True]


@pytest.mark.parametrize("how", ["lookup", "lookup_multi"])
def test_write_that_comes_in_while_its_thread_holds_an_answer_takes_it_away_at_whichever_line(
    how: str, clock: Clock
) -> None:
    """Unless it came before the question."""
    shared, moments = Shared(clock), list[bool]()
    layer = layered(shared)

    def write() -> None:
        layer.invalidate_multi([KEY])
        moments.append(bool(shared.asked))

    for line in range(1, 1000):
        layer.held.clear()
        shared.asked.clear()
        with Inserted(write, every=line, most=1) as inserted:
            layer.lookup(KEY) if how == "lookup" else layer.lookup_multi([KEY])
        if not inserted.times:
            break
        assert KEY not in layer.held or not moments[-1], f"after {line} lines"
    assert set(moments) == {False, True}
    assert len(moments) > 10


def test_size_is_bounded_by_max_entries(site: Site) -> None:
    directory = site.open(local_ttl_s=TTL_S, max_entries=7)
    instances = new_uuids(30)
    directory.map_instances((instance, HERE, "project") for instance in instances)
    assert in_bulk(directory, instances) == [HERE] * 30
    assert one_by_one(directory, instances) == [HERE] * 30
    assert len(directory._here().backend.held) == 7


def test_what_is_held_costs_no_round_trip_and_counts_as_a_hit(site: Site, meter: Meter, clock: Clock) -> None:
    directory = site.open(local_ttl_s=TTL_S)
    instances = new_uuids(20)
    directory.map_instances((instance, HERE, "project") for instance in instances)
    assert in_bulk(directory, instances[:15]) == [HERE] * 15
    hits = directory.stats().hits
    with meter.count(site.ports()) as costs:
        assert in_bulk(directory, instances[:15]) == [HERE] * 15
        assert one_by_one(directory, instances[:15]) == [HERE] * 15
    assert (costs.round_trips, costs.sql) == (0, 0)
    assert directory.stats().hits == hits + 30
    with meter.count(site.ports()) as costs:
        assert in_bulk(directory, instances) == [HERE] * 20
    assert 1 <= costs.round_trips <= len(site.ports()), "the five that are not held"
    clock.now += TTL_S
    with meter.count(site.ports()) as costs:
        assert one_by_one(directory, instances[:1]) == [HERE]
    assert costs.round_trips == 1


def test_what_is_held_outlives_the_cache(site: Site, clock: Clock) -> None:
    directory = site.open(local_ttl_s=TTL_S)
    (instance,) = new_uuids(1)
    directory.map_instance(instance, HERE, "project")
    assert cell_of(directory, instance) == HERE
    site.cache.evict(instance)
    misses = directory.stats().misses
    assert cell_of(directory, instance) == HERE
    assert directory.stats().misses == misses


@pytest.mark.slow
def test_verify_looks_past_it(site: Site) -> None:
    directory = site.open(local_ttl_s=TTL_S)
    (instance,) = new_uuids(1)
    directory.map_instance(instance, HERE, "project")
    assert cell_of(directory, instance) == HERE
    site.cache.write(instance, encode(THERE))
    *_, report = directory.verify(repair=True)
    assert (report.wrong, report.repaired) == (1, 1)
    assert cell_of(directory, instance) == HERE


def test_closed_layer_holds_nothing(site: Site) -> None:
    directory = site.open(local_ttl_s=TTL_S)
    (instance,) = new_uuids(1)
    directory.map_instance(instance, HERE, "project")
    assert cell_of(directory, instance) == HERE
    directory.close()
    assert directory._here().backend.held == {}


def test_it_is_off_unless_asked_for_and_named_in_the_promise(site: Site) -> None:
    plain, layer = site.open(), site.open(local_ttl_s=0.5)
    assert not isinstance(plain._here().backend, LocalLayer)
    assert "stale for at most" not in plain.promise
    assert layer.promise.startswith("stale for at most 0.5 s (cache.local_ttl_s)")
    assert layer.promise.endswith(plain.promise)


# -- with signed entries ---------------------------------------------------------------------------------------------

SIGNED: dict[str, Any] = {"signing_key": "0123456789abcdef" * 2, "local_ttl_s": TTL_S}


@pytest.mark.parametrize("resolve", RESOLVE)
def test_only_what_verifies_is_held(site: Site, resolve: Resolve, clock: Clock) -> None:
    directory, reader = site.open(**SIGNED), site.open(**SIGNED)
    instance, other = new_uuids(2)
    directory.map_instances([(instance, HERE, "project"), (other, THERE, "project")])
    (of_other,) = site.cache.backend().peek_multi([other])
    assert isinstance(of_other, bytes)
    site.cache.write(instance, of_other)
    assert resolve(reader, [instance, other]) == [HERE, THERE]
    assert reader.stats().undecodable == 1
    for _ in range(3):
        assert resolve(reader, [instance, other]) == [HERE, THERE]
    assert {entry for entry, _ in reader._here().backend.held.values()} == {encode(HERE), encode(THERE)}
    site.cache.write(instance, of_other)
    assert resolve(reader, [instance]) == [HERE], "what it holds was verified when it came"
    assert reader.stats().undecodable == 1
    clock.now += TTL_S
    assert resolve(reader, [instance]) == [HERE]
    assert reader.stats().undecodable == 2
