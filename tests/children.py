"""Children of a fork: what they answer, and whether they hang."""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import select
import signal
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import pytest

PATIENCE_S = 30.0

Fork = Callable[[], int]

fork_in_c: Fork = ctypes.PyDLL(None).fork
"""A fork that Python is not told of: uWSGI's, or that of any C program that embeds Python."""


def in_child(work: Callable[[], Any], *, fork: Fork = os.fork, watched: bool = True) -> Any:
    """Fork, run this in the child, and return its result, which must be JSON; a child that hangs is killed.

    Not `watched` inside another child: faulthandler's timer is a thread, which a second fork would wait for in vain.
    """
    return Child(work, fork, watched=watched).result()


class Child:
    """A child under way."""

    def __init__(self, work: Callable[[], Any], fork: Fork = os.fork, *, watched: bool = True) -> None:
        self._reading, writing = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12: "this process is multi-threaded"
            self._pid = fork()
        if self._pid == 0:
            status = 1
            try:
                os.close(self._reading)
                if watched:
                    faulthandler.dump_traceback_later(PATIENCE_S / 2, exit=True, file=2)
                with os.fdopen(writing, "w") as pipe:
                    try:
                        json.dump({"result": work()}, pipe)
                    except BaseException:  # noqa: BLE001 - the parent raises it
                        json.dump({"error": traceback.format_exc()}, pipe)
                status = 0
            finally:
                os._exit(status)
        os.close(writing)

    def result(self) -> Any:
        try:
            with os.fdopen(self._reading) as pipe:
                ready, _, _ = select.select([pipe], [], [], PATIENCE_S)
                text_said = pipe.read() if ready else ""
                if not text_said:
                    os.kill(self._pid, signal.SIGKILL)
                    pytest.fail("the child hangs; where, is in what it wrote to standard error")
                said = json.loads(text_said)
        finally:
            os.waitpid(self._pid, 0)
        if "error" in said:
            pytest.fail(f"in the child: {said['error']}")
        return said["result"]
