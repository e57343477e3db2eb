"""One database, one cache, and directories over both: what the suite of the library itself runs on."""

from __future__ import annotations

import functools
import itertools
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import pytest
from sqlalchemy import create_engine, insert, make_url, select, text
from sqlalchemy.pool import NullPool

from cellcache import CellDirectory, Settings
from cellcache.database_identity import database_identity
from cellcache.tables import cell_mapping, instance_mapping, metadata
from tests.caches import KINDS, PATIENT, Cache, MemoryCache, RedisCache, open_cache
from tests.fake_redis import FakeRedis
from tests.servers import MariaDB, PostgreSQL

HERE = str(UUID(int=0xA11))
THERE = str(UUID(int=0xB22))
CLOSED = str(UUID(int=0xC33))
"""Three cells that every site has; the third is disabled."""

CACHES = KINDS
SHARED_CACHES = [kind for kind in KINDS if kind != "memory"]
DATABASES = [
    "sqlite",
    pytest.param("mariadb", marks=pytest.mark.needs("mariadb")),
    pytest.param("postgresql", marks=pytest.mark.needs("postgresql")),
]

_names = (f"library_{number}" for number in itertools.count(1))


class Site:
    """A database with the tables and three cells, a cache, and directories over them, as many as a test wants."""

    def __init__(self, cache: Cache, database_url: str) -> None:
        self.cache = cache
        self.database_url = database_url
        self._directories = ExitStack()

    def settings(self, *, database: dict[str, Any] | None = None, **cache: Any) -> Settings:
        """The settings of this deployment, with a time limit that only a broken test meets."""
        if cache.get("backend", self.cache.entry_point) == self.cache.entry_point and not self.in_memory:
            cache = self.cache.arguments() | cache
        keys = {"backend": self.cache.entry_point} | cache
        if keys["backend"] in {"cellcache.memcached", "cellcache.redis"}:
            keys = {"timeout_s": 4.0, "retry_s": PATIENT["retry_s"]} | keys
        return Settings(database={"url": self.database_url, **(database or {})}, cache=keys)

    @property
    def in_memory(self) -> bool:
        """Whether the cache is a store of this process, which the directories find by their database."""
        return isinstance(self.cache, MemoryCache)

    def open(self, *, database: dict[str, Any] | None = None, **cache: Any) -> CellDirectory:
        """A directory as another process would have it; it closes with the site."""
        return self._directories.enter_context(CellDirectory.open(self.settings(database=database, **cache)))

    def table(self) -> dict[str, str]:
        """Every mapping as the table has it now: instance to cell."""
        rows = self.run(select(instance_mapping.c.instance_uuid, instance_mapping.c.cell_uuid))
        return {row[0]: row[1] for row in rows}

    def run(self, statement: Any) -> list[Any]:
        """Run a statement (text or SQLAlchemy's) past every directory; return its rows, if it has any."""
        engine = create_engine(self.database_url, poolclass=NullPool)
        with engine.begin() as connection:
            result = connection.execute(text(statement) if isinstance(statement, str) else statement)
            return list(result) if result.returns_rows else []

    def ports(self) -> set[int]:
        """The ports on which the cache listens."""
        arguments = self.cache.arguments()
        addresses = [
            *arguments.get("servers", []),
            *([urlsplit(arguments["url"]).netloc] if "url" in arguments else []),
        ]
        return {int(address.rpartition(":")[2]) for address in addresses}

    def close(self) -> None:
        self._directories.close()
        self.cache.close()


@contextmanager
def open_site(request: pytest.FixtureRequest, path: Path, cache: str, database: str = "sqlite") -> Iterator[Site]:
    """Build a site of the kinds named; at the end no thread of a directory may be left."""
    before = set(threading.enumerate())
    with ExitStack() as stack:
        url = new_database(request, path, database)
        chosen: Cache | None = None
        if cache == "fakeredis":
            chosen = RedisCache(stack.enter_context(FakeRedis()))
        elif cache == "memory":
            chosen = MemoryCache(database_identity(make_url(url)))
        site = Site(chosen or open_cache(cache, request), url)
        try:
            yield site
        finally:
            site.close()
    assert [thread.name for thread in set(threading.enumerate()) - before if thread.name == "cellcache"] == []


def new_database(request: pytest.FixtureRequest, path: Path, kind: str) -> str:
    """Return the URL of a new database with the tables and the cells in it."""
    if kind == "sqlite":
        file = path / f"{next(_names)}.db"
        file.write_bytes(_sqlite_with_tables())
        return f"sqlite:///{file}"
    server = request.getfixturevalue(kind)
    assert isinstance(server, MariaDB | PostgreSQL)
    url = server.create_database(next(_names))
    create_tables(url)
    return url


def new_cell_database(path: Path, rows: dict[str, int] | None = None) -> str:
    """Return the URL of a cell's database (SQLite), its `instances` table holding these: UUID, and 0 or `deleted`."""
    url = f"sqlite:///{path / f'cell_{uuid4().hex}.db'}"
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE instances (id INTEGER PRIMARY KEY, uuid VARCHAR(36), deleted INTEGER)"))
        if rows:
            connection.execute(
                text("INSERT INTO instances (uuid, deleted) VALUES (:uuid, :deleted)"),
                [{"uuid": key, "deleted": deleted} for key, deleted in rows.items()],
            )
    return url


def new_uuids(n: int) -> list[str]:
    return [str(uuid4()) for _ in range(n)]


def create_tables(url: str) -> None:
    engine = create_engine(url, poolclass=NullPool)
    cells = [
        {
            "uuid": uuid,
            "name": name,
            "transport_url": f"rabbit://nova:hare@{name}/",
            "database_connection": "sqlite:///nowhere/cell.db",
            "disabled": uuid == CLOSED,
        }
        for uuid, name in ((HERE, "here"), (THERE, "there"), (CLOSED, "closed"))
    ]
    with engine.begin() as connection:
        metadata.create_all(connection)
        connection.execute(insert(cell_mapping), cells)


@functools.cache
def _sqlite_with_tables() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "template.db"
        create_tables(f"sqlite:///{file}")
        return file.read_bytes()
