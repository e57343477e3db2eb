"""What a process makes for itself: the same for all its threads, and another in each child."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from cellcache import per_process
from cellcache.per_process import PerProcess

PATIENCE_S = 30.0


def test_threads_that_come_first_get_the_same_though_one_is_done_while_another_makes_his() -> None:
    second_makes, first_is_done = threading.Event(), threading.Event()
    begun: list[object] = []

    def make() -> object:
        if threading.current_thread().name.endswith("_1"):
            second_makes.set()
            assert first_is_done.wait(PATIENCE_S)
        else:
            assert second_makes.wait(PATIENCE_S)
        return object()

    state = PerProcess(make, begin=begun.append)
    with ThreadPoolExecutor(2, thread_name_prefix="first") as threads:
        first, second = threads.submit(state.get), threads.submit(state.get)
        mine = first.result(PATIENCE_S)
        first_is_done.set()
        assert second.result(PATIENCE_S) is mine
    assert state.get() is mine
    assert begun == [mine]


def test_thread_that_looks_once_more_finds_what_another_has_made() -> None:
    """It has seen that there is none, and comes on only when another has made it."""
    state = PerProcess(object)
    mine = state.get()
    assert state._of_this_process() is mine


def test_a_process_id_that_comes_round_again_is_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    state = PerProcess(object)
    made = []
    for process in (100, 200, 100, 300, 200):
        monkeypatch.setattr(per_process, "getpid", lambda: process)  # noqa: B023 - called at once
        made.append(state.get())
        assert state.get() is made[-1]
    assert len(set(made)) == 5
