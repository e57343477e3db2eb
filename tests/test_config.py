"""What a deployment may configure: where values come from, which are refused and how, and that no secret shows."""

from __future__ import annotations

import json
import os
import re
import ssl
import tempfile
import tomllib
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from cellcache.config import CacheSettings, CellsSettings, DatabaseSettings, Settings
from cellcache.errors import ConfigError
from cellcache.known_backends import OTHERS

DOCS = Path(__file__).parents[1] / "docs"
MYSQL = "mysql+pymysql://nova_api:secret@db/nova_api"
MEMCACHED = {"backend": "cellcache.memcached", "servers": ["10.0.0.1:11211"]}
REDIS = {"backend": "cellcache.redis", "url": "redis://10.0.0.1:6379/0"}
SIGNING_KEY, PREVIOUS_KEY = "0123456789abcdef" * 2, "fedcba9876543210" * 2
KEYS = {
    "database": list(DatabaseSettings.model_fields),
    "cache": list(CacheSettings.model_fields),
    "cells": list(CellsSettings.model_fields),
}
EVERY_KEY = [(section, key) for section in KEYS for key in KEYS[section]]


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("CELLCACHE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cellcache.toml"


def trouble(**sections: Mapping[str, Any]) -> str:
    """The text of the error that these settings are."""
    with pytest.raises(ConfigError) as caught:
        Settings(**sections)
    return str(caught.value)


def trouble_of_loading(path: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        Settings.load(path)
    return str(caught.value)


# -- where values come from ------------------------------------------------------------------------------------------


def test_without_file_and_environment_no_database_is_assumed() -> None:
    settings = Settings.load()
    assert settings == Settings()
    assert settings.database.url is None
    assert settings.describe()["database"]["url"] is None
    assert settings.cache.backend == "cellcache.memory"
    for name in ("connection_url", "sqlalchemy_url"):
        with pytest.raises(
            ConfigError, match=r"no database is configured: .* `export CELLCACHE_DATABASE__URL=sqlite:///"
        ):
            getattr(settings.database, name)


def test_settings_made_in_code_do_not_read_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLCACHE_CACHE__TTL_S", "7")
    monkeypatch.setenv("CELLCACHE_CONFIG", "/does/not/exist.toml")
    monkeypatch.setenv("CELLCACHE_NONSENSE", "1")
    settings = Settings(database={"url": MYSQL}, cache=MEMCACHED)
    assert settings.database.connection_url == MYSQL
    assert settings.cache.servers == ("10.0.0.1:11211",)
    assert settings.cache.ttl_s == 86400
    assert settings.cells == CellsSettings()


def test_the_file_named_wins_over_the_file_of_the_environment(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text("[cells]\npool_size = 1\n")
    other = tmp_path / "other.toml"
    other.write_text("[cells]\npool_size = 2\n")
    monkeypatch.setenv("CELLCACHE_CONFIG", str(other))
    assert Settings.load(path).cells.pool_size == 1
    assert Settings.load(str(path)).cells.pool_size == 1
    assert Settings.load().cells.pool_size == 2


SERVER_SAMPLES = {
    "username": "nova",
    "password": "pw",
    "ttl_s": "10",
    "negative_ttl_s": "1",
    "timeout_s": "0.1",
    "retry_s": "2",
    "lease_ttl_s": "3",
    "fence_ttl_s": "30",
    "key_prefix": "p:",
    "on_unreachable": "refuse",
    "durable": "unreachable",
    "max_entries": "10",
    "local_ttl_s": "0.5",
    "signing_key": SIGNING_KEY,
    "previous_signing_key": PREVIOUS_KEY,
    "tls_ca": "/ca",
    "tls_cert": "/cert",
    "tls_key": "/key",
}
SAMPLES: list[dict[str, dict[str, str]]] = [
    {
        "database": {"url": MYSQL, "pool_size": "3", "timeout_s": "1.5", "connect_timeout_s": "1"},
        "cells": {"refresh_s": "9", "pool_size": "2"},
    },
    {"cache": SERVER_SAMPLES | {"backend": "cellcache.memcached", "servers": "a,b:1", "tls": "true"}},
    {"cache": SERVER_SAMPLES | {"backend": "cellcache.redis", "url": "rediss://h"}},
    {"cache": {"backend": "dogpile.cache.null", "arguments": '{"a": 1}'}},
]


@pytest.mark.parametrize("sample", SAMPLES)
def test_every_key_can_be_set_by_the_environment(
    sample: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for section, values in sample.items():
        for key, text in values.items():
            monkeypatch.setenv(f"CELLCACHE_{section}__{key}".upper(), text)
    settings, defaults = Settings.load(), Settings()
    for section, values in sample.items():
        for key in values:
            assert getattr(getattr(settings, section), key) != getattr(getattr(defaults, section), key), key


def test_no_key_is_forgotten_above() -> None:
    for section, keys in KEYS.items():
        sampled = {key for sample in SAMPLES for key in sample.get(section, {})}
        assert sampled == {key for key in keys if not key.endswith("_file")}


def test_the_environment_wins_over_the_file_key_by_key(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(
        '[cache]\nbackend = "dogpile.cache.dbm"\nttl_s = 10\nnegative_ttl_s = 3\n'
        '[cache.arguments]\nfilename = "a"\nmode = "b"\n'
    )
    monkeypatch.setenv("cellcache_cache__ttl_s", "20")
    monkeypatch.setenv("CELLCACHE_CACHE__ARGUMENTS__FILENAME", "c")
    cache = Settings.load(path).cache
    assert (cache.backend, cache.ttl_s, cache.negative_ttl_s) == ("dogpile.cache.dbm", 20, 3)
    assert cache.backend_arguments() == {"filename": "c", "mode": "b"}


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("a:1,b:2", ("a:1", "b:2")),
        (" a:1 , b:2, ", ("a:1", "b:2")),
        ('["a:1", "b:2"]', ("a:1", "b:2")),
        ("[::1]:1,[::2]:2", ("[::1]:1", "[::2]:2")),
        ("[::1]:1", ("[::1]:1",)),
        ("unix:/run/a.sock", ("unix:/run/a.sock",)),
        (",", ()),
    ],
)
def test_servers_in_the_environment_are_json_or_separated_by_commas(
    text: str, servers: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if servers:
        monkeypatch.setenv("CELLCACHE_CACHE__BACKEND", "cellcache.memcached")
    monkeypatch.setenv("CELLCACHE_CACHE__SERVERS", text)
    assert Settings.load().cache.servers == servers


numbers = st.floats(min_value=0.2, max_value=1000)


@pytest.mark.slow
@given(
    ttl_s=numbers,
    retry_s=numbers,
    pool_size=st.integers(1, 1000),
    prefix=st.text("aZ09!#$%&*,-./:;<=>@[]{|}~", min_size=1, max_size=32),
)
def test_code_file_and_environment_mean_the_same_by_the_same_value(
    ttl_s: float, retry_s: float, pool_size: int, prefix: str
) -> None:
    cache = {"backend": "cellcache.redis", "url": "redis://h", "ttl_s": ttl_s, "retry_s": retry_s, "key_prefix": prefix}
    made = Settings(cache=cache, cells={"pool_size": pool_size})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "cellcache.toml")
        lines = [f"{key} = {json.dumps(value)}" for key, value in cache.items()]
        path.write_text("\n".join([f"[cells]\npool_size = {pool_size}\n[cache]", *lines]))
        assert Settings.load(path) == made
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CELLCACHE_CELLS__POOL_SIZE", str(pool_size))
        for key, value in cache.items():
            patch.setenv(f"CELLCACHE_CACHE__{key.upper()}", str(value))
        assert Settings.load() == made


@pytest.mark.parametrize("change", ["database", "cache", "cells"])
def test_settings_cannot_be_changed(change: str) -> None:
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        setattr(settings, change, None)
    section = getattr(settings, change)
    for key in KEYS[change]:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, key, None)


# -- secrets from files ----------------------------------------------------------------------------------------------


def test_a_secret_is_read_from_its_file_without_the_white_space_around_it(path: Path, tmp_path: Path) -> None:
    url, password = tmp_path / "url", tmp_path / "password"
    url.write_text(f"\n {MYSQL} \n")
    password.write_text("pass-word\n")
    path.write_text(
        f'[database]\nurl_file = "{url}"\n[cache]\nbackend = "cellcache.memcached"\nservers = ["a"]\n'
        f'username = "u"\npassword_file = "{password}"\n'
    )
    settings = Settings.load(path)
    assert settings.database.connection_url == MYSQL
    assert settings.cache.backend_arguments()["password"] == "pass-word"
    assert settings == Settings(
        database={"url_file": url},
        cache={"backend": "cellcache.memcached", "servers": ["a"], "username": "u", "password_file": password},
    )


@pytest.mark.parametrize("written", ["url", "url_file"])
@pytest.mark.parametrize("set_", ["URL", "URL_FILE"])
def test_a_variable_for_either_replaces_both_a_secret_and_its_file(
    written: str, set_: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, database in ("old", "below"), ("new", "above"):
        (tmp_path / name).write_text(f"sqlite:///{database}.db")
    path.write_text(f'[database]\n{written} = "{tmp_path / "old" if "file" in written else "sqlite:///below.db"}"\n')
    monkeypatch.setenv(f"CELLCACHE_DATABASE__{set_}", str(tmp_path / "new") if "FILE" in set_ else "sqlite:///above.db")
    assert Settings.load(path).database.connection_url == "sqlite:///above.db"


def test_a_secret_and_its_file_in_one_source_contradict_each_other(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "url"
    file.write_text(MYSQL)
    expected = f"database.url_file = '{file}'{{}}: url is given as well; give one of the two"
    assert trouble(database={"url": MYSQL, "url_file": file}) == expected.format("")
    path.write_text(f'[database]\nurl = "{MYSQL}"\nurl_file = "{file}"\n')
    assert trouble_of_loading(path) == expected.format(f" ({path})")
    monkeypatch.setenv("CELLCACHE_DATABASE__URL", MYSQL)
    monkeypatch.setenv("CELLCACHE_DATABASE__URL_FILE", str(file))
    assert trouble_of_loading() == expected.format(" (CELLCACHE_DATABASE__URL_FILE)")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "the file cannot be read: No such file or directory"),
        (b" \n", "the file is empty"),
        (b"\xff\xfe", "the file must be UTF-8 text"),
    ],
)
def test_a_secret_file_that_cannot_be_used_is_named(content: bytes | None, reason: str, tmp_path: Path) -> None:
    file = tmp_path / ("a-long-name" * 10)
    if content is not None:
        file.write_bytes(content)
    assert trouble(cache={"password_file": file}) == f"cache.password_file = '{file}': {reason}"


# -- unknown keys and unusable files ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[cache]\ntimout_s = 1", "cache.timout_s ({}) is not a key; did you mean cache.timeout_s?"),
        ("[cache]\nconnect_timeout_s = 1", "cache.connect_timeout_s ({}) is not a key; did you mean database.connect_"),
        ("[cells]\nxyzzy = 1", "cells.xyzzy ({}) is not a key; the keys are refresh_s, pool_size"),
        ("[cach]\nttl_s = 1", "cach ({}) is not a key; did you mean cache?"),
        ("ttl_s = 1", "ttl_s ({}) is not a key; did you mean cache.ttl_s?"),
        ("[xyzzy]", "xyzzy ({}) is not a key; the sections are database, cache, cells"),
        ("_env_file = 1", "_env_file ({}) is not a key; the sections are"),
        ("database = 1", "database ({}) must be a section: [database], and its keys below"),
    ],
)
def test_an_unknown_key_in_the_file_is_told_with_the_nearest(text: str, line: str, path: Path) -> None:
    path.write_text(text)
    assert trouble_of_loading(path).startswith(line.format(path))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "CELLCACHE_CACHE__TIMOUT_S",
            "cache.timout_s (CELLCACHE_CACHE__TIMOUT_S) is not a key; did you mean cache.timeo",
        ),
        (
            "CELLCACHE_DATABASE_URL",
            "environment variable CELLCACHE_DATABASE_URL names no key; did you mean CELLCACHE_DATA",
        ),
        (
            "CELLCACHE_CASH__TTL_S",
            "environment variable CELLCACHE_CASH__TTL_S names no key; did you mean CELLCACHE_CACHE_",
        ),
        ("CELLCACHE_CONFIGS", "environment variable CELLCACHE_CONFIGS names no key; did you mean CELLCACHE_CONFIG?"),
        ("CELLCACHE_CACHE", "environment variable CELLCACHE_CACHE names no key"),
        (
            "CELLCACHE_XYZZY",
            "environment variable CELLCACHE_XYZZY names no key; a key's variable is CELLCACHE_<SECTION>__<",
        ),
    ],
)
def test_an_unknown_variable_is_told_with_the_nearest(name: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "hunter2")
    told = trouble_of_loading()
    assert told.startswith(line)
    assert "hunter2" not in told


