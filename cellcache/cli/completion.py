"""What a shell offers where a cell is to be named."""

from __future__ import annotations

import typer

from cellcache.cli.commands import Session
from cellcache.errors import CellCacheError


def complete_cell(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return the cells by name with their UUIDs, or by UUID; nothing where the database cannot be asked."""
    levels = (ctx, ctx.parent, ctx.find_root())
    given = [level.params.get("config") for level in levels if level]
    config = next((file for file in given if file is not None), None)
    try:
        with Session(config).directory() as directory:
            cells = directory.list_cells()
    except CellCacheError:
        return []
    choices = [(cell.name, cell.uuid) for cell in cells if cell.name] + [(cell.uuid, cell.name or "") for cell in cells]
    return [(choice, meaning) for choice, meaning in choices if choice.startswith(incomplete)]
