"""No password, key or URL's secret in anything that anyone can see: planted everywhere, looked for in every output."""

from __future__ import annotations

import itertools
import json
import logging
import socket
import threading
import traceback
from binascii import b2a_base64
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_to_bytes
from uuid import uuid4

import pytest
from sqlalchemy import Column, Connection, Integer, MetaData, String, Table, create_engine, make_url, text
from sqlalchemy.pool import NullPool

import cellcache
from cellcache import CellDirectory, Settings, schema
from cellcache.backends.redis import RedisBackend
from cellcache.backends.resp import command
from cellcache.codec import FENCE, MARK
from cellcache.doctor import examine
from cellcache.errors import CellCacheError, ConfigError, DatabaseUnavailable
from cellcache.signing import SIGNED_VERSION
from tests.caches import nodes_of
from tests.command_line import Deployment, every_command
from tests.servers import MariaDB, Memcached, PostgreSQL, Redis

_names = (f"secrets_{number}" for number in itertools.count(1))

INSTANCES = Table("instances", MetaData(), Column("id", Integer, primary_key=True), Column("uuid", String(36)))


@dataclass
class Vault:
    """The secrets that a test has planted, by what they are."""

    planted: dict[str, str] = field(default_factory=dict)

    def plant(self, what: str, prefix: str = "") -> str:
        return self.planted.setdefault(what, f"{prefix}Sesame{uuid4().hex}")

    def leaks(self, text: object) -> list[str]:
        shown = text if isinstance(text, str) else repr(text)
        return [what for what, secret in self.planted.items() if secret in shown or quote(secret, safe="") in shown]

    def check(self, *texts: object) -> None:
        for each in texts:
            assert self.leaks(each) == [], str(each)[:3000]

    def check_error(self, error: BaseException) -> None:
        """Search an error and all that is printed with it."""
        self.check("".join(traceback.format_exception(error)))
        while True:
            self.check(str(error), repr(error), repr(error.args), getattr(error, "__notes__", []))
            following = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
            if following is None:
                return
            error = following


@dataclass
class World:
    """Servers with passwords, and what a configuration needs to reach them."""

    vault: Vault
    database: MariaDB | PostgreSQL
    cache: Memcached | Redis
    database_url: str
    cell_url: str

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        cache: dict[str, Any] = {"password": self.vault.planted["cache password"], "username": "nova"}
        if isinstance(self.cache, Memcached):
            cache |= {"backend": "cellcache.memcached", "servers": [self.cache.address]}
        else:
            cache |= {"backend": "cellcache.redis", "url": self.cache.url}
        keys = {
            "signing_key": self.vault.plant("signing key"),
            "previous_signing_key": self.vault.plant("previous key"),
        }
        return {"database": {"url": self.database_url}, "cache": {"timeout_s": 4.0, "retry_s": 0.1} | cache | keys}

    def open(self, **cache: Any) -> CellDirectory:
        settings = self.settings
        return CellDirectory.open(Settings(database=settings["database"], cache=settings["cache"] | cache))

    def main_database(self) -> AbstractContextManager[Connection]:
        return create_engine(self.database_url, poolclass=NullPool).begin()

    def bad_cell_url(self) -> str:
        """A cell's database that does not answer."""
        password, token = self.vault.plant("cell's password"), self.vault.plant("cell's token")
        return f"mysql+pymysql://cell:{password}@127.0.0.1:1/cell?ssl_key_password={token}"

    def transport_url(self) -> str:
        first, second = self.vault.plant("queue's password"), self.vault.plant("queue's other password")
        return f"rabbit://nova:{first}@mq1:5672,nova:{second}@mq2:5672/cell?password={first}"


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("mariadb and memcached", marks=pytest.mark.needs("mariadb", "memcached")),
        pytest.param("postgresql and redis", marks=pytest.mark.needs("postgresql", "redis")),
    ],
)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    vault = Vault()
    password = vault.plant("cache password")
    with ExitStack() as stack:
        database: MariaDB | PostgreSQL
        cache: Memcached | Redis
        if request.param == "mariadb and memcached":
            database = request.getfixturevalue("mariadb")
            request.getfixturevalue("memcached")  # skips where there is none
            cache = Memcached()
            cache.options = ("-Y", str(cache.add_file("users", f"nova:{password}\n".encode())))
            parameter = f"?ssl_key_password={vault.plant('database parameter')}"
        else:
            database = request.getfixturevalue("postgresql")
            request.getfixturevalue("redis_server")
            cache = Redis(["--user", "nova", "on", f">{password}", "~*", "+@all"])
            parameter = f"?sslpassword={vault.plant('database parameter')}"
        stack.enter_context(cache)
        vault.planted["database password"] = str(make_url(database.url).password)
        name, cell_name = next(_names), next(_names)
        url, cell_url = database.create_database(name), database.create_database(cell_name)
        engine = create_engine(cell_url, poolclass=NullPool)
        INSTANCES.metadata.create_all(engine)
        schema.upgrade(url)
        yield World(vault, database, cache, url + parameter, cell_url)