@pytest.mark.parametrize(
    "name",
    [
        "SERVICE_HOST",
        "SERVICE_PORT",
        "SERVICE_PORT_HTTP",
        "PORT",
        "PORT_80_TCP",
        "PORT_80_TCP_ADDR",
        "PORT_53_UDP_PROTO",
    ],
)
@pytest.mark.parametrize(
    "service",
    ["CELLCACHE", "CELLCACHE_MEMCACHED", "CELLCACHE_CACHE__X", "CELLCACHE_DATABASE__URL", "CELLCACHE_CELLS__"],
)
def test_variables_that_kubernetes_makes_for_a_service_are_passed_over(
    service: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in ("tcp://10.0.0.1:11211", ""):
        monkeypatch.setenv(f"{service}_{name}", value)
        assert Settings.load() == Settings()


def test_no_variable_of_a_key_is_taken_for_one_that_kubernetes_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    for section, key in EVERY_KEY:
        name = f"CELLCACHE_{section}__{key}".upper()
        monkeypatch.setenv(name, "")
        assert trouble_of_loading().startswith(f"environment variable {name} is blank")
        monkeypatch.delenv(name)


def test_a_file_that_cannot_be_used_is_named_with_the_line(path: Path, tmp_path: Path) -> None:
    assert trouble_of_loading(path) == f"configuration file {path} cannot be read: No such file or directory"
    assert "cannot be read: Is a directory" in trouble_of_loading(tmp_path)
    path.write_text("[cache]\nttl_s = = 1\n")
    told = trouble_of_loading(path)
    assert told.startswith(f"configuration file {path} is not TOML: ")
    assert "line 2" in told
    path.write_bytes(b"[cache]\n\nkey_prefix = '\xe4'\n")
    assert trouble_of_loading(path) == f"configuration file {path} is not UTF-8 text (at line 3)"


_DIGITS = "9" * 5000
_HEXADECIMAL = "0x" + "f" * 6000


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[cache]\nservers = " + "[" * 50_000, "is not TOML that anybody would write: its lists are nested too deeply"),
        (f"[cache]\nttl_s = {_DIGITS}", "is not TOML: Exceeds the limit"),
        *((f"[{section}]\n{key} = {_HEXADECIMAL}", f"{section}.{key} = ") for section, key in EVERY_KEY),
        (f"[cache]\nservers = [{_HEXADECIMAL}]", "cache.servers = "),
        (f"{'a' * 60_000} = 1", "a... ("),
    ],
    ids=lambda value: value[:40],
)
def test_a_file_that_nobody_would_write_is_a_configuration_error(path: Path, content: str, told: str) -> None:
    path.write_text(content)
    assert told in trouble_of_loading(path)
    assert len(trouble_of_loading(path)) < 3000


