"""The demonstration touches nothing that it has not made, and nothing that others have come to use."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Connection, func, insert, make_url, select, text
from sqlalchemy.exc import DBAPIError

from cellcache import CellDirectory, Settings, demo_cells, demo_tables, schema
from cellcache.cli import demo as cli_demo
from cellcache.database_clock import DatabaseTime
from cellcache.demo import Demonstration
from cellcache.demo_tables import DatabaseInUse
from cellcache.errors import CacheUnavailable, ConfigError, DatabaseUnavailable, SchemaError
from cellcache.tables import cache_agreement, cache_invalidation, cell_mapping, instance_mapping, metadata
from tests.command_line import Deployment, make_deployment
from tests.servers import MariaDB, PostgreSQL
from tests.traces import OURS, connected, create_database, databases, drop_database, execute, tables

pytestmark = pytest.mark.slow

SIZE = ("--instances", "60")


def no_tick(_: int) -> None:
    pass


@pytest.fixture
def deployment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> Deployment:
    """A configuration that names an empty database, on each kind of server in turn. The story is a short one."""
    monkeypatch.setattr(cli_demo, "_REQUESTS", 30)
    monkeypatch.setattr(cli_demo, "_ROUNDS", 1)
    deployment = make_deployment(tmp_path, capsys, migrated=False)
    deployment.configure(f'[database]\nurl = "{database_url}"\ntimeout_s = 10\n')  # for a busy machine
    return deployment


def settings(url: str, **cache: Any) -> Settings:
    return Settings(database={"url": url}, cache=cache)


class Service:
    """Another process's directory on the same database, with a cell and instances of its own."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._directory = CellDirectory.open(settings(url))
        self.cell = self._directory.create_cell("theirs", "sqlite:///theirs.db", "rabbit://nova:hare@host/")
        self.instances: dict[str, str] = {}

    def map(self, count: int, cell: str | None = None) -> None:
        rows = [(str(uuid4()), cell or self.cell.uuid, "theirs") for _ in range(count)]
        assert self._directory.map_instances(rows) == count
        self.instances.update((uuid, where) for uuid, where, _ in rows)

    def close(self) -> None:
        self._directory.close()

    def mapped(self) -> dict[str, str]:
        """All that the table says, not the service's mappings alone."""
        with connected(self._url) as connection:
            rows = connection.execute(select(instance_mapping.c.instance_uuid, instance_mapping.c.cell_uuid))
            return {row[0]: row[1] for row in rows}

    def cells(self) -> set[str]:
        with connected(self._url) as connection:
            return set(connection.scalars(select(cell_mapping.c.uuid)))


