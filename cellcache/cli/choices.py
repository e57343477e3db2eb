"""What people write on a command line: a cell by name or UUID, a length of time, a URL that others must not see."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from pathlib import Path

import typer

from cellcache.arguments import LONGEST_S
from cellcache.cli.exits import UsageProblem
from cellcache.cli.streams import standard_input
from cellcache.errors import CellNotFound, ConfigError, InvalidUUID
from cellcache.model import CellMapping, canonical_uuid
from cellcache.texts import is_blank

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
_duration = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.ASCII).fullmatch


class AmbiguousCell(UsageProblem):
    """Several cells have this name; use the UUID."""


def find_cell(cells: Iterable[CellMapping], wanted: str) -> CellMapping:
    """Return the cell with this UUID or this name."""
    try:
        uuid = canonical_uuid(wanted)
    except InvalidUUID:
        found = [cell for cell in cells if cell.name == wanted]
    else:
        found = [cell for cell in cells if cell.uuid == uuid]
    if not found:
        raise CellNotFound(wanted)
    if len(found) > 1:
        uuids = ", ".join(cell.uuid for cell in found)
        raise AmbiguousCell(f"{len(found)} cells are called {wanted}; name one by its UUID: {uuids}")
    return found[0]


def seconds(text: str) -> float:
    """Return a length of time written as 90, 90s, 15m, 1h or 2d."""
    found = _duration(text.strip().lower())
    length_s = float(found[1]) * _UNITS.get(found[2] or "s", math.inf) if found else math.inf
    if length_s > LONGEST_S:
        raise typer.BadParameter(f"{text!r} is not a length of time up to 36525d; write 90, 90s, 15m, 1h or 2d")
    return length_s


def secret_url(option: str, given: str | None, file: str | None, variable: str | None) -> str | None:
    """Return a URL given as text, in a file (`-`: stdin) or in the environment; None where it was not given."""
    if given is not None and file is not None:
        raise UsageProblem(f"give {option} or {option}-file, not both")
    if given == "-":
        given, file = None, "-"
    if file is None:
        return _from_environment(variable) if given is None and variable else given
    try:
        text = standard_input().readline() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # the latter: it is no UTF-8, or there is no such name
        raise ConfigError(f"{option}-file {file}: {error}") from error
    if is_blank(text):
        raise ConfigError(f"{option}-file {file}: holds nothing")
    return text.strip()


def _from_environment(variable: str) -> str | None:
    value = os.environ.get(variable)
    if value is not None and is_blank(value):
        raise UsageProblem(f"environment variable {variable} is blank: give it a value, or unset it")
    return value