@pytest.mark.parametrize(
    "value",
    ["[" * 50_000, '{"a":' * 50_000, _DIGITS, f"[{_DIGITS}]", f'{{"a": {_DIGITS}}}'],
    ids=lambda value: value[:6],
)
def test_a_variable_that_nobody_would_write_is_a_configuration_error(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for section, key in EVERY_KEY:
        if not key.endswith(("password", "username", "signing_key")):  # which may be any text
            name = f"CELLCACHE_{section}__{key}".upper()
            monkeypatch.setenv(name, value)
            said = trouble_of_loading()
            assert f"{section}.{key} " in said
            assert len(said) < 3000
            monkeypatch.delenv(name)


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "key", "value", "line"),
    [
        ("database", "pool_size", 0, "database.pool_size = 0: must be greater than or equal to 1"),
        ("database", "timeout_s", 0, "database.timeout_s = 0: must be greater than 0"),
        ("database", "connect_timeout_s", -1, "database.connect_timeout_s = -1: must be greater than 0"),
        ("cache", "backend", "cellcache.memcache", "cache.backend = 'cellcache.memcache': must be cellcache.memory, "),
        (
            "cache",
            "backend",
            "redis",
            "cache.backend = 'redis': must be cellcache.memory, cellcache.memcached, cellcache.r",
        ),
        ("cache", "backend", "", "cache.backend = '': is blank"),
        ("cache", "servers", 5, "cache.servers = 5: must be a list of addresses"),
        ("cache", "ttl_s", 0, "cache.ttl_s = 0: must be greater than 0"),
        ("cache", "ttl_s", "soon", "cache.ttl_s = 'soon': must be a valid number"),
        ("cache", "ttl_s", True, "cache.ttl_s = True: must be a number"),
        ("cache", "ttl_s", float("inf"), "cache.ttl_s = inf: must be less than"),
        ("cache", "negative_ttl_s", 0, "cache.negative_ttl_s = 0: must be greater than 0"),
        ("cache", "timeout_s", 0, "cache.timeout_s = 0: must be greater than 0"),
        ("cache", "lease_ttl_s", 60, "cache.lease_ttl_s = 60.0: must be less than fence_ttl_s (60): a lease is short"),
        ("cache", "on_unreachable", "ignore", "cache.on_unreachable = 'ignore': must be 'commit' or 'refuse'"),
        ("cache", "durable", "never", "cache.durable = 'never': must be 'always' or 'unreachable'"),
        ("cache", "max_entries", 1.5, "cache.max_entries = 1.5: must be a valid integer"),
        (
            "cache",
            "key_prefix",
            "a b",
            "cache.key_prefix = 'a b': must be at most 32 printable ASCII characters, without",
        ),
        ("cache", "key_prefix", "\u00e4", "cache.key_prefix = '\u00e4': must be at most 32"),
        ("cache", "key_prefix", "a\n", "cache.key_prefix = 'a\\n': must be at most 32"),
        ("cache", "key_prefix", "x" * 33, f"cache.key_prefix = '{'x' * 33}': must be at most 32"),
        ("cache", "arguments", 5, "cache.arguments = '***': must be a table of arguments"),
        ("cache", "arguments", "{", "cache.arguments = '***': must be a table of arguments"),
        ("cells", "refresh_s", 0, "cells.refresh_s = 0: must be greater than 0"),
        ("cells", "pool_size", None, "cells.pool_size is not set: must be a valid integer"),
    ],
)
def test_a_wrong_value_is_told_with_its_key_and_what_is_allowed(
    section: str, key: str, value: object, line: str
) -> None:
    told = trouble(**{section: {key: value}})
    assert told.startswith(line)
    assert "\n" not in told


