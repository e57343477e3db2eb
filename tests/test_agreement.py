"""The deployment's identity: one for all its processes, whoever comes first, and another in every other database."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic

import pytest
from sqlalchemy import delete, event, insert, select

from cellcache.agreement import DEPLOYMENT
from cellcache.database_clock import DatabaseTime, KnownTime
from cellcache.errors import SchemaError
from cellcache.model import is_canonical
from cellcache.store import Store
from cellcache.tables import cache_agreement
from tests.directories import DATABASES, Site, open_site

WRITERS = 8


@pytest.fixture(params=DATABASES)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, "memory", request.param) as site:
        yield site


@pytest.fixture
def store(site: Site) -> Iterator[Store]:
    store = Store(site.settings().database)
    yield store
    store.close()


def rows(site: Site) -> list[tuple[str, str]]:
    return [(row[0], row[1]) for row in site.run(select(cache_agreement.c.name, cache_agreement.c.value))]


def test_whoever_finds_none_writes_one_which_all_others_read(site: Site, store: Store) -> None:
    first = store.agreement().deployment
    assert is_canonical(first)
    assert rows(site) == [(DEPLOYMENT, first)]
    another = Store(site.settings().database)
    assert another.agreement().deployment == first
    another.close()
    (since, now) = site.run(select(cache_agreement.c.since, DatabaseTime()))[0]
    assert now - timedelta(seconds=60) <= since <= now


def test_processes_that_race_to_write_it_have_the_same(site: Site) -> None:
    """All have seen that there is none before the first has written one."""
    stores = [Store(site.settings().database) for _ in range(WRITERS)]
    none_there = threading.Barrier(WRITERS)

    def wait_for_all(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("INSERT"):
            none_there.wait(30)

    for store in stores:
        event.listen(store._reading, "before_cursor_execute", wait_for_all)
    with ThreadPoolExecutor(WRITERS) as threads:
        found = {agreement.deployment for agreement in threads.map(Store.agreement, stores)}
    for store in stores:
        store.close()
    assert rows(site) == [(DEPLOYMENT, identity) for identity in found]
    assert len(found) == 1


@pytest.mark.parametrize("value", ["", "our deployment", "x" * 100_000, "0D4ED1D2-8B8C-4E0A-9A43-3B1F3AD1E4AB"])
def test_identity_written_by_hand_that_is_none_is_an_error_that_says_what_to_do(
    site: Site, store: Store, value: str
) -> None:
    site.run(insert(cache_agreement).values(name=DEPLOYMENT, value=value, since=DatabaseTime()))
    with pytest.raises(SchemaError, match=r"row 'deployment' of cache_agreement .* delete it") as caught:
        store.agreement()
    assert len(str(caught.value)) < 300
    assert rows(site) == [(DEPLOYMENT, value)]
    site.run(delete(cache_agreement))
    assert is_canonical(store.agreement().deployment)


def test_known_time_has_the_databases_between_its_limits(site: Site, store: Store) -> None:
    """Told in whole seconds, at some moment between question and answer."""
    time = store.agreement().time
    for _ in range(3):
        asked_at = monotonic()
        told = store.now().timestamp()
        answered_at = monotonic()
        assert asked_at + time.earliest_s < told + 1
        assert told <= answered_at + time.latest_s


def test_limits_of_known_time_are_a_second_and_the_wait_apart() -> None:
    told = datetime(2026, 1, 1, tzinfo=UTC)
    time = KnownTime.between(told, 100.0, 100.5)
    assert (100.5 + time.earliest_s, 100.0 + time.latest_s) == (told.timestamp(), told.timestamp() + 1)