def test_the_search_finds_what_is_there() -> None:
    vault = Vault()
    secret = vault.plant("it", "a/b@c:")
    for shown in (f"x{secret}y", f"mysql://u:{quote(secret, safe='')}@h", [secret], {"a": (1, secret)}):
        assert vault.leaks(shown) == ["it"]
    try:
        try:
            raise OSError(secret)
        except OSError as error:
            raise ConfigError("fine by itself") from error
    except ConfigError as error:
        with pytest.raises(AssertionError):
            vault.check_error(error)


# -- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def deployment(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Deployment:
    deployment = Deployment(tmp_path, capsys)
    deployment.configure(as_toml(world.settings))
    return deployment


def as_toml(settings: Mapping[str, Mapping[str, Any]]) -> str:
    lines = []
    for section, values in settings.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def lines_of_work(world: World, folder: Path) -> Iterator[list[str]]:
    """Every command, what it does and what it refuses; passwords go in by files, as the help recommends."""
    good, bad, instance, other = (str(uuid4()) for _ in range(4))
    for name, url in (("good", world.cell_url), ("bad", world.bad_cell_url()), ("transport", world.transport_url())):
        (folder / name).write_text(url)
    files = ["--transport-url-file", str(folder / "transport")]
    yield ["db", "check"]
    yield ["db", "upgrade"]
    yield ["db", "upgrade", "--sql"]
    yield ["db", "current"]
    yield ["db", "history"]
    yield ["db", "downgrade", "nonsense", "--yes"]
    yield ["cache", "signing-key", str(folder / "good")]
    yield ["cell", "create", "good", "--database-connection-file", str(folder / "good"), *files, "--uuid", good]
    yield ["cell", "create", "good", "--database-connection-file", str(folder / "good"), *files, "--uuid", good]
    yield ["cell", "create", "bad", "--database-connection-file", str(folder / "bad"), *files, "--uuid", bad]
    yield [
        "cell",
        "create",
        "broken",
        "--database-connection",
        world.bad_cell_url().replace("mysql+pymysql", "oracle+x"),
    ]
    yield ["cell", "create", "broken", "--database-connection", world.bad_cell_url().replace(":1/", ":port/")]
    yield ["cell", "create", "two", "words", world.bad_cell_url()]
    yield ["cell", "list"]
    yield ["cell", "show", bad]
    yield ["cell", "show", "nonsense"]
    yield ["cell", "update", bad, "--disable", "--database-connection-file", str(folder / "bad")]
    yield ["instance", "map", instance, "--cell", good, "--project", "project"]
    yield ["instance", "map", instance, "--cell", good, "--project", "another"]
    yield ["instance", "map", other, "--cell", bad, "--project", "project"]
    yield ["cell", "update", bad, "--enable"]
    yield ["instance", "map", other, "--cell", bad, "--project", "project"]
    yield ["instance", "show", instance]
    yield ["instance", "list"]
    yield ["instance", "move", instance, "--cell", bad]
    yield ["resolve", instance, other]
    yield ["resolve", instance, "--explain"]
    yield ["resolve", str(uuid4()), "--explain"]
    yield ["resolve", world.bad_cell_url()]
    yield ["stats"]
    yield ["verify"]
    yield ["doctor"]
    yield ["demo", "-n", "50"]
    yield ["invalidations", "list"]
    yield ["invalidations", "run"]
    yield ["instance", "prune", "--purged", "--cell", bad, "--older-than", "0s"]
    yield ["instance", "prune", "--purged", "--cell", good, "--older-than", "0s"]
    yield ["cell", "delete", bad]
    yield ["instance", "prune", instance, other]
    yield ["cell", "delete", bad]
    yield ["cell", "delete", good]


