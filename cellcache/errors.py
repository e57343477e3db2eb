"""Every error that cellcache raises.

CellCacheError
├── InvalidUUID            (ValueError)    not the UUID of anything
├── InvalidValue           (ValueError)    a project, name, limit or URL that cannot be stored
├── InstanceNotMapped      (LookupError)   no instance mapping has this UUID
├── CellNotFound           (LookupError)   no cell mapping has this UUID
│   └── MappedCellNotFound                 an instance mapping names what is no cell
├── CellDisabled                           a disabled cell takes no new instances
├── CellInUse                              a cell that still has instance mappings cannot go
├── CellExists             (ValueError)    a cell mapping with this UUID is there already
├── MappingExists          (ValueError)    an instance mapping with this UUID is there already
├── PruneRefused                           a cell's database does not look like its own, or too much would go
├── ConfigError            (ValueError)    the configuration cannot be used
├── SchemaError                            the tables are missing or of another revision
├── DatabaseUnavailable                    the database did not answer; nothing was written
│   └── CommitUnknown                      the connection broke during the commit: written, or not
├── CacheUnavailable                       a write was refused because its cache node is unreachable
└── BackendUnsupported                     the cache server cannot keep the promise (too old, say)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cellcache.foreign import printable, shown

if TYPE_CHECKING:
    from cellcache.model import InstanceMapping


class CellCacheError(Exception):
    """The base of everything that cellcache raises on purpose. Its text is one line, whatever was quoted in it.

    It survives `pickle` and `copy` with all its attributes, though most kinds are not made from their text.
    """

    def __init__(self, text: str = "") -> None:
        super().__init__(printable(text))

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[CellCacheError], args: tuple[Any, ...], attributes: dict[str, Any]) -> CellCacheError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class InvalidUUID(CellCacheError, ValueError):
    """The text is not a UUID: 32 hexadecimal digits in any case, with hyphens at 8-4-4-4-12 or with none."""

    def __init__(self, value: object) -> None:
        form = "32 hexadecimal digits, with hyphens at 8-4-4-4-12 or with none"
        super().__init__(f"not a UUID: {shown(value)}; give {form}")


class InvalidValue(CellCacheError, ValueError):
    """A value that the tables cannot hold; the text says which and what is allowed."""


class InstanceNotMapped(CellCacheError, LookupError):
    """No instance mapping has this UUID: the instance never was, or it was purged and its mapping pruned."""

    def __init__(self, instance_uuid: str) -> None:
        self.instance_uuid = instance_uuid
        super().__init__(f"instance {instance_uuid} is not mapped to any cell")


class CellNotFound(CellCacheError, LookupError):
    """No cell mapping has this UUID; `cellcache cell list` shows those that are."""

    def __init__(self, cell_uuid: str) -> None:
        self.cell_uuid = cell_uuid
        super().__init__(f"there is no cell {cell_uuid}; `cellcache cell list` shows the cells there are")


class MappedCellNotFound(CellNotFound):
    """An instance mapping names what is no cell: its row was written by hand, or the cell's row was removed so."""

    def __init__(self, instance_uuid: str, cell_uuid: str) -> None:
        self.instance_uuid = instance_uuid
        self.cell_uuid = cell_uuid
        CellCacheError.__init__(
            self,
            f"instance {instance_uuid} is mapped to {shown(cell_uuid)}, and there is no such cell; put its row right "
            f"with `cellcache instance move {instance_uuid} --cell CELL`",
        )


class CellDisabled(CellCacheError):
    """The cell takes no new instances; those it has still resolve. Enable it, or choose another."""

    def __init__(self, cell_uuid: str) -> None:
        self.cell_uuid = cell_uuid
        super().__init__(
            f"cell {cell_uuid} is disabled and takes no instances; choose another, or enable it with "
            f"`cellcache cell update {cell_uuid} --enable`"
        )


class CellInUse(CellCacheError):
    """Instances are mapped to the cell still; move them or prune them first."""

    def __init__(self, cell_uuid: str) -> None:
        self.cell_uuid = cell_uuid
        super().__init__(f"cell {cell_uuid} still has instance mappings; move or prune them before you delete it")


class CellExists(CellCacheError, ValueError):
    """A cell mapping has this UUID already; leave the UUID out to have a new one made."""

    def __init__(self, cell_uuid: str) -> None:
        self.cell_uuid = cell_uuid
        super().__init__(f"there is a cell {cell_uuid} already; update it, or leave the UUID out to have one made")


class MappingExists(CellCacheError, ValueError):
    """The instance is mapped already.

    `existing` is the mapping that stands; `identical` tells a repeat of it (same cell and project: a retried
    create, nothing to do) from one that contradicts it (move the instance instead).
    """

    def __init__(self, existing: InstanceMapping, *, identical: bool) -> None:
        self.existing = existing
        self.identical = identical
        what = (
            "already has exactly this mapping; nothing needs to be done"
            if identical
            else f"is already mapped to cell {existing.cell_uuid} in project {existing.project_id}; "
            "nothing was written. Use move_instance to change its cell"
        )
        super().__init__(f"instance {existing.instance_uuid} {what}")


class PruneRefused(CellCacheError):
    """A cell's database holds another cell's instances, or lacks so many that it is most likely the wrong one.

    The text says which cell's, or how many mappings would go and how to allow it.
    """


class ConfigError(CellCacheError, ValueError):
    """The configuration cannot be used; each line names a key, its value and what is allowed."""

    def __init__(self, *lines: str) -> None:
        Exception.__init__(self, "\n".join(map(printable, lines)))


class SchemaError(CellCacheError):
    """The database lacks cellcache's tables or has another revision of them; run `cellcache db upgrade`."""


class DatabaseUnavailable(CellCacheError):
    """The database did not answer in time, or refused. Unless this is CommitUnknown, nothing was written."""


class CommitUnknown(DatabaseUnavailable):
    """The connection broke while the transaction was being committed: it happened, or it did not.

    The cache holds no answer for the instances concerned, so whoever asks next learns what the table says.
    """


class CacheUnavailable(CellCacheError):
    """A cache node is unreachable and the deployment chose to refuse such writes; nothing was written."""


class BackendUnsupported(CellCacheError):
    """The cache server or its driver cannot keep the promise; the text says what is needed."""
