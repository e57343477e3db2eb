"""A call in the midst of another, in the same thread: a signal handler's, a finalizer's, a logging handler's.

None gets another's reply, none waits for a lock or a flight of its own thread, and what it interrupts goes on.
"""

from __future__ import annotations

import gc
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cellcache import CellDirectory
from tests.caches import nodes_of
from tests.directories import CACHES, DATABASES, HERE, THERE, Site, new_uuids, open_site
from tests.inserted import Inserted

PROJECT = "project-1"
CELLS = [HERE, THERE]
MOST = 20_000  # calls until something that comes at random must have come


@pytest.fixture(params=CACHES)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, request.param) as site:
        yield site


class Placed:
    """Instances in two cells, of which a call resolves or moves some, and notes what is wrong.

    Right is what was true at any moment between the beginning of a lookup and its end.
    """

    def __init__(self, directory: CellDirectory, site: Site) -> None:
        self.wrong: list[str] = []
        self.calls = 0
        self._cells = {key: [CELLS[number % 2]] for number, key in enumerate(new_uuids(40))}  # from first to last
        self._settled = dict.fromkeys(self._cells, 0)  # which of those is of the last write that has returned
        self._directory = directory
        self._evict = site.cache.evict
        directory.map_instances((key, cells[0], PROJECT) for key, cells in self._cells.items())

    def look_up(self) -> None:
        """Resolve one that is in the cache, and one that is not."""
        hit, miss = self._next(2)
        self._evict(miss)
        self._resolve(hit)
        self._resolve(miss)

    def look_up_in_bulk(self) -> None:
        keys = self._next(6)
        for key in keys[:3]:
            self._evict(key)
        since = [self._settled[key] for key in keys]
        found = self._directory.resolve_cells(keys)
        for key, settled in zip(keys, since, strict=True):
            self._judge(key, found[key].uuid, settled)

    def write(self) -> None:
        (key,) = self._next(1)
        self._cells[key].append(CELLS[self._cells[key][-1] == HERE])
        number = len(self._cells[key]) - 1
        self._directory.move_instance(key, self._cells[key][number])
        self._settled[key] = number
        self._resolve(key)

    def judge_all(self) -> None:
        for key in self._cells:
            self._resolve(key)

    def _resolve(self, key: str) -> None:
        settled = self._settled[key]
        self._judge(key, self._directory.resolve_cell(key).uuid, settled)

    def _next(self, n: int) -> list[str]:
        """Return so many, others than the call before this one."""
        keys = list(self._cells)
        self.calls += 1
        return [keys[(7 * self.calls + number) % len(keys)] for number in range(n)]

    def _judge(self, key: str, cell: str, settled: int) -> None:
        if cell not in self._cells[key][settled:]:
            self.wrong.append(f"{key} is in {self._cells[key][settled:]}, not {cell}")


@pytest.fixture
def directory(site: Site) -> CellDirectory:
    directory = site.open()
    directory.list_cells()
    return directory


@pytest.fixture
def placed(directory: CellDirectory, site: Site) -> Placed:
    return Placed(directory, site)


READS: list[Callable[[Placed], None]] = [Placed.look_up, Placed.look_up_in_bulk]
CALLS = [*READS, Placed.write]


def name(call: Callable[..., object]) -> str:
    return call.__name__.replace("_", " ")


@pytest.mark.slow
@pytest.mark.parametrize("inner", CALLS, ids=name)
@pytest.mark.parametrize("outer", READS, ids=name)
def test_call_within_a_lookup(placed: Placed, outer: Callable[[Placed], None], inner: Callable[[Placed], None]) -> None:
    with Inserted(lambda: inner(placed), every=13) as inserted:
        for _ in range(12):
            outer(placed)
    assert inserted.times > 20
    placed.judge_all()
    assert placed.wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
def test_write_within_a_lookup_is_not_undone_by_it_at_whichever_line_it_comes(
    site: Site, directory: CellDirectory, many: bool
) -> None:
    """Between the look at what stands there and the storing, too."""
    (key,), lines, cell = new_uuids(1), [0], HERE
    directory.map_instance(key, cell, PROJECT)

    def move() -> None:
        directory.move_instance(key, THERE if cell == HERE else HERE)

    for line in range(1, MOST):
        site.cache.evict(key)
        with Inserted(move, every=line, most=1) as inserted:
            directory.resolve_cells([key]) if many else directory.resolve_cell(key)
        if not inserted.times:
            lines[0] = line
            break
        cell = THERE if cell == HERE else HERE
        assert directory.resolve_cell(key).uuid == cell, f"after {line} lines"
    assert lines[0] > 50


@pytest.mark.slow
@pytest.mark.parametrize("inner", READS, ids=name)
def test_lookup_within_a_write(placed: Placed, inner: Callable[[Placed], None]) -> None:
    with Inserted(lambda: inner(placed), every=13) as inserted:
        for _ in range(5):
            placed.write()
    assert inserted.times > 20
    placed.judge_all()
    assert placed.wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("database", DATABASES[1:])