@pytest.mark.parametrize("options", [[], ["--json"], ["-v"], ["--json", "-v"]], ids=" ".join)
def test_no_command_shows_a_secret(world: World, deployment: Deployment, options: list[str]) -> None:
    every = {path for path, _ in every_command()}
    done, codes = set(), set()
    for line in lines_of_work(world, deployment.folder):
        outcome = deployment.run(*line, *options)
        world.vault.check(outcome.out, outcome.err)
        assert outcome.code != 70, outcome
        done.add(tuple(line[:2]) if tuple(line[:1]) not in every else tuple(line[:1]))
        codes.add(outcome.code)
    assert done == every, "a command is missing in this test"
    assert {0, 1, 2, 3} <= codes


def test_secrets_are_shown_to_those_who_ask_for_them(world: World, deployment: Deployment) -> None:
    """So the test before this one finds what there is to be found."""
    url = deployment.folder / "url"
    url.write_text(world.bad_cell_url())
    files = ["--database-connection-file", str(url), "--transport-url", world.transport_url()]
    cell = deployment.json("cell", "create", "cell", *files)["uuid"]
    for arguments in (
        ["cell", "list"],
        ["cell", "show", cell],
        ["cell", "list", "--json"],
        ["cell", "show", cell, "--json"],
    ):
        shown = deployment.ok(*arguments, "--show-secrets").out
        assert {"cell's password", "cell's token"} <= set(world.vault.leaks(shown))
        world.vault.check(deployment.ok(*arguments).out)
    deployment.ok("cell", "delete", cell)


@pytest.mark.parametrize("topic", [[], *(path for path, _ in every_command())], ids=" ".join)
def test_help_shows_no_default_that_is_a_secret(world: World, deployment: Deployment, topic: list[str]) -> None:
    outcome = deployment.run(*topic, "--help")
    assert outcome.code == 0
    world.vault.check(outcome.out, outcome.err)


def test_processes_show_no_secret(world: World, deployment: Deployment) -> None:
    with world.open(local_ttl_s=1.0) as directory:
        directory.resolve_cells([str(uuid4())])
        process = Path("/proc/self")
        tasks = [path.read_text() for path in process.glob("task/*/comm")]
        names = [thread.name for thread in threading.enumerate()]
        world.vault.check((process / "cmdline").read_bytes().decode(errors="replace"), *tasks, *names)


# -- what goes wrong -------------------------------------------------------------------------------------------------


