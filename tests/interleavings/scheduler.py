"""Operations that stop before each of their steps, so that a test decides which of them goes on.

An operation is a call in a thread. Hooks in the connections, the engines and the flights call `stop` there, and
nothing more of it happens until `advance`. Only one operation runs at any time, so that the same decisions always
lead to the same history.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Literal, Protocol

Kind = Literal["cache", "poll", "read", "rows", "begin", "commit", "local", "flight"]
"""What a step touches: the cache entry; the connection that a request is about to use; the row, read outside any
transaction; the table of invalidations; the row's lock; the row itself; nothing that others can see; a flight."""

_LONGEST_STEP_S = 60.0

_here = threading.local()


class Late(Protocol):
    """Something that was sent, and arrives later."""

    label: str

    def arrive(self) -> None: ...

    def get_lost(self) -> None: ...


class Abandoned(BaseException):
    """Raised in an operation that is to die here: nothing that it does afterwards has any effect."""


def _always() -> bool:
    return True


@dataclass(frozen=True)
class Step:
    """What an operation is about to do; `enabled` says whether it could now, or would wait for another operation."""

    kind: Kind
    label: str
    enabled: Callable[[], bool] = _always


def current() -> Operation | None:
    """Return the operation that this thread is running; None in any thread of the test's own."""
    operation: Operation | None = getattr(_here, "operation", None)
    return operation


def stop(kind: Kind, label: str, enabled: Callable[[], bool] = _always) -> None:
    """Wait here until the operation is told to go on. Does nothing outside an operation."""
    operation = current()
    if operation is not None:
        operation.stop(Step(kind, label, enabled))


class Operation:
    """One call under way, stopped before `next`; when that is None it has finished or was abandoned."""

    def __init__(self, name: str, thread: Executor, call: Callable[[], object]) -> None:
        self.name = name
        self.next: Step | None = None
        self.answer: object = None
        self.steps = 0
        self.abandoned = False
        self.unfenced = False  # a writer whose cache node did not confirm the fence
        self.rolled_back = False
        self.does_not_wait = False  # for the answers to what it sends now
        self.late: list[Late] = []  # what it has sent so, and may not have arrived yet
        self._failure: BaseException | None = None
        self._may_go = threading.Semaphore(0)
        self._has_stopped = threading.Semaphore(0)
        thread.submit(self._run, call)
        self._wait()

    def advance(self) -> None:
        """Do the next step, and whatever follows it up to the step after that."""
        self.steps += 1
        self._may_go.release()
        self._wait()

    def abandon(self) -> None:
        """Let it die before its next step, as when its process is killed."""
        self.abandoned = True
        if self.next is not None:
            self._may_go.release()
            self._wait()

    def stop(self, step: Step) -> None:
        if not self.abandoned:
            self.next = step
            self._has_stopped.release()
            self._may_go.acquire()
        if self.abandoned:
            raise Abandoned

    def _run(self, call: Callable[[], object]) -> None:
        _here.operation = self
        try:
            self.answer = call()
        except Abandoned:
            pass
        except BaseException as error:  # noqa: BLE001 - it is raised where the test waits
            self._failure = error
        finally:
            self.next = None
            _here.operation = None
            self._has_stopped.release()

    def _wait(self) -> None:
        if not self._has_stopped.acquire(timeout=_LONGEST_STEP_S):
            raise AssertionError(f"{self.name} waits for something that the scheduler does not know of")
        if self._failure is not None:
            raise AssertionError(f"{self.name} raised what it should not: {self._failure!r}") from self._failure
