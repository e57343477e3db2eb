"""Rows that somebody wrote by hand, and that lookups and writes pass over: how `doctor` counts and names them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace

from cellcache.config import DatabaseSettings
from cellcache.errors import DatabaseUnavailable
from cellcache.findings import Finding, Level
from cellcache.foreign import shown
from cellcache.model import CellMapping, InstanceMapping, is_canonical
from cellcache.store import Store

_MOST_SHOWN = 100


def odd_mappings(settings: DatabaseSettings) -> Iterator[Finding]:
    """Yield what is wrong with rows of `instance_mapping` that somebody wrote by hand."""
    fine = Finding(what="mappings", name="instances", says="each has a UUID, and names a cell")
    with closing(Store(settings)) as store:
        try:
            broken = store.mappings_without_cell(limit=_MOST_SHOWN + 1)
            nameless = store.mappings_without_uuid(limit=_MOST_SHOWN + 1)
        except DatabaseUnavailable as error:
            yield replace(
                fine,
                level=Level.NOTE,
                says=str(error),
                advice="Not looked at in full: try again, or raise its time-out.",
            )
            return
    if broken:
        yield replace(
            fine,
            level=Level.PROBLEM,
            says=_counted(broken, "name what is no cell")
            + ", ".join(f"{mapping.instance_uuid} {shown(mapping.cell_uuid)}" for mapping in broken[:_MOST_SHOWN]),
            advice="Put each right: `cellcache instance move UUID --cell CELL`. Until then a lookup of it is an error.",
        )
    if nameless:
        yield replace(
            fine,
            level=Level.PROBLEM,
            says=_counted(nameless, "have a UUID that is none")
            + ", ".join(shown(mapping.instance_uuid) for mapping in nameless[:_MOST_SHOWN]),
            advice="No lookup finds them. By SQL, write each UUID in lower case, with hyphens; or delete the row.",
        )
    if not broken and not nameless:
        yield fine


def _counted(mappings: Sequence[InstanceMapping], what: str) -> str:
    return f"{min(len(mappings), _MOST_SHOWN)}{' and more' if len(mappings) > _MOST_SHOWN else ''} {what}: "


def odd_cells(cells: Sequence[CellMapping]) -> Iterator[Finding]:
    """Yield the rows of `cell_mapping` that are passed over wherever a cell is looked for."""
    for cell in cells:
        if not is_canonical(cell.uuid):
            yield Finding(
                what="cell",
                name=cell.name or cell.uuid,
                level=Level.PROBLEM,
                says=f"its UUID {shown(cell.uuid)} is none, so the row is passed over",
                advice="By SQL, write it in lower case, with hyphens, here and where mappings name it; or delete it.",
            )
