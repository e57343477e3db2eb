"""Nothing is left behind: no socket, no thread, no SQL connection, no memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.faults.campaign import Campaign, run
from tests.faults.deployment import Deployment, open_directory, prepare, wait_until
from tests.faults.proxy import Proxy
from tests.servers import MariaDB, Memcached
from tests.soak import report, troubles

RETRY_S = 0.1


def connections_to(port: int) -> int:
    connections = psutil.Process().net_connections("tcp")
    return sum(getattr(connection.raddr, "port", 0) == port for connection in connections)


def in_a_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_a_thread_that_ends_takes_its_connections_with_it(memcached: Memcached, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'cellcache.db'}"
    cells = prepare(url)
    cache = {"backend": "cellcache.memcached", "servers": [memcached.address], "timeout_s": 0.5}
    with open_directory(url, cache) as directory:
        deployment = Deployment(directory, cells, instances=5)
        deployment.look_up_everything()
        before = connections_to(memcached.port)
        for _ in range(50):
            in_a_thread(lambda: directory.resolve_cell(deployment.keys[0]))
        assert connections_to(memcached.port) <= before
    assert connections_to(memcached.port) == 0


def test_connections_that_break_are_closed_and_closing_leaves_nothing(memcached: Memcached, mariadb: MariaDB) -> None:
    url = mariadb.create_database("leaks")
    cells = prepare(url)
    threads = set(threading.enumerate())
    with Proxy(memcached.host, memcached.port) as cache_proxy, Proxy(mariadb.host, mariadb.port) as database_proxy:
        cache = {
            "backend": "cellcache.memcached",
            "servers": [cache_proxy.address],
            "timeout_s": 0.5,
            "retry_s": RETRY_S,
        }
        through = url.replace(f":{mariadb.port}/", f":{database_proxy.port}/")
        with open_directory(through, cache) as directory:
            deployment = Deployment(directory, cells, instances=20)
            for round_ in range(20):
                deployment.look_up_everything(threads=4)
                deployment.move(deployment.keys[round_])
                if round_ % 3 == 0:
                    cache_proxy.cut()
                elif round_ % 3 == 1:
                    cache_proxy.refuse()
                    deployment.look_up_everything()
                    cache_proxy.accept()
                else:
                    database_proxy.cut()
                wait_until(lambda: directory.stats().invalidations_pending == 0, "invalidations are delivered")
            time.sleep(2 * RETRY_S)
            deployment.look_up_everything()
            # This thread's and the background thread's; the pools' (one thread writes, up to four read at a time).
            assert connections_to(cache_proxy.port) <= 2
            assert connections_to(database_proxy.port) <= 4 + 2
        assert connections_to(cache_proxy.port) == 0
        assert connections_to(database_proxy.port) == 0
        wait_until(lambda: database_proxy.connections == 0, "the server's side is closed too")
    assert set(threading.enumerate()) <= threads


@pytest.mark.slow
@pytest.mark.quiet
@pytest.mark.timeout(300)
@pytest.mark.needs("memcached", "mariadb")
def test_half_a_minute_of_faults_leaves_as_much_as_there_was_before(tmp_path: Path) -> None:
    campaign = Campaign(seconds=20, seed=2, processes=3, calm_s=4.0)
    result = run(campaign, tmp_path)
    found = list(troubles(result, campaign))
    text = report(result, campaign, found)
    print(text)
    assert not found, text