def test_write_within_a_write(cache: str, database: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Not on SQLite, where the inner one waits for the outer one's transaction, until its time limit."""
    with open_site(request, tmp_path, cache, database) as site:
        directory = site.open()
        directory.list_cells()
        placed, others = Placed(directory, site), Placed(directory, site)
        with Inserted(others.write, every=15) as inserted:
            for _ in range(5):
                placed.write()
        assert inserted.times > 10
        for each in (placed, others):
            each.judge_all()
            assert each.wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("inner", CALLS, ids=name)
def test_signal_handler(placed: Placed, inner: Callable[[Placed], None]) -> None:
    """As `Inserted`, at moments that are no line's, and not only in our own code."""
    times, inside = [0], [False]

    def handle(*_: object) -> None:
        if not inside[0]:
            inside[0] = True
            times[0] += 1
            inner(placed)
            inside[0] = False

    before = signal.signal(signal.SIGUSR1, handle)
    stop = threading.Event()
    main = threading.main_thread().ident
    assert main is not None

    def disturb() -> None:
        while not stop.wait(0.0007):
            signal.pthread_kill(main, signal.SIGUSR1)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(MOST):
            placed.look_up()
            if times[0] >= 100:
                break
    finally:
        stop.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    assert times[0] >= 100
    placed.judge_all()
    assert placed.wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("inner", CALLS, ids=name)
def test_finalizer(placed: Placed, inner: Callable[[Placed], None]) -> None:
    """The collector comes whenever something is made, and calls the finalizers of what nobody holds any more."""
    times, inside = [0], [False]

    class Finalized:
        def __init__(self) -> None:
            self.itself = self  # so that the collector alone can free it

        def __del__(self) -> None:
            if not inside[0] and threading.current_thread() is threading.main_thread():  # not the fake Redis' own
                inside[0] = True
                times[0] += 1
                try:
                    inner(placed)
                except BaseException as error:  # noqa: BLE001 - Python would only print it
                    placed.wrong.append(repr(error))
                inside[0] = False

    thresholds = gc.get_threshold()
    gc.collect()
    gc.set_threshold(20, 10_000, 10_000)
    try:
        for _ in range(MOST):
            Finalized()
            placed.look_up()
            if times[0] >= 50:
                break
    finally:
        gc.set_threshold(*thresholds)
        gc.collect()
    assert times[0] >= 50
    placed.judge_all()
    assert placed.wrong == []


@pytest.mark.parametrize("inner", CALLS, ids=name)
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.needs(kind)) for kind in ("memcached", "redis")])
def test_logging_handler_while_a_cache_server_is_away(
    kind: str, inner: Callable[[Placed], None], tmp_path: Path, request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """It is called where the breaker opens and closes, before the lookup that found that out has an answer."""
    with open_site(request, tmp_path, kind) as site:
        directory = site.open(retry_s=1e-9)
        directory.list_cells()
        placed = Placed(directory, site)
        (node,) = nodes_of(directory._here().backend)
        dial, calls = node._dial, list[str]()

        def emit(record: logging.LogRecord) -> None:
            if record.getMessage() not in calls:
                calls.append(record.getMessage())
                inner(placed)

        handler = logging.Handler()
        handler.emit = emit  # type: ignore[method-assign]
        logging.getLogger("cellcache.backends").addHandler(handler)
        caplog.set_level(logging.INFO, "cellcache.backends")
        try:
            node._dial = refuse
            node._pool().generation = object()
            placed.look_up()
            placed.look_up_in_bulk()
            node._dial = dial
            placed.look_up()
            placed.look_up_in_bulk()
        finally:
            logging.getLogger("cellcache.backends").removeHandler(handler)
        assert len(calls) >= 2
        directory.deliver_invalidations()
        placed.judge_all()
        assert placed.wrong == []


def refuse(_within_s: float) -> Any:
    raise ConnectionRefusedError("nobody is there")


def test_logging_handler_in_the_midst_of_sql(site: Site) -> None:
    """SQLAlchemy tells of every statement and of every connection that its pool hands out."""
    loggers = [logging.getLogger(name) for name in ("sqlalchemy.engine", "sqlalchemy.pool")]
    levels, times, inside = [logger.level for logger in loggers], [0], [False]
    handler = logging.Handler()
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
    directory = site.open()
    directory.list_cells()
    placed = Placed(directory, site)

    def emit(_record: logging.LogRecord) -> None:
        if not inside[0]:
            inside[0] = True
            times[0] += 1
            placed.look_up()
            placed.look_up_in_bulk()
            inside[0] = False

    handler.emit = emit  # type: ignore[method-assign, assignment]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        for _ in range(5):
            placed.look_up()
            placed.look_up_in_bulk()
            placed.write()
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
    assert times[0] > 10
    placed.judge_all()
    assert placed.wrong == []
