"""Whatever a caller sends, nothing but our own errors comes out, and a command ends with a code that is documented."""

from __future__ import annotations

import inspect
import io
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cellcache
from cellcache import CellCacheError, CellDirectory, Settings, audit, process, schema
from cellcache.cli import main
from cellcache.cli.exits import ExitCode
from cellcache.config import CacheSettings, CellsSettings, DatabaseSettings
from tests.command_line import PASSWORD, every_command, make_deployment
from tests.directories import DATABASES, HERE, Site, new_cell_database, open_site
from tests.hostile import ANYTHING, UNPRINTABLE, WORDS

MAPPED = str(UUID(int=0xF00D))

FITTING: Mapping[str, Any] = {
    "instance_uuid": MAPPED,
    "instance_uuids": [MAPPED],
    "cell_uuid": HERE,
    "uuid": HERE,
    "project_id": "p",
    "rows": [(str(uuid4()), HERE, "p")],
    "name": "a name",
    "database_connection": "sqlite:///cell.db",
    "transport_url": "none:///",
    "disabled": False,
    "after": 1,
    "limit": 10,
    "older_than_s": 10.0,
    "batch": 10,
    "dry_run": True,
    "allow_many": 10,
    "progress": None,
    "sample": 10,
    "rate_per_s": 1e6,
    "repair": False,
    "source": Settings(),
    "path": None,
    "revision": "head",
    "sql": True,
    "output": io.StringIO(),
    "lock_timeout_s": 1.0,
    "url": "sqlite:///tables.db",
}
"""What each parameter would rightly be given; a new one has to be added, or the tests below fail."""

pytestmark = [
    pytest.mark.filterwarnings("ignore:Do not use the `random` module"),  # a directory's thread does
    pytest.mark.filterwarnings("ignore:Generating overly large repr"),
]

few_or_many = pytest.mark.parametrize(
    "examples", [5, pytest.param(int(os.environ.get("HOSTILE_EXAMPLES", "60")), marks=pytest.mark.slow)]
)
"""Of each call; for a search at length, some hundreds."""


def drive(examples: int, call: Callable[..., object], **strategies: st.SearchStrategy[Any]) -> None:
    """Call with so many examples of what these strategies make."""

    def one(**drawn: Any) -> None:
        call(**drawn)

    often = settings(deadline=None, max_examples=examples, suppress_health_check=list(HealthCheck))
    often(given(**strategies)(one))()


@pytest.fixture(autouse=True)
def _in_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative names lead to no file of ours, and a rate of one instance in a thousand seconds is not waited for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(audit, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda _seconds: None))


def public(owner: Any, module: str) -> list[str]:
    """The names that callers use: functions and methods of its own."""
    names = [name for name, found in inspect.getmembers(owner, callable) if not name.startswith("_")]
    return [name for name in names if getattr(getattr(owner, name), "__module__", "") == module]


def arguments_of(call: Callable[..., object], data: st.DataObject) -> dict[str, Any]:
    """Draw its arguments: one or more is anything at all, the others fit."""
    parameters = [name for name in inspect.signature(call).parameters if name != "self"]
    if not parameters:
        return {}
    hostile = data.draw(st.sets(st.sampled_from(parameters), min_size=1))
    return {name: data.draw(ANYTHING, label=name) if name in hostile else FITTING[name] for name in parameters}


def consume(result: object) -> None:
    """Have done what is only done when a caller looks."""
    if isinstance(result, AbstractContextManager) and not isinstance(result, CellDirectory):
        with result:
            pass
    elif isinstance(result, CellDirectory):
        result.close()
    elif isinstance(result, Iterator):
        list(islice(result, 5))


def try_it(call: Callable[..., object], arguments: Mapping[str, Any]) -> None:
    said = ""
    try:
        consume(call(**arguments))
    except CellCacheError as error:
        said = str(error)
    assert len(said) < 5000, "an error's text is one that a person can read"


