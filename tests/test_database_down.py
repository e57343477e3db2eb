"""A broken database raises an error of our own for what is not in the cache, within a bounded time; the rest goes on.

A write either happened or did not, and its caller is told which; where nobody can know, that has an error of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy
from sqlalchemy import Connection, text

from cellcache import CellCacheError, CellMapping, CommitUnknown, DatabaseUnavailable, read_through
from cellcache.protocol import Absent
from tests.faults.deployment import Deployment, open_directory, prepare, wait_until
from tests.faults.proxy import Link, Proxy, garbled, swallow
from tests.servers import DatabaseServer, MariaDB, Memcached

pytestmark = pytest.mark.quiet

STATEMENT_S = 1.0
CONNECT_S = 1.0
FENCE_S = 3.0
A_MISS_S = 8 * STATEMENT_S  # two tries, each with a wait for a connection and for a statement; and a busy machine
POOL = 4

_names = (f"down_{number}" for number in itertools.count(1))


class Scene:
    """A directory over memcached and a database; the database is behind a proxy."""

    def __init__(self, server: DatabaseServer, proxy: Proxy, url: str, deployment: Deployment) -> None:
        self.server = server
        self.proxy = proxy
        self.url = url  # straight to the server
        self.deployment = deployment
        self.directory = deployment.directory

    @contextlib.contextmanager
    def other_client(self) -> Iterator[Connection]:
        engine = sqlalchemy.create_engine(self.url)
        with engine.connect() as connection:
            yield connection
        engine.dispose()

    def cell_in_the_table(self, key: str) -> str | None:
        with self.other_client() as connection:
            statement = text("SELECT cell_uuid FROM instance_mapping WHERE instance_uuid = :key")
            cell = connection.scalar(statement, {"key": key})
            return None if cell is None else str(cell)

    def make_cold(self, key: str) -> str:
        self.directory.region.delete(key)
        return key


@pytest.fixture(params=["mariadb", "postgresql"])
def scene(request: pytest.FixtureRequest, memcached: Memcached) -> Iterator[Scene]:
    server: DatabaseServer = request.getfixturevalue(request.param)
    url = server.create_database(next(_names))
    cells = prepare(url)
    with (
        Proxy(server.host, server.port) as proxy,
        open_directory(through(proxy, url), cache_settings(memcached), **database_settings()) as directory,
    ):
        yield Scene(server, proxy, url, Deployment(directory, cells, instances=30))


def through(proxy: Proxy, url: str) -> str:
    return sqlalchemy.make_url(url).set(port=proxy.port).render_as_string(hide_password=False)


def cache_settings(memcached: Memcached) -> dict[str, Any]:
    return {
        "backend": "cellcache.memcached",
        "servers": [memcached.address],
        "timeout_s": 0.5,
        "lease_ttl_s": 2,
        "fence_ttl_s": FENCE_S,
    }


def database_settings() -> dict[str, Any]:
    return {"timeout_s": STATEMENT_S, "connect_timeout_s": CONNECT_S, "pool_size": POOL}


# -- the server as a whole ---------------------------------------------------------------------------------------


def stop(scene: Scene) -> None:
    scene.server.stop()


def kill(scene: Scene) -> None:
    scene.server.kill()


def suspend(scene: Scene) -> None:
    scene.server.suspend()


def refuse(scene: Scene) -> None:
    scene.proxy.refuse()


def swallow_everything(scene: Scene) -> None:
    scene.proxy.on_request = scene.proxy.on_reply = swallow


@pytest.mark.parametrize("fault", [stop, kill, suspend, refuse, swallow_everything])
def test_the_cached_goes_on_and_a_miss_or_a_write_fails_in_time(scene: Scene, fault: Callable[[Scene], None]) -> None:
    directory, deployment = scene.directory, scene.deployment
    deployment.look_up_everything()
    cold, moved = scene.make_cold(deployment.keys[0]), deployment.keys[1]
    cached = [key for key in deployment.keys if key != cold]
    fault(scene)
    for key in cached:
        assert directory.resolve_cell(key).uuid == deployment.truth[key]
    assert len(directory.resolve_cells(cached)) == len(cached)

    assert seconds_of_failure(lambda: directory.resolve_cell(cold)) < A_MISS_S
    assert seconds_of_failure(lambda: directory.resolve_cells([cold, *cached])) < A_MISS_S
    cell = next(cell for cell in deployment.cells if cell != deployment.truth[moved])
    assert seconds_of_failure(lambda: directory.move_instance(moved, cell)) < 3 * A_MISS_S
    assert directory.resolve_cell(moved).uuid == deployment.truth[moved], "nothing was written"

    scene.server.recover()
    scene.proxy.heal()
    scene.proxy.cut()
    wait_until(lambda: answers(directory.resolve_cell, cold), "the database answers again")
    deployment.look_up_everything()
    assert scene.cell_in_the_table(moved) == deployment.truth[moved]
    deployment.move(moved)
    deployment.look_up_everything(threads=4)


def seconds_of_failure(call: Callable[[], object]) -> float:
    began = time.monotonic()
    with pytest.raises(DatabaseUnavailable) as caught:
        call()
    assert not isinstance(caught.value, CommitUnknown)
    return time.monotonic() - began


def answers(call: Callable[[str], object], key: str) -> bool:
    try:
        call(key)
    except CellCacheError:
        return False
    return True


def test_connections_that_the_server_has_ended_are_replaced_without_an_error(scene: Scene) -> None:
    directory, deployment = scene.directory, scene.deployment
    directory.resolve_cell(scene.make_cold(deployment.keys[0]))
    deployment.move(deployment.keys[1])
    for end in (end_sessions, lambda scene: scene.server.restart(), lambda scene: scene.proxy.cut()):
        end(scene)
        directory.resolve_cell(scene.make_cold(deployment.keys[0]))
        end(scene)
        deployment.move(deployment.keys[1])
        end(scene)
        assert directory.prune([deployment.keys[-1]]) == 1
        del deployment.truth[deployment.keys[-1]]
        deployment.look_up_everything()


def end_sessions(scene: Scene) -> None:
    """Have the server end every other connection, as an administrator or a failover does."""
    with scene.other_client() as connection:
        if isinstance(scene.server, MariaDB):
            own = connection.scalar(text("SELECT CONNECTION_ID()"))
            for (session,) in connection.execute(text("SELECT id FROM information_schema.processlist")).all():
                if session != own:
                    with contextlib.suppress(sqlalchemy.exc.DBAPIError):  # it has ended by itself
                        connection.execute(text(f"KILL {session}"))
        else:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity"
                    " WHERE pid <> pg_backend_pid() AND datname = current_database()"
                )
            )


# -- locks and slow statements -------------------------------------------------------------------------------------


def test_a_deadlock_is_tried_again(scene: Scene) -> None:
    """Another client locks b and then wants a; a prune of both locks a and then wants b. One of them must go."""
    deployment = scene.deployment
    a, b = sorted(deployment.keys)[:2]
    statement = text("UPDATE instance_mapping SET project_id = 'other' WHERE instance_uuid = :key")
    with scene.other_client() as other, ThreadPoolExecutor(1) as pool:
        let_the_directory_lose(scene, other)
        for key in [key for key in deployment.keys if key != a]:
            other.execute(statement, {"key": key})
        pruned = pool.submit(scene.directory.prune, [a, b])
        wait_until(lambda: somebody_waits(scene), "the prune waits for the row of the other")
        other.execute(statement, {"key": a})
        other.rollback()
        assert pruned.result(A_MISS_S) == 2
    del deployment.truth[a], deployment.truth[b]
    deployment.look_up_everything()


def let_the_directory_lose(scene: Scene, other: Connection) -> None:
    """MariaDB ends whoever has changed less; PostgreSQL whoever looks first, a while after he began to wait."""
    if not isinstance(scene.server, MariaDB):
        name = sqlalchemy.make_url(scene.url).database
        other.execute(text(f"ALTER DATABASE {name} SET deadlock_timeout = '600ms'"))
        other.commit()
        other.execute(text("SET deadlock_timeout = '20s'"))
        scene.proxy.cut()  # so that the directory's connections are new ones, and have the setting


def somebody_waits(scene: Scene) -> bool:
    with scene.other_client() as connection:
        if isinstance(scene.server, MariaDB):
            waiting = "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
        else:
            waiting = "SELECT COUNT(*) FROM pg_locks WHERE NOT granted"
        return bool(connection.scalar(text(waiting)))


def test_a_row_that_another_client_keeps_locked_fails_the_write_in_time_and_nothing_is_written(scene: Scene) -> None:
    deployment, directory = scene.deployment, scene.directory
    key = deployment.keys[0]
    cell = next(cell for cell in deployment.cells if cell != deployment.truth[key])
    fences = directory.stats().fences
    with scene.other_client() as other:
        other.execute(text("SELECT * FROM instance_mapping WHERE instance_uuid = :key FOR UPDATE"), {"key": key})
        assert seconds_of_failure(lambda: directory.move_instance(key, cell)) < A_MISS_S
        assert seconds_of_failure(lambda: directory.prune([key])) < A_MISS_S
        deployment.look_up_everything()
        other.rollback()
    assert directory.stats().fences == fences, "the cache was not touched"
    assert deployment.misses_of_a_round() == 0
    deployment.move(key)
    deployment.look_up_everything()


def test_a_statement_past_its_limit_fails_the_lookup_in_time(scene: Scene) -> None:
    deployment, directory = scene.deployment, scene.directory
    cold = scene.make_cold(deployment.keys[0])
    with scene.other_client() as other:
        if isinstance(scene.server, MariaDB):
            other.execute(text("LOCK TABLES instance_mapping WRITE"))
        else:
            other.execute(text("LOCK TABLE instance_mapping IN ACCESS EXCLUSIVE MODE"))
        assert seconds_of_failure(lambda: directory.resolve_cell(cold)) < A_MISS_S
        for key in deployment.keys[1:]:
            assert directory.resolve_cell(key).uuid == deployment.truth[key]
        if isinstance(scene.server, MariaDB):
            other.execute(text("UNLOCK TABLES"))
        other.rollback()
    deployment.look_up_everything()


# -- commits of which nobody knows --------------------------------------------------------------------------------


@pytest.mark.parametrize("happened", [False, True], ids=["cut before the commit arrived", "cut after it was done"])
@pytest.mark.parametrize("operation", ["move", "create", "prune"])
def test_a_commit_whose_connection_breaks_is_unknown_and_its_key_is_left_to_sql(
    scene: Scene, happened: bool, operation: str
) -> None:
    deployment, directory = scene.deployment, scene.directory
    key = deployment.keys[0] if operation != "create" else str(uuid4())
    before = deployment.truth.get(key)
    after = None if operation == "prune" else next(cell for cell in deployment.cells if cell != before)

    def cut_in_the_commit(link: Link, data: bytes) -> None:
        if not is_commit(data):
            link.to_server(data)
        elif happened:
            link.memory["committing"] = True
            link.to_server(data)
        else:
            link.cut()

    def cut_the_answer(link: Link, data: bytes) -> None:
        if link.memory.get("committing"):
            link.cut()
        else:
            link.to_client(data)

    scene.proxy.on_request, scene.proxy.on_reply = cut_in_the_commit, cut_the_answer
    writes: dict[str, Callable[[], object]] = {
        "create": lambda: directory.map_instance(key, str(after), "project"),
        "move": lambda: directory.move_instance(key, str(after)),
        "prune": lambda: directory.prune([key]),
    }
    with pytest.raises(CommitUnknown):
        writes[operation]()
    assert directory._here().backend.lookup(key) is Absent.FENCED, "nobody may store an answer"
    scene.proxy.heal()

    truth = after if happened else before
    assert scene.cell_in_the_table(key) == truth
    if truth is None:
        deployment.truth.pop(key, None)
    else:
        deployment.truth[key] = truth
    deployment.look_up_everything(threads=2)
    wait_until(lambda: rows_left(scene, key) > 0, "it is recorded that somebody must remove what stands there by then")
    if operation != "move":
        return  # the rest is the same for all, and takes its time
    wait_until(lambda: directory._here().backend.lookup(key) is not Absent.FENCED, "the fence ends")
    deployment.look_up_everything(threads=2)
    wait_until(lambda: rows_left(scene, key) == 0, "the invalidation is delivered", patience_s=40)
    deployment.look_up_everything(threads=2)
    wait_until(lambda: deployment.misses_of_a_round() == 0, "the cache holds it again")


def test_a_commit_whose_reply_makes_no_sense_is_unknown_and_its_key_is_left_to_sql(scene: Scene) -> None:
    deployment, directory = scene.deployment, scene.directory
    key = deployment.keys[0]
    cell = next(cell for cell in deployment.cells if cell != deployment.truth[key])
    deployment.move(deployment.keys[1])  # it connects

    def notice(link: Link, data: bytes) -> None:
        link.memory["committing"] = is_commit(data)
        link.to_server(data)

    def garble(link: Link, data: bytes) -> None:
        (garbled if link.memory.get("committing") else Link.to_client)(link, data)

    scene.proxy.on_request, scene.proxy.on_reply = notice, garble
    with pytest.raises(CommitUnknown):
        directory.move_instance(key, cell)
    assert directory._here().backend.lookup(key) is Absent.FENCED, "nobody may store an answer"
    scene.proxy.heal()
    assert scene.cell_in_the_table(key) == cell
    deployment.truth[key] = cell
    deployment.look_up_everything(threads=2)


def is_commit(request: bytes) -> bool:
    """Whether this is COMMIT, as PyMySQL and psycopg send it."""
    return request.endswith((b"\x03COMMIT", b"COMMIT\x00"))


def test_an_unknown_commit_is_remembered_until_the_database_can_take_it_down(
    scene: Scene, memcached: Memcached
) -> None:
    """The database goes away in the middle of the commit: the invalidation can be recorded only when it is back."""
    deployment = scene.deployment
    key = deployment.keys[0]
    cell = next(cell for cell in deployment.cells if cell != deployment.truth[key])
    lost = threading.Event()

    def lose_everything(link: Link, data: bytes) -> None:
        if is_commit(data):
            lost.set()
        if lost.is_set():
            link.cut()
        else:
            link.to_server(data)

    # A fence that outlasts whatever else the machine is doing meanwhile.
    settings = cache_settings(memcached) | {"fence_ttl_s": 60.0}
    with open_directory(through(scene.proxy, scene.url), settings, **database_settings()) as directory:
        directory.move_instance(deployment.keys[1], cell)  # it connects
        scene.proxy.on_request = lose_everything
        with pytest.raises(CommitUnknown):
            directory.move_instance(key, cell)
        time.sleep(2)  # the background thread tries, and fails
        assert directory._here().backend.lookup(key) is Absent.FENCED
        scene.proxy.heal()
        wait_until(lambda: rows_left(scene, key) > 0, "it is recorded")


def rows_left(scene: Scene, key: str) -> int:
    with scene.other_client() as connection:
        statement = text("SELECT COUNT(*) FROM cache_invalidation WHERE instance_uuids = :key")
        return int(connection.scalar(statement, {"key": key}) or 0)


@pytest.mark.parametrize("late", [False, True], ids=["before the commit", "after the commit"])
def test_an_interrupt_in_the_middle_of_a_commit_leaves_the_key_fenced(
    scene: Scene, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C, or a time-out of gevent's: the request is on its way, and nobody waits for the answer."""
    deployment, directory = scene.deployment, scene.directory
    key = deployment.keys[0]
    cell = next(cell for cell in deployment.cells if cell != deployment.truth[key])
    commit = Connection.commit

    def interrupted(connection: Connection) -> None:
        if late:
            commit(connection)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Connection, "commit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            directory.move_instance(key, cell)
    assert directory._here().backend.lookup(key) is Absent.FENCED
    if late:
        deployment.truth[key] = cell
    deployment.look_up_everything()
    assert rows_left(scene, key) > 0, "somebody will remove what stands there by then"


