"""Processes that read and write while the nemesis is at work; what they were told is recorded and judged."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil
import sqlalchemy
from sqlalchemy import text

from cellcache import CellDirectory
from tests.faults import history
from tests.faults.checker import Finding
from tests.faults.deployment import open_directory, prepare, wait_until
from tests.faults.history import History, clock
from tests.faults.journal import Journal, connected, create_journal, read_journal
from tests.faults.judgement import Sorted, judge
from tests.faults.nemesis import Event, Nemesis, Processes
from tests.faults.proxy import Proxy
from tests.faults.story import story
from tests.faults.workload import DIE, QUIET, STOP, Plan
from tests.servers import MariaDB, Memcached

NODES = 3
SPARES = 1


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """How much of it."""

    seconds: float
    seed: int = 1
    instances: int = 250
    cells: int = 100
    processes: int = 4
    threads: int = 4
    pause_s: float = 0.004
    pool_size: int = 4
    ttl_s: float = 86_400.0
    sabotage: bool = False
    """Take the leases away: what the checker must find."""
    calm_s: float = 2.0
    """How long they work without any fault, before and after."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one process held at a moment."""

    at: int
    memory_mb: float
    threads: int
    files: int
    cache_sockets: int
    database_sockets: int


class Sampler:
    """Looks at one process every half second, from outside."""

    def __init__(self, pid: int, cache_ports: Collection[int], database_port: int) -> None:
        self._process = psutil.Process(pid)
        self._cache_ports = cache_ports
        self._database_port = database_port
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.samples: list[Sample] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def now(self) -> Sample:
        # A socket that is not connected has no address at all there, whatever the types say.
        ports = [getattr(connection.raddr, "port", 0) for connection in self._process.net_connections("tcp")]
        return Sample(
            clock(),
            self._process.memory_info().rss / 1e6,
            self._process.num_threads(),
            self._process.num_fds(),
            sum(port in self._cache_ports for port in ports),
            ports.count(self._database_port),
        )

    def _run(self) -> None:
        while not self._over.wait(0.5):
            with contextlib.suppress(psutil.Error):
                self.samples.append(self.now())


