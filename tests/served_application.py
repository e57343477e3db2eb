"""A service for the application servers: it opens its directory when it is loaded, uses it, and answers with cells."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from cellcache import CellDirectory, Settings

served = json.loads(Path(os.environ["SERVED"]).read_text())
placed: dict[str, str] = served["instances"]
directory = CellDirectory.open(Settings(**served["settings"]))
keys = list(placed)
directory.resolve_cells(keys[:50])  # before the fork, where there is one, it has connections of each kind
directory.resolve_cell(keys[0])
directory.list_cells()


def application(environ: dict[str, str], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Resolve a hundred instances; say how many answers were wrong, how many lookups failed, and who it was."""
    first = int(environ["QUERY_STRING"])
    wrong, failures = 0, []
    for key in keys[first : first + 100]:
        try:
            wrong += directory.resolve_cell(key).uuid != placed[key]
        except Exception as error:  # noqa: BLE001 - the test shows it
            failures.append(repr(error))
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"wrong": wrong, "failures": failures, "process": os.getpid()}).encode()]
