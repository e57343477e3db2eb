"""How a wrong configuration is told: a line for each key, with its value, where it was set, and what is allowed.

No line shows a secret, and no error is chained to the one that it was made from, which would.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from pydantic import SecretStr, ValidationError

from cellcache.foreign import shown
from cellcache.masking import MASK, mask_text

_LONGEST_PATH = 1000
Keys = Mapping[str, list[str]]  # of each section
Origin = Callable[[str, str], str | None]  # section, key -> the file or variable that set it


class Problem(NamedTuple):
    """One key that cannot stand as it is."""

    section: str
    key: str
    value: object
    text: str


class Contradiction(ValueError):
    """Keys that are well formed each for itself and cannot stand together."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__(*(problem.text for problem in problems))


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return the end of a line that suggests the nearest name, or nothing where none is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def explain(error: ValidationError, keys: Keys, origin: Origin) -> Iterator[str]:
    """Yield what is wrong, a line for each key."""
    for detail in error.errors(include_url=False):
        section, key = (*map(str, detail["loc"]), "", "")[:2]
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, Contradiction):
            yield from (_line(problem, origin) for problem in cause.problems)
        elif detail["type"] == "extra_forbidden":
            yield f"{section}{key and '.'}{key}{_source(section, key, origin)} is not a key{_hint(section, key, keys)}"
        elif not key:
            yield f"{section}{_source(section, key, origin)} must be a section: [{section}], and its keys below"
        elif detail["type"] != "default_factory_not_called":  # which says only that some other key is wrong
            text = str(cause) if cause else detail["msg"].replace("Input should", "must")
            yield _line(Problem(section, key, detail["input"], text), origin)


def _line(problem: Problem, origin: Origin) -> str:
    section, key, value, text = problem
    what = "is not set" if value is None else f"= {_shown(key, value)}"
    return f"{section}.{key} {what}{_source(section, key, origin)}: {text}"


def _shown(key: str, value: object) -> str:
    """Return a rejected value as an error may show it: of a URL the scheme, as who knows where its password ends."""
    if key == "url" and isinstance(value, SecretStr):
        value = value.get_secret_value()
    if key == "url" and isinstance(value, str):
        scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", value)
        return f"'{scheme[0] if scheme else ''}{MASK}'"
    if key in {"url", "password", "signing_key", "previous_signing_key", "arguments"}:
        return f"'{MASK}'"
    if isinstance(value, str | os.PathLike):
        text = re.sub(r"(?s)^.*@", f"{MASK}@", mask_text(str(value)))
        return repr(text if len(text) <= (_LONGEST_PATH if key.endswith("_file") else 80) else f"{text[:77]}...")
    if isinstance(value, list | tuple):
        return f"[{', '.join(_shown(key, item) for item in value)}]"
    return shown(value) if isinstance(value, int | float) else f"a {type(value).__name__}"


def _source(section: str, key: str, origin: Origin) -> str:
    source = origin(section, key)
    return f" ({source})" if source else ""


def _hint(section: str, key: str, keys: Keys) -> str:
    elsewhere = [f"{other}.{key or section}" for other in keys if (key or section) in keys[other]]
    if elsewhere:
        return f"; did you mean {elsewhere[0]}?"
    if not key:
        return did_you_mean(section, keys) or f"; the sections are {', '.join(keys)}"
    return did_you_mean(key, keys[section], f"{section}.") or f"; the keys are {', '.join(keys[section])}"
