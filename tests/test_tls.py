"""TLS to every server: it works with the right authority, and nothing else is let through."""

from __future__ import annotations

import itertools
import logging
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import make_url, text

from cellcache import CellDirectory, Settings, schema
from cellcache.doctor import examine
from cellcache.errors import ConfigError, DatabaseUnavailable, InvalidValue
from cellcache.findings import Finding, Level
from cellcache.protocol import Settlement
from cellcache.tls import verifying_url
from tests.certificates import ELSEWHERE, HERE, Authority
from tests.relay import Relay
from tests.servers import DatabaseServer, MariaDB, Memcached, PostgreSQL, Redis
from tests.tls_servers import TLSMemcached, TLSRedis, with_tls

REFUSED = "certificate verify failed"
_names = (f"tls_{number}" for number in itertools.count(1))


@dataclass(frozen=True)
class Trust:
    """The authority that signed the servers' certificates, another one, and where clients find the files."""

    ours: Authority
    foreign: Authority
    folder: Path

    @property
    def ca(self) -> Path:
        return self.folder / "ours.pem"

    @property
    def foreign_ca(self) -> Path:
        return self.folder / "foreign.pem"

    def client(self, authority: Authority | None = None, *, expired: bool = False) -> dict[str, str]:
        """Return the settings for a certificate of our own."""
        pair = (authority or self.ours).issue("cellcache", expired=expired)
        certificate, key = pair.write(self.folder, uuid4().hex)
        return {"tls_cert": str(certificate), "tls_key": str(key)}


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    trust = Trust(Authority("ours"), Authority("foreign"), tmp_path_factory.mktemp("trust"))
    trust.ca.write_bytes(trust.ours.pem)
    trust.foreign_ca.write_bytes(trust.foreign.pem)
    return trust


# -- caches ----------------------------------------------------------------------------------------------------------

CACHES = [
    pytest.param(TLSMemcached, id="memcached", marks=pytest.mark.needs("memcached")),
    pytest.param(TLSRedis, id="redis", marks=pytest.mark.needs("redis")),
]
AnyCache = type[TLSMemcached] | type[TLSRedis]


@pytest.fixture
def database_file(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'cellcache.db'}"
    schema.upgrade(url)
    return url


def settings_of(database: str, server: Memcached | Redis, **cache: Any) -> Settings:
    """Settings that speak TLS to a cache server and trust what the system trusts, unless told more."""
    place: dict[str, Any] = {"backend": "cellcache.memcached", "servers": [server.address], "tls": True}
    if isinstance(server, Redis):
        place = {"backend": "cellcache.redis", "url": re.sub("^redis:", "rediss:", server.url)}
    return Settings(database={"url": database}, cache=place | {"timeout_s": 4.0, "retry_s": 60.0} | cache)


def cache_node(settings: Settings) -> Finding:
    (finding,) = [finding for finding in examine(settings) if finding.what == "cache node"]
    return finding


