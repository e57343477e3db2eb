"""The three streams that a process is given: any of them may be closed, full, or read by nobody any more."""

from __future__ import annotations

import io
import os
import sys
from typing import Any, TextIO

from cellcache.cli.exits import ExitCode, UsageProblem, abandon, complain


class OutputLost(Exception):
    """Standard output cannot be written. No OSError: whoever prints takes some of those for harmless."""

    def __init__(self, reason: str, *, reader_has_gone: bool = False) -> None:
        self.reader_has_gone = reader_has_gone
        super().__init__(reason)


def prepare_streams() -> None:
    """Raise OutputLost where there is no standard output, before anything is done that nobody would hear of.

    A stream that is closed leaves its number to the next file that is opened, such as a database: so it is taken. What
    the encoding of the output lacks is written as an escape.
    """
    if sys.stdin is None:
        os.open(os.devnull, os.O_RDONLY)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - for as long as we run
    given = sys.__stdout__
    if sys.stdout is None:
        raise OutputLost("is closed; nothing was done")
    if given is not None and sys.stdout is given:  # and not what a test, or a program that calls us, put in its place
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(_Output(given.fileno(), "wb", closefd=False)),
            encoding=given.encoding,
            errors="backslashreplace",
            line_buffering=given.line_buffering,
        )


class _Output(io.FileIO):
    """Standard output, which says so when it is lost."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise OutputLost("has no reader", reader_has_gone=True) from None
        except OSError as error:
            raise OutputLost(f"cannot be written: {error.strerror}") from error


def end_without_output(lost: OutputLost) -> ExitCode:
    """Return the exit code; let what is left to be written go nowhere, lest Python complain about it while it exits."""
    if sys.stdout is not None:
        abandon(sys.stdout)
    if lost.reader_has_gone:
        return ExitCode.BROKEN_PIPE
    complain(f"standard output {lost}")
    return ExitCode.OUTPUT


def standard_input() -> TextIO:
    """Return it, or raise UsageProblem where it is closed: that is not the same as empty."""
    if sys.stdin is None:
        raise UsageProblem("standard input is closed: there is nothing to read in place of -")
    return sys.stdin