@pytest.mark.parametrize("backend", ["cellcache.memcache", "cellcache.memcachd", "memcached"])
def test_a_backend_of_ours_that_is_misspelt_is_told_with_the_nearest(backend: str) -> None:
    assert trouble(cache={"backend": backend}).endswith("did you mean cellcache.memcached?")


@pytest.mark.parametrize("backend", OTHERS)
def test_backends_of_dogpile_that_never_unpickle_may_be_named(backend: str) -> None:
    assert Settings(cache={"backend": backend}).cache.backend == backend


@pytest.mark.parametrize(
    ("section", "line"),
    [
        (MEMCACHED | {"servers": []}, "cache.servers = []: cellcache.memcached needs at least one, such as"),
        (
            MEMCACHED | {"servers": ["A", "a:11211"]},
            "cache.servers = ['a:11211', 'a:11211']: must name each server once",
        ),
        (MEMCACHED | {"ttl_s": 2592001}, "cache.ttl_s = 2592001.0: must be at most 2592000, 30 days"),
        (MEMCACHED | {"negative_ttl_s": 1e7}, "cache.negative_ttl_s = 10000000.0: must be at most 2592000"),
        (MEMCACHED | {"fence_ttl_s": 1e7}, "cache.fence_ttl_s = 10000000.0: must be at most 2592000"),
        (MEMCACHED | {"password": "hunter2"}, "cache.username is not set: must be given with the password"),
        (MEMCACHED | {"username": "nova"}, "cache.username = 'nova': needs password or password_file"),
        (MEMCACHED | {"username": "a b", "password": "p"}, "cache.username = 'a b': must hold no blank"),
        (MEMCACHED | {"username": "a:b", "password": "p"}, "cache.username = 'a:b': must hold no blank"),
        (
            MEMCACHED | {"username": "a\r\n", "password": "p"},
            "cache.username = 'a\\r\\n': must hold no blank, colon or",
        ),
        (MEMCACHED | {"username": "a", "password": "p q"}, "cache.password = '***': must hold no blank or control"),
        (
            MEMCACHED | {"username": "a", "password": "p\nflush_all"},
            "cache.password = '***': must hold no blank",
        ),
        (MEMCACHED | {"username": "a", "password": "p\0"}, "cache.password = '***': must hold no blank or control"),
        (
            MEMCACHED | {"username": "a", "password": "p" * 253},
            "cache.password = '***': must be shorter",
        ),
        (MEMCACHED | {"timeout_s": 50}, "cache.timeout_s = 50.0: must be less than lease_ttl_s (5); it is in seconds"),
        (MEMCACHED | {"tls": True, "tls_key": "/key.pem"}, "cache.tls_key = '/key.pem': needs tls_cert"),
        (MEMCACHED | {"tls_ca": "/ca"}, "cache.tls_ca = '/ca': TLS is off: set tls = true as well"),
        (
            MEMCACHED | {"tls": True, "servers": ["unix:/run/a", "unix:/run/b"]},
            "cache.tls = True: belongs to host:port; what goes through unix:/run/a is not encrypted",
        ),
        (
            MEMCACHED | {"tls": True, "servers": ["a:1", "unix:/run/b"]},
            "cache.tls = True: belongs to host:port; what goes through unix:/run/b is not encrypted",
        ),
        (REDIS | {"url": None}, "cache.url is not set: cellcache.redis needs one, such as redis://127.0.0.1:6379/0"),
        (
            REDIS | {"url": "redis://hunter2@h"},
            "cache.url = 'redis://***': names a user without a password; a password",
        ),
        (REDIS | {"tls": True}, "cache.tls = True: TLS to Redis is asked for in the URL: begin url with rediss://"),
        (REDIS | {"tls_ca": "/ca"}, "cache.tls_ca = '/ca': TLS to Redis is asked for in the URL"),
        (
            REDIS | {"url": "unix:///run/redis.sock", "tls_ca": "/ca"},
            "cache.tls_ca = '/ca': belongs to rediss://; what goes through a Unix socket is not encrypted",
        ),
    ],
)
def test_what_a_backend_needs_is_demanded_for_that_backend_alone(section: dict[str, Any], line: str) -> None:
    told = trouble(cache=section)
    assert told.startswith(line)
    assert "\n" not in told
    Settings(cache={key: section[key] for key in section if key.endswith("ttl_s")} | {"backend": "dogpile.cache.null"})


def test_a_login_that_memcached_can_carry_is_taken() -> None:
    for username, password in ("nova", "p:#/=%\u00e4"), ("a", "p" * 252):
        Settings(cache=MEMCACHED | {"username": username, "password": password})
    Settings(cache=REDIS | {"username": "nova", "password": "two words\n"})


# -- what does nothing where it stands -------------------------------------------------------------------------------