@dataclass
class Result:
    history: History
    journal: Journal
    events: list[Event]
    findings: Sorted
    windows_s: list[float]
    """How long each write's invalidation was outstanding, of those whose node could not be reached."""
    drained_s: float
    final_differences: dict[str, tuple[str | None, str | None]]
    """Instances for which cache and table differ at the end: what the cache says, what the table says."""
    before: Sample
    """What one process that lived through it all held before the first fault, and after the last."""
    after: Sample
    samples: list[Sample]

    def stories(self) -> Iterator[str]:
        """Tell how each of the first breaches came about."""
        for finding in self.findings.breaches[:5]:
            yield story(finding, self.history, self.journal, self.events)

    def lines(self) -> Iterator[str]:
        """Tell it in figures."""
        writes = self.history.outcomes
        took = sorted(self.history.lookup_ns)
        yield f"answers checked: {self.history.reads:,}"
        yield f"writes: {sum(writes.values()):,} ({', '.join(f'{n:,} {name}' for name, n in sorted(writes.items()))})"
        yield f"commits: {sum(map(len, self.journal.commits.values())):,} of {len(self.history.calls)} instances"
        yield f"reads that raised: {self.history.unanswered or 'none'}"
        if took:
            slow = took[min(len(took) - 1, int(len(took) * 0.999))]
            median = took[len(took) // 2]
            yield (
                f"a lookup took {median / 1e6:.2f} ms in the median, {slow / 1e6:.0f} ms at 99.9 %, "
                f"{took[-1] / 1e6:.0f} ms at most"
            )
        faults = Counter(event.name for event in self.events)
        yield f"faults: {sum(faults.values())} ({', '.join(f'{n} {name}' for name, n in sorted(faults.items()))})"
        yield f"writes whose cache node was out of reach: {len(self.history.unreached)}"
        if self.windows_s:
            yield f"their windows: {max(self.windows_s):.1f} s at most, {sum(self.windows_s):.1f} s in all"
        yield f"old answers inside those windows: {_ages(self.findings.in_a_window)}"
        yield f"old answers after a fence was lost with its node: {_ages(self.findings.fence_lost)}"
        yield f"breaches of the promise: {len(self.findings.breaches)}"
        yield f"differences between cache and table at the end: {len(self.final_differences)}"
        yield f"all invalidations delivered {self.drained_s:.1f} s after the last fault"
        for name in ("threads", "files", "cache_sockets", "database_sockets", "memory_mb"):
            before, after = getattr(self.before, name), getattr(self.after, name)
            most = max(getattr(sample, name) for sample in self.samples)
            yield f"{name.replace('_', ' ')} of one process: {before:.0f} before, {most:.0f} at most, {after:.0f} after"


def _ages(findings: Sequence[Finding]) -> str:
    if not findings:
        return "0"
    return f"{len(findings)}, up to {max(finding.age_s for finding in findings):.2f} s old"


class _Workers(Processes):
    """The processes of the workload. One that dies is replaced, by one that has been started for that already."""

    def __init__(self, plan: Path, folder: Path, number: int) -> None:
        self._plan = plan
        self._folder = folder
        self._lock = threading.Lock()
        self._names = iter(range(1_000_000))
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._spares = [self._prepare() for _ in range(number + SPARES)]
        for _ in range(number):
            self._start()

    @property
    def immortal(self) -> int:
        return next(iter(self._running))

    def pids(self) -> list[int]:
        with self._lock:
            return list(self._running)

    def mortals(self) -> list[int]:
        return self.pids()[1:]

    def kill(self, pid: int) -> None:
        with self._lock:
            process = self._running.pop(pid, None)
        if process is not None:
            process.kill()
            process.wait()
            self._start()

    def ask_one_to_die(self) -> None:
        request = self._folder / DIE
        request.touch()
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            for pid, process in list(self._running.items()):
                if process.poll() is not None:
                    self.kill(pid)
                    return
            time.sleep(0.01)
        request.unlink(missing_ok=True)

    def finish(self) -> list[int]:
        """Wait for all to end, who have been told to; return how they did."""
        return [process.wait(60) for process in self._running.values()]

    def close(self) -> None:
        for process in [*self._running.values(), *self._spares]:
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()

    def _prepare(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.faults.workload", str(self._plan), f"p{next(self._names)}"]
        with (self._folder / "errors").open("ab") as errors:
            return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=errors)

    def _start(self) -> None:
        with self._lock:
            process = self._spares.pop(0)
            self._running[process.pid] = process
            assert process.stdin is not None
            process.stdin.close()  # which it waits for
            self._spares.append(self._prepare())


def run(campaign: Campaign, folder: Path) -> Result:
    """Run a campaign on servers of its own, and judge it. `folder` keeps the histories."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(Memcached()) for _ in range(NODES)]
        proxies = [stack.enter_context(Proxy(node.host, node.port)) for node in nodes]
        mariadb = stack.enter_context(MariaDB())
        database_proxy = stack.enter_context(Proxy(mariadb.host, mariadb.port))
        url = mariadb.create_database("campaign")
        prepare(url, cells=campaign.cells)
        plan = Plan(
            folder=str(folder),
            database_url=sqlalchemy.make_url(url).set(port=database_proxy.port).render_as_string(hide_password=False),
            cache={
                "backend": "cellcache.memcached",
                "servers": [proxy.address for proxy in proxies],
                "ttl_s": campaign.ttl_s,
                "lease_ttl_s": 2,
                "fence_ttl_s": 6,
                "retry_s": 0.5,
            },
            database={"timeout_s": 2.0, "connect_timeout_s": 1.0, "pool_size": campaign.pool_size},
            instances=campaign.instances,
            cells=campaign.cells,
            threads=campaign.threads,
            pause_s=campaign.pause_s,
            sabotage=campaign.sabotage,
        )
        plan.save(folder / "plan.json")
        create_journal(url)
        workers = _Workers(folder / "plan.json", folder, campaign.processes)
        stack.callback(workers.close)
        wait_until(lambda: len(list(folder.glob("*.history"))) >= campaign.processes, "the workload has begun", 60)
        nemesis = Nemesis(
            random.Random(campaign.seed), list(zip(nodes, proxies, strict=True)), (mariadb, database_proxy), workers
        )
        with Sampler(workers.immortal, [proxy.port for proxy in proxies], database_proxy.port) as sampler:
            time.sleep(campaign.calm_s)
            before = sampler.now()
            nemesis.start()
            try:
                time.sleep(campaign.seconds)
            finally:
                nemesis.stop()
            (folder / QUIET).touch()
            drained_s = _wait_for_delivery(url)
            time.sleep(campaign.calm_s)  # reads that nothing excuses any more
            after = sampler.now()
        (folder / STOP).touch()
        exits = workers.finish()
        assert not any(exits), (exits, (folder / "errors").read_text()[-2000:])
        with open_directory(url, plan.cache, **plan.database) as directory:
            differences = _differences(directory, plan.keys)
        journal = read_journal(url)
    found = history.load(sorted(folder.glob("*.history")))
    windows_s = [(journal.delivered_at[op] - start) / 1e9 for op, start in _outstanding(found, journal)]
    return Result(
        history=found,
        journal=journal,
        events=nemesis.events,
        findings=judge(found, journal, nemesis.events),
        windows_s=windows_s,
        drained_s=drained_s,
        final_differences=differences,
        before=before,
        after=after,
        samples=sampler.samples,
    )


def _outstanding(found: History, journal: Journal) -> Iterator[tuple[str, int]]:
    """The writes that were committed with a node out of reach, and when each began."""
    starts = {call.op: call.start for calls in found.calls.values() for call in calls if call.kind == "write"}
    for op in found.unreached:
        if op in journal.delivered_at and op in starts:
            yield op, starts[op]


def _wait_for_delivery(url: str) -> float:
    began = time.monotonic()
    with connected(url) as connection:
        left = text("SELECT COUNT(*) FROM cache_invalidation")
        wait_until(lambda: connection.scalar(left) == 0, "all invalidations are delivered", 60)
    return time.monotonic() - began


def _differences(directory: CellDirectory, keys: Sequence[str]) -> dict[str, tuple[str | None, str | None]]:
    """Compare what the cache answers with the table; nothing is being written any more."""
    cached = directory.resolve_cells(keys)
    told = {key: cached[key].uuid if key in cached else None for key in keys}
    rows: dict[str, Any] = {row.instance_uuid: row.cell_uuid for row in directory.list_instances(limit=100_000)}
    return {key: (told[key], rows.get(key)) for key in keys if told[key] != rows.get(key)}