# -- stampedes -----------------------------------------------------------------------------------------------------


def slow_reads(proxy: Proxy) -> None:
    """Let every answer of the database take a while, so that whoever asks meanwhile really comes in between."""
    proxy.on_reply = lambda link, data: link.to_client(data, after_s=0.05)


PATIENT_S = (0.01,) * 100
"""The wait of five milliseconds for a lease's holder, made so long that it suffices on a machine that is busy.

Whoever holds a lease and does not run for longer than that costs one more read; see docs/coherence.md.
"""


def test_fifty_threads_on_one_cold_key_cost_one_sql_read(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    deployment, directory = scene.deployment, scene.directory
    monkeypatch.setattr(read_through, "_PAUSES_S", PATIENT_S)
    slow_reads(scene.proxy)
    for key in deployment.keys[:3]:
        scene.make_cold(key)
        before = directory.stats().sql_reads
        assert set(at_once(50, partial(directory.resolve_cell, key))) == {directory.get_cell(deployment.truth[key])}
        assert directory.stats().sql_reads - before == 1


def test_misses_of_many_keys_at_once_use_no_more_connections_than_the_pool_has(scene: Scene) -> None:
    deployment, directory = scene.deployment, scene.directory
    deployment.directory.resolve_cells([scene.make_cold(key) for key in deployment.keys])
    keys = [scene.make_cold(key) for key in deployment.keys]
    before, most = scene.proxy.accepted, 2 * POOL  # reads and writes have a pool each
    scene.proxy.on_reply = lambda link, data: link.to_client(data, after_s=0.02)
    with ThreadPoolExecutor(len(keys)) as pool:
        answered = list(pool.map(lambda key: directory.resolve_cell(key).uuid, keys))
    assert answered == [deployment.truth[key] for key in keys]
    assert scene.proxy.connections <= most
    assert scene.proxy.accepted - before <= most


def at_once(threads: int, call: Callable[[], CellMapping]) -> list[CellMapping]:
    together = threading.Barrier(threads)

    def run(_: int) -> CellMapping:
        together.wait()
        return call()

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, range(threads)))