def check_refusal(settings: Settings, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    """Lookups go to SQL, the log says why once, and so does doctor."""
    with CellDirectory.open(settings) as directory:
        cell = directory.create_cell("cell", "sqlite:///cell.db", "none:///")
        instance = str(uuid4())
        with caplog.at_level(logging.WARNING, "cellcache"):
            caplog.clear()
            directory.map_instance(instance, cell.uuid, "project")
            for _ in range(3):
                assert directory.resolve_cell(instance) == cell
            assert directory.resolve_cells([instance]) == {instance: cell}
        stats = directory.stats()
        assert (stats.hits, stats.misses, stats.unreachable, stats.fences) == (0, 4, 4, 0)
        warnings = [record.getMessage() for record in caplog.records if record.name == "cellcache.backends"]
        assert len(warnings) == 1
        assert re.search(reason, warnings[0], re.IGNORECASE), warnings[0]
    finding = cache_node(settings)
    assert finding.level is Level.PROBLEM
    assert re.search(reason, finding.says, re.IGNORECASE), finding.says


@pytest.mark.parametrize("kind", CACHES)
def test_cache_over_tls_does_all_that_one_without_does(kind: AnyCache, trust: Trust, database_file: str) -> None:
    with kind(trust.ours.issue("cache")) as server, Relay(server.port) as relay:
        place: dict[str, Any] = {"servers": [f"{HERE}:{relay.port}"]}
        if isinstance(server, Redis):
            place = {"url": server.url.replace(f":{server.port}", f":{relay.port}")}
        settings = settings_of(database_file, server, tls_ca=str(trust.ca), **place)
        with CellDirectory.open(settings) as writer, CellDirectory.open(settings) as reader:
            here, there = (writer.create_cell(name, "sqlite:///cell.db", "none:///") for name in ("here", "there"))
            instances = [str(uuid4()) for _ in range(2100)]
            writer.map_instances((instance, here.uuid, "project") for instance in instances)
            connections = relay.connections
            assert set(reader.resolve_cells(instances).values()) == {here}
            assert reader.resolve_cell(instances[0]) == here
            for instance in instances[:20]:
                writer.move_instance(instance, there.uuid)
                assert reader.resolve_cell(instance) == there
            writer.prune(instances[:5])
            assert reader.resolve_cells(instances[:6]) == {instances[5]: there}
            assert (reader.stats().hits, reader.stats().misses) == (2122, 5)
            assert (reader.stats().cache_errors, writer.stats().cache_errors) == (0, 0)
            assert relay.connections - connections <= 1, "what TLS sends of its own accord broke no connection"
        assert cache_node(settings).level is Level.FINE


@pytest.mark.parametrize("kind", CACHES)
def test_many_at_once_are_answered_over_tls_however_they_fall_into_its_records(
    kind: AnyCache, trust: Trust, database_file: str
) -> None:
    with kind(trust.ours.issue("cache")) as server:
        settings = settings_of(database_file, server, tls_ca=str(trust.ca))
        with CellDirectory.open(settings) as directory:
            backend = directory._here().backend
            for n in (150, 220, 300, 350, 404, 500, 701, 808, 1000, 1001):
                keys = [str(uuid4()) for _ in range(n)]
                fences = backend.fence_multi(keys)
                placed = [(key, fence) for key, fence in zip(keys, fences, strict=True) if fence.confirmed]
                assert len(placed) == n
                value = b"\x01" + bytes(range(16))
                settled = backend.settle_multi([Settlement(key, fence, value, 100.0) for key, fence in placed])
                assert settled == [True] * n
                assert backend.lookup_multi(keys) == [value] * n
                assert backend.peek_multi(keys) == [value] * n
            assert backend.errors == 0


@pytest.mark.parametrize("kind", CACHES)
def test_cache_with_a_certificate_of_another_authority_is_refused(
    kind: AnyCache, trust: Trust, database_file: str, caplog: pytest.LogCaptureFixture
) -> None:
    with kind(trust.ours.issue("cache")) as server:
        check_refusal(settings_of(database_file, server, tls_ca=str(trust.foreign_ca)), REFUSED, caplog)


@pytest.mark.parametrize("kind", CACHES)
def test_cache_is_verified_where_nothing_but_tls_is_configured(
    kind: AnyCache, trust: Trust, database_file: str, caplog: pytest.LogCaptureFixture
) -> None:
    with kind(trust.ours.issue("cache")) as server:
        check_refusal(settings_of(database_file, server), REFUSED, caplog)


@pytest.mark.parametrize("kind", CACHES)
def test_cache_with_a_certificate_for_another_host_is_refused(
    kind: AnyCache, trust: Trust, database_file: str, caplog: pytest.LogCaptureFixture
) -> None:
    with kind(trust.ours.issue("cache", host=ELSEWHERE)) as server:
        settings = settings_of(database_file, server, tls_ca=str(trust.ca))
        check_refusal(settings, rf"IP address mismatch.*{re.escape(HERE)}", caplog)


@pytest.mark.parametrize("kind", CACHES)
def test_cache_with_an_expired_certificate_is_refused(
    kind: AnyCache, trust: Trust, database_file: str, caplog: pytest.LogCaptureFixture
) -> None:
    with kind(trust.ours.issue("cache", expired=True)) as server:
        check_refusal(settings_of(database_file, server, tls_ca=str(trust.ca)), "certificate has expired", caplog)


@pytest.mark.parametrize("kind", ["memcached", "redis"])
def test_cache_that_speaks_plain_text_is_refused(
    kind: str, trust: Trust, database_file: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    server = request.getfixturevalue("memcached" if kind == "memcached" else "redis_server")
    # Whatever it makes of a TLS greeting: an answer that is none, a hang-up, or nothing until the time limit.
    settings = settings_of(database_file, server, tls_ca=str(trust.ca), timeout_s=0.5)
    check_refusal(settings, "WRONG_VERSION_NUMBER|record layer failure|EOF occurred|reset by peer|time(d )?out", caplog)


@pytest.mark.needs("memcached")
def test_plain_text_to_a_memcached_that_speaks_tls_is_refused(
    trust: Trust, database_file: str, caplog: pytest.LogCaptureFixture
) -> None:
    with TLSMemcached(trust.ours.issue("cache")) as server:
        settings = settings_of(database_file, server, tls=False, timeout_s=0.5)
        check_refusal(settings, "closed by the server|reset by peer|no reply in time", caplog)


@pytest.mark.parametrize("kind", CACHES)
def test_cache_that_asks_for_our_certificate_gets_it(kind: AnyCache, trust: Trust, database_file: str) -> None:
    with kind(trust.ours.issue("cache"), clients=trust.ours) as server:
        settings = settings_of(database_file, server, tls_ca=str(trust.ca), **trust.client())
        with CellDirectory.open(settings) as directory:
            cell = directory.create_cell("cell", "sqlite:///cell.db", "none:///")
            instance = directory.map_instance(str(uuid4()), cell.uuid, "project").instance_uuid
            assert directory.resolve_cell(instance) == cell
            assert (directory.stats().hits, directory.stats().cache_errors) == (1, 0)
        assert cache_node(settings).level is Level.FINE


@pytest.mark.parametrize("which", ["none", "foreign", "expired"])
@pytest.mark.parametrize("kind", CACHES)
def test_cache_that_asks_for_our_certificate_refuses_another(
    kind: AnyCache, which: str, trust: Trust, database_file: str, caplog: pytest.LogCaptureFixture
) -> None:
    clients = {
        "none": dict[str, str](),
        "foreign": trust.client(trust.foreign),
        "expired": trust.client(expired=True),
    }
    with kind(trust.ours.issue("cache"), clients=trust.ours) as server:
        settings = settings_of(database_file, server, tls_ca=str(trust.ca), **clients[which])
        # In TLS 1.3 a client learns of it with the first thing that it reads, or by being hung up on.
        check_refusal(settings, "alert|EOF occurred|closed by the server|reset by peer|broken pipe", caplog)


@pytest.mark.needs("redis")
def test_redis_url_may_say_all_that_the_settings_may(trust: Trust, database_file: str) -> None:
    client = trust.client()
    with TLSRedis(trust.ours.issue("cache"), clients=trust.ours) as server:
        files = f"?ssl_ca_certs={trust.ca}&ssl_certfile={client['tls_cert']}&ssl_keyfile={client['tls_key']}"
        assert cache_node(settings_of(database_file, server, url=server.url + files)).level is Level.FINE
        foreign = files.replace(str(trust.ca), str(trust.foreign_ca))
        assert REFUSED in cache_node(settings_of(database_file, server, url=server.url + foreign)).says


@pytest.mark.slow
@pytest.mark.parametrize("key", ["tls_ca", "tls_cert"])
def test_tls_file_that_cannot_be_used_is_named(key: str, tmp_path: Path, database_file: str) -> None:
    for content, reason in ((None, "No such file"), (b"not PEM", "")):
        file = tmp_path / f"{key}.pem"
        if content:
            file.write_bytes(content)
        cache = {"backend": "cellcache.memcached", "servers": ["127.0.0.1:1"], "tls": True, key: str(file)}
        with pytest.raises(ConfigError, match=rf"cache\.{key} = '{file}'.*{reason}"):
            CellDirectory.open(Settings(database={"url": database_file}, cache=cache))


def test_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(trust: Trust, database_file: str) -> None:
    from cryptography.hazmat.primitives import serialization

    pair = trust.ours.issue("cellcache")
    key = serialization.load_pem_private_key(pair.key, None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"passphrase"),
    )
    files = type(pair)(pair.certificate, locked).write(trust.folder, "locked")
    cache = {"backend": "cellcache.memcached", "servers": ["127.0.0.1:1"], "tls": True}
    cache |= {"tls_cert": str(files[0]), "tls_key": str(files[1])}
    with pytest.raises(ConfigError, match="no passphrase"):
        CellDirectory.open(Settings(database={"url": database_file}, cache=cache))


# -- databases -------------------------------------------------------------------------------------------------------


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(MariaDB, id="mariadb", marks=pytest.mark.needs("mariadb")),
        pytest.param(PostgreSQL, id="postgresql", marks=pytest.mark.needs("postgresql")),
    ],
)
def database(request: pytest.FixtureRequest, trust: Trust) -> Iterator[DatabaseServer]:
    with with_tls(request.param(), trust.ours.issue("database"), trust.ours) as server:
        yield server