MEMORY: dict[str, Any] = {}
ANOTHER = {"backend": "dogpile.cache.null"}
PLACES = {"cellcache.memory": MEMORY, "cellcache.memcached": MEMCACHED, "cellcache.redis": REDIS, "another": ANOTHER}
SERVERS = ["cellcache.memcached", "cellcache.redis"]
OURS = ["cellcache.memory", *SERVERS]
ANY = [*OURS, "another"]
OF: dict[str, tuple[dict[str, Any], list[str]]] = {
    "servers": ({"servers": ["a:1"]}, ["cellcache.memcached"]),
    "url": ({"url": "redis://h"}, ["cellcache.redis"]),
    "username": ({"username": "u", "password": "p"}, SERVERS),
    "password": ({"username": "u", "password": "p"}, SERVERS),
    "ttl_s": ({"ttl_s": 60}, ANY),
    "negative_ttl_s": ({"negative_ttl_s": 5}, ANY),
    "timeout_s": ({"timeout_s": 0.05}, SERVERS),  # its default, but somebody has set it
    "retry_s": ({"retry_s": 2}, SERVERS),
    "lease_ttl_s": ({"lease_ttl_s": 4}, OURS),
    "fence_ttl_s": ({"fence_ttl_s": 40}, ANY),
    "key_prefix": ({"key_prefix": "p:"}, SERVERS),
    "on_unreachable": ({"on_unreachable": "refuse"}, [*SERVERS, "another"]),
    "durable": ({"durable": "unreachable"}, ANY),
    "max_entries": ({"max_entries": 7}, ["cellcache.memory"]),
    "local_ttl_s": ({"local_ttl_s": 1, "max_entries": 7}, SERVERS),
    "signing_key": ({"signing_key": SIGNING_KEY}, SERVERS),
    "previous_signing_key": ({"signing_key": SIGNING_KEY, "previous_signing_key": PREVIOUS_KEY}, SERVERS),
    "tls": ({"tls": True, "servers": ["a:1"]}, ["cellcache.memcached"]),
    "tls_ca": ({"tls_ca": "/ca", "url": "rediss://h"}, ["cellcache.redis"]),
    "tls_cert": ({"tls_cert": "/cert", "url": "rediss://h"}, ["cellcache.redis"]),
    "tls_key": ({"tls_cert": "/cert", "tls_key": "/key", "url": "rediss://h"}, ["cellcache.redis"]),
    "arguments": ({"arguments": {"x": 1}}, ["another"]),
}


def test_every_key_is_asked_for_its_owners() -> None:
    assert {"backend", *OF} == {key for key in KEYS["cache"] if not key.endswith("_file")}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("key", OF)
def test_a_key_is_taken_where_it_does_something_and_refused_elsewhere(key: str, place: str) -> None:
    keys, owners = OF[key]
    if place in owners:
        Settings(cache=PLACES[place] | keys)
        return
    told = trouble(cache=keys | PLACES[place] | {key: keys[key]})
    if key.startswith("tls") and place in SERVERS:  # TLS is theirs, but asked for in another way
        assert "TLS" in told
    else:
        (line,) = [line for line in told.splitlines() if line.startswith(f"cache.{key} = ")]
        assert "belongs to" in line
        assert line.endswith(f"; cache.backend is {PLACES[place].get('backend', 'cellcache.memory, the default')}")


def test_servers_without_a_backend_are_told_to_whom_they_belong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLCACHE_CACHE__SERVERS", "10.0.0.1")
    assert trouble_of_loading() == (
        "cache.servers = ['10.0.0.1:11211'] (CELLCACHE_CACHE__SERVERS): belongs to cellcache.memcached; cache.backend "
        "is cellcache.memory, the default"
    )


def test_a_stray_that_came_from_a_file_is_told_by_the_key_that_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("redis://:hunter2@h")
    assert trouble(cache=MEMCACHED | {"url_file": file}) == (
        f"cache.url_file = '{file}': belongs to cellcache.redis; cache.backend is cellcache.memcached"
    )


def test_room_in_the_process_belongs_to_the_local_layer() -> None:
    for place in SERVERS:
        assert trouble(cache=PLACES[place] | {"max_entries": 7}) == (
            "cache.max_entries = 7: belongs to cellcache.memory, or to local_ttl_s, which is not set; cache.backend is "
            f"{place}"
        )


@pytest.mark.parametrize("place", PLACES)
def test_a_key_that_says_nothing_is_no_stray(place: str) -> None:
    nothing: dict[str, Any] = {
        "servers": [],
        "url": None,
        "key_prefix": "",
        "local_ttl_s": 0,
        "tls": False,
        "arguments": {},
    }
    Settings(cache=nothing | {"arguments": {}} | PLACES[place])


def test_a_month_is_allowed_with_redis() -> None:
    assert Settings(cache=REDIS | {"ttl_s": 31 * 86400}).cache.ttl_s == 31 * 86400


def test_a_fence_must_outlast_the_longest_commit() -> None:
    Settings(database={"timeout_s": 29.9})
    assert trouble(database={"timeout_s": 30}) == (
        "database.timeout_s = 30.0: must be less than 30, half of cache.fence_ttl_s: a fence must outlast the longest "
        "commit, or a reader could store what was true before it"
    )
    Settings(database={"timeout_s": 30}, cache={"fence_ttl_s": 61})


def test_every_wrong_key_has_a_line_and_says_where_it_was_set(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text('[database]\npool_size = "many"\n[cache]\nbackend = "cellcache.none"\nservers = ["a:b", "::1"]\n')
    monkeypatch.setenv("CELLCACHE_CACHE__TTL_S", "-1")
    lines = trouble_of_loading(path).splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        f"database.pool_size = 'many' ({path})",
        f"cache.backend = 'cellcache.none' ({path})",
        f"cache.servers = 'a:b' ({path})",
        f"cache.servers = '::1' ({path})",
        "cache.ttl_s = '-1' (CELLCACHE_CACHE__TTL_S)",
    ]


