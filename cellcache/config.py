"""What a deployment may configure, with its defaults and the reasons for its limits; docs/configuration.md explains.

The kinds of value are in `config_values`, where they come from in `config_sources`.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, Secret, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import URL, make_url

from cellcache.arguments import LONGEST_S
from cellcache.codec import LONGEST_ENTRY, MAPPED_SIZE
from cellcache.config_ownership import strays
from cellcache.config_problems import Contradiction, Origin, Problem, explain
from cellcache.config_servers import clear, server_contradictions
from cellcache.config_sources import (
    PREFIX,
    demand_no_blanks,
    file_of,
    no_origin,
    origin_of,
    overlay,
    read_environment,
    read_file,
    read_secrets,
)
from cellcache.config_values import (
    Arguments,
    Backend,
    Count,
    DatabaseUrl,
    KeyPrefix,
    RedisUrl,
    Seconds,
    Servers,
    Wait,
)
from cellcache.errors import ConfigError
from cellcache.known_backends import MEMCACHED, MEMORY, OURS, PYMEMCACHE, REDIS
from cellcache.masking import MASK, mask_url
from cellcache.signing import SIGNED_SIZE
from cellcache.tls import verifying_context, verifying_url
from cellcache.url_options import joined_options

_DAY_S = 86400.0
_SHORTEST_SIGNING_KEY = 32
_FEWEST_DIFFERENT = 8  # of 32 random hexadecimal digits all but one key in ten million has more
_MAKE_ONE = "`cellcache cache signing-key` makes one"


class _Section(BaseModel):
    """Keys that belong together. `<key>_file` names a file that holds the key's value, for the secret ones."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
    section: ClassVar[str]

    @model_validator(mode="before")
    @classmethod
    def _read_secrets(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        demand_no_blanks(cls.section, data, {key: field.default for key, field in cls.model_fields.items()})
        return read_secrets(cls.section, list(cls.model_fields), data)

    @model_validator(mode="after")
    def _keys_agree(self) -> Self:
        problems = [Problem(self.section, key, getattr(self, key), text) for key, text in self._contradictions()]
        if problems:
            raise Contradiction(problems)
        return self

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        """Yield each key that does not go with another one, and why."""
        yield from ()

    def describe(self) -> dict[str, Any]:
        """Return the keys and values as one may print them: secrets masked."""
        return {key: _printable(key, getattr(self, key)) for key in type(self).model_fields}


class DatabaseSettings(_Section):
    """The database that holds `instance_mapping` and `cell_mapping`."""

    section = "database"

    url: DatabaseUrl | None = None
    url_file: Path | None = None
    pool_size: Count = 10
    timeout_s: Wait = 5.0
    connect_timeout_s: Wait = 2.0

    @property
    def connection_url(self) -> str:
        """The URL, password and all; ConfigError where there is none: whatever lay in some folder would be believed."""
        if self.url is None:
            raise ConfigError(
                "no database is configured: name a configuration file by --config or CELLCACHE_CONFIG, or, for a first "
                "try with SQLite, `export CELLCACHE_DATABASE__URL=sqlite:///$HOME/cellcache.db`; `cellcache demo` "
                "needs neither"
            )
        return clear(self.url)

    @property
    def sqlalchemy_url(self) -> URL:
        """The same, taken apart; of its own accord it shows no password but one among its options."""
        return joined_options(verifying_url(make_url(self.connection_url)))


class CacheSettings(_Section):
    """The cache in front of it."""

    section = "cache"

    backend: Backend = MEMORY
    servers: Servers = ()
    url: RedisUrl | None = None
    url_file: Path | None = None
    username: Annotated[str, Field(min_length=1)] | None = None
    password: SecretStr | None = None
    password_file: Path | None = None
    ttl_s: Seconds = Field(default_factory=lambda data: 60.0 if data.get("backend") == MEMORY else _DAY_S)
    negative_ttl_s: Seconds = 5.0
    timeout_s: Wait = 0.05
    retry_s: Seconds = 1.0
    lease_ttl_s: Seconds = 5.0
    fence_ttl_s: Seconds = 60.0
    key_prefix: KeyPrefix = ""
    on_unreachable: Literal["commit", "refuse"] = "commit"
    durable: Literal["always", "unreachable"] = "always"
    max_entries: Count = 1_000_000
    local_ttl_s: Annotated[float, Field(ge=0, le=LONGEST_S, allow_inf_nan=False)] = 0.0
    signing_key: SecretStr | None = None
    signing_key_file: Path | None = None
    previous_signing_key: SecretStr | None = None
    previous_signing_key_file: Path | None = None
    tls: bool = False
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    arguments: Arguments = Secret({})

    def backend_arguments(self) -> dict[str, Any]:
        """Return what dogpile hands to the backend, secrets in the clear; raise ConfigError for unusable TLS files."""
        if self.backend not in OURS:
            return dict(self.arguments.get_secret_value())
        arguments: dict[str, Any] = {key: getattr(self, key) for key in ("ttl_s", "lease_ttl_s", "fence_ttl_s")}
        if self.backend == MEMORY:
            return arguments | {"max_entries": self.max_entries}
        arguments |= {key: getattr(self, key) for key in ("timeout_s", "retry_s", "key_prefix", "username")}
        arguments |= {"password": clear(self.password) or None, "tls_context": self._tls_context()}
        if self.backend == MEMCACHED:
            arguments["servers"] = list(self.servers)
            arguments["value_size"] = SIGNED_SIZE if self.signing_keys else MAPPED_SIZE
        else:
            arguments["url"] = clear(self.url)
        arguments["longest_value"] = LONGEST_ENTRY
        return arguments

    @property
    def signing_keys(self) -> list[bytes]:
        """The key to sign with and, after it, the one that is still accepted; empty: entries are not signed."""
        return [clear(key).encode() for key in (self.signing_key, self.previous_signing_key) if key is not None]

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        yield from strays(self.backend, {key: getattr(self, key) for key in self.model_fields_set})
        for key in ("signing_key", "previous_signing_key"):
            secret = getattr(self, key)
            if secret is not None and (size := len(clear(secret).encode())) < _SHORTEST_SIGNING_KEY:
                yield key, f"must have {_SHORTEST_SIGNING_KEY} random bytes or more, not {size}: {_MAKE_ONE}"
            elif secret is not None and (kinds := len(set(clear(secret)))) < _FEWEST_DIFFERENT:
                yield key, f"must be random, and has only {kinds} different characters: {_MAKE_ONE}"
        if self.previous_signing_key is not None and self.signing_key is None:
            yield "previous_signing_key", "needs signing_key, the key to sign with from now on"
        if self.backend == PYMEMCACHE and "serde" in self.arguments.get_secret_value():
            yield "arguments", "must hold no serde: cellcache gives it one of its own, which never unpickles"
        if self.backend in {MEMCACHED, REDIS}:
            yield from server_contradictions(self)
        if self.backend in OURS and self.lease_ttl_s >= self.fence_ttl_s:
            yield (
                "lease_ttl_s",
                f"must be less than fence_ttl_s ({self.fence_ttl_s:g}): a lease is short, that a reader who died keeps "
                "nobody from storing for long; a fence is long, that it outlasts the commit",
            )

    def _tls_context(self) -> ssl.SSLContext | None:
        """Without any of our keys, TLS to Redis is what its URL says: the backend reads that."""
        wanted = self.tls or self.tls_ca or self.tls_cert
        return verifying_context(self.tls_ca, self.tls_cert, self.tls_key) if wanted else None


class CellsSettings(_Section):
    """The cells: how long their mappings are kept in memory, and the connections to their databases."""

    section = "cells"

    refresh_s: Seconds = 60.0
    pool_size: Count = 5


class Settings(BaseSettings):
    """One deployment's configuration; it cannot be changed.

    `Settings(database={"url": ...}, cache={...})` is what it says and defaults, nothing else; `Settings.load` reads a
    file and the environment. Both raise ConfigError, a line for each key that is wrong.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        enable_decoding=False,
    )

    database: DatabaseSettings = Field(default_factory=DatabaseSettings)
    cache: CacheSettings = Field(default_factory=CacheSettings)
    cells: CellsSettings = Field(default_factory=CellsSettings)

    def __init__(self, **sections: Mapping[str, Any] | BaseModel) -> None:
        _fill(self, sections, no_origin)

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None) -> Self:
        """Read the file named, else the one that CELLCACHE_CONFIG names, else none; the environment wins over it.

        A blank name is a ConfigError, never "none": that would be another database.
        """
        place = file_of(path)
        file = {} if place is None else read_file(place)
        environment = read_environment(cls, _keys())
        settings = cls.__new__(cls)
        _fill(settings, overlay(file, environment), origin_of(place, file, environment))
        return settings

    def describe(self) -> dict[str, dict[str, Any]]:
        """Return all keys and values as one may print them: secrets masked."""
        return {section: getattr(self, section).describe() for section in type(self).model_fields}

    @model_validator(mode="after")
    def _fence_outlasts_commit(self) -> Self:
        longest = self.cache.fence_ttl_s / 2
        if self.database.timeout_s >= longest:
            text = (
                f"must be less than {longest:g}, half of cache.fence_ttl_s: a fence must outlast the longest commit, "
                "or a reader could store what was true before it"
            )
            raise Contradiction([Problem("database", "timeout_s", self.database.timeout_s, text)])
        return self


def _fill(settings: Settings, sections: Mapping[str, Any], origin: Origin) -> None:
    try:
        BaseModel.__init__(settings, **sections)  # BaseSettings' own would read the environment
        return
    except ValidationError as error:
        trouble = list(explain(error, _keys(), origin))
    raise ConfigError(*trouble)


def _keys() -> dict[str, list[str]]:
    sections: tuple[type[_Section], ...] = (DatabaseSettings, CacheSettings, CellsSettings)
    return {section.section: list(section.model_fields) for section in sections}


def _printable(key: str, value: Any) -> Any:
    if isinstance(value, SecretStr):
        return mask_url(value.get_secret_value()) if key == "url" else MASK
    if isinstance(value, Secret):
        return dict.fromkeys(value.get_secret_value(), MASK)
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
