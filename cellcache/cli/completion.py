"""What a shell offers where a cell is to be named.

Others chose the names, and a shell's script may evaluate what it is offered: so it is offered plain words alone.
"""

from __future__ import annotations

import re
from contextlib import closing

import typer

from cellcache.cli.commands import Session
from cellcache.errors import CellCacheError
from cellcache.model import is_canonical
from cellcache.store import Store

_is_plain = re.compile(r"\w[\w.-]*", re.ASCII).fullmatch  # and no option, which begins with a hyphen


def complete_cell(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return the cells by name with their UUIDs, or by UUID; nothing where the database cannot be asked."""
    levels = (ctx, ctx.parent, ctx.find_root())
    given = [level.params.get("config") for level in levels if level]
    config = next((file for file in given if file is not None), None)
    try:
        with closing(Store(Session(config).settings().database)) as store:
            cells = [cell for cell in store.cells() if is_canonical(cell.uuid)]
    except CellCacheError:
        return []
    names = [(cell.name if cell.name and _is_plain(cell.name) else "", cell.uuid) for cell in cells]
    choices = [(name, uuid) for name, uuid in names if name] + [(uuid, name) for name, uuid in names]
    return [(choice, meaning) for choice, meaning in choices if choice.startswith(incomplete)]
