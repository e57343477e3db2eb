"""The wall clock is read where it must be and nowhere else: hosts do not agree on it, and it may be put back."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

WALL_CLOCK = {
    *(f"time.{name}" for name in ("time", "time_ns", "localtime", "gmtime", "ctime", "asctime", "strftime")),
    *(f"time.{name}" for name in ("CLOCK_REALTIME", "CLOCK_TAI")),
    *(f"datetime.datetime.{name}" for name in ("now", "utcnow", "today")),
    "datetime.date.today",
    *(f"sqlalchemy.func.{name}" for name in ("now", "current_timestamp", "sysdate", "localtime", "localtimestamp")),
}
"""SQL's `now()` among them: it is of the session's time zone."""

ALLOWED = {
    "cellcache/demo_cells.py": "it plays a cell's services, which date their own tables by their hosts' clocks",
    "cellcache/doctor.py": "it compares this host's clock with the database's",
    "cellcache/region.py": "dogpile dates what it has just read, and compares that in this process alone",
}


def uses(source: str) -> Iterator[str]:
    """Yield each use of the wall clock by its full name, whatever the names under which it was imported."""
    tree = ast.parse(source)
    stands_for: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for one in node.names:
                stands_for[one.asname or one.name.split(".")[0]] = one.name if one.asname else one.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            stands_for |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
    for node in ast.walk(tree):
        path = _path(node)
        if path is not None:
            root, _, rest = path.partition(".")
            full = ".".join(filter(None, (stands_for.get(root, root), rest)))
            if full in WALL_CLOCK:
                yield full


def _path(node: ast.AST) -> str | None:
    """Return a name with its attributes, such as "datetime.datetime.now"."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := _path(node.value)) is not None:
        return f"{owner}.{node.attr}"
    return None


@pytest.mark.parametrize("package", ["cellcache", "backends"])
def test_wall_clock_is_read_only_where_there_is_a_reason(package: str) -> None:
    sources = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / package).rglob("*.py")}
    assert sources
    found = {name for name, source in sources.items() if any(uses(source))}
    assert found == {name for name in ALLOWED if name.startswith(f"{package}/")}


@pytest.mark.parametrize(
    "source",
    [
        "import time\nage = time.time() - 5",
        "import time as clock\nclock.time_ns()",
        "from time import time\ntime()",
        "from time import time as clock, monotonic\nclock()",
        "import datetime\ndatetime.datetime.now(datetime.UTC)",
        "from datetime import UTC, datetime\ndatetime.now(UTC)",
        "import datetime as dt\nfield(default_factory=dt.datetime.utcnow)",
        "from datetime import date\ndate.today()",
        "from sqlalchemy import func\nupdate(table).values(updated_at=func.now())",
        "import sqlalchemy as sa\nsa.func.current_timestamp()",
    ],
)
def test_every_spelling_of_it_is_found(source: str) -> None:
    assert len(list(uses(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import time\ntime.monotonic()",
        "from time import monotonic, perf_counter\nmonotonic()",
        "from datetime import datetime, timedelta\nwhen: datetime = store.now() - timedelta(seconds=1)",
        "time = row[0]\ntime()",
    ],
)
def test_other_clocks_are_not(source: str) -> None:
    assert not list(uses(source))
