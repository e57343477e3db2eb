"""What the library logs, as a command shows it."""

from __future__ import annotations

import logging

from cellcache.cli.exits import write_to_stderr
from cellcache.foreign import printable
from cellcache.masking import mask_text


class _Stderr(logging.Handler):
    """Writes to whatever stderr is at the time: a progress bar puts itself in between."""

    def emit(self, record: logging.LogRecord) -> None:
        for line in self.format(record).splitlines():
            write_to_stderr(mask_text(printable(line)) + "\n")


class _OneLine(logging.Formatter):
    """Writes a message in one line, so that no text of others looks like a message of its own. A traceback has many."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return printable(super().formatMessage(record))


def log_to_stderr(*, verbose: bool) -> None:
    """Let the library's warnings through; with `verbose`, all that it has to say, with times."""
    handler = _Stderr()
    handler.setFormatter(
        _OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s" if verbose else "cellcache: %(message)s")
    )
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("cellcache").setLevel(logging.DEBUG if verbose else logging.NOTSET)
