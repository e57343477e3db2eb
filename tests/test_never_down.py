"""A broken cache never breaks a lookup, whatever it is that breaks: SQL answers, within a bounded time.

Each fault is set on real memcached and real Redis, most of them in a proxy between the directory and the server.
The limits asserted are several times what is configured: the machine that runs this is busy with other things.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from cellcache.invalidations import GRACE_S
from tests.faults.deployment import Deployment, open_directory, prepare, wait_until
from tests.faults.impostors import Behaviour, Impostor, chatty, endless, http, mute, trickling
from tests.faults.proxy import (
    Fault,
    Link,
    Proxy,
    cut_after,
    delayed,
    dripping,
    garbled,
    replaced,
    shifted,
    silent,
    swallow,
)
from tests.servers import Memcached, Redis

pytestmark = pytest.mark.quiet

TIMEOUT_S = 0.2
RETRY_S = 0.5
A_LOOKUP_S = 5 * TIMEOUT_S  # what no lookup may take, with room for a busy machine
BACK_S = 2.0  # from the server's return to a round of hits, as the specification has it
NOISE_S = 3.0

Server = Memcached | Redis


class Scene:
    """A directory, a proxy, and the cache server behind it."""

    def __init__(self, server: Server, proxy: Proxy, deployment: Deployment) -> None:
        self.server = server
        self.proxy = proxy
        self.deployment = deployment


def cache_settings(server: Server, address: str) -> dict[str, Any]:
    return {"timeout_s": TIMEOUT_S, "retry_s": RETRY_S, **address_of(type(server), address)}


def address_of(kind: type[Server], address: str) -> dict[str, Any]:
    if kind is Memcached:
        return {"backend": "cellcache.memcached", "servers": [address]}
    return {"backend": "cellcache.redis", "url": f"redis://{address}/0"}


@contextlib.contextmanager
def opened_scene(server: Server, tmp_path: Path, instances: int = 60) -> Iterator[Scene]:
    url = f"sqlite:///{tmp_path / 'cellcache.db'}"
    cells = prepare(url)
    with (
        Proxy(server.host, server.port) as proxy,
        open_directory(url, cache_settings(server, proxy.address)) as directory,
    ):
        yield Scene(server, proxy, Deployment(directory, cells, instances))


@pytest.fixture(params=["memcached", "redis_server"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    with opened_scene(request.getfixturevalue(request.param), tmp_path) as scene:
        yield scene


@pytest.fixture
def memcached_scene(memcached: Memcached, tmp_path: Path) -> Iterator[Scene]:
    with opened_scene(memcached, tmp_path) as scene:
        yield scene


# -- faults: each is on inside its `with`, and gone after it ---------------------------------------------------


@contextlib.contextmanager
def stopped(scene: Scene) -> Iterator[None]:
    scene.server.suspend()
    yield
    scene.server.resume()


@contextlib.contextmanager
def killed(scene: Scene) -> Iterator[None]:
    scene.server.kill()
    yield
    scene.server.start()


@contextlib.contextmanager
def refusing(scene: Scene) -> Iterator[None]:
    scene.proxy.refuse()
    yield
    scene.proxy.heal()


@contextlib.contextmanager
def accepting_only(scene: Scene) -> Iterator[None]:
    scene.proxy.on_connect = silent
    scene.proxy.cut()
    yield
    scene.proxy.heal()
    scene.proxy.cut()


def replies(fault: Fault) -> Callable[[Scene], AbstractContextManager[None]]:
    """Every reply, on the connections there are and on new ones."""

    @contextlib.contextmanager
    def fault_in_replies(scene: Scene) -> Iterator[None]:
        scene.proxy.on_reply = fault
        yield
        scene.proxy.heal()

    return fault_in_replies


def replies_to_lookups(fault: Fault) -> Callable[[Scene], AbstractContextManager[None]]:
    """Only the replies to what comes after the handshake, so that each new connection looks well at first."""

    def after_the_handshake(link: Link, data: bytes) -> None:
        if data.startswith((b"VERSION", b"$40\r\n")) or b"redis_version" in data:
            link.to_client(data)
        else:
            fault(link, data)

    return replies(after_the_handshake)


@contextlib.contextmanager
def half_open(scene: Scene) -> Iterator[None]:
    """The server has forgotten the connections and their clients do not know; nobody answers any more."""
    scene.proxy.half_open = True
    scene.proxy.on_request = swallow
    yield
    scene.proxy.heal()


def posing_as(behaviour: Behaviour) -> Callable[[Scene], AbstractContextManager[None]]:
    @contextlib.contextmanager
    def pose(scene: Scene) -> Iterator[None]:
        with Impostor(behaviour) as impostor:
            scene.proxy.target = (impostor.host, impostor.port)
            scene.proxy.cut()
            yield
            scene.proxy.target = (scene.server.host, scene.server.port)
            scene.proxy.cut()

    return pose


FAULTS: dict[str, Callable[[Scene], AbstractContextManager[None]]] = {
    "stopped": stopped,
    "killed and restarted empty": killed,
    "connection refused": refusing,
    "accepts and says nothing": accepting_only,
    "half-open connections": half_open,
    "replies swallowed": replies(swallow),
    "replies to lookups swallowed": replies_to_lookups(swallow),
    "cut before the reply": replies_to_lookups(cut_after(0)),
    "cut in the middle of the reply": replies_to_lookups(cut_after(4)),
    "late replies": replies_to_lookups(delayed(3 * TIMEOUT_S)),
    "replies byte by byte": replies_to_lookups(dripping(TIMEOUT_S / 4)),
    "garbled replies": replies(garbled),
    "garbled replies to lookups": replies_to_lookups(garbled),
    "empty lines": replies_to_lookups(replaced(b"\r\n")),
    "a line that is no reply": replies_to_lookups(replaced(b"HELLO WORLD\r\n")),
    "a size that is too large": replies_to_lookups(replaced(b"VA 99999999999999999999 c1\r\nx\r\n")),
    "a size that is negative": replies_to_lookups(replaced(b"$-7\r\nx\r\n")),
    "out of memory": replies_to_lookups(replaced(b"SERVER_ERROR out of memory storing object\r\n")),
    "OOM": replies_to_lookups(replaced(b"-OOM command not allowed when used memory > 'maxmemory'.\r\n")),
    "loading": replies_to_lookups(replaced(b"-LOADING Redis is loading the dataset in memory\r\n")),
    "a web server": posing_as(http),
    "a server that says nothing": posing_as(mute),
    "a server that never stops": posing_as(endless),
    "a server that never ends its line": posing_as(trickling),
    "a mail server": posing_as(chatty),
}


every_fault = pytest.mark.parametrize("fault", FAULTS.values(), ids=list(FAULTS))


@every_fault
def test_lookups_go_on_while_the_cache_is_broken_and_hit_again_when_it_is_back(
    scene: Scene, fault: Callable[[Scene], AbstractContextManager[None]]
) -> None:
    deployment = scene.deployment
    assert deployment.seconds_until_all_hit() < BACK_S + NOISE_S
    with fault(scene):
        assert deployment.look_up_everything() < A_LOOKUP_S
        assert deployment.look_up_in_bulk() < A_LOOKUP_S
        moved = deployment.keys[5]
        deployment.move(moved)  # a write goes through, and is seen
        assert deployment.look_up_everything() < A_LOOKUP_S
    # The one that was moved is another matter: until its invalidation is delivered the cache may hold the old answer.
    assert deployment.seconds_until_all_hit(but={moved}) < BACK_S + NOISE_S
    wait_until(lambda: deployment.directory.stats().invalidations_pending == 0, "the invalidation is delivered")
    assert deployment.seconds_until_all_hit() < BACK_S + NOISE_S
    assert deployment.look_up_in_bulk() < A_LOOKUP_S


@pytest.mark.parametrize(
    "name",
    [
        "stopped",
        "killed and restarted empty",
        "late replies",
        "cut in the middle of the reply",
        "garbled replies",
        "half-open connections",
    ],
)
def test_eight_threads_get_right_answers_in_time_while_the_cache_comes_and_goes(scene: Scene, name: str) -> None:
    deployment = scene.deployment
    for _ in range(2):
        with FAULTS[name](scene):
            assert deployment.look_up_everything(threads=8) < A_LOOKUP_S
        assert deployment.look_up_everything(threads=8) < A_LOOKUP_S
    assert deployment.seconds_until_all_hit() < BACK_S + NOISE_S


@pytest.mark.parametrize(
    "name",
    [
        "stopped",
        "connection refused",
        "accepts and says nothing",
        "half-open connections",
        "late replies",
        "a server that never stops",
        "a server that never ends its line",
    ],
)
def test_a_run_of_failures_does_not_pay_the_limit_each_time(scene: Scene, name: str) -> None:
    deployment = scene.deployment
    with FAULTS[name](scene):
        began, errors = time.monotonic(), deployment.directory.stats().cache_errors
        for _ in range(10):
            deployment.look_up_everything()
        took_s = time.monotonic() - began
        tried = deployment.directory.stats().cache_errors - errors
    assert 1 <= tried <= 2 + took_s / RETRY_S, f"{tried} attempts in {took_s:.1f} s"


def test_with_eight_threads_a_run_of_failures_is_one_attempt_for_all(scene: Scene) -> None:
    deployment = scene.deployment
    deployment.look_up_everything(threads=8)
    with FAULTS["half-open connections"](scene):
        deployment.look_up_everything(threads=8)  # each may be waiting for a reply at the moment of the fault
        began, accepted = time.monotonic(), scene.proxy.accepted
        for _ in range(5):
            deployment.look_up_everything(threads=8)
        took_s = time.monotonic() - began
    assert scene.proxy.accepted - accepted <= 2 + took_s / RETRY_S


def test_a_reply_that_comes_late_is_not_taken_for_the_next_one(scene: Scene) -> None:
    """Each reply is held back until after the time limit, in which the next request has been made."""
    deployment = scene.deployment
    count = itertools.count()

    def sometimes_late(link: Link, data: bytes) -> None:
        link.to_client(data, after_s=1.2 * TIMEOUT_S if next(count) % 5 == 4 else 0.0)

    scene.proxy.on_reply = sometimes_late
    for _ in range(10):
        deployment.look_up_everything(threads=4)
        deployment.look_up_in_bulk()
        time.sleep(RETRY_S / 2)
    assert deployment.directory.stats().cache_errors > 0


def test_a_reply_to_another_request_is_recognised(memcached_scene: Scene) -> None:
    """memcached echoes the token of each request. Redis has nothing of the kind: there TCP's order must do."""
    deployment = memcached_scene.deployment
    with replies_to_lookups(shifted)(memcached_scene):
        for _ in range(5):
            deployment.look_up_everything(threads=4)
            deployment.look_up_in_bulk()
            time.sleep(RETRY_S)
    assert deployment.directory.stats().cache_errors > 0
    assert deployment.seconds_until_all_hit() < BACK_S + NOISE_S