def troubled(world: World) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """Configurations that cannot work, each with a secret in it."""

    def with_(section: str, **changed: Any) -> dict[str, dict[str, Any]]:
        settings = world.settings
        settings[section] |= changed
        return settings

    wrong = world.vault.plant("wrong password", "a:b")
    url = make_url(world.database_url)
    nasty = url.set(password=world.vault.plant("nasty password", "p@s/s:w#o?r%d,"))
    as_text = nasty.render_as_string(hide_password=False)
    yield (
        "wrong database password",
        with_("database", url=url.set(password=wrong).render_as_string(hide_password=False)),
    )
    yield "nasty database password", with_("database", url=as_text)
    yield "closed port", with_("database", url=nasty.set(port=1).render_as_string(hide_password=False))
    yield "no such database", with_("database", url=url.set(database="nowhere").render_as_string(hide_password=False))
    yield "unknown option", with_("database", url=f"{world.database_url}&no_such_token={wrong}")
    for number, malformed in enumerate(
        [
            f"nova:{wrong}@db/nova",
            f"mysql+pymysql://nova:{wrong}@db:port/nova",
            f"mysql://nova:{wrong}@db/nova",
            f"mysql+pymysql://nova:{wrong}@x@db/nova",
            f"mysql+pymysql://nova:{wrong}/x@db/nova",
            f"mysql+pymysql://nova:{wrong}#x@db/nova",
            f"mysql+pymysql://nova:{wrong}?x@db/nova",
            f"mysql+pymysql://nova:{wrong}@[db/nova",
            f"mysql+pymysql://nova:{wrong}@db",
            f"mysql+nodriver://nova:{wrong}@db/nova",
            f"mysql+pymysql:/nova:{wrong}@db/nova",
            f"mysql+pymysql://nova:{wrong}@db/nova?ssl_verify_cert=true&key={wrong}",
            f"postgresql+psycopg://nova:{wrong}@127.0.0.1:1/nova?sslmode=nonsense",
            f"mysql+pymysql://nova:{wrong}@127.0.0.1:1/nova?charset=nonsense",
            f"mysql+pymysql://nova:{wrong}@127.0.0.1:1/nova?connect_timeout=nonsense",
            f"{wrong}",
        ]
    ):
        yield f"malformed database URL {number}", with_("database", url=malformed)
    yield "wrong cache password", with_("cache", password=wrong)
    yield "cache password that is a number", with_("cache", password=int.from_bytes(b"number"))
    yield (
        "no cache user",
        with_("cache", username=None) if isinstance(world.cache, Memcached) else with_("cache", tls_key="/x"),
    )
    for key in ("signing_key", "previous_signing_key", "password"):
        yield f"{key} in a list", with_("cache", **{key: [wrong]})
        yield f"{key} in a table", with_("cache", **{key: {wrong: wrong}})
        yield f"{key} that is empty", with_("cache", **{key: ""})
    world.vault.planted["short key"] = short = uuid4().hex[:20]
    yield "short signing key", with_("cache", signing_key=short)
    world.vault.planted["simple key"] = simple = uuid4().hex[:6] * 10
    yield "signing key of a few letters", with_("cache", signing_key=simple)
    world.vault.planted["numeric key"] = "98765432123456789"
    for key in ("signing_key", "previous_signing_key", "password"):
        yield f"{key} that is a number", with_("cache", **{key: 98765432123456789})
    yield "misspelt key", with_("cache", pasword=wrong, signing_keys=[wrong])
    yield "secret twice", with_("cache", password_file=str(Path(__file__)))
    yield (
        "arguments",
        with_("cache", arguments={"url": f"redis://:{wrong}@h", "password": wrong}) | {"x": {wrong: wrong}},
    )
    yield "another backend", {"cache": {"backend": "dogpile.cache.dbm", "arguments": {"password": wrong}}}
    yield "an unknown backend", {"cache": {"backend": f"redis://:{wrong}@h", "arguments": {"password": wrong}}}
    for number, malformed in enumerate(
        [
            f"redis://nova:{wrong}@127.0.0.1:1/0",
            f"redis://nova:{wrong}@h:port/0",
            f"redis://nova:{wrong}@h/zero",
            f"redis://nova:{wrong}@x@h/0",
            f"redis://nova:{wrong}#@h/0",
            f"rediss://nova:{wrong}@h/0?ssl_ca_certs=/nowhere&ssl_password={wrong}",
            f"redis://h/0?password={wrong}&unknown={wrong}",
            f"unix://nova:{wrong}@/nowhere?db=x",
            f"http://nova:{wrong}@h/",
            wrong,
        ]
    ):
        place = {"backend": "cellcache.redis", "url": malformed, "username": None, "password": None}
        settings = with_("cache", **place)
        settings["cache"] = {key: value for key, value in settings["cache"].items() if value is not None}
        settings["cache"].pop("servers", None)
        yield f"Redis URL {number}", settings
    servers = [f"nova:{wrong}@127.0.0.1:11211", f"memcached://nova:{wrong}@h", "127.0.0.1:1"]
    yield "servers", with_("cache", backend="cellcache.memcached", servers=servers)