# -- the library -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=DATABASES)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("hostile")
    with open_site(request, folder, "memory", request.param) as site:
        directory = site.open()
        directory.map_instance(MAPPED, HERE, "p")
        directory.update_cell(HERE, database_connection=new_cell_database(folder))
        yield site


METHODS = [name for name in public(CellDirectory, "cellcache.directory") if name not in {"open", "close"}]


@few_or_many
@pytest.mark.parametrize("method", METHODS)
def test_no_method_of_a_directory_fails_otherwise_than_by_an_error_of_ours(
    site: Site, method: str, examples: int
) -> None:
    directory = site.open()
    call = getattr(directory, method)
    drive(examples, lambda data: try_it(call, arguments_of(call, data)), data=st.data())
    another = str(uuid4())
    directory.map_instance(another, HERE, "p")
    assert directory.resolve_cell(another).uuid == HERE


def test_what_cannot_even_be_shown_is_refused(site: Site) -> None:
    directory = site.open()
    for method in METHODS:
        call = getattr(directory, method)
        for parameter in inspect.signature(call).parameters:
            for value in UNPRINTABLE:
                fitting = {name: FITTING[name] for name in inspect.signature(call).parameters}
                try_it(call, fitting | {parameter: value})


@few_or_many
@pytest.mark.parametrize("name", [name for name in cellcache.__all__ if inspect.isfunction(getattr(cellcache, name))])
def test_no_function_of_the_package_does(site: Site, name: str, examples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    call = getattr(cellcache, name)
    directory = site.open() if name != "configure" else None

    def one(data: st.DataObject) -> None:
        monkeypatch.setattr(process, "_directory", directory)
        try_it(call, arguments_of(call, data))

    drive(examples, one, data=st.data())


REVISIONS = [
    name
    for name in public(schema, "cellcache.schema")
    if name != "Revision" and "connection" not in inspect.signature(getattr(schema, name)).parameters
]
"""Those that are not for connections of our own."""


@few_or_many
@pytest.mark.parametrize("name", REVISIONS)
def test_no_function_of_the_tables_revisions_does(name: str, examples: int) -> None:
    call = getattr(schema, name)
    drive(examples, lambda data: try_it(call, arguments_of(call, data)), data=st.data())


@few_or_many
@pytest.mark.parametrize("opened", [Settings.load, CellDirectory.open, cellcache.configure])
def test_what_is_no_configuration_is_a_configuration_error(opened: Callable[[Any], object], examples: int) -> None:
    def one(source: Any) -> None:
        with pytest.raises(cellcache.ConfigError):
            opened(source)

    drive(examples, one, source=ANYTHING.filter(lambda source: source is not None))


SECTIONS = {section.section: section for section in (DatabaseSettings, CacheSettings, CellsSettings)}


@few_or_many
@pytest.mark.parametrize(
    ("section", "key"), [(name, key) for name, section in SECTIONS.items() for key in [*section.model_fields, "other"]]
)
def test_no_value_of_a_key_does(section: str, key: str, examples: int) -> None:
    drive(examples, lambda value: try_it(Settings, {section: {key: value}}), value=ANYTHING)


@few_or_many
def test_no_section_does(examples: int) -> None:
    sections = st.dictionaries(st.sampled_from([*SECTIONS, "other"]), ANYTHING)
    drive(examples, lambda given: try_it(Settings, given), given=sections)


class OfTheCaller(Exception):
    """Raised by a generator that was handed in."""


def test_what_a_callers_own_generator_raises_passes_through(site: Site) -> None:
    def failing() -> Iterator[Any]:
        yield MAPPED
        raise OfTheCaller

    directory = site.open()
    for call in (directory.resolve_cells, directory.prune, directory.map_instances):
        with pytest.raises(OfTheCaller):
            call(failing())
    assert directory.resolve_cell(MAPPED).uuid == HERE


# -- the command line --------------------------------------------------------------------------------------------------


@contextmanager
def _stdin(content: bytes) -> Iterator[None]:
    before, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(content))
    try:
        yield
    finally:
        sys.stdin = before


