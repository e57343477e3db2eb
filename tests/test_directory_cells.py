"""The directory's methods about cells, over every database."""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import psutil
import pytest
from sqlalchemy import Connection, text

from cellcache import (
    CellCacheError,
    CellDirectory,
    CellExists,
    CellInUse,
    CellMapping,
    CellNotFound,
    DatabaseUnavailable,
    InstanceNotMapped,
    InvalidUUID,
    InvalidValue,
    maintenance,
)
from cellcache.codec import encode
from cellcache.protocol import Fence
from tests.caches import eventually
from tests.directories import (
    CLOSED,
    DATABASES,
    HERE,
    SHARED_CACHES,
    THERE,
    Site,
    new_cell_database,
    new_uuids,
    open_site,
)
from tests.hostile import HOSTILE_VALUES

PROJECT = "project-1"
NOWHERE = str(UUID(int=0xDEAD))
DATABASE = "mysql+pymysql://nova:hush@127.0.0.1:1/nova_cell1"
QUEUE = "rabbit://nova:shush@mq/"


@pytest.fixture(params=DATABASES)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, "memory", request.param) as site:
        yield site


@pytest.fixture
def directory(site: Site) -> CellDirectory:
    return site.open()


@pytest.fixture
def key() -> str:
    return str(uuid4())


def test_created_cell_is_there(site: Site, directory: CellDirectory) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)
    cell = directory.create_cell("cell1", DATABASE, QUEUE)
    assert (cell.name, cell.database_connection, cell.transport_url, cell.disabled) == ("cell1", DATABASE, QUEUE, False)
    assert cell.created_at is not None
    assert before <= cell.created_at <= datetime.now(UTC)
    assert cell.updated_at is None
    assert UUID(cell.uuid).version == 4
    assert directory.get_cell(cell.uuid) == cell
    assert site.open().get_cell(cell.uuid) == cell


def test_cell_may_be_given_its_uuid_and_no_name(directory: CellDirectory) -> None:
    wanted = uuid4()
    cell = directory.create_cell(None, DATABASE, QUEUE, uuid=str(wanted).upper())
    assert (cell.uuid, cell.name) == (str(wanted), None)
    assert directory.get_cell(wanted) == cell


def test_instances_can_be_mapped_into_a_new_cell_at_once(site: Site, directory: CellDirectory, key: str) -> None:
    other = site.open()
    cell = directory.create_cell("cell1", DATABASE, QUEUE)
    other.map_instance(key, cell.uuid, PROJECT)
    assert directory.resolve_cell(key) == other.resolve_cell(key) == cell


@pytest.mark.parametrize("kind", SHARED_CACHES)
def test_cell_that_a_process_has_never_seen_resolves(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    with open_site(request, tmp_path, kind) as site:
        reader, writer, keys = site.open(), site.open(), new_uuids(2)
        reader.get_cell(HERE)  # it has read the cells there are
        cell = writer.create_cell("cell1", DATABASE, QUEUE)
        writer.map_instances((key, cell.uuid, PROJECT) for key in keys)
        assert reader.resolve_cell(keys[0]) == cell
        assert site.open().resolve_cells(keys) == dict.fromkeys(keys, cell)


def test_uuid_that_a_cell_has_already_is_refused(site: Site, directory: CellDirectory) -> None:
    before = directory.get_cell(HERE)
    with pytest.raises(CellExists, match=f"there is a cell {HERE} already") as caught:
        directory.create_cell("another", DATABASE, QUEUE, uuid=HERE)
    assert caught.value.cell_uuid == HERE
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, CellCacheError)
    assert directory.get_cell(HERE) == before


