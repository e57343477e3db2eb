"""Mappings in bulk from CSV: `uuid,cell,project`, a line each."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from cellcache.cli.choices import find_cell
from cellcache.cli.exits import UsageProblem
from cellcache.errors import CellCacheError
from cellcache.model import CellMapping, NewMapping, canonical_uuid
from cellcache.texts import is_blank

_HEADER = ["uuid", "cell", "project"]


def read_rows(source: BinaryIO, cells: Iterable[CellMapping]) -> Iterator[NewMapping]:
    """Yield each line's mapping; a first line that names the columns, empty lines and `#` lines are passed over.

    A cell is named by UUID or by name. UsageProblem names the line that cannot be read.
    """
    known = list(cells)
    uuids: dict[str, str] = {}
    text = io.TextIOWrapper(source, encoding="utf-8-sig", newline="")
    reader = csv.reader(text, skipinitialspace=True)
    try:
        for row in reader:
            if not row or row[0].startswith("#") or (reader.line_num == 1 and row == _HEADER):
                continue
            if len(row) != len(_HEADER) or any(map(is_blank, row)):
                raise UsageProblem(f"{len(row)} fields where uuid,cell,project belong, none of them blank")
            uuid, cell, project = row
            if cell not in uuids:
                uuids[cell] = find_cell(known, cell).uuid
            yield NewMapping(canonical_uuid(uuid), uuids[cell], project)
    except (CellCacheError, OSError, csv.Error, UnicodeDecodeError) as error:
        raise UsageProblem(f"line {reader.line_num or 1}: {error}") from error
    finally:
        text.detach()