# -- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        MYSQL,
        "mariadb+pymysql://u:p%40ss@[::1]:3306/db?charset=utf8mb4",
        "postgresql+psycopg://u@h/db",
        "postgresql+psycopg:///db?host=/run/postgresql",
        "sqlite:///cellcache.db",
        "sqlite+pysqlite:////var/lib/at@home.db",
    ],
)
def test_a_database_url_of_a_supported_driver_is_taken_as_it_is(url: str) -> None:
    database = Settings(database={"url": url}).database
    assert database.connection_url == url
    assert database.sqlalchemy_url.drivername == url.partition(":")[0]


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("mysql://u:p@h/db", "'mysql://***': names no driver: begin it with mysql+pymysql://"),
        ("mariadb://u:p@h/db", "'mariadb://***': names no driver: begin it with mariadb+pymysql://"),
        ("postgresql://u:p@h/db", "'postgresql://***': names no driver: begin it with postgresql+psycopg://"),
        ("postgres://u:p@h/db", "'postgres://***': names no driver: begin it with postgresql+psycopg://"),
        ("oracle://u:p@h/db", "'oracle://***': must begin with mysql+pymysql://, mariadb+pymysql://, postgresql+psy"),
        ("mysql+asyncmy://u:p@h/db", "'mysql+asyncmy://***': must begin with mysql+pymysql://"),
        ("nova_api", "'***': must be driver://user:password@host:port/database"),
        (
            "mysql+pymysql://u:p@h:port/db",
            "'mysql+pymysql://***': must be driver://user:password@host:port/database; in a",
        ),
        (
            "mysql+pymysql://u:p@ss@h/db",
            "'mysql+pymysql://***': has more than one '@'; in a user name or password, write",
        ),
        ("mysql+pymysql://u:p@h", "'mysql+pymysql://***': names no database"),
        ("sqlite://", "'sqlite://***': is an SQLite database in memory, which is gone with its connection"),
        ("sqlite:///:memory:", "'sqlite://***': is an SQLite database in memory"),
        ("sqlite:///file:x?mode=memory&uri=true", "'sqlite://***': is an SQLite database in memory"),
        (5, "'***': must be a valid string"),
    ],
)
def test_a_database_url_that_cannot_work_is_refused_with_what_to_write(url: object, line: str) -> None:
    assert trouble(database={"url": url}).startswith(f"database.url = {line}")


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://h:6379/",
        "redis://:p%40ss@[::1]:6379/15",
        "rediss://u:p@h/0?ssl_ca_certs=/ca.pem",
        "unix:///run/redis.sock?db=1",
        "unix://u:p@/run/redis.sock",
    ],
)
def test_a_redis_url_that_redis_py_understands_is_taken_as_it_is(url: str) -> None:
    assert Settings(cache=REDIS | {"url": url}).cache.backend_arguments()["url"] == url


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("http://h", "'http://***': must be redis://host:port/0, rediss://host:port/0 (with TLS) or unix:///path"),
        ("h:6379", "'***': must be redis://host:port/0"),
        ("redis://h:0", "'redis://***': must be redis://host:port/0"),
        ("redis://h:70000", "'redis://***': must be redis://host:port/0"),
        ("redis://h/db", "'redis://***': must end in the number of a database"),
        ("redis://:p/w@h", "'redis://***': must be redis://host:port/0"),
        ("redis://:1/w@h", "'redis://***': must be redis://host:port/0"),
        ("redis://:p@ss@h", "'redis://***': must be redis://host:port/0"),
        ("redis://:1#2@h", "'redis://***': must be redis://host:port/0"),
        ("redis://:1?2@h", "'redis://***': must be redis://host:port/0"),
        ("redis://[::1/0", "'redis://***': must be redis://host:port/0"),
        ("unix://run/redis.sock", "'unix://***': must name the socket by its full path"),
        ("unix://", "'unix://***': must name the socket by its full path"),
    ],
)
def test_a_redis_url_that_would_be_misread_is_refused(url: str, line: str) -> None:
    assert trouble(cache=REDIS | {"url": url}).startswith(f"cache.url = {line}")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("cache-1.example.org", "cache-1.example.org:11211"),
        ("Cache-1:1", "cache-1:1"),
        ("10.0.0.1:65535", "10.0.0.1:65535"),
        ("[2001:DB8:0::1]", "[2001:db8::1]:11211"),
        ("unix:/run/memcached.sock", "unix:/run/memcached.sock"),
    ],
)
def test_a_server_has_one_form_however_it_is_written(written: str, meant: str) -> None:
    assert Settings(cache=MEMCACHED | {"servers": [written]}).cache.servers == (meant,)
    assert Settings(cache=MEMCACHED | {"servers": [meant]}).cache.servers == (meant,)


@pytest.mark.parametrize(
    "server",
    [
        "",
        ":11211",
        "h:",
        "h:0",
        "h:65536",
        "h:123456",
        "h:x",
        "::1",
        "fe80::1:11211",
        "[h]:1",
        "[::1",
        "unix:run",
        "unix:/",
        "tcp://h:1",
        "a b",
        "a\n",
        "u:hunter2@h:1",
        "h:\u0661",
    ],
)
def test_a_server_that_is_no_address_is_refused(server: str) -> None:
    told = trouble(cache=MEMCACHED | {"servers": ["ok:1", server]})
    assert re.fullmatch(
        r"cache\.servers = '.*': must be host:port, \[IPv6 address\]:port or unix:/path/to/socket.*", told
    )
    assert "hunter2" not in told


@pytest.mark.slow
@given(st.text("abZ019:[].-@/ux %\n", max_size=30) | st.text(max_size=30))
def test_whatever_is_written_for_a_server_is_refused_or_has_one_form(text: str) -> None:
    try:
        (meant,) = Settings(cache=MEMCACHED | {"servers": [text]}).cache.servers
    except ConfigError:
        return
    assert Settings(cache=MEMCACHED | {"servers": [meant]}).cache.servers == (meant,)
    assert re.fullmatch(r"unix:/(?s:.)+|(\[[0-9a-f:.]+\]|[a-z0-9_.-]+):[0-9]+", meant)


# -- secrets ---------------------------------------------------------------------------------------------------------

SECRET = "hunter2"
SECRETS: dict[str, dict[str, Any]] = {
    "database": {"url": f"mysql+pymysql://u:{SECRET}@h/db?ssl_key_password={SECRET}"},
    "cache": REDIS | {"url": f"redis://u:{SECRET}@h", "username": "u", "password": SECRET},
}
OF_ANOTHER = {"backend": "dogpile.cache.dbm", "arguments": {"x": [SECRET]}}