@pytest.mark.needs("memcached")
def test_a_memcached_that_is_full_and_does_not_evict(tmp_path: Path) -> None:
    with Memcached(memory_mb=2, options=["-M"]) as server, opened_scene(server, tmp_path) as scene:
        fill_up(server)
        lookups_and_writes_stay_right(scene.deployment)
        assert scene.deployment.directory.stats().cache_errors > 0, "it said that it was out of memory"


@pytest.mark.needs("memcached")
def test_a_memcached_that_evicts_everything_at_once(tmp_path: Path) -> None:
    with Memcached(memory_mb=2) as server, opened_scene(server, tmp_path) as scene:
        with flooded(server):
            for _ in range(5):
                lookups_and_writes_stay_right(scene.deployment)
        assert scene.deployment.seconds_until_all_hit() < BACK_S + NOISE_S


@pytest.mark.needs("redis")
@pytest.mark.parametrize("policy", ["noeviction", "allkeys-lru"])
def test_a_redis_that_is_full(tmp_path: Path, policy: str) -> None:
    options = ["--maxmemory", "3mb", "--maxmemory-policy", policy]
    with Redis(options=options) as server, opened_scene(server, tmp_path) as scene, flooded(server):
        for _ in range(5):
            lookups_and_writes_stay_right(scene.deployment)
        assert policy != "noeviction" or scene.deployment.directory.stats().cache_errors > 0