def documented(server: DatabaseServer, ca: Path) -> str:
    """Return the options that docs/security.md has for this database."""
    lines = (Path(__file__).parents[1] / "docs" / "security.md").read_text()
    options = re.findall(r"`(\?ssl[^`]*)`", lines)
    (found,) = [option for option in options if ("sslmode" in option) == isinstance(server, PostgreSQL)]
    assert "/path" in found
    return str(found).replace("/path", str(ca))


def named(server: DatabaseServer, ca: Path) -> str:
    """Return the least that names an authority."""
    return f"?sslrootcert={ca}" if isinstance(server, PostgreSQL) else f"?ssl_ca={ca}"


OPTIONS = [documented, named]


def is_encrypted(settings: Settings) -> bool:
    """Whether the directory's own connections are."""
    with CellDirectory.open(settings) as directory, directory._here().store._reading.connect() as connection:
        if connection.dialect.name == "postgresql":
            return bool(connection.scalar(text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")))
        return bool(connection.execute(text("SHOW STATUS LIKE 'Ssl_cipher'")).one()[1])


def at_localhost(url: str) -> str:
    """The same server by a name that its certificate does not have."""
    return url.replace(f"@{HERE}:", "@localhost:")


def check_database_refusal(url: str, reason: str) -> None:
    with pytest.raises(DatabaseUnavailable, match=f"(?i){reason}"):
        schema.upgrade(url)
    settings = Settings(database={"url": url})
    with CellDirectory.open(settings) as directory, pytest.raises(DatabaseUnavailable, match=f"(?i){reason}"):
        directory.resolve_cell(str(uuid4()))
    finding = next(examine(settings))
    assert (finding.what, finding.level) == ("database", Level.PROBLEM)
    assert re.search(reason, finding.says, re.IGNORECASE), finding.says


@pytest.mark.parametrize("options", OPTIONS)
def test_database_over_tls_works_with_the_right_authority(database: DatabaseServer, options: Any, trust: Trust) -> None:
    url = database.create_database(next(_names)) + options(database, trust.ca)
    schema.upgrade(url)
    settings = Settings(database={"url": url})
    assert next(examine(settings)).level is Level.FINE
    assert is_encrypted(settings)
    with CellDirectory.open(settings) as directory:
        cell = directory.create_cell("cell", url, "none:///")
        instance = directory.map_instance(str(uuid4()), cell.uuid, "project").instance_uuid
        with directory.connect_cell(instance) as connection:
            assert connection.scalar(text("SELECT 1")) == 1


@pytest.mark.parametrize("options", OPTIONS)
def test_database_of_another_authority_is_refused(database: DatabaseServer, options: Any, trust: Trust) -> None:
    check_database_refusal(database.create_database(next(_names)) + options(database, trust.foreign_ca), REFUSED)


@pytest.mark.parametrize("options", OPTIONS)
def test_database_with_a_certificate_for_another_host_is_refused(
    database: DatabaseServer, options: Any, trust: Trust
) -> None:
    url = at_localhost(database.create_database(next(_names)))
    assert "localhost" in url
    check_database_refusal(url + options(database, trust.ca), 'Hostname mismatch|does not match host name "localhost"')


def test_database_with_an_expired_certificate_is_refused(database: DatabaseServer, trust: Trust) -> None:
    url = database.create_database(next(_names)) + documented(database, trust.ca)
    with_tls(database, trust.ours.issue("database", expired=True), trust.ours)
    database.restart()
    try:
        check_database_refusal(url, "expired|certificate verify failed")
    finally:
        with_tls(database, trust.ours.issue("database"), trust.ours)
        database.restart()
    schema.upgrade(url)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", ["mariadb", "postgresql"])
def test_database_that_speaks_plain_text_is_refused(
    kind: str, options: Any, request: pytest.FixtureRequest, trust: Trust
) -> None:
    server = request.getfixturevalue(kind)
    url = server.create_database(next(_names)) + options(server, trust.ca)
    # A MariaDB that makes itself a certificate does speak TLS; nobody has signed that one.
    check_database_refusal(url, f"doesn't support it|does not support SSL|{REFUSED}")


def test_cell_database_of_another_authority_is_refused(database: DatabaseServer, trust: Trust, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'cellcache.db'}"
    schema.upgrade(url)
    there = database.create_database(next(_names)) + documented(database, trust.foreign_ca)
    with CellDirectory.open(Settings(database={"url": url})) as directory:
        cell = directory.create_cell("cell", there, "none:///")
        instance = directory.map_instance(str(uuid4()), cell.uuid, "project").instance_uuid
        with pytest.raises(DatabaseUnavailable, match=REFUSED), directory.connect_cell(instance):
            pass


def test_database_that_asks_for_our_certificate_gets_it(database: DatabaseServer, trust: Trust) -> None:
    name, user = next(_names), "certified"
    url = make_url(database.create_database(name)).set(username=user)
    client = trust.client()
    if isinstance(database, PostgreSQL):
        url = url.update_query_dict({"sslcert": client["tls_cert"], "sslkey": client["tls_key"]})
        url = url.update_query_dict({"sslmode": "verify-full", "sslrootcert": str(trust.ca)})
        Path(client["tls_key"]).chmod(0o600)
        database.execute(f"CREATE USER {user} SUPERUSER PASSWORD '{url.password}'")
        rules = (
            f"hostssl all {user} {HERE}/32 scram-sha-256 clientcert=verify-ca\nhost all all {HERE}/32 scram-sha-256\n"
        )
        place = database.data / "pg_hba.conf"
        before = place.read_bytes()
        place.write_text(rules)
        database.execute("SELECT pg_reload_conf()")
    else:
        url = url.update_query_dict({"ssl_cert": client["tls_cert"], "ssl_key": client["tls_key"]})
        url = url.update_query_dict({"ssl_ca": str(trust.ca)})
        before, place = b"", None
        database.execute(f"CREATE USER {user}@{HERE} IDENTIFIED BY '{url.password}' REQUIRE X509")
        database.execute(f"GRANT ALL ON {name}.* TO {user}@{HERE}")
    try:
        schema.upgrade(url)
        assert is_encrypted(Settings(database={"url": url.render_as_string(hide_password=False)}))
        without = url.difference_update_query(["ssl_cert", "ssl_key", "sslcert", "sslkey"])
        if isinstance(database, PostgreSQL):  # libpq would look for one in the home directory
            without = without.update_query_dict({"sslcert": "/nowhere", "sslkey": "/nowhere"})
        check_database_refusal(without.render_as_string(hide_password=False), "client certificate|Access denied")
    finally:
        if place is not None:
            place.write_bytes(before)
            database.execute("SELECT pg_reload_conf()")


# -- what a URL asks of its driver -----------------------------------------------------------------------------------

MYSQL, POSTGRESQL = "mysql+pymysql://nova@db/nova", "postgresql+psycopg://nova@db/nova"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (MYSQL, {}),
        (f"{MYSQL}?ssl_ca=/ca", {"ssl_ca": "/ca"}),
        (f"{MYSQL}?ssl_ca=/ca&ssl_verify_cert=true&ssl_verify_identity=true", {"ssl_ca": "/ca"}),
        (f"{MYSQL}?ssl_ca=/ca&ssl_verify_cert=1", {"ssl_ca": "/ca"}),
        (f"{MYSQL}?ssl_ca=/ca&ssl_verify_identity=False", {"ssl_ca": "/ca", "ssl_check_hostname": "false"}),
        (f"{MYSQL}?ssl_ca=/ca&ssl_verify_cert=false", {"ssl_ca": "/ca", "ssl_verify_cert": "false"}),
        (f"{MYSQL}?ssl_verify_cert=false", {"ssl_verify_cert": "false"}),
        (POSTGRESQL, {}),
        (f"{POSTGRESQL}?sslrootcert=/ca", {"sslrootcert": "/ca", "sslmode": "verify-full"}),
        (f"{POSTGRESQL}?sslrootcert=/ca&sslmode=require", {"sslrootcert": "/ca", "sslmode": "require"}),
        ("sqlite:///x.db", {}),
    ],
)
def test_naming_an_authority_verifies_all_that_is_not_refused(given: str, meant: dict[str, str]) -> None:
    assert dict(verifying_url(make_url(given)).query) == meant


