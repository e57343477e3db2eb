"""Invalidation rows: they commit with their write, go when it has settled, and are delivered when left over."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import Connection

from cellcache import CacheUnavailable, CellDirectory, DatabaseUnavailable, Settings, maintenance
from cellcache.cli import main
from cellcache.codec import FENCE
from cellcache.invalidations import GRACE_S, Delivery
from cellcache.protocol import Fence, Settlement
from tests.caches import eventually
from tests.directories import HERE, THERE, Site, new_uuids, open_site
from tests.faults.proxy import Proxy, swallow
from tests.servers import Memcached


@pytest.fixture
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, "memory") as site:
        yield site


@pytest.fixture
def directory(site: Site) -> CellDirectory:
    return site.open()


def rows(site: Site) -> int:
    return int(site.run("SELECT count(*) FROM cache_invalidation")[0][0])


def test_every_write_leaves_one_row_and_takes_it_away_once_settled(site: Site, directory: CellDirectory) -> None:
    uuids = new_uuids(1000)
    directory.map_instances((uuid, HERE, "project") for uuid in uuids)
    directory.move_instance(uuids[0], THERE)
    directory.prune(uuids[1:3])
    assert rows(site) == 3
    assert [one.instance_uuids for one in directory.list_invalidations()] == [uuids, uuids[:1], sorted(uuids[1:3])]
    assert directory.stats().invalidations_pending == 0  # none is due
    directory.deliver_invalidations()
    assert rows(site) == 0
    assert directory._here().backend.peek_multi(uuids[:1]) != [None]  # settled, not delivered


def test_unreachable_only_leaves_no_row_while_the_cache_is_there(site: Site) -> None:
    directory = site.open(durable="unreachable")
    directory.map_instance(new_uuids(1)[0], HERE, "project")
    assert rows(site) == 0


def test_closing_takes_the_settled_rows_away(site: Site) -> None:
    with CellDirectory.open(site.settings()) as directory:
        directory.map_instance(new_uuids(1)[0], HERE, "project")
        assert rows(site) == 1
    assert rows(site) == 0


def test_row_of_a_dead_writer_is_delivered_by_another_once_its_grace_is_over(
    site: Site, directory: CellDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    (uuid,) = new_uuids(1)
    directory.map_instance(uuid, HERE, "project")
    directory.deliver_invalidations()

    def die(settlements: list[Settlement]) -> list[bool]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(directory._here().backend, "settle_multi", die)
        with pytest.raises(KeyboardInterrupt):
            directory.move_instance(uuid, THERE)
    other = site.open()
    assert other.deliver_invalidations().delivered == 0
    assert rows(site) == 1
    site.run("UPDATE cache_invalidation SET deliver_after = '2020-01-01 00:00:00'")
    assert directory.stats().invalidations_pending == 1
    assert other.deliver_invalidations().delivered == 1
    assert rows(site) == 0
    assert directory.resolve_cell(uuid).uuid == THERE
    assert GRACE_S > 5


def test_delivery_removes_values_and_spares_fences(site: Site, directory: CellDirectory) -> None:
    value, fenced = new_uuids(2)
    directory.map_instances([(value, HERE, "project"), (fenced, HERE, "project")])
    directory.deliver_invalidations()
    directory._here().backend.fence_multi([fenced])
    directory._here().store.add_invalidation([value, fenced], 0.0)
    assert directory.deliver_invalidations().delivered == 1
    assert directory._here().backend.peek_multi([value]) == [None]
    assert directory._here().backend.invalidate_multi([fenced]) == [True]
    assert directory._here().backend.fence_multi([fenced])[0].confirmed


@pytest.mark.parametrize("backend", [pytest.param("memcached", marks=pytest.mark.needs("memcached")), "fakeredis"])
@pytest.mark.parametrize("durable", ["always", "unreachable"])
def test_writer_that_could_not_settle_takes_its_fence_away_as_soon_as_it_can(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, durable: str
) -> None:
    """Nobody else may, and until the fence expired every lookup of the instance would go to SQL."""
    with open_site(request, tmp_path, backend) as site:
        directory, (uuid,) = CellDirectory(site.settings(durable=durable)), new_uuids(1)  # without its thread
        directory.map_instance(uuid, HERE, "project")
        with monkeypatch.context() as patch:
            patch.setattr(directory._here().backend, "settle_multi", lambda settlements: [False] * len(settlements))
            directory.move_instance(uuid, THERE)
            directory.deliver_invalidations()
        assert directory.resolve_cell(uuid).uuid == THERE
        assert directory.stats().fills == 0  # the fence stands
        directory.deliver_invalidations()
        assert directory.resolve_cell(uuid).uuid == THERE
        assert directory.stats().fills == 1
        assert rows(site) == 0
        directory.close()


def answering(*answers: Sequence[bool]) -> Any:
    """Stand for a request of a backend of which these are the answers, one after the other."""
    left = iter(answers)
    return lambda _asked: list(next(left))


def test_row_stays_until_every_node_has_confirmed_the_settling(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two instances of one write live on two nodes, and one of those is away for longer."""
    with CellDirectory(site.settings()) as directory:  # without its thread
        monkeypatch.setattr(
            directory._here().backend,
            "settle_multi",
            answering([False, False], [True, False], [False, True], [True, True]),
        )
        directory.map_instances((uuid, HERE, "project") for uuid in new_uuids(2))
        for _ in range(2):
            assert directory.deliver_invalidations() == Delivery(delivered=0, waiting=1)
            assert rows(site) == 1
        assert directory.deliver_invalidations() == Delivery(delivered=0, waiting=0)
        assert rows(site) == 0