def test_no_secret_shows_in_what_settings_print() -> None:
    for settings in (Settings(**SECRETS), Settings(cache=OF_ANOTHER)):
        shown = [f(each) for each in (settings, settings.database, settings.cache) for f in (repr, str)]
        shown += [settings.model_dump_json(), str(settings.model_dump()), str(settings.describe()), str(vars(settings))]
        assert [text for text in shown if SECRET in text] == []


def test_the_code_that_needs_a_secret_can_read_it() -> None:
    settings = Settings(**SECRETS)
    assert settings.database.connection_url == SECRETS["database"]["url"]
    assert settings.database.sqlalchemy_url.password == SECRET
    arguments = settings.cache.backend_arguments()
    assert (arguments["username"], arguments["password"]) == ("u", SECRET)


def test_describe_says_everything_that_is_not_secret() -> None:
    described = Settings(**SECRETS).describe()
    assert {section: list(values) for section, values in described.items()} == KEYS
    assert described["database"]["url"] == "mysql+pymysql://u:***@h/db?ssl_key_password=***"
    assert described["cache"]["url"] == "redis://u:***@h"
    assert described["cache"]["password"] == "***"
    assert described["cache"]["arguments"] == {}
    assert Settings(cache=OF_ANOTHER).describe()["cache"]["arguments"] == {"x": "***"}
    assert json.loads(json.dumps(described)) == described


@pytest.mark.parametrize(
    "sections",
    [
        {section: {key: value}}
        for section, keys in KEYS.items()
        for key in [*keys, "pasword"]
        for value in (f"mysql://u:{SECRET}@h", f"{SECRET}@h", [f"x:{SECRET}@h"], {"a": SECRET}, SecretStr(SECRET), 1)
    ],
    ids=lambda sections: " ".join(f"{s}.{k}={type(v).__name__}" for s, ks in sections.items() for k, v in ks.items()),
)
def test_no_secret_shows_in_an_error_wherever_it_was_put(sections: dict[str, dict[str, Any]]) -> None:
    wrong: dict[str, dict[str, Any]] = {
        "database": {"url": 5},
        "cache": {"password": 5, "url": f"x://{SECRET}"},
    }
    everything = {**wrong, **sections}
    with pytest.raises(ConfigError) as caught:
        Settings(**everything)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


punctuation = st.text("@:/?#%[]&=;, .+'\"\\", max_size=4)


@pytest.mark.slow
@given(
    section=st.sampled_from(["database", "cache"]),
    scheme=st.sampled_from(["mysql", "mysql+pymysql", "postgresql+psycopg", "redis", "rediss", "unix", ""]),
    parts=st.tuples(*[punctuation] * 4),
)
def test_no_password_shows_however_a_url_is_garbled(
    section: str, scheme: str, parts: tuple[str, str, str, str]
) -> None:
    before, after, middle, end = parts
    url = f"{scheme}://u{middle}:{before}{SECRET}{after}@h/1{end}"
    try:
        settings = Settings(**{section: {"url": url}})
        shown = f"{settings!r} {settings} {settings.describe()}"
    except ConfigError as error:
        shown = "".join(traceback.format_exception(error))
    assert SECRET not in shown


# -- what a backend is given -----------------------------------------------------------------------------------------

TIMES = {"ttl_s": 9, "lease_ttl_s": 4, "fence_ttl_s": 40, "timeout_s": 0.2, "retry_s": 2, "key_prefix": "p:"}


def test_memory_is_given_its_times_and_size() -> None:
    kept = {"ttl_s": 9, "lease_ttl_s": 4, "fence_ttl_s": 40, "max_entries": 7}
    assert Settings(cache=kept).cache.backend_arguments() == kept


def test_memcached_is_given_its_servers_and_credentials() -> None:
    cache = MEMCACHED | TIMES | {"username": "u", "password": "p"}
    arguments = Settings(cache=cache).cache.backend_arguments()
    expected = TIMES | {"servers": ["10.0.0.1:11211"], "username": "u", "password": "p", "tls_context": None}
    assert arguments.items() >= expected.items()
    assert Settings(cache=MEMCACHED).cache.backend_arguments()["password"] is None


def test_redis_is_given_its_url_and_credentials() -> None:
    arguments = Settings(cache=REDIS | TIMES | {"password": "p"}).cache.backend_arguments()
    expected = TIMES | {"url": "redis://10.0.0.1:6379/0", "username": None, "password": "p", "tls_context": None}
    assert arguments.items() >= expected.items()


def test_another_backend_is_given_its_own_arguments_and_nothing_else() -> None:
    cache = Settings(cache={"backend": "dogpile.cache.dbm", "arguments": {"filename": "x"}}).cache
    arguments = cache.backend_arguments()
    assert arguments == {"filename": "x"}
    arguments["filename"] = "y"
    assert cache.backend_arguments() == {"filename": "x"}


def test_time_to_live_is_short_only_where_it_bounds_staleness() -> None:
    assert Settings().cache.ttl_s == 60
    assert Settings(cache=MEMCACHED).cache.ttl_s == 86400
    assert Settings(cache={"backend": "dogpile.cache.null"}).cache.ttl_s == 86400


# -- TLS -------------------------------------------------------------------------------------------------------------