def test_nothing_that_goes_wrong_shows_a_secret(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deployment = Deployment(tmp_path, capsys)
    codes: dict[str, set[int]] = {}
    for what, settings in troubled(world):
        without_none = {
            section: {key: value for key, value in values.items() if value is not None}
            for section, values in settings.items()
        }
        with suppress(TypeError):  # a table within a table: only in code
            deployment.configure(as_toml(without_none).replace('{"', '{ "').replace('": ', '" = '))
        for arguments in (["resolve", str(uuid4())], ["doctor", "-v"], ["db", "check", "-v"], ["stats", "--json"]):
            outcome = deployment.run(*arguments)
            world.vault.check(outcome.out, outcome.err)
            assert outcome.code != 70, (what, outcome)
            codes.setdefault(what, set()).add(int(outcome.code))
        with pytest.raises(CellCacheError) as refused, CellDirectory.open(Settings(**settings)) as directory:
            directory.resolve_cell(str(uuid4()))
        world.vault.check_error(refused.value)
    assert [what for what, seen in codes.items() if seen == {0}] == [], "configurations that work"


@pytest.mark.parametrize(
    "text",
    [
        '[database]\nurl = "mysql+pymysql://nova:{}@db/nova',
        "[database]\nurl = mysql+pymysql://nova:{}@db/nova\n",
        '[cache]\npassword = "{}" "\n',
        '[cache]\npassword = "{}\\q"\n',
        '[cache]\npassword = "{}"\npassword = "{}"\n',
        "[cache]\npassword = {}\n",
        "{}\n",
        '[cache]\n{} = "x"\n"{}\n',
        'cache = "{}"\n',
        '[cache]\npassword = "{}"\n\xff',
    ],
)
def test_file_that_is_no_configuration_shows_no_secret(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vault, deployment = Vault(), Deployment(tmp_path, capsys)
    deployment.config.write_bytes(text.replace("{}", vault.plant("it")).encode("latin-1"))
    for arguments in (["stats"], ["stats", "-v"], ["doctor", "--json"]):
        outcome = deployment.run(*arguments)
        assert outcome.code == 2
        vault.check(outcome.out, outcome.err)
    with pytest.raises(ConfigError) as refused:
        Settings.load(deployment.config)
    vault.check_error(refused.value)


@pytest.mark.parametrize(
    "key", ["DATABASE__URL", "CACHE__URL", "CACHE__PASSWORD", "CACHE__SIGNING_KEY", "CACHE__ARGUMENTS"]
)
def test_variable_that_cannot_be_used_shows_no_secret(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vault = Vault()
    secret = vault.plant("it")
    monkeypatch.setenv("CELLCACHE_CACHE__BACKEND", "cellcache.redis")
    for value in (secret[:20], f"x://{secret}", f"[{secret}", f'{{"{secret}": ', f"['{secret}']", f"{secret}\n"):
        vault.planted["short"] = secret[:20]
        monkeypatch.setenv(f"CELLCACHE_{key}", value)
        try:
            settings = Settings.load()
        except ConfigError as error:
            vault.check_error(error)
        else:
            vault.check(settings, str(settings), settings.describe())


# -- in the library --------------------------------------------------------------------------------------------------


def use(world: World, directory: CellDirectory) -> Iterator[object]:
    """Do everything once, and yield all that comes of it; errors too."""
    good = directory.create_cell("good", world.cell_url, world.transport_url())
    bad = directory.create_cell("bad", world.bad_cell_url(), world.transport_url())
    instances = [str(uuid4()) for _ in range(4)]
    yield from (good, bad, directory.list_cells(), directory.get_cell(good.uuid))
    yield directory.map_instance(instances[0], good.uuid, "project")
    yield directory.map_instances((instance, bad.uuid, "project") for instance in instances[1:3])
    yield from (
        directory.resolve_cells(instances),
        directory.resolve_cell(instances[0]),
        directory.explain(instances[0]),
    )
    yield directory.move_instance(instances[2], good.uuid)
    yield from (directory.get_instance(instances[0]), directory.list_instances())
    with directory.connect_cell(instances[0]) as connection:
        yield from (connection, connection.engine, connection.engine.url)
    yield from (directory.region, directory.region.get(instances[1]), directory.region.actual_backend)
    yield from directory.verify()
    yield from (directory.stats(), directory.check_cache(), directory.promise, directory.deliver_invalidations())
    yield directory.update_cell(bad.uuid, transport_url=world.transport_url() + "?x=1")
    with world.main_database() as connection:
        connection.execute(text("UPDATE instance_mapping SET created_at = '2020-01-01', updated_at = NULL"))
    wrong: list[Callable[[], object]] = [
        lambda: directory.connect_cell(instances[1]).__enter__(),
        lambda: directory.prune_purged(bad.uuid, older_than_s=0),
        lambda: directory.prune_purged(good.uuid, older_than_s=0),
        lambda: directory.create_cell("again", world.bad_cell_url(), world.transport_url(), uuid=bad.uuid),
        lambda: directory.create_cell("x" * 1000, world.bad_cell_url(), world.transport_url()),
        lambda: directory.create_cell("x", world.bad_cell_url().replace("pymysql", "nodriver"), world.transport_url()),
        lambda: directory.create_cell("x", world.bad_cell_url() + "\0", world.transport_url()),
        lambda: directory.create_cell("x", world.bad_cell_url(), world.transport_url() + "\0"),
        lambda: directory.update_cell(bad.uuid, database_connection=world.bad_cell_url().replace(":1/", ":port/")),
        lambda: directory.update_cell(bad.uuid, transport_url=world.transport_url() + "\ud800"),
        lambda: directory.delete_cell(bad.uuid),
        lambda: directory.map_instance(instances[0], bad.uuid, "project"),
        lambda: directory.resolve_cell(world.bad_cell_url()),
        lambda: directory.resolve_cell(str(uuid4())),
        lambda: directory.get_cell(str(uuid4())),
    ]
    for number, attempt in enumerate(wrong):
        try:
            attempt()
        except CellCacheError as error:
            yield error
        else:
            pytest.fail(f"attempt {number} succeeds")
    directory.prune(instances)
    for cell in (good, bad):
        directory.delete_cell(cell.uuid)


def test_no_log_at_any_level_no_repr_and_no_error_shows_a_secret(
    world: World, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "sqlalchemy")  # which logs statements, values and rows
    with world.open(local_ttl_s=1.0) as directory:
        for outcome in use(world, directory):
            if isinstance(outcome, BaseException):
                world.vault.check_error(outcome)
            else:
                world.vault.check(str(outcome), repr(outcome))
        here = directory._here()
        assert here.signing is not None
        inner = [directory, here.backend, here.store, here.store._reading, here.store._writing, here.cells]
        inner += [here.invalidations, here.maintenance, here.signing, here.signing.signer]
        inner += [here.read_through, here.write_through]
        settings = directory.settings
        inner += [settings, settings.database, settings.cache, settings.cells]
        inner += [settings.describe(), settings.model_dump(), settings.model_dump_json()]
        world.vault.check(*(shown(one) for one in inner for shown in (str, repr)))
    with CellDirectory.open(Settings(**world.settings | {"cache": {"backend": "dogpile.cache.null"}})) as directory:
        world.vault.check(repr(directory.region), directory.promise, directory.stats())
    assert len({record.name for record in caplog.records}) > 1
    formatter = logging.Formatter("%(name)s %(levelname)s %(message)s %(args)s")
    for record in caplog.records:
        world.vault.check(formatter.format(record), record.getMessage(), record.args)
    world.vault.check(*(str(warning.message) for warning in recwarn))


def test_no_log_of_a_cache_that_fails_shows_a_secret(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = world.vault.plant("wrong cache password")
    closed: dict[str, Any] = {"servers": ["127.0.0.1:1"]} if isinstance(world.cache, Memcached) else {}
    if isinstance(world.cache, Redis):
        closed = {"url": f"redis://nova:{wrong}@127.0.0.1:1/0", "username": None, "password": None}
    with world.open(**closed) as directory:
        world.vault.check(directory.resolve_cells([str(uuid4())]), directory.check_cache(), directory.stats())
        world.vault.check(*map(repr, examine(directory.settings)))
    with world.open() as directory:  # the password stops working while it is open
        backend: Any = directory._here().backend
        for node in nodes_of(backend._backend):
            dial = node._dial
            node._dial = lambda _: (_ for _ in ()).throw(ConnectionError("no"))
            node._pool().generation = object()
            directory.resolve_cells([str(uuid4())])
            node._dial = dial
    with pytest.raises(CellCacheError) as refused:
        world.open(password=wrong)
    world.vault.check_error(refused.value)
    assert any(record.name == "cellcache.backends" for record in caplog.records)
    for record in caplog.records:
        world.vault.check(record.getMessage(), record.args)


def test_no_error_of_a_database_that_fails_shows_a_secret(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for changed in ({"port": 1}, {"password": world.vault.plant("wrong password", "a:b")}, {"database": "nowhere"}):
        url = make_url(world.database_url).set(**changed).render_as_string(hide_password=False)
        settings = Settings(**world.settings | {"database": {"url": url}})
        world.vault.check(*map(repr, examine(settings)))
        attempts: list[Callable[[], object]] = [
            partial(schema.upgrade, url),
            partial(schema.current, url),
            partial(schema.check, url),
            partial(cellcache.configure(settings).resolve_cell, str(uuid4())),
        ]
        for attempt in attempts:
            with pytest.raises(DatabaseUnavailable) as refused:
                attempt()
            world.vault.check_error(refused.value)
        cellcache.configure(Settings(database={"url": world.database_url})).close()
    for record in caplog.records:
        world.vault.check(record.getMessage(), record.args)


# -- in the cache ----------------------------------------------------------------------------------------------------


def test_cache_holds_no_secret_and_nothing_but_entries(world: World) -> None:
    with world.open() as directory:
        cells = [directory.create_cell(name, world.bad_cell_url(), world.transport_url()) for name in ("one", "two")]
        instances = [str(uuid4()) for _ in range(50)]
        directory.map_instances((instance, cells[0].uuid, "project") for instance in instances)
        directory.move_instance(instances[0], cells[1].uuid)
        assert len(directory.resolve_cells([*instances, *(str(uuid4()) for _ in range(50))])) == 50
        held = raw_content(world)
        assert len(held) >= 100
        for key, value in held.items():
            world.vault.check(key.decode("latin-1"), value.decode("latin-1"))
            assert value.startswith((SIGNED_VERSION, MARK)) or value == b"", value
            assert len(value) in {0, 10, 22, 38} or value.startswith(FENCE), value
        assert b"auth" not in held
        directory.prune(instances)
        for cell in cells:
            directory.delete_cell(cell.uuid)


def raw_content(world: World) -> dict[bytes, bytes]:
    """Return all that the cache server holds, as its administrator sees it."""
    password = world.vault.planted["cache password"]
    if isinstance(world.cache, Redis):
        backend = RedisBackend({"url": world.cache.url, "username": "nova", "password": password, "timeout_s": 10.0})
        connection = backend._node.check()
        (count,) = connection.ask(command(b"DBSIZE"))
        connection.close()
        assert count
        return _redis_content(world.cache.port, password)
    with socket.create_connection(("127.0.0.1", world.cache.port), timeout=10) as sock, sock.makefile("rwb") as stream:
        login = f"nova {password}".encode()
        stream.write(b"set auth 0 0 %d\r\n%b\r\n" % (len(login), login))
        stream.flush()
        assert stream.readline() == b"STORED\r\n"
        stream.write(b"lru_crawler metadump all\r\n")
        stream.flush()
        raws = [unquote_to_bytes(line.split()[0].removeprefix(b"key=")) for line in iter(stream.readline, b"END\r\n")]
        held = {}
        for raw in raws:
            stream.write(b"mg %b b v\r\n" % b2a_base64(raw, newline=False))
            stream.flush()
            header = stream.readline().split()
            if header[0] == b"VA":
                held[raw] = stream.read(int(header[1]) + 2)[:-2]
        return held


def _redis_content(port: int, password: str) -> dict[bytes, bytes]:
    import redis

    with redis.Redis(port=port, username="nova", password=password) as client:
        return {key: client.get(key) or b"" for key in client.scan_iter()}