@pytest.mark.parametrize("option", ["ssl_verify_cert=true", "ssl_verify_identity=true"])
def test_verifying_without_an_authority_is_refused(option: str, database_file: str) -> None:
    url = f"mysql+pymysql://nova:secret@db/nova?{option}"
    with pytest.raises(ConfigError, match=r"database\.url.*need ssl_ca") as refused:
        Settings(database={"url": url})
    assert "secret" not in str(refused.value)
    with pytest.raises(InvalidValue, match="need ssl_ca"):
        schema.upgrade(url)
    with CellDirectory.open(Settings(database={"url": database_file})) as directory:
        with pytest.raises(InvalidValue, match="need ssl_ca"):
            directory.create_cell("cell", url, "none:///")
        assert directory.list_cells() == []


@pytest.mark.parametrize("option", ["ssl_ca", "ssl_cert"])
def test_a_file_of_a_database_url_that_is_not_there_is_named(option: str, database_file: str) -> None:
    url = f"mysql+pymysql://nova:nova@127.0.0.1:1/nova?{option}=/no/such.pem"
    named = f"No such file.*; {option} = /no/such.pem cannot be read"
    with pytest.raises(ConfigError, match=named):
        schema.current(url)
    with CellDirectory.open(Settings(database={"url": url})) as directory, pytest.raises(ConfigError, match=named):
        directory.list_cells()
    with CellDirectory.open(Settings(database={"url": database_file})) as directory:
        instance, cell = str(uuid4()), directory.create_cell("cell", url, "none:///")
        directory.map_instance(instance, cell.uuid, "p")
        with pytest.raises(ConfigError, match=named), directory.connect_cell(instance):
            raise AssertionError
        (told,) = [found for found in examine(directory.settings) if found.level is Level.PROBLEM]
        assert re.search(named, told.says)


@pytest.mark.parametrize("kind", ["mariadb"])
@pytest.mark.parametrize("database", [pytest.param(MariaDB, marks=pytest.mark.needs("mariadb"))], indirect=True)
def test_refusing_to_verify_the_host_still_verifies_the_authority(
    kind: str, database: DatabaseServer, trust: Trust
) -> None:
    url = at_localhost(database.create_database(next(_names)))
    schema.upgrade(f"{url}?ssl_ca={trust.ca}&ssl_verify_cert=true&ssl_verify_identity=false")
    with pytest.raises(DatabaseUnavailable, match=REFUSED):
        schema.upgrade(f"{url}?ssl_ca={trust.foreign_ca}&ssl_verify_identity=false")


def test_context_verifies_authority_and_host(trust: Trust) -> None:
    from cellcache.tls import verifying_context

    for ca in (trust.ca, None):
        context = verifying_context(ca, None, None)
        assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
        assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