def test_a_write_that_could_not_settle_is_made_up_for_before_others_would(
    memcached_scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, deployment = memcached_scene.deployment.directory, memcached_scene.deployment

    def rows() -> int:
        return len(directory._here().store.invalidations(limit=10))

    wait_until(lambda: rows() == 0, "the rows of the beginning are gone")
    with monkeypatch.context() as patch:
        patch.setattr(directory._here().backend, "settle_multi", lambda settlements: [False] * len(settlements))
        deployment.move(deployment.keys[0])
        assert rows() == 1
        assert not directory._here().store.invalidations(limit=10, due=True), "it is not due for others yet"
    wait_until(lambda: rows() == 0, "it is delivered", 0.8 * GRACE_S)


def lookups_and_writes_stay_right(deployment: Deployment) -> None:
    assert deployment.look_up_everything(threads=2) < A_LOOKUP_S
    assert deployment.look_up_in_bulk() < A_LOOKUP_S
    for key in deployment.keys[::7]:
        deployment.move(key)
    assert deployment.look_up_everything(threads=2) < A_LOOKUP_S


def fill_up(server: Memcached) -> None:
    """Store until there is no room left for an entry of any size."""
    with socket.create_connection((server.host, server.port)) as connection, connection.makefile("rwb") as stream:
        for size in (200_000, 10_000, 500, 40, 1):
            for number in range(100_000):
                stream.write(b"set junk-%d-%d 0 0 %d\r\n%b\r\n" % (size, number, size, b"x" * size))
                stream.flush()
                if stream.readline().startswith(b"SERVER_ERROR"):
                    break


@contextlib.contextmanager
def flooded(server: Server) -> Iterator[None]:
    """Store other things without a pause."""
    done = threading.Event()

    def flood() -> None:
        with socket.create_connection((server.host, server.port)) as connection, connection.makefile("rb") as replies:
            for number in itertools.count():
                if isinstance(server, Memcached):
                    data = b"".join([b"set junk%d-%d 0 0 40\r\n%b\r\n" % (number, n, b"x" * 40) for n in range(500)])
                else:
                    data = b"".join([b"SET junk%d-%d %b\r\n" % (number, n, b"x" * 40) for n in range(500)])
                connection.sendall(data)
                for _ in range(500):
                    replies.readline()
                if done.is_set():
                    return

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.needs("memcached", "redis")
@pytest.mark.parametrize("behaviour", [http, mute, endless, trickling, chatty])
@pytest.mark.parametrize("kind", [Memcached, Redis])
def test_a_directory_opens_though_something_else_listens_on_the_cache_port(
    tmp_path: Path, behaviour: Behaviour, kind: type[Server]
) -> None:
    url = f"sqlite:///{tmp_path / 'cellcache.db'}"
    cells = prepare(url)
    with Impostor(behaviour) as impostor:
        settings = {"timeout_s": TIMEOUT_S, "retry_s": RETRY_S, **address_of(kind, impostor.address)}
        began = time.monotonic()
        with open_directory(url, settings) as directory:
            assert time.monotonic() - began < A_LOOKUP_S + NOISE_S
            assert Deployment(directory, cells).look_up_everything() < A_LOOKUP_S
            assert [node.trouble is None for node in directory.check_cache()] == [False]


def test_memcached_behind_the_redis_backend(memcached: Memcached, tmp_path: Path) -> None:
    opens_and_answers_from_sql(tmp_path, address_of(Redis, memcached.address))


def test_redis_behind_the_memcached_backend(redis_server: Redis, tmp_path: Path) -> None:
    opens_and_answers_from_sql(tmp_path, address_of(Memcached, redis_server.address))


def opens_and_answers_from_sql(tmp_path: Path, settings: dict[str, Any]) -> None:
    url = f"sqlite:///{tmp_path / 'cellcache.db'}"
    cells = prepare(url)
    with open_directory(url, {"timeout_s": TIMEOUT_S, "retry_s": RETRY_S, **settings}) as directory:
        deployment = Deployment(directory, cells)
        lookups_and_writes_stay_right(deployment)
        assert directory.stats().hits == 0