def contents(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """Every table of the database, and every row."""
    with connected(url) as connection:
        return {
            name: [tuple(row) for row in connection.execute(text(f"SELECT * FROM {name}"))]
            for name in sorted(tables(url))
        }


# -- a database with tables of ours is refused -------------------------------------------------------------------


def as_db_upgrade_leaves_it(url: str) -> None:
    schema.upgrade(url)


def restored_without_the_revision(url: str) -> None:
    with connected(url) as connection:
        metadata.create_all(connection)
        row = {"instance_uuid": str(uuid4()), "cell_uuid": str(uuid4()), "project_id": "p"}
        connection.execute(insert(instance_mapping), row)
        connection.commit()


def only(name: str) -> Callable[[str], None]:
    return lambda url: execute(url, f"CREATE TABLE {name} (anything INTEGER)")


def a_view(url: str) -> None:
    execute(url, "CREATE TABLE nova (anything INTEGER)", "CREATE VIEW instance_mapping AS SELECT anything FROM nova")


@pytest.mark.parametrize(
    "fill",
    [
        as_db_upgrade_leaves_it,
        restored_without_the_revision,
        a_view,
        *(pytest.param(only(name), id=name) for name in sorted(OURS)),
    ],
)
def test_a_database_with_any_of_the_tables_is_refused(
    deployment: Deployment, database_url: str, fill: Callable[[str], None]
) -> None:
    fill(database_url)
    before = contents(database_url), databases(database_url)
    outcome = deployment.run("demo", *SIZE)
    assert outcome.code == 1
    assert all(name in outcome.error for name in OURS & tables(database_url))
    assert "nothing was done" in outcome.error
    assert "name one" in outcome.error
    password = make_url(database_url).password
    assert not password or password not in outcome.error
    assert (contents(database_url), databases(database_url)) == before


def test_there_is_no_way_to_work_beside_tables(deployment: Deployment, database_url: str) -> None:
    restored_without_the_revision(database_url)
    before = contents(database_url)
    assert deployment.run("demo", *SIZE, "--beside-existing").code == 2
    assert contents(database_url) == before


def test_tables_of_others_are_none_of_its_business(deployment: Deployment, database_url: str) -> None:
    execute(database_url, "CREATE TABLE theirs (n INTEGER)", "INSERT INTO theirs VALUES (7)")
    before = contents(database_url)
    deployment.ok("demo", *SIZE)
    assert contents(database_url) == before | ({"sqlite_sequence": []} if "sqlite_sequence" in before else {})


def test_tables_that_are_being_created_while_it_looks_are_not_its_own(database_url: str) -> None:
    with ThreadPoolExecutor() as pool, schema.alone(database_url) as connection:
        demonstration = pool.submit(enter, Demonstration(settings(database_url), size=30))
        schema.create(connection)
        connection.commit()
        connection.close()
        assert isinstance(demonstration.exception(timeout=60), DatabaseInUse)
    assert schema.check(database_url) == []


def enter(story: Demonstration) -> None:
    with story:
        pass


def test_an_upgrade_that_waits_for_its_tables_finds_them_whole(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = schema.create
    waiting = threading.Thread(target=schema.upgrade, args=(database_url,))

    def create_while_an_upgrade_waits(connection: Connection) -> None:
        waiting.start()
        create(connection)

    monkeypatch.setattr(schema, "create", create_while_an_upgrade_waits)
    with Demonstration(settings(database_url), size=30):
        waiting.join(60)
        assert schema.check(database_url) == []
    assert tables(database_url) & OURS == set()


def test_of_two_at_once_one_refuses_and_the_other_comes_out_well(database_url: str) -> None:
    start, refused = threading.Barrier(2), threading.Event()

    def tell() -> int:
        story = Demonstration(settings(database_url), size=60)
        start.wait(60)
        try:
            with story:
                story.prepare(no_tick)
                assert refused.wait(60)
                return story.purge_some().pruned
        except DatabaseInUse:
            refused.set()
            return 0

    before = databases(database_url)
    with ThreadPoolExecutor() as pool:
        pruned = sorted(future.result() for future in [pool.submit(tell) for _ in range(2)])
    assert pruned[0] == 0 < pruned[1]
    # On SQLite the one who made the file may be the one who refused: then it stays, empty.
    assert databases(database_url) - before <= {Path(str(make_url(database_url).database)).name}
    assert tables(database_url) == set()


# -- services that start on an empty database while it runs ------------------------------------------------------


def test_what_services_write_while_it_runs_all_survives(
    deployment: Deployment, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    services: list[Service] = []
    for chapter in ("follow_one_request", "measure", "move_one", "purge_some"):
        at_its_beginning(monkeypatch, chapter, lambda _: serve(services, database_url))
    before = databases(database_url)
    told = deployment.run("demo", *SIZE, "--json")
    assert told.code == 0, told.err
    (left,) = told.document["left"]
    assert "instance_mapping and cell_mapping" in left
    assert told.error == f"left in place: {left}"
    theirs = {uuid: cell for service in services for uuid, cell in service.instances.items()}
    assert len(theirs) == 400
    assert services[0].mapped() == theirs
    assert services[0].cells() == {service.cell.uuid for service in services}
    assert databases(database_url) - before <= {Path(str(make_url(database_url).database)).name}
    assert schema.check(database_url) == []
    with CellDirectory.open(settings(database_url)) as directory:
        assert {uuid: cell.uuid for uuid, cell in directory.resolve_cells(theirs).items()} == theirs


def serve(services: list[Service], url: str) -> None:
    service = Service(url)
    service.map(100)
    service.close()
    services.append(service)


def at_its_beginning(monkeypatch: pytest.MonkeyPatch, chapter: str, action: Callable[[Demonstration], None]) -> None:
    tell = getattr(Demonstration, chapter)

    def with_action(self: Demonstration, *arguments: Any) -> Any:
        action(self)
        return tell(self, *arguments)

    monkeypatch.setattr(Demonstration, chapter, with_action)


def test_a_cell_of_its_own_that_others_have_mapped_into_stays_with_its_database(
    deployment: Deployment, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    services: list[Service] = []

    def map_into_the_first_cells(_: Demonstration) -> None:
        service = Service(database_url)
        own = sorted(service.cells() - {service.cell.uuid})
        for cell in own:
            service.map(1, cell)
        service.close()
        services.append(service)

    at_its_beginning(monkeypatch, "purge_some", map_into_the_first_cells)
    before = databases(database_url)
    outcome = deployment.run("demo", *SIZE)
    assert outcome.code == 0
    lines = outcome.err.splitlines()
    assert len(lines) == 4
    assert all(f"cell{n} and its database" in line for n, line in zip((1, 2, 3), lines, strict=False))
    (service,) = services
    assert service.mapped() == service.instances
    assert len(service.cells()) == 4
    assert {name.rpartition("_")[2][:5] for name in databases(database_url) - before if "_cell" in name} == {
        "cell1",
        "cell2",
        "cell3",
    }
    for url in (str(cell.database_connection) for cell in cells_of(database_url) if cell.name != "theirs"):
        with connected(url) as connection:
            connection.execute(select(func.count()).select_from(demo_cells.instances))
        drop_database(database_url, str(make_url(url).database))


def cells_of(url: str) -> list[Any]:
    with CellDirectory.open(settings(url)) as directory:
        return list(directory.list_cells())


def test_between_the_look_and_the_drop_nobody_can_write(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drop = demo_tables._drop
    refusals = []

    def write_first(connection: Connection, names: list[str]) -> None:
        for table, row in ROWS.items():
            with connected(database_url) as other, pytest.raises(DBAPIError) as caught:
                other.execute(insert(metadata.tables[table]), row)
            refusals.append(caught.value)
        drop(connection, names)

    monkeypatch.setattr(demo_tables, "_drop", write_first)
    enter(Demonstration(settings(database_url), size=30))
    assert len(refusals) == 3
    assert tables(database_url) & OURS == set()


NOW = demo_cells._now()
ROWS: dict[str, dict[str, Any]] = {
    "instance_mapping": {"instance_uuid": str(uuid4()), "cell_uuid": str(uuid4()), "project_id": "p"},
    "cell_mapping": {"uuid": str(uuid4()), "transport_url": "none:///", "database_connection": "sqlite:///x"},
    "cache_invalidation": {
        "created_at": datetime(2026, 1, 1, tzinfo=UTC),
        "deliver_after": datetime(2026, 1, 1, tzinfo=UTC),
        "instance_uuids": str(uuid4()),
    },
}


@pytest.mark.parametrize("table", ROWS)
def test_one_row_of_others_keeps_all_the_tables_and_the_revision(database_url: str, table: str) -> None:
    story = Demonstration(settings(database_url), size=30)
    with story, connected(database_url) as connection:
        connection.execute(insert(metadata.tables[table]), ROWS[table])
        connection.commit()
    (left,) = story.left
    assert table in left
    assert schema.check(database_url) == []
    with connected(database_url) as connection:
        counts = {
            name: connection.scalar(select(func.count()).select_from(each)) for name, each in metadata.tables.items()
        }
    assert counts == {name: int(name == table) for name in metadata.tables}


def test_identity_of_the_deployment_keeps_no_tables(database_url: str) -> None:
    """The demonstration itself writes it where entries are signed; and of what use is it without mappings?"""
    story = Demonstration(settings(database_url), size=30)
    with story, connected(database_url) as connection:
        connection.execute(insert(cache_agreement).values(name="deployment", value="d", since=DatabaseTime()))
        connection.commit()
    assert story.left == []
    assert tables(database_url) & OURS == set()


def test_a_write_that_is_not_committed_yet_is_waited_for(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_tables, "_LOCK_TIMEOUT_S", 1.0)
    with connected(database_url) as connection:
        with pytest.raises(DatabaseUnavailable, match="another process has kept the tables locked"):  # noqa: SIM117
            with demo_tables.tables(make_url(database_url), [], keep=False, left=[]):
                connection.execute(insert(instance_mapping), ROWS["instance_mapping"])
        connection.commit()
    assert schema.check(database_url) == []
    with connected(database_url) as connection:
        assert connection.scalar(select(func.count()).select_from(instance_mapping)) == 1


def test_what_was_committed_while_it_waited_is_seen_whatever_a_transaction_keeps(postgresql: PostgreSQL) -> None:
    url = postgresql.create_database("demo_snapshots")
    postgresql.execute("ALTER DATABASE demo_snapshots SET default_transaction_isolation = 'serializable'")
    left: list[str] = []
    with connected(url) as writer, ThreadPoolExecutor() as pool:
        story = demo_tables.tables(make_url(url), [], keep=False, left=left)
        story.__enter__()
        writer.execute(insert(instance_mapping), ROWS["instance_mapping"])
        ending = pool.submit(story.__exit__, None, None, None)
        with connected(url) as watcher:
            watcher.execution_options(isolation_level="AUTOCOMMIT")
            waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'")
            for _ in range(100_000):
                if watcher.scalar(waiting):
                    break
        writer.commit()
        ending.result(60)
    assert len(left) == 1
    assert schema.check(url) == []
    postgresql.drop_database("demo_snapshots")


def test_tables_that_a_newer_release_has_changed_stay(database_url: str) -> None:
    story = Demonstration(settings(database_url), size=30)
    with story:
        execute(database_url, "UPDATE cellcache_alembic_version SET version_num = '9999_post_future'")
    assert "9999_post_future" in story.left[0]
    assert tables(database_url) >= OURS


def test_invalidations_of_its_own_that_no_node_has_confirmed_stay(database_url: str) -> None:
    dead = settings(database_url, backend="cellcache.memcached", servers=["127.0.0.1:1"])
    story = Demonstration(dead, size=30)
    with story:
        story.prepare(no_tick)
    assert "cache_invalidation" in story.left[0]
    assert tables(database_url) >= OURS
    with connected(database_url) as connection:
        assert connection.scalar(select(func.count()).select_from(cache_invalidation))
        assert connection.scalar(select(func.count()).select_from(instance_mapping)) == 0


def test_what_cannot_be_removed_is_said_and_left_whole(
    deployment: Deployment, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise CacheUnavailable("a cache node is unreachable")

    at_its_beginning(monkeypatch, "purge_some", lambda _: monkeypatch.setattr(CellDirectory, "prune", refuse))
    before = databases(database_url)
    outcome = deployment.run("demo", *SIZE)
    assert outcome.code == 1
    assert "could be removed: a cache node is unreachable" in outcome.err
    assert "it names what is in its way" in outcome.err
    made = sorted(name for name in databases(database_url) - before if "_cell" in name)
    assert len(made) == 3
    assert schema.check(database_url) == []
    again = deployment.run("demo", *SIZE)
    assert again.code == 1
    assert all(name in again.error for name in [*made, *OURS])
    for name in made:
        drop_database(database_url, name)


# -- the cells' databases ----------------------------------------------------------------------------------------


def cell_database(url: str, number: int) -> str:
    """Return the URL of a cell's database."""
    parsed = make_url(url)
    name = f"{parsed.database}_cell{number}"
    if parsed.get_backend_name() == "sqlite":
        name = str(Path(str(parsed.database)).with_name(f"cellcache_cell{number}.db"))
    return parsed.set(database=name).render_as_string(hide_password=False)


@pytest.fixture
def theirs(database_url: str) -> Iterator[str]:
    """Somebody's database, with the name of the second cell's."""
    url = cell_database(database_url, 2)
    name = str(make_url(url).database)
    create_database(database_url, name)
    execute(url, "CREATE TABLE theirs (n INTEGER)", "INSERT INTO theirs VALUES (7)")
    yield url
    drop_database(database_url, name)


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_database_that_is_in_the_way_is_left_alone(
    deployment: Deployment, database_url: str, theirs: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if when == "meanwhile":
        monkeypatch.setattr(demo_tables, "those_there", lambda *_: [])
    before = databases(database_url)
    outcome = deployment.run("demo", *SIZE)
    assert outcome.code == 2
    assert str(make_url(theirs).database) in outcome.error
    assert databases(database_url) == before
    assert tables(database_url) == set()
    assert contents(theirs) == {"theirs": [(7,)]}


@pytest.mark.parametrize("number", [1, 2, 3])
def test_if_one_cannot_be_filled_all_go(database_url: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    create_all = demo_cells._metadata.create_all
    calls = iter(range(1, 4))

    def fail(*arguments: Any) -> None:
        if next(calls) == number:
            raise OSError("no space left on device")
        create_all(*arguments)

    monkeypatch.setattr(demo_cells._metadata, "create_all", fail)
    before = databases(database_url)
    with pytest.raises(DatabaseUnavailable, match="no space left"):
        enter(Demonstration(settings(database_url), size=30))
    assert databases(database_url) == before
    assert tables(database_url) == set()


def test_tables_that_could_be_made_in_part_go_again(mariadb: MariaDB) -> None:
    url = make_url(mariadb.create_database("demo_no_index"))
    mariadb.execute(f"CREATE OR REPLACE USER half@{mariadb.host} IDENTIFIED BY 'half-password'")
    rights = "SELECT, INSERT, UPDATE, DELETE, CREATE, DROP, LOCK TABLES"
    mariadb.execute(f"GRANT {rights} ON demo_no_index.* TO half@{mariadb.host}")
    half = url.set(username="half", password="half-password").render_as_string(hide_password=False)
    with pytest.raises(SchemaError, match="INDEX command denied"):
        enter(Demonstration(settings(half), size=30))
    assert tables(half) == set()


# -- files -------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mappings.db"


def test_a_file_that_was_there_stays_even_if_it_is_empty(file: Path) -> None:
    file.touch()
    enter(Demonstration(settings(f"sqlite:///{file}"), size=30))
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("what", ["TABLE theirs (n INTEGER)", "VIEW sqliteish AS SELECT 7"])
def test_a_file_of_its_own_stays_if_something_else_is_in_it(file: Path, what: str) -> None:
    story = Demonstration(settings(f"sqlite:///{file}"), size=30)
    with story:
        execute(f"sqlite:///{file}", f"CREATE {what}")
    assert "something else is in it" in story.left[0]
    assert file.exists()


def test_a_file_of_its_own_stays_while_another_process_has_it_open(file: Path) -> None:
    story = Demonstration(settings(f"sqlite:///{file}"), size=30)
    with ExitStack() as stack:
        with story:
            other = stack.enter_context(closing(sqlite3.connect(file)))
            assert other.execute("SELECT count(*) FROM instance_mapping").fetchone() == (0,)
        assert "another process has it open" in story.left[0]
        other.execute("CREATE TABLE theirs (n INTEGER)")
    assert tables(f"sqlite:///{file}") == {"theirs"}


def test_a_file_that_cannot_be_made_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match=r"cannot create .*none/mappings\.db: No such file"):
        enter(Demonstration(settings(f"sqlite:///{tmp_path}/none/mappings.db"), size=30))


def test_a_uri_is_no_file_that_it_could_make(tmp_path: Path) -> None:
    url = f"sqlite:///file:{tmp_path}/mappings.db?uri=true"
    with pytest.raises(ConfigError, match="a file by its path"):
        enter(Demonstration(settings(url), size=30))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
def test_a_file_that_is_in_the_way_of_a_cell_is_left_alone(file: Path, suffix: str) -> None:
    theirs = file.with_name(f"mappings_cell2.db{suffix}")
    theirs.write_bytes(b"someone else's")
    with pytest.raises(ConfigError, match=r"mappings_cell2\.db is there already"):
        enter(Demonstration(settings(f"sqlite:///{file}"), size=30))
    assert theirs.read_bytes() == b"someone else's"
    assert list(file.parent.iterdir()) == [theirs]
