"""Processes of a fleet: each opens contenders of its own on caches that all of them share, and does as it is told."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from random import Random
from types import TracebackType
from typing import Any, Self

from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.world import Place

_ANSWER_WITHIN_S = 120.0


class Workers:
    """Some processes, started afresh: nothing of this one's is in them."""

    def __init__(self, places: dict[str, Place], size: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for number in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, places, number), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        for pipe in self._pipes:
            _answer(pipe)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join()
            process.close()

    def look_up(self, contender: str, numbers: Sequence[Sequence[int]]) -> tuple[float, list[float]]:
        """Let a process per sequence look up those instances, all at once.

        Returns the seconds that passed until all were done, and each call's microseconds.
        """
        chosen = self._pipes[: len(numbers)]
        for pipe, part in zip(chosen, numbers, strict=True):
            pipe.send((contender, list(part)))
        for pipe in chosen:
            _answer(pipe)
        began = time.perf_counter()
        for pipe in chosen:
            pipe.send("go")
        calls = [call for pipe in chosen for call in _answer(pipe)]
        return time.perf_counter() - began, calls


def _answer(pipe: Connection) -> Any:
    if not pipe.poll(_ANSWER_WITHIN_S):
        raise TimeoutError("a process of the benchmark's does not answer")
    return pipe.recv()


def _work(pipe: Connection, places: dict[str, Place], number: int) -> None:
    opened: dict[str, Contender] = {
        contender.key: contender(places[contender.key]) for contender in CONTENDERS if contender.key in places
    }
    random = Random(number)
    for contender in opened.values():
        contender.operation("lookup")(contender.argument(contender.place.instances.some(random, 1)[0]))
    pipe.send("ready")
    clock = time.perf_counter_ns
    while True:
        try:
            key, numbers = pipe.recv()
        except EOFError:
            break
        contender = opened[key]
        lookup = contender.operation("lookup")
        arguments = [contender.argument(contender.place.instances.uuid(instance)) for instance in numbers]
        pipe.send("ready")
        pipe.recv()
        calls = []
        for argument in arguments:
            began = clock()
            lookup(argument)
            calls.append((clock() - began) / 1000)
        pipe.send(calls)
    for contender in opened.values():
        contender.close()