@pytest.fixture(scope="module")
def config(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "cellcache.toml"
    path.write_text(f'[database]\nurl = "{site.database_url}"\n')
    with CellDirectory.open(path) as directory:
        secret = f"mysql+pymysql://nova:{PASSWORD}@127.0.0.1:1/nova"
        directory.create_cell("away", secret, f"rabbit://nova:{PASSWORD}@127.0.0.1/")
    return path


NEVER = {"--forever", "--show-secrets", "--config", "--help"}
"""What does not end, what shows passwords, and what is given already."""

FITTING_WORDS = {
    "REVISION": "head",
    "UUID": MAPPED,
    "UUID...": MAPPED,
    "CELL": "here",
    "NAME": "a name",
    "PROJECT": "p",
}


@st.composite
def lines(draw: st.DrawFn, parameters: list[Any]) -> list[str]:
    """The words behind a command's name: any of its options and arguments, with any texts."""
    words: list[str] = []
    for parameter in parameters:
        option = parameter.param_type_name == "option"
        if parameter.opts[0] in NEVER or not (parameter.required or draw(st.booleans())):
            continue
        if option:
            words.append(draw(st.sampled_from([*parameter.opts, *parameter.secondary_opts])))
        if not (option and parameter.is_flag):
            fitting = FITTING_WORDS.get(parameter.metavar or parameter.name.upper(), "1")
            words.append(draw(WORDS | st.just(fitting), label=parameter.name))
    return words


@few_or_many
@pytest.mark.parametrize(("path", "found"), [pytest.param(*each, id=" ".join(each[0])) for each in every_command()])
def test_no_command_ends_otherwise_than_documented(
    site: Site, config: Path, path: tuple[str, ...], found: Any, examples: int, capfd: pytest.CaptureFixture[str]
) -> None:
    def one(words: list[str], stdin: bytes) -> None:
        with _stdin(stdin):
            code = main(["--config", str(config), *path, *words])
        out, err = capfd.readouterr()
        assert code in set(ExitCode) - {ExitCode.BUG}, err
        assert "Traceback" not in out + err
        assert PASSWORD not in out + err

    drive(examples, one, words=lines(found.params), stdin=st.binary(max_size=50))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("instance prune --purged --older-than 9999999d", "is not a length of time up to 36525d"),
        ("invalidations run --every 9999999d", "is not a length of time up to 36525d"),
        (f"instance list --after {2**63}", "after 9223372036854775808 is not a whole number from 0"),
        ("instance list --after -1", "after -1 is not a whole number from 0"),
        (f"verify --sample {10**30}", "sample 1000000000000000000000000000000 is not a whole number"),
        ("verify --rate inf", "rate_per_s inf is not a number"),
        ("cell create c --database-connection mysql+pymysql://u:p@h..x/d", "names a host that cannot be"),
        ("cell create c --database-connection mysql+pymysql://u:p@h:99999999999/d", "must have a port from 1 to 65535"),
        (f"cell create c --database-connection mysql+pymysql://u:p@{'h' * 64}/d", "names a host that cannot be"),
        ("cell list --config /", "configuration file / cannot be read: Is a directory"),
        ("instance map --from /", "--from /: Is a directory"),
        ("instance map --from \ud800", "codec can't encode character"),
        ("cell create c --database-connection-file \ud800", "codec can't encode character"),
        (f"instance map {MAPPED} --cell c --project \udcff", "project_id '\\udcff' is not a text"),
        ("instance list --project \udcff", "project_id '\\udcff' is not a text"),
    ],
)
def test_a_word_that_cannot_be_is_told(
    line: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deployment = make_deployment(tmp_path, capsys)
    deployment.ok("cell", "create", "c", "--database-connection", "sqlite:///c.db")
    outcome = deployment.run(*line.split(" "))
    assert outcome.code == ExitCode.USAGE
    assert said in outcome.error
