"""The process's own directory, for those who want one import and one call."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from uuid import UUID

from cellcache.config import Settings
from cellcache.directory import CellDirectory
from cellcache.model import CellMapping
from cellcache.per_process import PerProcess

_lock = PerProcess(threading.RLock).get
_directory: CellDirectory | None = None


def configure(source: str | os.PathLike[str] | Settings | CellDirectory | None = None) -> CellDirectory:
    """Set the process's directory: from a file, a Settings, an open directory, or (None) the environment.

    The one before is closed. Raises as `CellDirectory.open` does, and then leaves the one before as it was.
    """
    global _directory
    directory = source if isinstance(source, CellDirectory) else CellDirectory.open(source)
    with _lock():
        previous, _directory = _directory, directory
    if previous is not None and previous is not directory:
        previous.close()
    return directory


def resolve_cell(instance_uuid: str | UUID) -> CellMapping:
    """Return the cell in which the instance lives; see `CellDirectory.resolve_cell`."""
    return (_directory or _opened()).resolve_cell(instance_uuid)


def resolve_cells(instance_uuids: Iterable[str | UUID]) -> dict[str, CellMapping]:
    """Return the cell of each instance by canonical UUID; see `CellDirectory.resolve_cells`."""
    return (_directory or _opened()).resolve_cells(instance_uuids)


def _opened() -> CellDirectory:
    global _directory  # noqa: PLW0603
    with _lock():
        if _directory is None:
            _directory = CellDirectory.open()
        return _directory
