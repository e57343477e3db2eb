"""The verdict before a prune: is the cell's database that cell's, and may so many of its mappings go?

A wrong URL, a schema that is not the one meant, a database that is not yet restored: in each, the rows of instances
that live are not there, and their mappings would go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from cellcache.errors import PruneRefused


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was found: a sample of the database's own instances, and what became of the cell's mappings in it."""

    cell_uuid: str
    sample: int
    mapped: Counter[str]
    """To how many of the sample each cell is mapped."""
    checked: int
    gone: int


def judge(evidence: Evidence, allow_many: int | None, called: Callable[[str], str]) -> int:
    """Return how many mappings may be removed: so many as the operator says, else half of those checked.

    Raises PruneRefused, with `called` for the names of cells. Some of the sample may always be mapped to other cells:
    an instance that moves has a row in both for a while, and leaves one behind until that is purged. They are few
    beside the cell's own. Where they are more, the database is another's, or cannot be told from one; then it means
    nothing that an instance is not there, and no number makes it safe.
    """
    cell = called(evidence.cell_uuid)
    others = Counter(evidence.mapped)
    here = others.pop(evidence.cell_uuid, 0)
    if others.total() > here:
        [(other, most)] = others.most_common(1)
        raise PruneRefused(
            f"the database of cell {cell} is most likely another's: of the {evidence.sample:,} instances looked at in "
            f"it, {here:,} are mapped to this cell and {most:,} to cell {called(other)}; nothing was removed. Put its "
            f"URL right (`cellcache cell update {evidence.cell_uuid} --database-connection-file FILE`), or purge the "
            "rows that instances left in it when they moved"
        )
    may_go = allow_many if allow_many is not None else evidence.checked // 2 if here else 0
    if evidence.gone <= may_go:
        return may_go
    what = f"cell {cell}: {evidence.gone:,} of the {evidence.checked:,} mappings that are old enough would go"
    if allow_many is not None:
        raise PruneRefused(f"{what}, and {allow_many:,} may (--allow-many); nothing was removed")
    if here:
        why = "more than half"
    elif evidence.sample:
        why = f"and none of the {evidence.sample:,} instances looked at in its database is mapped to it"
    else:
        why = "and the `instances` table in its database holds no instance"
    raise PruneRefused(
        f"{what}, {why}; nothing was removed. If its URL leads to the right database, and that is complete, say how "
        f"many may go (--allow-many {evidence.gone})"
    )
