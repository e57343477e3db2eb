"""The pool of SQL connections: its limit, who gets which, and what interruptions leave of it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import TimeoutError as PoolTimeout

from cellcache.database import close_engine, open_engine

SIZE = 3
PATIENCE_S = 30.0


class Interrupted(BaseException):
    """What comes from outside, at any moment."""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = open_engine(
        f"sqlite:///{tmp_path / 'pool.db'}", pool_size=SIZE, timeout_s=0.2, connect_timeout_s=0.2, use="write"
    )
    yield engine
    close_engine(engine)


def driver_connection(fairy: Any) -> object:
    return fairy.dbapi_connection


def test_who_comes_gets_the_connection_that_came_back_last(engine: Engine) -> None:
    first, second = engine.raw_connection(), engine.raw_connection()
    of_second = driver_connection(second)
    first.close()
    second.close()
    third = engine.raw_connection()
    assert driver_connection(third) is of_second
    third.close()


def test_no_more_are_made_than_the_limit_says(engine: Engine) -> None:
    held = [engine.raw_connection() for _ in range(SIZE)]
    with pytest.raises(PoolTimeout, match=r"all 3 pooled connections stayed busy for 0\.2 s"):
        engine.raw_connection()
    held.pop().close()
    held.append(engine.raw_connection())
    for connection in held:
        connection.close()


def test_whoever_waits_gets_the_one_that_comes_back(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'pool.db'}"
    engine = open_engine(url, pool_size=1, timeout_s=PATIENCE_S, connect_timeout_s=1.0, use="write")
    made: list[object] = []
    event.listen(engine, "connect", lambda connection, _record: made.append(connection))

    def use(_: int) -> None:
        connection = engine.raw_connection()
        connection.close()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(use, range(400)))
    assert len(made) == 1
    close_engine(engine)


def test_connection_that_nobody_holds_any_more_has_given_its_place_back(engine: Engine) -> None:
    """Taken out of the pool by a caller who was interrupted before anything knew of it."""
    for _ in range(SIZE * 3):
        record = engine.pool._do_get()
        assert record.dbapi_connection is not None
        record.dbapi_connection.close()  # Python 3.13 would warn of one that is not
        del record
        gc.collect()
    connection = engine.raw_connection()
    connection.close()


def test_attempt_that_was_interrupted_leaves_no_place_taken(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise Interrupted

    connect = engine.dialect.connect
    monkeypatch.setattr(engine.dialect, "connect", interrupt)
    kept = []  # the frames that an error holds
    for _ in range(SIZE * 2):
        with pytest.raises(Interrupted) as caught:
            engine.raw_connection()
        kept.append(caught)
    monkeypatch.setattr(engine.dialect, "connect", connect)
    held = [engine.raw_connection() for _ in range(SIZE)]
    for connection in held:
        connection.close()
    assert len(kept) == SIZE * 2


def test_interrupted_waiter_takes_nobodys_turn(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'pool.db'}"
    engine = open_engine(url, pool_size=1, timeout_s=PATIENCE_S, connect_timeout_s=1.0, use="write")
    held = engine.raw_connection()
    waiting: Any = engine.pool
    waiting._waiting.append(_Bell())  # of one who is gone
    got = threading.Event()

    def wait() -> None:
        engine.raw_connection().close()
        got.set()

    thread = threading.Thread(target=wait)
    thread.start()
    while len(waiting._waiting) < 2:
        pass
    held.close()
    assert got.wait(PATIENCE_S)
    thread.join()
    close_engine(engine)


class _Bell:
    """The bell of a waiter who was interrupted, and will not hear it."""

    def set(self) -> None:
        """Ring for nobody."""


def test_no_connection_goes_back_inside_a_transaction(engine: Engine) -> None:
    connection: Any = engine.raw_connection()
    connection.cursor().execute("BEGIN IMMEDIATE")
    connection.close()
    with engine.connect() as another:
        another.begin()
        another.execute(text("CREATE TABLE it (id INTEGER)"))
        another.commit()