class Authority:
    """A certificate authority with one certificate, for `localhost`, that serves both ends."""

    def __init__(self, folder: Path, *, passphrase: bytes | None = None) -> None:
        self.ca, self.cert, self.key = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
        folder.mkdir()
        authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        host = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        identifier = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())
        unused = "content_commitment key_encipherment data_encipherment key_agreement encipher_only decipher_only"
        usage = dict.fromkeys(unused.split(), False)

        def signed(subject: x509.Name, public: ec.EllipticCurvePublicKey, *, is_ca: bool) -> bytes:
            builder = (
                x509.CertificateBuilder()
                .subject_name(subject)
                .issuer_name(authority)
                .public_key(public)
                .serial_number(x509.random_serial_number())
                .not_valid_before(datetime.now(UTC) - timedelta(hours=1))
                .not_valid_after(datetime.now(UTC) + timedelta(hours=1))
                .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
                .add_extension(
                    x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
                )
                .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
                .add_extension(
                    x509.KeyUsage(digital_signature=True, key_cert_sign=is_ca, crl_sign=is_ca, **usage), critical=True
                )
            )
            if not is_ca:
                builder = builder.add_extension(
                    x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False
                )
            return builder.sign(authority_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

        self.ca.write_bytes(signed(authority, authority_key.public_key(), is_ca=True))
        self.cert.write_bytes(signed(host, key.public_key(), is_ca=False))
        self.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption(),
            )
        )

    def server_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.ca)
        context.load_cert_chain(self.cert, self.key)
        context.verify_mode = ssl.CERT_REQUIRED
        return context


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext, host: str) -> None:
    """Let the two agree in memory, or raise as they would over a network."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname=host)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    unfinished = [ours, theirs]
    while unfinished:
        for side in list(unfinished):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            unfinished.remove(side)


def tls_context(**keys: object) -> ssl.SSLContext:
    context = Settings(cache=MEMCACHED | {"tls": True} | keys).cache.backend_arguments()["tls_context"]
    assert isinstance(context, ssl.SSLContext)
    return context


def test_tls_verifies_the_server_and_shows_our_certificate(tmp_path: Path) -> None:
    ours, foreign = Authority(tmp_path / "ours"), Authority(tmp_path / "foreign")
    context = tls_context(tls_ca=ours.ca, tls_cert=ours.cert, tls_key=ours.key)
    shake_hands(context, ours.server_context(), "localhost")
    for server, host in (foreign.server_context(), "localhost"), (ours.server_context(), "example.org"):
        with pytest.raises(ssl.SSLCertVerificationError):
            shake_hands(context, server, host)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(tls_context(), ours.server_context(), "localhost")


def test_redis_is_given_a_context_where_a_key_asks_for_one(tmp_path: Path) -> None:
    ours = Authority(tmp_path / "ours")
    rediss = REDIS | {"url": "rediss://h"}
    assert Settings(cache=rediss).cache.backend_arguments()["tls_context"] is None
    context = Settings(cache=rediss | {"tls_ca": ours.ca}).cache.backend_arguments()["tls_context"]
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


def test_a_tls_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    ours, locked = Authority(tmp_path / "ours"), Authority(tmp_path / "locked", passphrase=b"secret")
    text = tmp_path / "text.pem"
    text.write_text("nothing of the kind")
    missing = tmp_path / "missing.pem"

    def told(**keys: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            tls_context(**keys)
        return str(caught.value)

    assert told(tls_ca=missing).startswith(f"cache.tls_ca = '{missing}': ")
    assert told(tls_ca=missing).endswith("(No such file or directory)")
    assert told(tls_ca=text).startswith(f"cache.tls_ca = '{text}': must be PEM files that can be read")
    for certificate, key in (ours.cert, missing), (ours.cert, locked.key), (locked.cert, locked.key), (text, ours.key):
        line = told(tls_ca=ours.ca, tls_cert=certificate, tls_key=key)
        assert line.startswith(f"cache.tls_cert = '{certificate}', cache.tls_key = '{key}': must be PEM files")


# -- the page that documents it --------------------------------------------------------------------------------------


def documented() -> dict[str, dict[str, str]]:
    """Each section's keys on the page, with the text of their defaults."""
    found: dict[str, dict[str, str]] = {}
    for heading, body in re.findall(
        r"^## \[(\w+)\]\n(.*?)(?=^## |\Z)", (DOCS / "configuration.md").read_text(), re.M | re.S
    ):
        found[heading] = dict(re.findall(r"^- \*\*`(\w+)`\*\* \(default ([^;,)]+)", body, re.M))
    return found


def test_the_page_names_every_key_and_no_other() -> None:
    assert {section: sorted(keys) for section, keys in documented().items()} == {
        section: sorted(keys) for section, keys in KEYS.items()
    }


def test_the_page_gives_each_default() -> None:
    settings = Settings(cache={"backend": "dogpile.cache.null"})
    for section, keys in documented().items():
        for key, text in keys.items():
            default = getattr(getattr(settings, section), key)
            if isinstance(default, SecretStr):
                default = default.get_secret_value()
            if (section, key) == ("cache", "backend"):
                default = Settings().cache.backend
            if (section, key) == ("cache", "arguments"):
                default = default.get_secret_value()
            if isinstance(default, tuple):
                default = list(default)
            written = None if text == "none" else tomllib.loads(f"value = {text.strip('`')}")["value"]
            assert written == default, f"{section}.{key}"


def test_the_page_gives_the_shorter_time_to_live_of_memory() -> None:
    assert f"or `{Settings().cache.ttl_s:g}` with cellcache.memory" in (DOCS / "configuration.md").read_text()


@pytest.mark.parametrize(
    ("cache", "key"),
    [
        ({"signing_key": "0123456789" * 3}, "cache.signing_key = '***': must have 32 random bytes or more, not 30"),
        ({"signing_key": "s" * 64}, "cache.signing_key = '***': must be random, and has only 1 different characters"),
        ({"signing_key": "secret!" * 9}, "`cellcache cache signing-key` makes one"),
        ({"signing_key": SIGNING_KEY, "previous_signing_key": "p" * 32}, "cache.previous_signing_key"),
        ({"previous_signing_key": PREVIOUS_KEY}, "cache.previous_signing_key"),
        ({"backend": "cellcache.memory", "signing_key": SIGNING_KEY}, "cache.signing_key"),
        ({"backend": "cellcache.memory", "local_ttl_s": 1}, "cache.local_ttl_s"),
        ({"local_ttl_s": -1}, "cache.local_ttl_s"),
    ],
)
def test_keys_of_the_layers_that_cannot_be_used(cache: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(key)):
        Settings(cache={"backend": "cellcache.memcached", "servers": ["a"]} | cache)


def test_the_signing_keys_come_with_the_one_to_sign_with_first(tmp_path: Path) -> None:
    (tmp_path / "previous").write_text(PREVIOUS_KEY + "\n")
    cache = {"backend": "cellcache.memcached", "servers": ["a"], "signing_key": SIGNING_KEY}
    files = {"previous_signing_key_file": tmp_path / "previous"}
    assert Settings(cache=cache | files).cache.signing_keys == [SIGNING_KEY.encode(), PREVIOUS_KEY.encode()]
    assert Settings().cache.signing_keys == []