UNUSABLE = [
    "hush",
    "",
    "nosuch://nova:hush@db/nova",
    "mysql+nosuch://nova:hush@db/nova",
    "mysql+pymysql://nova:hush@db:port/nova",
    "mysql+pymysql://nova@db:hush/nova",
    "mysql+pymysql//nova:hush@db/nova",
    "mysql://nova:hush@db/nova",
    "postgres://nova:hush@db/nova",
    "oracle://nova:hush@db/nova",
    "postgresql+asyncpg://nova:hush@db/nova",
    "mysql+pymysql://{username}:hush@{hostname}:3306/nova",
    "{scheme}://{username}:{password}@{hostname}:{port}/nova?{query}",
    "mysql+pymysql://nova:hush@db/nova\0",
    "sqlite://",
    "sqlite:///:memory:",
    "sqlite:///file:hush?mode=memory&uri=true",
    f"mysql+pymysql://nova:hush@db/\ud800{'x' * 10}",
    None,
    5,
]


@pytest.mark.parametrize("url", UNUSABLE, ids=repr)
def test_database_url_that_cannot_be_used_is_refused_and_not_quoted(directory: CellDirectory, url: Any) -> None:
    cells = directory.list_cells()
    calls: list[Callable[[], object]] = [
        lambda: directory.create_cell("cell1", url, QUEUE),
        lambda: directory.update_cell(HERE, database_connection=url or "hush"),
    ]
    for call in calls:
        with pytest.raises(InvalidValue, match=r"this database URL cannot be used: it|^database_connection ") as caught:
            call()
        assert not [link for link in _chain(caught.value) if "hu" in str(link)]
    assert directory.list_cells() == cells


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("mysql://nova:hush@db/nova", "begin it with mysql+pymysql://"),
        ("postgresql://nova:hush@db/nova", "begin it with postgresql+psycopg://"),
        ("oracle://nova:hush@db/nova", "must begin with mysql+pymysql://, mariadb+pymysql://"),
        ("{scheme}://{username}:{password}@{hostname}:{port}/nova?{query}", "is a template of Nova's"),
        ("mysql+pymysql://nova:hush@db:port/nova", "must be driver://user:password@host:port/database"),
    ],
)
def test_database_url_that_cannot_be_used_is_told_how_to_write_it(
    directory: CellDirectory, url: str, advice: str
) -> None:
    with pytest.raises(InvalidValue, match=re.escape(advice)):
        directory.create_cell("cell1", url, QUEUE)


