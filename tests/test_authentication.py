"""Names and passwords at the cache servers: the right ones work, and whatever is wrong is said when it is opened."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from cellcache import CellDirectory, Settings, schema
from cellcache.backends.resp import ACL_RULES
from cellcache.doctor import examine
from cellcache.errors import BackendUnsupported
from cellcache.findings import Finding, Level
from cellcache.protocol import Absent
from tests.server_process import Server
from tests.servers import Memcached, Redis

RULES = ACL_RULES.split()
README = Path(__file__).parents[1] / "docs" / "deployments" / "README.md"


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'cellcache.db'}"
    schema.upgrade(url)
    return url


def settings_of(database_url: str, server: Server, **cache: Any) -> Settings:
    place: dict[str, Any] = {"backend": "cellcache.memcached", "servers": [server.address]}
    if isinstance(server, Redis):
        place = {"backend": "cellcache.redis", "url": server.url}
    return Settings(database={"url": database_url}, cache=place | {"timeout_s": 4.0, "retry_s": 60.0} | cache)


def check_use(settings: Settings) -> None:
    """Map, look up, move, prune; all of it through the cache."""
    with CellDirectory.open(settings) as writer, CellDirectory.open(settings) as reader:
        here, there = (writer.create_cell(name, "sqlite:///cell.db", "none:///") for name in ("here", "there"))
        instances = [str(uuid4()) for _ in range(5)]
        assert reader.resolve_cells(instances) == {}
        for instance in instances:
            writer.map_instance(instance, here.uuid, "project")
        assert reader.resolve_cell(instances[0]) == here
        writer.move_instance(instances[0], there.uuid)
        assert reader.resolve_cell(instances[0]) == there
        writer.prune(instances[1:3])
        assert set(reader.resolve_cells(instances)) == {instances[0], *instances[3:]}
        stats = reader.stats()
        assert (stats.hits, stats.unreachable, stats.cache_errors, writer.stats().cache_errors) == (5, 0, 0, 0)


def problem(settings: Settings) -> str:
    (finding,) = [finding for finding in _cache_findings(settings) if finding.level is Level.PROBLEM]
    return finding.says


def _cache_findings(settings: Settings) -> list[Finding]:
    return [finding for finding in examine(settings) if finding.what.startswith("cache")]


# -- memcached -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded() -> Iterator[Memcached]:
    server = Memcached()
    server.options = ("-Y", str(server.add_file("users", b"nova:right-horse\ncinder:other\n")))
    with server:
        yield server


@pytest.mark.needs("memcached")
def test_memcached_lets_us_in_with_the_right_password(guarded: Memcached, database_url: str) -> None:
    check_use(settings_of(database_url, guarded, username="nova", password="right-horse"))
    check_use(settings_of(database_url, guarded, username="cinder", password="other"))


@pytest.mark.needs("memcached")
@pytest.mark.parametrize(
    "credentials",
    [
        pytest.param({"username": "nova", "password": "wrong"}, id="wrong password"),
        pytest.param({"username": "neutron", "password": "right-horse"}, id="wrong name"),
        pytest.param({"username": "nova", "password": "right-"}, id="half a password"),
        pytest.param({"username": "nova", "password": "x" * 249}, id="a long password"),
        pytest.param({}, id="none"),
    ],
)
def test_memcached_that_does_not_let_us_in_is_refused_when_it_is_opened(
    guarded: Memcached, credentials: dict[str, str], database_url: str
) -> None:
    settings = settings_of(database_url, guarded, **credentials)
    with pytest.raises(BackendUnsupported, match=rf"{guarded.address} refuses us.*cache\.username") as refused:
        CellDirectory.open(settings)
    assert "cache.username" in problem(settings)
    assert "\n" not in str(refused.value)
    assert credentials.get("password", "nothing") not in str(refused.value)


@pytest.mark.needs("memcached")
def test_password_that_stops_working_costs_the_cache_and_no_answer(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = Memcached()
    server.options = ("-Y", str(server.add_file("users", b"nova:before\n")))
    with server, CellDirectory.open(settings_of(database_url, server, username="nova", password="before")) as directory:
        cell = directory.create_cell("cell", "sqlite:///cell.db", "none:///")
        instance = directory.map_instance(str(uuid4()), cell.uuid, "project").instance_uuid
        server.add_file("users", b"nova:after\n")
        server.kill()
        server.start()
        caplog.clear()
        with caplog.at_level(logging.WARNING, "cellcache"):
            for _ in range(3):
                assert directory.resolve_cell(instance) == cell
        assert directory.stats().unreachable == 3
        (warning,) = [record.getMessage() for record in caplog.records]
        assert "cache.username" in warning
        assert "before" not in warning


@pytest.mark.needs("memcached")
def test_memcached_that_asks_for_no_password_is_told_none(memcached: Memcached, database_url: str) -> None:
    """To a memcached without -Y, logging in means storing the name and the password under the key `auth`."""
    check_use(settings_of(database_url, memcached, username="nova", password="right-horse"))
    assert memcached._ask(b"get auth\r\n") == b"END\r\n"


# -- Redis -----------------------------------------------------------------------------------------------------------

USER = {"username": "cellcache", "password": "secret", "key_prefix": "cellcache:"}


def readme_user() -> list[str]:
    (user,) = re.findall(r"^ACL SETUSER (.*)$", README.read_text(), re.M)
    return str(user).split()


def redis_with_user(*rules: str) -> Redis:
    return Redis(["--user", *rules])


@pytest.mark.needs("redis")
@pytest.mark.parametrize("database", [0, 3])
def test_redis_user_of_the_readme_may_do_all_that_is_needed(database: int, database_url: str) -> None:
    with redis_with_user(*readme_user()) as server:
        url = server.url.replace("/0", f"/{database}")
        check_use(settings_of(database_url, server, **USER, url=url))
        in_url = url.replace("://", "://cellcache:secret@")
        check_use(settings_of(database_url, server, url=in_url, key_prefix="cellcache:"))
        settings = settings_of(database_url, server, **USER)
        assert {finding.level for finding in _cache_findings(settings)} == {Level.FINE}


def test_the_readme_gives_the_rules_that_errors_name() -> None:
    assert [rule for rule in readme_user() if rule.startswith("+")] == RULES


@pytest.mark.needs("redis")
@pytest.mark.parametrize("left_out", RULES)
def test_redis_user_with_a_rule_less_is_told_the_rules(left_out: str, database_url: str) -> None:
    with redis_with_user(*(rule for rule in readme_user() if rule != left_out)) as server:
        settings = settings_of(database_url, server, **USER, url=server.url.replace("/0", "/3"))
        says = problem(settings)
        assert ACL_RULES in says
        assert "NOPERM" in says or "can't run this command" in says
        assert "secret" not in says
        if left_out in {"+info", "+select", "+script|load"}:  # what every connection begins with
            with pytest.raises(BackendUnsupported, match="NOPERM"):
                CellDirectory.open(settings)


@pytest.mark.needs("redis")
def test_redis_user_of_other_keys_is_told_which_are_needed(database_url: str) -> None:
    with redis_with_user(*readme_user()) as server:
        says = problem(settings_of(database_url, server, **USER | {"key_prefix": "nova:"}))
        assert "NOPERM" in says
        assert "~<cache.key_prefix>*" in says


@pytest.mark.needs("redis")
def test_redis_user_who_may_not_look_changes_nothing(database_url: str) -> None:
    """A script that cannot see what stands there must not take it for something that may go: it may be a fence."""
    with redis_with_user(*(rule for rule in readme_user() if rule != "+getrange")) as server:
        settings = settings_of(database_url, server, **USER, retry_s=0.001)
        with CellDirectory.open(settings) as directory:
            backend, key = directory._here().backend, str(uuid4())
            (fence,) = backend.fence_multi([key])
            assert fence.confirmed
            assert backend.invalidate_multi([key]) == [False]
            administrator = settings_of(database_url, server, key_prefix="cellcache:")
            with CellDirectory.open(administrator) as other:
                assert other._here().backend.lookup(key) is Absent.FENCED


@pytest.mark.needs("redis")
@pytest.mark.parametrize(
    "credentials",
    [
        pytest.param({"username": "cellcache", "password": "wrong-one"}, id="wrong password"),
        pytest.param({"username": "nobody", "password": "secret"}, id="wrong name"),
        pytest.param({}, id="none"),
    ],
)
def test_redis_that_does_not_let_us_in_is_refused_when_it_is_opened(
    credentials: dict[str, str], database_url: str
) -> None:
    with Redis(["--requirepass", "default-secret", "--user", *readme_user()]) as server:
        settings = settings_of(database_url, server, key_prefix="cellcache:", **credentials)
        with pytest.raises(BackendUnsupported, match=r"refuses us.*(WRONGPASS|NOAUTH).*user and password") as refused:
            CellDirectory.open(settings)
        assert "user and password" in problem(settings)
        for secret in ("wrong-one", "secret"):
            assert secret not in str(refused.value).replace(ACL_RULES, "")


@pytest.mark.needs("redis")
def test_redis_password_of_the_default_user(database_url: str) -> None:
    with Redis(["--requirepass", "default-secret"]) as server:
        check_use(settings_of(database_url, server, password="default-secret"))
        check_use(settings_of(database_url, server, url=server.url.replace("://", "://:default-secret@")))


@pytest.mark.needs("redis")
def test_redis_that_knows_no_password_says_so(redis_server: Redis, database_url: str) -> None:
    says = problem(settings_of(database_url, redis_server, password="superfluous"))
    assert "without any password configured" in says
    assert "superfluous" not in says
