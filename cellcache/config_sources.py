"""Where settings come from: a TOML file, the environment, and files that hold one secret each."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic_settings import BaseSettings, EnvSettingsSource

from cellcache.config_problems import Contradiction, Keys, Origin, Problem, did_you_mean
from cellcache.errors import ConfigError

PREFIX = "CELLCACHE_"
FILE_VARIABLE = "CELLCACHE_CONFIG"

# Kubernetes gives every container of a namespace variables for every service in it: one called "cellcache" or
# "cellcache-memcached" brings these, which nobody wrote.
_is_kubernetes_link = re.compile(
    r"CELLCACHE_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?)"
).fullmatch


def read_file(path: Path) -> dict[str, Any]:
    """Return what a TOML file says; raise ConfigError with its name and, if it is not TOML, the line."""
    content = b""
    try:
        content = path.read_bytes()
        return tomllib.loads(content.decode())
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        reason = f"is not UTF-8 text (at line {line})"
    except ValueError as error:
        reason = f"is not TOML: {error}"
    raise ConfigError(f"configuration file {path} {reason}")


def read_environment(model: type[BaseSettings], keys: Keys) -> dict[str, Any]:
    """Return what the environment says; raise ConfigError for each CELLCACHE_ variable that is in no section."""
    known = ["CONFIG", *(f"{section}__{key}".upper() for section in keys for key in keys[section])]
    sections = tuple(_variable(section, "") for section in keys)
    strays = [
        name
        for name in sorted(map(str.upper, os.environ))
        if name.startswith(PREFIX) and name != FILE_VARIABLE and not name.startswith(sections)
        if not _is_kubernetes_link(name)
    ]
    if strays:
        pattern = f"; a key's variable is {PREFIX}<SECTION>__<KEY>"
        hints = [did_you_mean(name.removeprefix(PREFIX), known, PREFIX) or pattern for name in strays]
        lines = [f"environment variable {name} names no key{hint}" for name, hint in zip(strays, hints, strict=True)]
        raise ConfigError("\n".join(lines))
    return EnvSettingsSource(model)()


def overlay(file: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the environment says, and else the file. A secret and the file that holds it are one key."""
    kept = {key: value for key, value in file.items() if _twin(key) not in environment}
    for key, value in environment.items():
        below = kept.get(key)
        kept[key] = overlay(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return kept


def read_secrets(section: str, keys: list[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a section with the content of each `<key>_file` as the value of `<key>`."""
    complete, problems = dict(values), []
    for name in keys:
        key, file = name.removesuffix("_file"), values.get(name)
        if key == name or not isinstance(file, str | os.PathLike):
            continue
        if values.get(key) is not None:
            problems.append(Problem(section, name, file, f"{key} is given as well; give one of the two"))
            continue
        trouble = None
        try:
            complete[key] = Path(file).read_text(encoding="utf-8").strip()
        except OSError as error:
            trouble = f"the file cannot be read: {error.strerror}"
        except ValueError:
            trouble = "the file must be UTF-8 text"
        if trouble or not complete[key]:
            problems.append(Problem(section, name, file, trouble or "the file is empty"))
    if problems:
        raise Contradiction(problems)
    return complete


def no_origin(section: str, key: str) -> str | None:  # noqa: ARG001
    """For settings made in code: their source is the code that reads the error."""
    return None


def origin_of(path: Path | None, file: Mapping[str, Any], environment: Mapping[str, Any]) -> Origin:
    """Return a function that says which of the two has set a key."""

    def origin(section: str, key: str) -> str | None:
        written = file.get(section)
        for name in (key, _twin(key)):
            if name in environment.get(section, {}):
                return _variable(section, name)
            if isinstance(written, Mapping) and name in written:
                return str(path)
        return str(path) if section in file and not key else None

    return origin


def _variable(section: str, key: str) -> str:
    return f"{PREFIX}{section}__{key}".upper()


def _twin(key: str) -> str:
    return key.removesuffix("_file") if key.endswith("_file") else f"{key}_file"