def test_database_url_whose_driver_is_not_installed_is_refused(
    directory: CellDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(InvalidValue, match=r"needs psycopg, which is not installed here: pip install 'cellcache\["):
        directory.update_cell(HERE, database_connection="postgresql+psycopg://nova:hush@db/nova")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that a logged traceback shows behind it."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


@pytest.mark.parametrize("name", ["n" * 256, "a\0b", "\ud800", 5], ids=lambda value: repr(value)[:10])
def test_name_that_cannot_be_stored_is_refused(directory: CellDirectory, name: Any) -> None:
    cells = directory.list_cells()
    calls: list[Callable[[], object]] = [
        lambda: directory.create_cell(name, DATABASE, QUEUE),
        lambda: directory.update_cell(HERE, name=name),
    ]
    for call in calls:
        with pytest.raises(InvalidValue, match=r"name .* is not a text of"):
            call()
    assert directory.list_cells() == cells


@pytest.mark.parametrize("queue", ["shush\0", "\ud800shush", 5, "nova:shush@mq", "://nova:shush@mq"], ids=repr)
def test_transport_url_that_cannot_be_stored_is_refused_and_not_quoted(directory: CellDirectory, queue: Any) -> None:
    cells = directory.list_cells()
    calls: list[Callable[[], object]] = [
        lambda: directory.create_cell("cell1", DATABASE, queue),
        lambda: directory.update_cell(HERE, transport_url=queue),
    ]
    for call in calls:
        with pytest.raises(InvalidValue, match="transport_url") as caught:
            call()
        assert "shush" not in "".join(str(link) for link in _chain(caught.value))
    assert directory.list_cells() == cells


def test_cells_are_listed_the_oldest_first(directory: CellDirectory) -> None:
    created = [directory.create_cell(f"cell{number}", DATABASE, QUEUE) for number in range(3)]
    assert directory.list_cells()[3:] == created
    assert [cell.uuid for cell in directory.list_cells()[:3]] == [HERE, THERE, CLOSED]


def test_cell_that_is_not_there_is_a_lookup_error(directory: CellDirectory) -> None:
    for call in (directory.get_cell, directory.delete_cell, lambda it: directory.update_cell(it, name="x")):
        with pytest.raises(CellNotFound, match=f"there is no cell {NOWHERE}; `cellcache cell list`") as caught:
            call(NOWHERE.upper())
        assert caught.value.cell_uuid == NOWHERE
        assert isinstance(caught.value, LookupError)


def test_what_is_no_uuid_is_refused(directory: CellDirectory) -> None:
    calls: list[Callable[[Any], object]] = [
        directory.get_cell,
        directory.delete_cell,
        directory.prune_purged,
        lambda it: directory.update_cell(it, name="x"),
        lambda it: directory.map_instance(uuid4(), it, PROJECT),
        lambda it: directory.move_instance(uuid4(), it),
    ]
    may_be_none: list[Callable[[Any], object]] = [
        lambda it: directory.list_instances(cell_uuid=it),
        lambda it: directory.create_cell("cell1", DATABASE, QUEUE, uuid=it),
    ]
    for value in HOSTILE_VALUES:
        for call in calls if value is None else calls + may_be_none:
            with pytest.raises(InvalidUUID):
                call(value)


def test_update_changes_what_is_given_and_leaves_the_rest(directory: CellDirectory) -> None:
    created = directory.create_cell("cell1", DATABASE, QUEUE)
    renamed = directory.update_cell(created.uuid, name="cell one")
    assert (renamed.name, renamed.database_connection, renamed.transport_url) == ("cell one", DATABASE, QUEUE)
    assert renamed.updated_at is not None
    moved = directory.update_cell(created.uuid, database_connection="sqlite:///other.db", transport_url="fake://")
    assert (moved.name, moved.database_connection, moved.transport_url) == ("cell one", "sqlite:///other.db", "fake://")
    assert directory.update_cell(created.uuid, disabled=True).disabled
    assert not directory.update_cell(created.uuid, disabled=False).disabled
    assert directory.update_cell(created.uuid).name == "cell one"


def test_update_is_seen_by_who_made_it_at_once(directory: CellDirectory, key: str) -> None:
    directory.map_instance(key, HERE, PROJECT)
    directory.resolve_cell(key)
    directory.update_cell(HERE, name="renamed")
    assert directory.resolve_cell(key).name == "renamed"
    assert directory.resolve_cells([key])[key].name == "renamed"


def test_update_is_seen_by_others_within_the_refresh_however_short(
    site: Site, directory: CellDirectory, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "_PASS_S", 3600.0)  # invalidations are not what it waits for
    with CellDirectory.open(
        site.settings().model_copy(update={"cells": site.settings().cells.model_copy(update={"refresh_s": 0.05})})
    ) as other:
        directory.map_instance(key, HERE, PROJECT)
        assert other.resolve_cell(key).name == "here"
        directory.update_cell(HERE, name="renamed")
        assert eventually(lambda: other.resolve_cell(key).name == "renamed")


def test_refresh_that_fails_is_tried_again(
    site: Site, directory: CellDirectory, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CellDirectory.open(
        site.settings().model_copy(update={"cells": site.settings().cells.model_copy(update={"refresh_s": 0.05})})
    ) as other:
        directory.map_instance(key, HERE, PROJECT)
        assert other.resolve_cell(key).name == "here"
        failed = threading.Event()

        def fails() -> None:
            monkeypatch.undo()
            failed.set()
            raise DatabaseUnavailable("gone")

        monkeypatch.setattr(other._here().cells, "refresh", fails)
        assert failed.wait(20)
        directory.update_cell(HERE, name="renamed")
        assert eventually(lambda: other.resolve_cell(key).name == "renamed")


def test_read_of_the_cells_that_began_before_a_change_and_ends_after_it_undoes_nothing(
    directory: CellDirectory, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.map_instance(key, HERE, PROJECT)
    directory.resolve_cell(key)
    store, has_read, go_on = directory._here().store, threading.Event(), threading.Event()
    read = store.cells

    def late() -> list[CellMapping]:
        cells = read()
        monkeypatch.undo()
        has_read.set()
        assert go_on.wait(20)
        return cells

    monkeypatch.setattr(store, "cells", late)
    with ThreadPoolExecutor(1) as threads:
        reader = threads.submit(directory.get_cell, HERE)
        assert has_read.wait(20)
        created = directory.create_cell("new", DATABASE, QUEUE)
        directory.update_cell(HERE, name="renamed")
        go_on.set()
        assert reader.result(20).name == "renamed"
    assert directory.resolve_cell(key).name == "renamed"
    assert directory._here().cells._by_uuid[created.uuid] == directory.get_cell(created.uuid)


def test_get_cell_asks_the_table(site: Site, directory: CellDirectory) -> None:
    other = site.open()
    other.get_cell(HERE)
    directory.update_cell(HERE, name="renamed")
    assert other.get_cell(HERE).name == "renamed"


def test_disabling_a_cell_is_seen_by_other_writers_at_once(site: Site, directory: CellDirectory, key: str) -> None:
    other = site.open()
    other.map_instance(key, HERE, PROJECT)
    directory.update_cell(HERE, disabled=True)
    with pytest.raises(CellCacheError, match="is disabled and takes no instances"):
        other.map_instance(str(uuid4()), HERE, PROJECT)


def test_deleted_cell_is_gone(site: Site, directory: CellDirectory, key: str) -> None:
    other = site.open()
    other.list_cells()
    directory.delete_cell(HERE.upper())
    for one in (directory, other):
        assert HERE not in {cell.uuid for cell in one.list_cells()}
        with pytest.raises(CellNotFound):
            one.get_cell(HERE)
        with pytest.raises(CellNotFound):
            one.map_instance(key, HERE, PROJECT)


def test_deleted_cell_is_forgotten_by_a_process_that_knew_it(site: Site, directory: CellDirectory, key: str) -> None:
    cell = directory.create_cell("cell1", DATABASE, QUEUE)
    directory.map_instance(key, cell.uuid, PROJECT)
    assert directory.resolve_cell(key) == cell
    directory.prune([key])
    directory.delete_cell(cell.uuid)
    site.cache.write(key, encode(cell.uuid))  # an answer of before that nobody has removed
    with pytest.raises(InstanceNotMapped):
        directory.resolve_cell(key)


def test_cell_with_mappings_is_not_deleted(site: Site, directory: CellDirectory, key: str) -> None:
    directory.map_instance(key, HERE, PROJECT)
    with pytest.raises(CellInUse, match=f"cell {HERE} still has instance mappings") as caught:
        site.open().delete_cell(HERE)
    assert caught.value.cell_uuid == HERE
    assert directory.resolve_cell(key) == directory.get_cell(HERE)
    directory.move_instance(key, THERE)
    directory.delete_cell(HERE)


@pytest.mark.slow
def test_mapping_and_deleting_at_once_leaves_no_mapping_without_its_cell(site: Site) -> None:
    mapper, deleter = site.open(), site.open()
    for number in range(12):
        cell = mapper.create_cell(f"cell{number}", DATABASE, QUEUE).uuid
        key, together = str(uuid4()), threading.Barrier(2)

        def create(cell: str = cell, key: str = key, together: threading.Barrier = together) -> bool:
            together.wait(30)
            try:
                mapper.map_instance(key, cell, PROJECT)
            except CellNotFound:
                return False
            return True

        def remove(cell: str = cell, together: threading.Barrier = together) -> bool:
            together.wait(30)
            try:
                deleter.delete_cell(cell)
            except CellInUse:
                return False
            return True

        with ThreadPoolExecutor(2) as pool:
            created, removed = pool.submit(create), pool.submit(remove)
            assert created.result() is not removed.result()
        assert (key in site.table()) is created.result()


MAPPINGS: dict[str, Callable[[CellDirectory, str, str], object]] = {
    "map_instance": lambda directory, key, cell: directory.map_instance(key, cell, PROJECT),
    "map_instances": lambda directory, key, cell: directory.map_instances([(key, cell, PROJECT)]),
    "move_instance": lambda directory, key, cell: directory.move_instance(key, cell),
}


@pytest.mark.slow
@pytest.mark.parametrize("mapping", MAPPINGS)
def test_cell_is_not_deleted_while_an_instance_is_being_mapped_to_it(
    site: Site, directory: CellDirectory, key: str, mapping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deletion comes when the cell has been found and the mapping is not committed yet."""
    deleter, cell = site.open(), directory.create_cell("cell1", DATABASE, QUEUE).uuid
    if mapping == "move_instance":
        directory.map_instance(key, HERE, PROJECT)
    fence = directory._here().backend.fence_multi
    with ThreadPoolExecutor(1) as another:
        deletions: list[Future[None]] = []

        def fence_late(keys: Sequence[str]) -> list[Fence]:
            deletions.append(another.submit(deleter.delete_cell, cell))
            wait(deletions, timeout=0.5)
            return fence(keys)

        monkeypatch.setattr(directory._here().backend, "fence_multi", fence_late)
        MAPPINGS[mapping](directory, key, cell)
        with pytest.raises(CellInUse):
            deletions[0].result(20)
    assert directory.get_cell(directory.get_instance(key).cell_uuid).uuid == cell


# -- the cell's own database -------------------------------------------------------------------------------------


def test_connection_is_to_the_database_of_the_instances_cell(
    directory: CellDirectory, key: str, tmp_path: Path
) -> None:
    cell = directory.create_cell("cell1", new_cell_database(tmp_path, {key: 7}), QUEUE)
    directory.map_instance(key, cell.uuid, PROJECT)
    for _ in range(2):
        with directory.connect_cell(key.upper()) as connection:
            assert connection.scalar(text("SELECT deleted FROM instances WHERE uuid = :key"), {"key": key}) == 7
    assert connection.closed


def test_connection_follows_the_cells_database(directory: CellDirectory, key: str, tmp_path: Path) -> None:
    cell = directory.create_cell("cell1", new_cell_database(tmp_path, {key: 1}), QUEUE)
    directory.map_instance(key, cell.uuid, PROJECT)
    with directory.connect_cell(key) as connection:
        assert connection.scalar(text("SELECT deleted FROM instances")) == 1
    directory.update_cell(cell.uuid, database_connection=new_cell_database(tmp_path, {key: 2}))
    with directory.connect_cell(key) as connection:
        assert connection.scalar(text("SELECT deleted FROM instances")) == 2


def test_database_that_no_cell_names_any_more_is_left(directory: CellDirectory, key: str, tmp_path: Path) -> None:
    first = new_cell_database(tmp_path, {key: 0})
    cell = directory.create_cell("cell1", first, QUEUE)
    directory.map_instance(key, cell.uuid, PROJECT)
    with directory.connect_cell(key):
        pass
    open_files = psutil.Process().open_files
    file = first.removeprefix("sqlite:///")
    assert file in {one.path for one in open_files()}
    directory.update_cell(cell.uuid, database_connection=new_cell_database(tmp_path, {key: 1}))
    assert file not in {one.path for one in open_files()}


def test_connection_for_what_is_not_mapped_is_an_error(directory: CellDirectory, key: str) -> None:
    with pytest.raises(InstanceNotMapped), directory.connect_cell(key):
        pytest.fail("connected")
    with pytest.raises(InvalidUUID), directory.connect_cell("x"):
        pytest.fail("connected")


@pytest.mark.slow
@pytest.mark.parametrize(
    "url",
    [
        "mysql+pymysql://nova:hush@127.0.0.1:1/cell",
        "postgresql+psycopg://nova:hush@127.0.0.1:1/cell",
    ],
)
def test_cells_database_that_is_away_is_an_error_without_its_password(
    directory: CellDirectory, key: str, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    cell = directory.create_cell("cell1", url, QUEUE)
    directory.map_instance(key, cell.uuid, PROJECT)
    with (
        pytest.raises(DatabaseUnavailable, match=r"database .* did not do as asked") as caught,
        directory.connect_cell(key),
    ):
        pytest.fail("connected")
    assert "\n" not in str(caught.value)
    assert "hush" not in "".join(str(link) for link in _chain(caught.value))
    assert "hush" not in caplog.text
    assert directory.resolve_cell(key) == cell


def test_error_of_the_caller_passes_through_and_the_connection_goes_back(
    directory: CellDirectory, key: str, tmp_path: Path
) -> None:
    cell = directory.create_cell("cell1", new_cell_database(tmp_path), QUEUE)
    directory.map_instance(key, cell.uuid, PROJECT)
    for _ in range(10):  # twice as many as the pool has
        with pytest.raises(ZeroDivisionError), directory.connect_cell(key) as connection:
            _use_and_fail(connection)
        assert connection.closed


def _use_and_fail(connection: Connection) -> None:
    connection.execute(text("SELECT 1"))
    raise ZeroDivisionError


# -- cells that only the cache names ---------------------------------------------------------------------------------


@pytest.fixture
def reads(directory: CellDirectory, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One item for each time that all cells were read."""
    reads: list[None] = []
    cells = directory._here().store.cells

    def counted() -> list[CellMapping]:
        reads.append(None)
        return cells()

    monkeypatch.setattr(directory._here().store, "cells", counted)
    return reads


def test_entries_that_name_no_cell_cost_one_read_of_the_cells_a_second(
    directory: CellDirectory, reads: list[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, clock = new_uuids(300), SimpleNamespace(now=1000.0)
    directory.map_instances((key, HERE, PROJECT) for key in keys)
    directory.get_cell(HERE)
    monkeypatch.setattr("cellcache.cells.monotonic", lambda: clock.now)
    for second in range(3):
        clock.now, reads[:] = 2000.0 + second, []
        for key in keys:
            directory.region.set(key, str(uuid4()))
        assert directory.resolve_cells(keys[:100]).keys() == set(keys[:100])
        assert directory.resolve_cell(keys[100]).uuid == HERE
        with ThreadPoolExecutor(4) as threads:
            assert {cell.uuid for cell in threads.map(directory.resolve_cell, keys[101:])} == {HERE}
        assert len(reads) == 1
    assert directory.stats().undecodable == 900


def test_a_new_cell_is_found_however_lately_the_cache_named_one_that_is_none(
    site: Site, directory: CellDirectory, key: str
) -> None:
    other, stray = site.open(), str(uuid4())
    directory.map_instance(stray, HERE, PROJECT)
    directory.region.set(stray, str(uuid4()))
    assert directory.resolve_cell(stray).uuid == HERE
    cell = other.create_cell("cell1", DATABASE, QUEUE)
    other.map_instance(key, cell.uuid, PROJECT)
    assert directory.resolve_cell(key) == cell


def test_entries_are_kept_while_the_cells_cannot_be_read(site: Site, directory: CellDirectory, key: str) -> None:
    directory.map_instance(key, HERE, PROJECT)
    newcomer = site.open()
    site.run("ALTER TABLE cell_mapping RENAME TO away")
    try:
        for _ in range(2):
            with pytest.raises(CellCacheError):
                newcomer.resolve_cell(key)
    finally:
        site.run("ALTER TABLE away RENAME TO cell_mapping")
    assert newcomer.resolve_cell(key).uuid == HERE
    assert (newcomer.stats().undecodable, newcomer.stats().hits) == (0, 1)
