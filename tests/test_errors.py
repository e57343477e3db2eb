"""Every error of ours: it crosses a process boundary as it is, holds no password, and its text is one line."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle  # noqa: TID251 - every process pool sends errors so
import pkgutil
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

import cellcache
from cellcache import CellCacheError, CellExists, ConfigError, InstanceMapping, MappingExists
from cellcache.errors import MappedCellNotFound
from cellcache.flights import Flight
from cellcache.foreign import LONGEST
from tests.directories import DATABASES, HERE, Site, open_site
from tests.hostile import STEERING

_MAPPING = InstanceMapping(
    id=1, instance_uuid="i", cell_uuid="c", project_id=f"p{STEERING}", created_at=None, updated_at=None
)
_FITTING: dict[str, Any] = {
    "text": f"first {STEERING} last",
    "lines": f"first {STEERING} last",
    "value": STEERING,
    "instance_uuid": "i",
    "cell_uuid": STEERING,
    "existing": _MAPPING,
    "identical": False,
}
"""What each parameter of an error's kind is given; a new one has to be added, or the tests below fail."""


def kinds(kind: type[CellCacheError] = CellCacheError) -> Iterator[type[CellCacheError]]:
    """Yield the whole tree, also what stands in modules that nobody has imported."""
    if kind is CellCacheError:
        for module in pkgutil.walk_packages(cellcache.__path__, "cellcache."):
            if not module.name.startswith("cellcache.migrations"):
                importlib.import_module(module.name)
    yield kind
    for below in kind.__subclasses__():
        if below.__module__.startswith("cellcache"):
            yield from kinds(below)


KINDS = sorted(set(kinds()), key=lambda kind: kind.__name__)


def made(kind: type[CellCacheError]) -> CellCacheError:
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            named[name] = _FITTING[name]
        else:
            positional.append(_FITTING[name])
    error = kind(*positional, **named)
    error.add_note("a note")
    return error


def the_same(again: BaseException, error: CellCacheError) -> bool:
    return (type(again), again.args, vars(again)) == (type(error), error.args, vars(error)) and again is not error


def test_the_tree_is_the_one_that_is_drawn() -> None:
    assert {MappingExists, MappedCellNotFound, ConfigError} < set(KINDS)
    assert len(KINDS) > 15


@pytest.mark.parametrize("kind", KINDS)
def test_it_survives_pickle_and_copy(kind: type[CellCacheError]) -> None:
    error = made(kind)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert the_same(pickle.loads(pickle.dumps(error, protocol)), error)
    assert the_same(copy.copy(error), error)
    assert the_same(copy.deepcopy(error), error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_whoever_waited_for_a_read_that_failed_gets_one_of_his_own(kind: type[CellCacheError]) -> None:
    flight: Flight[str] = Flight(60.0)
    error = made(kind)
    flight.fail(error)
    with pytest.raises(kind) as caught:
        flight.wait()
    assert the_same(caught.value, error)
    assert caught.value.__cause__ is error


def _fail(kind: type[CellCacheError]) -> None:
    raise made(kind)


@pytest.mark.slow
def test_it_comes_out_of_a_process_pool() -> None:
    with ProcessPoolExecutor(1) as pool:
        for kind in KINDS:
            with pytest.raises(kind) as caught:
                pool.submit(_fail, kind).result(60)
            assert str(caught.value) == str(made(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_its_text_is_one_short_line_whatever_it_quotes(kind: type[CellCacheError]) -> None:
    text = str(made(kind))
    assert text.isprintable()
    assert len(text) < LONGEST + 50


def test_only_a_wrong_configuration_has_a_line_for_each_key() -> None:
    assert str(ConfigError("one", f"two{STEERING[:40]}")).count("\n") == 1


# -- what it is chained to ---------------------------------------------------------------------------------------------


@pytest.fixture(params=DATABASES)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, "memory", request.param) as site:
        yield site


def everything_in(error: BaseException | None) -> str:
    """What is printed, pickled or sent to a tracker of an error and of all that it is chained to."""
    seen: list[str] = []
    while error is not None:
        seen += traceback.format_exception(error)
        seen += [repr(vars(error)), repr(error.args), repr(pickle.dumps(error))]
        seen += [repr(getattr(error, name, None)) for name in ("params", "object", "statement", "detail", "orig")]
        error = error.__cause__ or error.__context__
    return "\n".join(seen)


def test_that_a_cell_is_there_already_tells_nobody_its_urls(site: Site) -> None:
    password = f"Sesame{uuid4().hex}"
    urls = (f"mysql+pymysql://nova:{password}@db/nova", f"rabbit://nova:{password}@mq/")
    directory = site.open()
    with pytest.raises(CellExists) as caught:
        directory.create_cell("again", *urls, uuid=HERE)
    assert password not in everything_in(caught.value)


def test_no_failure_of_a_statement_tells_what_it_was_about(site: Site) -> None:
    password = f"Sesame{uuid4().hex}"
    urls = (f"mysql+pymysql://nova:{password}@db/nova", f"rabbit://nova:{password}@mq/")
    directory = site.open()
    site.run("ALTER TABLE cell_mapping RENAME TO cell_mapping_elsewhere")
    with pytest.raises(cellcache.SchemaError) as caught:
        directory.create_cell("new", *urls)
    assert password not in everything_in(caught.value)
    with pytest.raises(cellcache.SchemaError) as caught:
        directory.update_cell(HERE, database_connection=urls[0], transport_url=urls[1])
    assert password not in everything_in(caught.value)