def test_row_stays_until_every_node_has_confirmed_the_delivery(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with CellDirectory(site.settings()) as directory:
        pairs = [new_uuids(2) for _ in range(3)]
        for pair in pairs:
            directory._here().store.add_invalidation(pair, 0.0)
        with monkeypatch.context() as patch:
            answers = answering([True, True], [True, False], [True, True], [False, True])
            patch.setattr(directory._here().backend, "invalidate_multi", answers)
            assert directory.deliver_invalidations() == Delivery(delivered=2, waiting=1)
            assert [one.instance_uuids for one in directory.list_invalidations()] == [pairs[1]]
            assert directory._here().invalidations.wanted.is_set()  # a node is away: soon again
            assert directory.deliver_invalidations() == Delivery(delivered=0, waiting=1)
        assert directory.deliver_invalidations() == Delivery(delivered=1, waiting=0)
        assert rows(site) == 0
        assert not directory._here().invalidations.wanted.is_set()


@pytest.mark.parametrize("durable", ["always", "unreachable"])
def test_row_of_a_write_past_one_of_two_nodes_names_all_that_may_be_outdated(
    site: Site, monkeypatch: pytest.MonkeyPatch, durable: str
) -> None:
    """What was fenced is outdated, too, if its fence is lost and its writer dies: with `always` it is in the row."""
    with CellDirectory(site.settings(durable=durable)) as directory:
        fence = directory._here().backend.fence_multi

        def fence_all_but_the_last(keys: Sequence[str]) -> list[Fence]:
            return [*fence(keys[:-1]), Fence(FENCE + b"unheard")]

        monkeypatch.setattr(directory._here().backend, "fence_multi", fence_all_but_the_last)
        uuids = new_uuids(3)
        directory.map_instances((uuid, HERE, "project") for uuid in uuids)
        named = [one.instance_uuids for one in directory.list_invalidations()]
        assert named == [uuids if durable == "always" else uuids[-1:]]
        assert directory.stats().invalidations_pending == 1


def test_row_is_left_to_its_writer_for_ten_seconds(site: Site, directory: CellDirectory) -> None:
    directory.map_instance(new_uuids(1)[0], HERE, "project")
    (row,) = directory.list_invalidations()
    assert row.deliver_after - row.created_at == timedelta(seconds=10)


def test_row_that_is_made_because_the_cache_could_not_be_settled_is_due_at_once(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CellDirectory(site.settings(durable="unreachable")) as directory:
        monkeypatch.setattr(directory._here().backend, "settle_multi", answering([False]))
        directory.map_instance(new_uuids(1)[0], HERE, "project")
        assert directory.stats().invalidations_pending == 1


def test_what_a_write_in_doubt_left_is_removed_though_the_database_cannot_record_it_yet(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    (uuid,) = new_uuids(1)
    other = site.open()
    other.map_instance(uuid, HERE, "project")
    with CellDirectory(site.settings()) as directory:

        def interrupted(connection: Connection) -> None:
            raise KeyboardInterrupt

        def away(*_: object) -> int:
            raise DatabaseUnavailable("gone")

        monkeypatch.setattr(directory._here().store, "add_invalidation", away)
        with monkeypatch.context() as patch:
            patch.setattr(Connection, "commit", interrupted)
            with pytest.raises(KeyboardInterrupt):
                directory.move_instance(uuid, THERE)
        site.cache.evict(uuid)  # its fence is lost, and another reader fills what it has read
        assert other.resolve_cell(uuid).uuid == HERE
        assert other._here().backend.peek_multi([uuid]) != [None]
        with pytest.raises(DatabaseUnavailable):
            directory.deliver_invalidations()
        assert other._here().backend.peek_multi([uuid]) == [None]
        monkeypatch.undo()


class _StopsAfterOnePause:
    """What ends the background thread, here after its first pause, or where it takes none."""

    def __init__(self) -> None:
        self.pauses: list[float] = []
        self._left = 10

    def is_set(self) -> bool:
        self._left -= 1
        return bool(self.pauses) or self._left < 0

    def wait(self, seconds: float) -> None:
        self.pauses.append(seconds)


def test_background_thread_pauses_while_a_node_stays_away(
    site: Site, directory: CellDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory._here().maintenance.stop()
    stop = _StopsAfterOnePause()
    directory._here().store.add_invalidation(new_uuids(1), 0.0)
    monkeypatch.setattr(directory._here().backend, "invalidate_multi", lambda keys: [False] * len(keys))
    directory._here().invalidations.wanted.set()
    directory._here().maintenance._run(cast("Any", stop))
    assert stop.pauses == [maintenance._RETRY_S]
    assert directory._here().invalidations.wanted.is_set()


@pytest.fixture
def cache() -> Iterator[Memcached]:
    with Memcached() as server:
        yield server


@pytest.mark.needs("memcached")
def test_write_past_a_node_that_is_away_is_delivered_when_it_is_back(
    request: pytest.FixtureRequest, tmp_path: Path, cache: Memcached
) -> None:
    with open_site(request, tmp_path, "memory") as site:
        config = tmp_path / "cellcache.toml"
        config.write_text(
            f'[database]\nurl = "{site.database_url}"\n'
            f'[cache]\nbackend = "cellcache.memcached"\nservers = ["{cache.address}"]\n'
            "timeout_s = 0.5\nretry_s = 0.1\n",
            encoding="utf-8",
        )
        with CellDirectory.open(config) as directory:
            (uuid,) = new_uuids(1)
            directory.map_instance(uuid, HERE, "project")
            assert directory.resolve_cell(uuid).uuid == HERE
            cache.suspend()
            directory.move_instance(uuid, THERE)
            assert directory.resolve_cell(uuid).uuid == THERE  # from SQL
            statistics = directory.stats()
            assert statistics.fences_failed == 1
            assert statistics.invalidations_pending == 1
            cache.resume()
            eventually(lambda: directory.stats().invalidations_pending == 0)
            assert directory.resolve_cell(uuid).uuid == THERE


@pytest.mark.needs("memcached")
def test_fence_whose_confirmation_was_lost_goes_with_the_invalidation(
    request: pytest.FixtureRequest, tmp_path: Path, cache: Memcached
) -> None:
    """Nobody but its writer can tell that fence from one of a write that is under way."""
    with open_site(request, tmp_path, "memory") as site, Proxy(cache.host, cache.port) as proxy:
        servers = {"backend": "cellcache.memcached", "servers": [proxy.address], "timeout_s": 0.5, "retry_s": 0.1}
        with CellDirectory.open(Settings(database={"url": site.database_url}, cache=servers)) as directory:
            (uuid,) = new_uuids(1)
            directory.map_instance(uuid, HERE, "project")
            proxy.on_reply = swallow
            directory.move_instance(uuid, THERE)
            assert directory.stats().fences_failed == 1
            proxy.heal()
            eventually(lambda: directory.stats().invalidations_pending == 0)
            assert eventually(lambda: directory.resolve_cell(uuid).uuid == THERE and directory.stats().hits > 0)


def test_fence_that_arrives_after_a_later_write_does_not_bring_the_older_value_back(
    site: Site, directory: CellDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request takes long, its writer gives the node up, and another write passes in between."""
    (uuid,) = new_uuids(1)
    directory.map_instance(uuid, HERE, "project")
    other, backend = site.open(), cast("Any", directory._here().backend)
    on_its_way: list[Fence] = []

    def fence_late(keys: Sequence[str]) -> list[Fence]:
        monkeypatch.undo()
        on_its_way.append(Fence(FENCE + b"too late"))
        monkeypatch.setattr(backend, "settle_multi", settle_later)
        return list(on_its_way)

    def settle_later(settlements: Sequence[Settlement]) -> list[bool]:
        monkeypatch.undo()
        other.move_instance(uuid, HERE)
        backend.store_multi({uuid: on_its_way[0].mark})
        return list(backend.settle_multi(settlements))

    monkeypatch.setattr(backend, "fence_multi", fence_late)
    directory.move_instance(uuid, THERE)
    assert site.table() == {uuid: HERE}
    assert directory.resolve_cell(uuid).uuid == other.resolve_cell(uuid).uuid == HERE


@pytest.mark.needs("memcached")
def test_refusing_deployment_writes_nothing_while_a_node_is_away(
    request: pytest.FixtureRequest, tmp_path: Path, cache: Memcached
) -> None:
    with open_site(request, tmp_path, "memory") as site:
        config = tmp_path / "cellcache.toml"
        config.write_text(
            f'[database]\nurl = "{site.database_url}"\n[cache]\nbackend = "cellcache.memcached"\n'
            f'servers = ["{cache.address}"]\non_unreachable = "refuse"\ntimeout_s = 0.5\n',
            encoding="utf-8",
        )
        with CellDirectory.open(config) as directory:
            uuid, other = new_uuids(2)
            directory.map_instance(uuid, HERE, "project")
            cache.kill()
            with pytest.raises(CacheUnavailable, match="nothing was written"):
                directory.move_instance(uuid, THERE)
            with pytest.raises(CacheUnavailable):
                directory.map_instances([(other, HERE, "project")])
            with pytest.raises(CacheUnavailable):
                directory.prune([uuid])
        assert site.table() == {uuid: HERE}


def test_the_background_thread_outlives_what_nobody_expected(
    directory: CellDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    invalidations, delivered = directory._here().invalidations, threading.Event()

    def fails() -> Delivery:
        monkeypatch.setattr(invalidations, "deliver", succeeds)
        invalidations.wanted.set()
        raise ZeroDivisionError

    def succeeds() -> Delivery:
        delivered.set()
        return Delivery(0, 0)

    monkeypatch.setattr(invalidations, "deliver", fails)
    monkeypatch.setattr(maintenance, "_RETRY_S", 0.01)
    invalidations.wanted.set()
    assert delivered.wait(20)
    assert "ZeroDivisionError" in caplog.text


def test_two_threads_that_deliver_take_turns(
    site: Site, directory: CellDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = new_uuids(3)
    store, begun, go_on = directory._here().store, threading.Event(), threading.Event()
    forget = store.forget_invalidations

    def slow(ids: Sequence[int]) -> None:
        begun.set()
        assert go_on.wait(20)
        forget(ids)

    for key in keys:
        directory.map_instance(key, HERE, "project")
    monkeypatch.setattr(store, "forget_invalidations", slow)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(directory.deliver_invalidations)
        assert begun.wait(20)
        second = threads.submit(directory.deliver_invalidations)
        assert wait([second], timeout=0.2).not_done  # it will not say "nothing waits" while the first has it in hand
        go_on.set()
        assert [first.result(20).waiting, second.result(20).waiting] == [0, 0]
    assert rows(site) == 0


def test_what_could_not_be_recorded_is_recorded_once_by_two_that_deliver(
    site: Site, directory: CellDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = new_uuids(3)
    invalidations, store = directory._here().invalidations, directory._here().store
    add, together = store.add_invalidation, threading.Barrier(2)

    def slow(instance_uuids: Sequence[str], after_s: float) -> int:
        with suppress(threading.BrokenBarrierError):
            together.wait(0.2)  # two at once come here, if two at once can
        return add(instance_uuids, after_s)

    invalidations._unrecorded.extend(([key], 60.0) for key in keys)
    monkeypatch.setattr(store, "add_invalidation", slow)
    with ThreadPoolExecutor(2) as threads:
        assert len(list(threads.map(lambda _: directory.deliver_invalidations(), range(2)))) == 2
    assert sorted(one.instance_uuids[0] for one in directory.list_invalidations()) == sorted(keys)
    assert not invalidations._unrecorded


def test_delivery_that_is_interrupted_forgets_nothing(
    site: Site, directory: CellDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = new_uuids(3)
    invalidations = directory._here().invalidations
    steps = {
        "settle_multi": directory._here().backend,
        "add_invalidation": directory._here().store,
        "forget_invalidations": directory._here().store,
    }

    def interrupted(*_: object) -> list[bool]:
        raise KeyboardInterrupt

    directory._here().maintenance.stop()
    directory.map_instance(keys[0], HERE, "project")
    for key in keys:
        invalidations.unsettled(None, {key: Fence(FENCE + key.encode())})
    invalidations._unrecorded.append((keys, 60.0))
    for name, part in steps.items():
        with monkeypatch.context() as patch:
            patch.setattr(part, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                directory.deliver_invalidations()
    directory.deliver_invalidations()
    assert [one.instance_uuids for one in directory.list_invalidations()] == [keys]


@pytest.mark.slow
def test_commands_list_and_deliver(
    site: Site, directory: CellDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "cellcache.toml"
    config.write_text(f'[database]\nurl = "{site.database_url}"\n', encoding="utf-8")
    (uuid,) = new_uuids(1)
    directory._here().store.add_invalidation([uuid], 0.0)
    assert main(["--config", str(config), "invalidations", "list"]) == 0
    assert uuid in capsys.readouterr().out
    assert main(["--config", str(config), "invalidations", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["instance_uuids"] == [uuid]
    assert main(["--config", str(config), "invalidations", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"delivered": 1, "waiting": 0}
    assert rows(site) == 0
