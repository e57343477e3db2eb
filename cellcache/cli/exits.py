"""Exit codes: one table from errors to codes, and the one line that a person reads."""

from __future__ import annotations

import enum
import os
import sys
import traceback
from typing import Any, TextIO

from cellcache.errors import (
    BackendUnsupported,
    CacheUnavailable,
    CellCacheError,
    ConfigError,
    DatabaseUnavailable,
    InvalidUUID,
    InvalidValue,
    SchemaError,
)
from cellcache.foreign import printable
from cellcache.masking import mask_text


class ExitCode(enum.IntEnum):
    FINE = 0
    NO = 1
    USAGE = 2
    DATABASE = 3
    CACHE = 4
    BUG = 70
    OUTPUT = 74
    INTERRUPTED = 130
    BROKEN_PIPE = 141


class UsageProblem(CellCacheError):
    """What was asked for cannot be: options that exclude each other, say."""


MEANINGS = {
    ExitCode.FINE: "fine",
    ExitCode.NO: "the answer is no (not mapped, a conflict), or a check found a fault",
    ExitCode.USAGE: "the command line or the configuration cannot be used",
    ExitCode.DATABASE: "a database did not answer, or lacks the tables",
    ExitCode.CACHE: "a cache node is away and was needed (verify, writes that are to be refused), or it is too old",
    ExitCode.BUG: "an error that nobody foresaw: please report it",
    ExitCode.OUTPUT: "the output could not be written: it is closed, or its disk is full",
    ExitCode.INTERRUPTED: "interrupted (Ctrl-C)",
    ExitCode.BROKEN_PIPE: "whoever read the output has gone",
}

_CODES: dict[type[CellCacheError], ExitCode] = {
    CellCacheError: ExitCode.NO,
    InvalidUUID: ExitCode.USAGE,
    InvalidValue: ExitCode.USAGE,
    UsageProblem: ExitCode.USAGE,
    ConfigError: ExitCode.USAGE,
    SchemaError: ExitCode.DATABASE,
    DatabaseUnavailable: ExitCode.DATABASE,
    CacheUnavailable: ExitCode.CACHE,
    BackendUnsupported: ExitCode.CACHE,
}


def exit_code_of(error: CellCacheError) -> ExitCode:
    """Return the code of the nearest class in the table; an error that is not named there means "no"."""
    return next(_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)


def epilog() -> str:
    """Return the codes as the last lines of `--help`."""
    documented = (code for code in ExitCode if code <= ExitCode.CACHE)
    return "[bold]Exit codes[/]\n" + "\n".join(f"  {code:d}  {MEANINGS[code]}" for code in documented)


def write_to_stderr(text: str) -> None:
    """Write what a person should read. Where nobody can be told, the exit code must do: it is no reason to fail."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        abandon(sys.stderr)


def abandon(stream: TextIO) -> None:
    """Let what is left to be written go nowhere, lest Python complain about it while it exits."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, stream.fileno())
    os.close(devnull)


def complain(message: object) -> None:
    """Write to stderr what is wrong: a line each thing, no control characters, no passwords."""
    for line in str(message).splitlines():
        write_to_stderr(f"cellcache: {mask_text(printable(line))}\n")


def complain_of_bug(error: Exception, *, verbose: bool) -> None:
    """Say in one line what was not foreseen; the traceback only for those who asked for it."""
    if verbose:
        for line in "".join(traceback.format_exception(error)).splitlines():
            write_to_stderr(mask_text(printable(line)) + "\n")
    first_line = next(iter(str(error).splitlines()), "")
    complain(
        f"unexpected {type(error).__name__}: {first_line or 'no message'}; please report this, with what --verbose adds"
    )


def usage_problem(error: Exception) -> str | None:
    """Return what the parser says is wrong with the command line, None if the error is not the parser's.

    Told by its shape: the parser's classes moved between packages from one release of typer to the next.
    """
    describe: Any = getattr(error, "format_message", None)
    if describe is None or not hasattr(error, "exit_code"):
        return None
    context: Any = getattr(error, "ctx", None)
    hint = f"; see `{context.command_path} --help`" if context is not None else ""
    return f"{str(describe()).rstrip('.')}{hint}"
