"""The profiles in docs/deployments: each loads as it stands, and does its work on real servers."""

from __future__ import annotations

import itertools
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from pydantic import BaseModel

from cellcache import CellDirectory, schema
from cellcache.config import CacheSettings, CellsSettings, DatabaseSettings, Settings
from cellcache.errors import InstanceNotMapped
from tests.servers import Kind, MariaDB, Memcached, PostgreSQL, Redis

FOLDER = Path(__file__).parents[1] / "docs" / "deployments"
PROFILES = sorted(path.name for path in FOLDER.glob("*.toml"))
SERVERS: dict[str, list[Kind]] = {
    "embedded.toml": [],
    "memcached.toml": ["mariadb", "memcached"],
    "memcached-several.toml": ["mariadb", "memcached"],
    "redis.toml": ["mariadb", "redis"],
    "postgresql.toml": ["postgresql", "memcached"],
}
SECTIONS: dict[str, type[BaseModel]] = {"database": DatabaseSettings, "cache": CacheSettings, "cells": CellsSettings}

_names = (f"deployment_{number}" for number in itertools.count(1))


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("CELLCACHE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def servers(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the addresses of real servers in the place of a profile's own, as a deployment's environment would."""
    profile = request.getfixturevalue("profile")
    written = tomllib.loads((FOLDER / profile).read_text())
    url = written["database"]["url"]
    if url.startswith("sqlite"):
        url = f"sqlite:///{tmp_path / 'cellcache.db'}"
    else:
        database = request.getfixturevalue("postgresql" if url.startswith("postgresql") else "mariadb")
        assert isinstance(database, MariaDB | PostgreSQL)
        url = database.create_database(next(_names))
    monkeypatch.setenv("CELLCACHE_DATABASE__URL", url)
    if "url" in written["cache"]:
        redis = request.getfixturevalue("redis_server")
        assert isinstance(redis, Redis)
        monkeypatch.setenv("CELLCACHE_CACHE__URL", redis.url)
    if len(written["cache"].get("servers", [])) == 1:
        memcached = request.getfixturevalue("memcached")
        assert isinstance(memcached, Memcached)
        monkeypatch.setenv("CELLCACHE_CACHE__SERVERS", memcached.address)
    if len(written["cache"].get("servers", [])) > 1:
        memcacheds: list[Memcached] = request.getfixturevalue("memcacheds")
        monkeypatch.setenv("CELLCACHE_CACHE__SERVERS", ",".join(server.address for server in memcacheds))


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_loads_as_it_stands(profile: str) -> None:
    settings = Settings.load(FOLDER / profile)
    settings.cache.backend_arguments()
    assert settings.cache.backend.startswith("cellcache.")


@pytest.mark.parametrize("profile", PROFILES)
def test_what_a_profile_suggests_in_a_comment_is_a_key(profile: str) -> None:
    section, suggested = "", []
    for line in (FOLDER / profile).read_text().splitlines():
        section = line.strip("[]") if line.startswith("[") else section
        suggested += [(section, key) for key in re.findall(r"^#.*?\b(\w+) = \S", line)]
    assert [(section, key) for section, key in suggested if key not in SECTIONS[section].model_fields] == []


def test_there_is_a_profile_for_each_way_to_deploy() -> None:
    assert sorted(SERVERS) == PROFILES


def test_the_readme_lists_every_profile_and_no_other() -> None:
    assert sorted(set(re.findall(r"\(([\w-]+\.toml)\)", (FOLDER / "README.md").read_text()))) == PROFILES


@pytest.mark.slow
@pytest.mark.quiet  # with the profiles' own time limits, which are short
@pytest.mark.usefixtures("servers")
@pytest.mark.parametrize(
    "profile",
    [pytest.param(name, marks=[pytest.mark.needs(*kinds)] if kinds else []) for name, kinds in SERVERS.items()],
)
def test_a_profile_does_its_work(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings.load(FOLDER / profile)
    schema.upgrade(settings.database.connection_url)
    monkeypatch.setenv("CELLCACHE_CONFIG", str(FOLDER / profile))
    with CellDirectory.open(FOLDER / profile) as writer, CellDirectory.open() as reader:
        check(writer, reader)
        assert reader.stats().cache_errors == 0
        assert [status.trouble for status in reader.check_cache()] == [None] * max(1, len(settings.cache.servers))


def check(writer: CellDirectory, reader: CellDirectory) -> None:
    """Map, resolve, move and prune a few instances; the other directory sees each change with its next lookup."""
    old, new = (writer.create_cell(name, "sqlite:///cell.db", "none:///") for name in ("old", "new"))
    instances = [str(uuid4()) for _ in range(20)]
    for instance in instances:
        with pytest.raises(InstanceNotMapped):
            reader.resolve_cell(instance)
    for instance in instances:
        writer.map_instance(instance, old.uuid, "project")
    reads = reader.stats().sql_reads
    assert [reader.resolve_cell(instance).uuid for instance in instances] == [old.uuid] * 20
    assert {instance: cell.name for instance, cell in reader.resolve_cells(instances).items()} == dict.fromkeys(
        instances, "old"
    )
    assert reader.stats().sql_reads == reads, "what was written through is in the cache"
    for instance in instances:
        writer.move_instance(instance, new.uuid)
    assert [reader.resolve_cell(instance).uuid for instance in instances] == [new.uuid] * 20
    assert writer.prune(instances) == 20
    assert reader.resolve_cells(instances) == {}


# -- what the README says of the servers -----------------------------------------------------------------------------


@pytest.fixture
def readme_redis() -> Iterator[Redis]:
    """A Redis that is configured as the README has it, and has the user that it describes."""
    (block,) = re.findall(r"^```\n(save .*?)^```", (FOLDER / "README.md").read_text(), re.M | re.S)
    lines = [line.partition("#")[0].split() for line in block.splitlines()]
    (user,) = re.findall(r"^ACL SETUSER (.*)$", (FOLDER / "README.md").read_text(), re.M)
    options = [word for name, value in lines for word in (f"--{name}", value.strip('"'))]
    with Redis([*options, "--user", *user.split()]) as redis:
        yield redis


@pytest.mark.needs("redis")
def test_the_redis_that_the_readme_describes_lets_its_user_do_everything(readme_redis: Redis, tmp_path: Path) -> None:
    database = {"url": f"sqlite:///{tmp_path / 'cellcache.db'}"}
    schema.upgrade(database["url"])
    profile = tomllib.loads((FOLDER / "redis.toml").read_text())["cache"]
    cache = profile | {"url": readme_redis.url, "username": "cellcache", "password": "secret"}
    settings = Settings(database=database, cache=cache)
    with CellDirectory.open(settings) as writer, CellDirectory.open(settings) as reader:
        check(writer, reader)
        assert (writer.stats().cache_errors, reader.stats().cache_errors) == (0, 0)
        assert [status.trouble for status in reader.check_cache()] == [None]


@pytest.mark.needs("memcached")
@pytest.mark.parametrize("profile", [name for name in PROFILES if "memcached -m" in (FOLDER / name).read_text()])
def test_the_memcached_that_a_profile_describes_starts(profile: str, tmp_path: Path) -> None:
    (flags,) = re.findall(r"^#   memcached (.*?) -l", (FOLDER / profile).read_text(), re.M)
    database = {"url": f"sqlite:///{tmp_path / 'cellcache.db'}"}
    schema.upgrade(database["url"])
    with Memcached(options=flags.split()) as memcached:
        cache = {"backend": "cellcache.memcached", "servers": [memcached.address]}
        settings = Settings(database=database, cache=cache)
        with CellDirectory.open(settings) as writer, CellDirectory.open(settings) as reader:
            check(writer, reader)
            assert reader.stats().cache_errors == 0
