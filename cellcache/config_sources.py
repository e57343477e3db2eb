"""Where settings come from: a TOML file, the environment, and files that hold one secret each."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pydantic_settings import BaseSettings, EnvSettingsSource

from cellcache.config_problems import Contradiction, Keys, Origin, Problem, did_you_mean
from cellcache.errors import ConfigError
from cellcache.foreign import shown
from cellcache.texts import is_blank

PREFIX = "CELLCACHE_"
FILE_VARIABLE = "CELLCACHE_CONFIG"

# Kubernetes gives every container of a namespace variables for every service in it: one called "cellcache" or
# "cellcache-memcached" brings these, which nobody wrote.
_is_kubernetes_link = re.compile(
    r"CELLCACHE_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?)"
).fullmatch


def file_of(given: str | os.PathLike[str] | None) -> Path | None:
    """Return the file to read: the one given, else the one that the environment names, else None."""
    chosen, what = given, "the name of the configuration file"
    if given is None:
        chosen, what = os.environ.get(FILE_VARIABLE), f"environment variable {FILE_VARIABLE}"
    if isinstance(chosen, str) and is_blank(chosen):
        raise ConfigError(f"{what} is blank: name a file, or leave it out altogether to go without one")
    try:
        return None if chosen is None else Path(chosen)
    except TypeError:
        raise ConfigError(f"{what} cannot be {shown(chosen)}: give a path, a Settings, or None") from None


def read_file(path: Path) -> dict[str, Any]:
    """Return what a TOML file says; raise ConfigError with its name and, if it is not TOML, the line."""
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: there is no such name
        raise ConfigError(f"configuration file {path} cannot be read: {getattr(error, 'strerror', error)}") from None
    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        reason = f"is not UTF-8 text (at line {line})"
    except ValueError as error:
        reason = f"is not TOML: {error}"
    except RecursionError:
        reason = "is not TOML that anybody would write: its lists are nested too deeply"
    raise ConfigError(f"configuration file {path} {reason}")


def read_environment(model: type[BaseSettings], keys: Keys) -> dict[str, Any]:
    """Return what the environment says; raise ConfigError for each CELLCACHE_ variable that is blank or in no section.

    A variable that is set to nothing is most likely one that should have been set to something.
    """
    known = ["CONFIG", *(f"{section}__{key}".upper() for section in keys for key in keys[section])]
    sections = tuple(_variable(section, "") for section in keys)
    ours = {
        name.upper(): value
        for name, value in sorted(os.environ.items())
        if name.upper().startswith(PREFIX) and name.upper() != FILE_VARIABLE and not _is_kubernetes_link(name.upper())
    }
    strays = [name for name in ours if not name.startswith(sections)]
    if strays:
        pattern = f"; a key's variable is {PREFIX}<SECTION>__<KEY>"
        hints = [did_you_mean(name.removeprefix(PREFIX), known, PREFIX) or pattern for name in strays]
        lines = [f"environment variable {name} names no key{hint}" for name, hint in zip(strays, hints, strict=True)]
        raise ConfigError(*lines)
    if blanks := [name for name, value in ours.items() if is_blank(value)]:
        lines = [f"environment variable {name} is blank: give it a value, or unset it" for name in blanks]
        raise ConfigError(*lines)
    source = EnvSettingsSource(model)
    source.env_vars = {name.lower(): value for name, value in ours.items()}
    return source()


def overlay(file: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the environment says, and else the file. A secret and the file that holds it are one key."""
    kept = {key: value for key, value in file.items() if _twin(key) not in environment}
    for key, value in environment.items():
        below = kept.get(key)
        kept[key] = overlay(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return kept


def demand_no_blanks(section: str, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raise Contradiction for each key whose value is a blank text, unless that is what it has when it is not set."""
    problems = []
    for key, value in values.items():
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if isinstance(text, str) and is_blank(text) and text != defaults.get(key):
            problems.append(Problem(section, key, value, "is blank: give it a value, or leave it out"))
    if problems:
        raise Contradiction(problems)


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
