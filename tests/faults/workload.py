"""One process of a campaign: reads and writes a few hundred instances, and records every call.

Started as `python -m tests.faults.workload <plan> <name>`. It begins when its standard input ends, and ends when it is
told to, or is killed, or by its own hand: between a commit and its settlement, when it finds a file that asks for it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, event

from cellcache import (
    CellCacheError,
    CellDirectory,
    CommitUnknown,
    DatabaseUnavailable,
    InstanceNotMapped,
    MappingExists,
)
from cellcache.protocol import Fence, Fill, Settlement
from tests.faults.deployment import open_directory
from tests.faults.history import Answers, Recorder, clock

IMMORTAL = "p0"
"""The process that is never killed, so that its resources can be watched to the end."""

QUIET, STOP, DIE = "quiet", "stop", "die"
"""Files that a process looks for: write no more; end; die at the next settlement."""


@dataclass(frozen=True)
class Plan:
    """What the processes are given."""

    folder: str
    database_url: str
    cache: dict[str, Any]
    database: dict[str, Any]
    instances: int
    cells: int
    threads: int
    pause_s: float
    sabotage: bool = False
    """Fill by `set`, as a plain dogpile region does: whatever stands there, with whatever was read."""

    @property
    def keys(self) -> list[str]:
        return [str(UUID(int=0xCE11 << 96 | number)) for number in range(self.instances)]

    @property
    def cell_uuids(self) -> list[str]:
        return [str(UUID(int=number + 1)) for number in range(self.cells)]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Plan:
        return cls(**json.loads(path.read_text()))


class Worker:
    def __init__(self, plan: Plan, name: str, directory: CellDirectory, recorder: Recorder) -> None:
        self._plan = plan
        self._name = name
        self._directory = directory
        self._recorder = recorder
        self._folder = Path(plan.folder)
        self._count = itertools.count()
        self._doing = threading.local()  # the write that this thread is in
        self._watch_the_cache()
        self._label_transactions()

    def run(self) -> None:
        threads = [threading.Thread(target=self._run_thread, args=(n,)) for n in range(self._plan.threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _run_thread(self, number: int) -> None:
        dice = random.Random(f"{self._name}.{number}")
        keys, cells = self._plan.keys, self._plan.cell_uuids
        parent = os.getppid()
        while not (self._folder / STOP).exists() and os.getppid() == parent:
            time.sleep(dice.uniform(0, 2 * self._plan.pause_s))
            key, cell = keys[int(len(keys) * dice.random() ** 2)], dice.choice(cells)
            if dice.random() < 0.001:
                self._resolve_in_a_thread_of_its_own(key)
            step = dice.random()
            reads_only = number > 1 or (self._folder / QUIET).exists()  # writes wait for locks; two threads do both
            if step < 0.50 or (reads_only and step < 0.90):
                self._resolve(key)
            elif step < 0.60 or reads_only:
                self._resolve_many(dice.sample(keys, 10))
            elif step < 0.80:
                self._write({key: cell}, partial(self._directory.move_instance, key, cell))
            elif step < 0.92:
                self._write({key: cell}, partial(self._directory.map_instance, key, cell, "project"))
            elif step < 0.96:
                some = {other: dice.choice(cells) for other in dice.sample(keys, 3)}
                rows = [(other, where, "project") for other, where in some.items()]
                self._write(some, partial(self._directory.map_instances, rows))
            else:
                self._write({key: None}, partial(self._directory.prune, [key]))

    def _resolve(self, key: str) -> None:
        op, start = self._next(), clock()
        try:
            try:
                cell = self._directory.resolve_cell(key).uuid
            except InstanceNotMapped:
                self._recorder.read(op, start, {key: None})
            else:
                self._recorder.read(op, start, {key: cell})
        except CellCacheError as error:
            self._recorder.unanswered(op, start, error)

    def _resolve_in_a_thread_of_its_own(self, key: str) -> None:
        """Threads come and go; what they had connected must go with them."""
        thread = threading.Thread(target=self._resolve, args=(key,))
        thread.start()
        thread.join()

    def _resolve_many(self, keys: Sequence[str]) -> None:
        op, start = self._next(), clock()
        try:
            cells = self._directory.resolve_cells(keys)
            self._recorder.read(op, start, {key: cells[key].uuid if key in cells else None for key in keys})
        except CellCacheError as error:
            self._recorder.unanswered(op, start, error)

    def _write(self, values: Answers, call: Callable[[], object]) -> None:
        """Make one write. One that changes nothing has nevertheless told what it found: that is a read."""
        op = self._doing.op = self._next()
        start = self._recorder.begin(op, values)
        try:
            call()
        except MappingExists as error:
            self._recorder.end(op, "failed")
            self._recorder.read(f"{op}-found", start, {error.existing.instance_uuid: error.existing.cell_uuid})
        except InstanceNotMapped as error:
            self._recorder.end(op, "failed")
            self._recorder.read(f"{op}-found", start, {error.instance_uuid: None})
        except CommitUnknown:
            self._recorder.end(op, "unknown")
        except CellCacheError:
            self._recorder.end(op, "failed")
        else:
            self._tell_result(op, start, values)

    def _tell_result(self, op: str, start: int, values: Answers) -> None:
        """Not everything that was asked for was a change: what was so already has been found, not written."""
        changed = [key for key in values if key in self._doing.changed]
        self._recorder.end(op, "done", changed)
        found = {key: value for key, value in values.items() if key not in changed}
        if found:
            self._recorder.read(f"{op}-found", start, found)

    def _next(self) -> str:
        return f"{self._name}-{next(self._count)}"

    def _label_transactions(self) -> None:
        """Let the database's triggers know which write a change belongs to."""

        @event.listens_for(self._directory._here().store._writing, "begin")
        def label(connection: Connection) -> None:
            self._doing.changed = set()
            connection.exec_driver_sql("SET @op = %s", (self._doing.op,))

    def _watch_the_cache(self) -> None:
        """Record which instances a cache node did not confirm, die on request after a commit, dawdle before a fill."""
        backend: Any = self._directory._here().backend
        fence_multi, settle_multi, send_fills = backend.fence_multi, backend.settle_multi, backend.send_fills

        def fence(keys: Sequence[str]) -> list[Fence]:
            self._doing.changed.update(keys)
            fences: list[Fence] = fence_multi(keys)
            self._note_unreached([key for key, fence in zip(keys, fences, strict=True) if not fence.confirmed])
            return fences

        def settle(settlements: Sequence[Settlement]) -> list[bool]:
            request = self._folder / DIE
            if self._name != IMMORTAL:
                with contextlib.suppress(FileNotFoundError):
                    request.unlink()
                    os.kill(os.getpid(), signal.SIGKILL)
            confirmed: list[bool] = settle_multi(settlements)
            self._note_unreached([one.key for one, done in zip(settlements, confirmed, strict=True) if not done])
            return confirmed

        def fill(fills: Sequence[Fill], refused: Callable[[int], object], *, wait: bool) -> None:
            if random.random() < 0.1:
                time.sleep(0.1)  # as a process may pause at any moment; here it matters most
            if not self._plan.sabotage:
                send_fills(fills, refused, wait=wait)
            else:
                backend.store_multi({fill.key: fill.value for fill in fills})

        backend.fence_multi, backend.settle_multi, backend.send_fills = fence, settle, fill

    def _note_unreached(self, keys: Sequence[str]) -> None:
        op = getattr(self._doing, "op", None)  # None in the directory's own thread, which delivers what writes left
        if keys and op is not None:
            self._recorder.unreached(op, keys)


@contextlib.contextmanager
def opened(plan: Plan) -> Iterator[CellDirectory]:
    """Open the directory, as soon as the database answers."""
    while True:
        with contextlib.suppress(DatabaseUnavailable):
            directory = open_directory(plan.database_url, plan.cache, **plan.database)
            break
    with directory:
        yield directory


def record_unexpected(recorder: Recorder) -> None:
    """Record what ends a thread, one of ours or the directory's own."""
    usual = threading.excepthook

    def hook(trouble: threading.ExceptHookArgs) -> None:
        usual(trouble)
        recorder.unexpected(trouble.thread.name if trouble.thread else "?", trouble.exc_value)

    threading.excepthook = hook


def main() -> None:
    plan, name = Plan.load(Path(sys.argv[1])), sys.argv[2]
    sys.stdin.read()  # until it is wanted
    with Recorder(Path(plan.folder) / f"{name}.history") as recorder:
        record_unexpected(recorder)
        with opened(plan) as directory:
            Worker(plan, name, directory, recorder).run()
            statistics = directory.stats().as_dict()
        recorder.finished(statistics)


if __name__ == "__main__":
    main()
