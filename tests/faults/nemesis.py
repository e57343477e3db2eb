"""Breaks things while others work: cache nodes, connections, processes and the database, one after the other.

Every fault is noted with its time on the clock of the histories.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import psutil

from tests.faults.history import clock
from tests.faults.proxy import Fault, Link, Proxy, cut_after, delayed, forward_reply, forward_request, swallow
from tests.servers import MariaDB, Memcached


class Event(NamedTuple):
    """A fault: what was done to what, and from when to when."""

    name: str
    target: str
    start: int
    end: int


class Processes:
    """Those of the workload, as the nemesis sees them: `kill` replaces one by a new one."""

    def pids(self) -> list[int]:
        raise NotImplementedError

    def mortals(self) -> list[int]:
        """Those that may be killed."""
        raise NotImplementedError

    def kill(self, pid: int) -> None:
        raise NotImplementedError

    def ask_one_to_die(self) -> None:
        """Let one end itself between a commit and its settlement."""
        raise NotImplementedError


class Nemesis:
    def __init__(
        self,
        dice: random.Random,
        nodes: Sequence[tuple[Memcached, Proxy]],
        database: tuple[MariaDB, Proxy],
        processes: Processes,
    ) -> None:
        self._dice = dice
        self._nodes = nodes
        self._mariadb, self._database_proxy = database
        self._processes = processes
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._trouble: list[BaseException] = []
        self.events: list[Event] = []

    @property
    def counts(self) -> Counter[str]:
        return Counter(event.name for event in self.events)

    def start(self) -> None:
        """Begin, with a thread for the cache and one for the rest, so that faults also meet."""
        cache: list[tuple[int, Callable[[], None]]] = [
            (3, self._suspend_node),
            (3, self._kill_node),
            (2, self._bounce_node),
            (2, self._cut_node),
            (3, self._delay_node),
            (1, self._cut_replies),
            (3, self._isolate_a_process),
            (1, self._swallow_replies),
        ]
        rest: list[tuple[int, Callable[[], None]]] = [
            (2, self._kill_process),
            (4, self._die_before_settling),
            (3, self._cut_database),
            (4, self._cut_commits),
            (4, self._delay_commits),
            (4, self._delay_some_answers),
            (1, self._restart_database),
            (1, self._kill_database),
        ]
        for faults in (cache, rest):
            thread = threading.Thread(target=self._run, args=(faults, random.Random(self._dice.random())))
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """End, with everything as it should be."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        for node, proxy in self._nodes:
            node.recover()
            proxy.heal()
        self._mariadb.recover()
        self._database_proxy.heal()
        if self._trouble:
            raise self._trouble[0]

    def _run(self, faults: Sequence[tuple[int, Callable[[], None]]], dice: random.Random) -> None:
        weights = [weight for weight, _ in faults]
        # Each once, in some order, then at random: a short run has them all.
        first = dice.sample([fault for _, fault in faults], len(faults))
        try:
            while not self._over.wait(dice.uniform(0.1, 0.7)):
                fault = first.pop() if first else dice.choices(faults, weights)[0][1]
                fault()
        except BaseException as error:
            self._trouble.append(error)
            raise

    def _note(self, name: str, target: object, start: int) -> None:
        self.events.append(Event(name, str(target), start, clock()))

    def _wait(self, least_s: float, most_s: float) -> None:
        self._over.wait(self._dice.uniform(least_s, most_s))

    # -- cache nodes -----------------------------------------------------------------------------------------------

    def _suspend_node(self) -> None:
        node, _ = self._dice.choice(self._nodes)
        start = clock()
        node.suspend()
        self._wait(0.2, 1.5)
        node.resume()
        self._note("node suspended", node, start)

    def _kill_node(self) -> None:
        node, _ = self._dice.choice(self._nodes)
        start = clock()
        node.kill()
        self._note("node killed", node, start)
        self._wait(0.1, 1.0)
        node.start()

    def _bounce_node(self) -> None:
        node, _ = self._dice.choice(self._nodes)
        start = clock()
        node.kill()
        self._note("node killed", node, start)
        node.start()

    def _cut_node(self) -> None:
        node, proxy = self._dice.choice(self._nodes)
        for _ in range(3):
            start = clock()
            proxy.cut()
            self._note("connections to a node cut", node, start)
            self._wait(0.0, 0.4)

    def _delay_node(self) -> None:
        """Past the time limit, and not: what comes late arrives all the same."""
        self._set_replies("replies delayed", delayed(self._dice.uniform(0.02, 0.3)))

    def _cut_replies(self) -> None:
        self._set_replies("cut in the middle of replies", cut_after(self._dice.randrange(12)))

    def _swallow_replies(self) -> None:
        self._set_replies("replies swallowed", swallow)

    def _set_replies(self, name: str, fault: Fault) -> None:
        node, proxy = self._dice.choice(self._nodes)
        start = clock()
        proxy.on_reply = fault
        self._wait(0.3, 1.2)
        proxy.on_reply = forward_reply
        self._note(name, node, start)

    def _isolate_a_process(self) -> None:
        """One process does not reach a node that all others reach: its writes there cannot be fenced."""
        node, proxy = self._dice.choice(self._nodes)
        pid = self._dice.choice(self._processes.pids())
        start = clock()

        def is_isolated(link: Link) -> bool:
            if "owner" not in link.memory:
                link.memory["owner"] = link.client_port in ports_of(pid)
            return bool(link.memory["owner"])

        def drop(link: Link, data: bytes) -> None:
            if not is_isolated(link):
                forward_request(link, data)

        proxy.on_connect = lambda link: not is_isolated(link)
        proxy.on_request = drop
        proxy.cut(is_isolated)
        self._wait(0.5, 3.0)
        proxy.heal()
        proxy.cut(is_isolated)
        self._note("process isolated from a node", node, start)

    # -- processes and the database ----------------------------------------------------------------------------------

    def _kill_process(self) -> None:
        start = clock()
        pid = self._dice.choice(self._processes.mortals())
        self._processes.kill(pid)
        self._note("process killed", pid, start)

    def _die_before_settling(self) -> None:
        start = clock()
        self._processes.ask_one_to_die()
        self._note("process died between commit and settle", "", start)

    def _cut_database(self) -> None:
        for _ in range(2):
            start = clock()
            self._database_proxy.cut()
            self._note("connections to the database cut", self._mariadb, start)
            self._wait(0.0, 0.5)

    def _cut_commits(self) -> None:
        """Half of them before the database has heard of the commit, half of them before its answer is heard of."""
        start, proxy = clock(), self._database_proxy
        dice = random.Random(self._dice.random())

        def request(link: Link, data: bytes) -> None:
            if is_commit(data) and dice.random() < 0.5:
                self._note("connection cut in a commit", self._mariadb, clock())
                if dice.random() < 0.5:
                    link.cut()
                    return
                link.memory["cut"] = True
            link.to_server(data)

        def reply(link: Link, data: bytes) -> None:
            if link.memory.get("cut"):
                link.cut()
            else:
                link.to_client(data)

        proxy.on_request, proxy.on_reply = request, reply
        self._wait(0.2, 0.6)
        proxy.on_request, proxy.on_reply = forward_request, forward_reply
        self._note("a time of cut commits", self._mariadb, start)

    def _delay_commits(self) -> None:
        """So that much can happen between a fence and its commit."""
        start, proxy = clock(), self._database_proxy
        proxy.on_request = lambda link, data: link.to_server(data, after_s=0.3 if is_commit(data) else 0.0)
        self._wait(0.5, 1.5)
        proxy.on_request = forward_request
        self._note("commits delayed", self._mariadb, start)

    def _delay_some_answers(self) -> None:
        """So that much can happen between a reader's look into the table and its fill."""
        start, proxy = clock(), self._database_proxy
        dice = random.Random(self._dice.random())
        proxy.on_reply = lambda link, data: link.to_client(data, after_s=0.2 if dice.random() < 0.2 else 0.0)
        self._wait(0.5, 2.0)
        proxy.on_reply = forward_reply
        self._note("answers of the database delayed", self._mariadb, start)

    def _restart_database(self) -> None:
        start = clock()
        self._mariadb.restart()
        self._note("database restarted", self._mariadb, start)

    def _kill_database(self) -> None:
        start = clock()
        self._mariadb.kill()
        self._mariadb.start()
        self._note("database killed", self._mariadb, start)


def is_commit(request: bytes) -> bool:
    """Whether this is COMMIT, as PyMySQL and psycopg send it."""
    return request.endswith((b"\x03COMMIT", b"COMMIT\x00"))


def ports_of(pid: int) -> set[int]:
    """The local ports of a process's TCP connections."""
    try:
        return {connection.laddr.port for connection in psutil.Process(pid).net_connections("tcp4")}
    except psutil.Error:
        return set()
