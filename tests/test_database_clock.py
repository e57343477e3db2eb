"""The database's clock makes and compares the times that several hosts read; a host's own clock shows nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Integer, bindparam, create_engine, event, insert, make_url, select, text
from sqlalchemy.pool import NullPool

from cellcache import CellDirectory
from cellcache.database_clock import DatabaseTime
from cellcache.tables import cache_invalidation, instance_mapping
from tests.directories import DATABASES, HERE, THERE, Site, new_uuids, open_site

HOUR = timedelta(hours=1)
SERVERS = DATABASES[1:]
FAR = {"mysql": "SET time_zone = '+09:00'", "postgresql": "SET TIME ZONE 'Asia/Tokyo'"}


@pytest.fixture(params=DATABASES)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, "memory", request.param) as site:
        yield site


@pytest.fixture
def directory(site: Site) -> CellDirectory:
    return site.open()


def database_time(site: Site) -> datetime:
    time: datetime = site.run(select(DatabaseTime()))[0][0]
    return time


def test_it_is_stored_as_our_own_times_are(site: Site) -> None:
    """SQLite compares texts: a time of the database's and one from Python must differ in nothing else."""
    now = database_time(site)
    assert now.microsecond == 0
    keys = new_uuids(2)
    for key, created_at in zip(keys, (DatabaseTime(), now), strict=True):
        row = {"instance_uuid": key, "cell_uuid": HERE, "project_id": "project", "created_at": created_at}
        site.run(insert(instance_mapping).values(row))
    made, given = (str(row[0]) for row in site.run("SELECT created_at FROM instance_mapping ORDER BY id"))
    assert len(made) == len(given)
    assert made[:13] == given[:13] or now.minute == 59
    assert made[19:] == given[19:]


@pytest.mark.parametrize("after_s", [0, 10, -3600, 86_400 * 365])
def test_so_many_seconds_from_now_are_counted_by_the_database(site: Site, after_s: int) -> None:
    given = bindparam("after_s", after_s, type_=Integer())
    now, literal, bound = site.run(select(DatabaseTime(), DatabaseTime(after_s), DatabaseTime(given)))[0]
    assert literal - now == bound - now == timedelta(seconds=after_s)


@pytest.mark.parametrize("kind", SERVERS)
def test_time_zone_of_a_session_plays_no_part(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    with open_site(request, tmp_path, "memory", kind) as site:
        directory = site.open()
        here = database_time(site)
        for engine in (directory._here().store._reading, directory._here().store._writing):

            @event.listens_for(engine, "connect")
            def move_far_away(connection: object, _record: object) -> None:
                cursor = connection.cursor()  # type: ignore[attr-defined]
                cursor.execute(FAR[make_url(site.database_url).get_backend_name()])
                cursor.close()

        assert directory._here().store.now() - here < HOUR
        (key,) = new_uuids(1)
        created = directory.map_instance(key, HERE, "project")
        moved = directory.move_instance(key, THERE)
        assert created.created_at is not None
        assert moved.updated_at is not None
        assert max(abs(created.created_at - here), abs(moved.updated_at - here)) < HOUR
        assert [abs(one.created_at - here) < HOUR and not one.due for one in directory.list_invalidations()] == [
            True
        ] * 2
        directory._here().store.add_invalidation([key], 0.0)
        assert directory.waiting_invalidations().count == 1
        assert (directory.waiting_invalidations().oldest_s or 0.0) < HOUR.total_seconds()


def test_records_have_the_times_of_their_rows(site: Site, directory: CellDirectory) -> None:
    keys = new_uuids(3)
    before = database_time(site)
    created = directory.map_instance(keys[0], HERE, "project")
    directory.map_instances((key, HERE, "project") for key in keys[1:])
    moved = directory.move_instance(keys[1], THERE)
    cell = directory.create_cell("four", "sqlite:///nowhere/cell.db", "none://")
    assert directory.get_instance(keys[0]) == created
    assert directory.get_instance(keys[1]) == moved
    assert directory.get_cell(cell.uuid) == cell
    renamed = directory.update_cell(cell.uuid, name="five")
    after = database_time(site)
    bulk = directory.get_instance(keys[2]).created_at
    for time in (created.created_at, bulk, moved.created_at, moved.updated_at, cell.created_at, renamed.updated_at):
        assert time is not None
        assert before <= time <= after


def test_record_has_its_time_where_the_database_does_not_know_returning(
    site: Site, directory: CellDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MySQL, MariaDB before 10.5 and SQLite before 3.35; PostgreSQL has always known it."""
    engine = directory._here().store._writing
    engine.connect().close()
    if engine.dialect.name != "postgresql":
        monkeypatch.setattr(engine.dialect, "insert_returning", False)
    (key,) = new_uuids(1)
    assert directory.map_instance(key, HERE, "project") == directory.get_instance(key)
    assert [one.instance_uuids for one in directory.list_invalidations()] == [[key]]


def test_invalidation_is_due_when_the_database_says_so(site: Site, directory: CellDirectory) -> None:
    first, second = ([key] for key in new_uuids(2))
    directory._here().store.add_invalidation(first, 0.0)
    directory._here().store.add_invalidation(second, 0.001)  # a part of a second counts as one
    directory._here().store.add_invalidation(second, 3600.0)
    listed = directory.list_invalidations()
    assert [one.deliver_after - one.created_at for one in listed] == [timedelta(), timedelta(seconds=1), HOUR]
    assert (listed[0].due, listed[2].due) == (True, False)
    site.run(cache_invalidation.update().values(created_at=DatabaseTime(-7200)).where(cache_invalidation.c.id == 1))
    site.run(cache_invalidation.update().values(deliver_after=DatabaseTime(3600)).where(cache_invalidation.c.id == 2))
    waiting = directory.waiting_invalidations()
    assert waiting.count == 1
    assert 7200 <= (waiting.oldest_s or 0.0) < 7300


def test_index_finds_what_is_due(site: Site, directory: CellDirectory) -> None:
    directory._here().store.add_invalidation(new_uuids(1), 0.0)
    engine = create_engine(site.database_url, poolclass=NullPool)
    query = select(cache_invalidation.c.id).where(cache_invalidation.c.deliver_after <= DatabaseTime())
    explain = "EXPLAIN QUERY PLAN" if engine.dialect.name == "sqlite" else "EXPLAIN"
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SET enable_seqscan = off"))
        plan = connection.execute(text(f"{explain} {query.compile(engine)}")).all()
    assert "ix_cache_invalidation_deliver_after" in str(plan)