PROCESSES = 3


def test_a_fleet_of_cold_processes_on_one_key_costs_one_read_per_process_at_most(
    scene: Scene, memcached: Memcached
) -> None:
    deployment = scene.deployment
    key = scene.make_cold(deployment.keys[0])
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(PROCESSES)
    results = context.Queue()
    cache = cache_settings(memcached) | {"fence_ttl_s": 30}
    arguments = (through(scene.proxy, scene.url), cache, key, together, results)
    processes = [context.Process(target=resolve_in_a_process, args=arguments) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    try:
        outcomes = [results.get(timeout=60) for _ in processes]
    finally:
        for process in processes:
            process.join(30)
            process.kill()
            process.close()
        results.close()
        results.join_thread()
    assert all(cells == {deployment.truth[key]} for cells, _ in outcomes)
    assert all(reads <= 1 for _, reads in outcomes), f"SQL reads per process: {[reads for _, reads in outcomes]}"


def resolve_in_a_process(url: str, cache: dict[str, Any], key: str, together: Any, results: Any) -> None:
    read_through._PAUSES_S = PATIENT_S
    with open_directory(url, cache, **database_settings() | {"timeout_s": 10}) as directory:
        directory.list_cells()
        with contextlib.suppress(CellCacheError):
            directory.resolve_cell(uuid4())  # connects, and reads the cells
        before = directory.stats().sql_reads
        together.wait(60)
        cells = {cell.uuid for cell in at_once(10, partial(directory.resolve_cell, key))}
        results.put((cells, directory.stats().sql_reads - before))
