"""Which cell does this instance live in?

    >>> import cellcache
    >>> cell = cellcache.resolve_cell("0d4ed1d2-8b8c-4e0a-9a43-3b1f3ad1e4ab")    # doctest: +SKIP
    >>> cell.database_connection                                                  # doctest: +SKIP

The process's directory is the one that `configure` was given, else the one that the file named by CELLCACHE_CONFIG
describes. Where neither says which database, that is a ConfigError.
"""

from __future__ import annotations

from importlib.metadata import version

from cellcache.audit import VerifyReport
from cellcache.config import Settings
from cellcache.directory import CellDirectory
from cellcache.errors import (
    BackendUnsupported,
    CacheUnavailable,
    CellCacheError,
    CellDisabled,
    CellExists,
    CellInUse,
    CellNotFound,
    CommitUnknown,
    ConfigError,
    DatabaseUnavailable,
    InstanceNotMapped,
    InvalidUUID,
    InvalidValue,
    MappedCellNotFound,
    MappingExists,
    PruneRefused,
    SchemaError,
)
from cellcache.model import CellMapping, InstanceMapping
from cellcache.process import configure, resolve_cell, resolve_cells
from cellcache.purge import PruneReport
from cellcache.statistics import Statistics

__version__ = version("cellcache")

__all__ = [
    "BackendUnsupported",
    "CacheUnavailable",
    "CellCacheError",
    "CellDirectory",
    "CellDisabled",
    "CellExists",
    "CellInUse",
    "CellMapping",
    "CellNotFound",
    "CommitUnknown",
    "ConfigError",
    "DatabaseUnavailable",
    "InstanceMapping",
    "InstanceNotMapped",
    "InvalidUUID",
    "InvalidValue",
    "MappedCellNotFound",
    "MappingExists",
    "PruneRefused",
    "PruneReport",
    "SchemaError",
    "Settings",
    "Statistics",
    "VerifyReport",
    "__version__",
    "configure",
    "resolve_cell",
    "resolve_cells",
]
