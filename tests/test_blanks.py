"""A blank is an unset shell variable. It means neither "all" nor "the default" nor "leave it": it is refused."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from cellcache import CellCacheError, CellDirectory, ConfigError, InvalidUUID, InvalidValue, Settings, configure, schema
from cellcache.cli import main
from cellcache.config import CacheSettings, CellsSettings, DatabaseSettings
from tests.command_line import Deployment, every_command, make_deployment
from tests.directories import DATABASES, HERE, Site, open_site
from tests.hostile import BLANKS

A = "0f0e3f6e-2f6c-4a3b-9d5e-2f1f6a7f4c11"

blank = pytest.mark.parametrize("blank", BLANKS, ids=ascii)


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith(("CELLCACHE_", "CELL_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Two cells, each with a mapping that is old enough to go and whose instance has no row any more."""
    folder = tmp_path_factory.mktemp("template")
    url = f"sqlite:///{folder / 'mappings.db'}"
    schema.upgrade(url)
    with CellDirectory.open(Settings(database={"url": url})) as directory:
        for name in ("one", "two"):
            cell = directory.create_cell(name, f"sqlite:///{name}.db", "none:///")
            directory.map_instance(str(uuid4()), cell.uuid, "p")
    with closing(sqlite3.connect(folder / "mappings.db")) as connection, connection:
        connection.execute("UPDATE instance_mapping SET created_at = '2020-01-01 00:00:00'")
    assert not (folder / "mappings.db-wal").exists()  # so that the file is all there is
    return (folder / "mappings.db").read_bytes()


@pytest.fixture
def deployment(database: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Deployment:
    deployment = make_deployment(tmp_path, capsys, migrated=False)
    (tmp_path / "mappings.db").write_bytes(database)
    for name in ("one", "two"):
        deployment.cell_database(name, [str(uuid4())])
    return deployment


def rows(deployment: Deployment) -> list[str]:
    with closing(sqlite3.connect(deployment.folder / "mappings.db")) as connection:
        return list(connection.iterdump())


def takes_a_value(parameter: Any) -> bool:
    return parameter.nargs != 0 and not getattr(parameter, "is_flag", False)


def named(parameter: Any, value: str) -> list[str]:
    return [value] if parameter.param_type_name == "argument" else [parameter.opts[0], value]


EVERY_PARAMETER = [
    (path, parameter, [other for other in found.params if other.required and other is not parameter])
    for path, found in every_command()
    for parameter in found.params
    if takes_a_value(parameter)
]
IDS = [f"{' '.join(path)} {parameter.opts[0]}" for path, parameter, _ in EVERY_PARAMETER]


@pytest.mark.parametrize(("path", "parameter", "required"), EVERY_PARAMETER, ids=IDS)
def test_no_option_or_argument_takes_a_blank(
    deployment: Deployment, path: tuple[str, ...], parameter: Any, required: list[Any]
) -> None:
    before, files = rows(deployment), sorted(deployment.folder.iterdir())
    rest = [word for other in required for word in named(other, A)]
    for text in (BLANKS[0], BLANKS[-1]):
        outcome = deployment.run(*path, *named(parameter, text), *rest)
        assert outcome.code == 2, outcome
        assert outcome.out == ""
        name = parameter.opts[0] if parameter.param_type_name == "option" else parameter.metavar or parameter.name
        assert name in outcome.error
    assert rows(deployment) == before
    assert sorted(deployment.folder.iterdir()) == files


@blank
def test_config_is_not_blank_before_the_command_either(
    blank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["--config", blank, "cell", "list"], ["cell", "-c", blank, "list"], ["-c", blank]):
        assert main(arguments) == 2
        assert "'--config'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@blank
def test_a_blank_cell_prunes_no_cell(deployment: Deployment, blank: str) -> None:
    before = rows(deployment)
    assert deployment.run("instance", "prune", "--purged", "--cell", blank).code == 2
    assert rows(deployment) == before
    assert deployment.json("instance", "prune", "--purged", "--cell", "one", "--allow-many", "1")["removed"] == 1


@blank
@pytest.mark.parametrize("name", ["CELL_DATABASE_CONNECTION", "CELL_TRANSPORT_URL"])
def test_a_blank_variable_is_no_url_of_a_cell(
    deployment: Deployment, blank: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELL_DATABASE_CONNECTION", "sqlite:///cell.db")
    monkeypatch.setenv(name, blank)
    before = rows(deployment)
    outcome = deployment.run("cell", "create", "three")
    assert outcome.code == 2
    assert outcome.error == f"environment variable {name} is blank: give it a value, or unset it"
    assert rows(deployment) == before


@blank
def test_a_blank_field_of_a_csv_file_is_refused_with_its_line(deployment: Deployment, blank: str) -> None:
    before = rows(deployment)
    for line in (f"{blank},one,p", f"{A},{blank},p", f"{A},one,{blank}"):
        (deployment.folder / "rows.csv").write_text(f"uuid,cell,project\n{line}\n", encoding="utf-8")
        outcome = deployment.run("instance", "map", "--from", str(deployment.folder / "rows.csv"))
        assert outcome.code == 2
        assert "line 2: " in outcome.err
    assert rows(deployment) == before


# -- the library -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=DATABASES)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, "memory", request.param) as site:
        yield site


def test_no_method_of_the_directory_takes_a_blank(site: Site) -> None:
    directory, key = site.open(), str(uuid4())
    directory.map_instance(key, HERE, "p")
    mapped, cells = site.table(), directory.list_cells()
    calls: dict[str, Callable[[str], object]] = {
        "project": lambda text: directory.list_instances(project_id=text),
        "cell": lambda text: directory.list_instances(cell_uuid=text),
        "prune": lambda text: directory.prune([key, text]),
        "prune_purged": directory.prune_purged,
        "map": lambda text: directory.map_instance(str(uuid4()), HERE, text),
        "map to": lambda text: directory.map_instance(str(uuid4()), text, "p"),
        "map many": lambda text: directory.map_instances([(str(uuid4()), HERE, "p"), (str(uuid4()), HERE, text)]),
        "move": lambda text: directory.move_instance(key, text),
        "create": lambda text: directory.create_cell(text, "sqlite:///cell.db", "none:///"),
        "database": lambda text: directory.create_cell("a", text, "none:///"),
        "queue": lambda text: directory.create_cell("a", "sqlite:///cell.db", text),
        "uuid": lambda text: directory.create_cell("a", "sqlite:///cell.db", "none:///", uuid=text),
        "name": lambda text: directory.update_cell(HERE, name=text),
        "new database": lambda text: directory.update_cell(HERE, database_connection=text),
        "new queue": lambda text: directory.update_cell(HERE, transport_url=text),
        "delete": directory.delete_cell,
    }
    for call in calls.values():
        for text in BLANKS:
            with pytest.raises((InvalidValue, InvalidUUID)):
                call(text)
    assert site.table() == mapped
    assert directory.list_cells() == cells
    assert [each.instance_uuid for each in directory.list_instances(project_id=None, cell_uuid=None)] == [key]


@blank
def test_a_blank_revision_moves_no_tables(blank: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'mappings.db'}"
    schema.upgrade(url)
    for move in (schema.upgrade, schema.downgrade):
        with pytest.raises(InvalidValue, match="revision"):
            move(url, blank)
    assert schema.current(url) == schema.head()


# -- the configuration -------------------------------------------------------------------------------------------------

EVERY_KEY = [
    (section.section, key)
    for section in (DatabaseSettings, CacheSettings, CellsSettings)
    for key in section.model_fields
]


def trouble(call: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    return str(caught.value)


@blank
def test_a_blank_name_of_the_configuration_is_not_none(
    blank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for opened in (Settings.load, CellDirectory.open, configure):
        assert trouble(lambda: opened(blank)).startswith("the name of the configuration file is blank")  # noqa: B023
    monkeypatch.setenv("CELLCACHE_CONFIG", blank)
    for opened in (Settings.load, CellDirectory.open, configure):
        assert trouble(opened).startswith("environment variable CELLCACHE_CONFIG is blank")
    assert list(tmp_path.iterdir()) == []


@blank
@pytest.mark.parametrize(("section", "key"), EVERY_KEY)
def test_a_blank_is_no_value_of_any_key(section: str, key: str, blank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if (key, blank) == ("key_prefix", ""):
        assert Settings(cache={"key_prefix": ""}) == Settings()  # this it is by default
    else:
        assert f"{section}.{key} " in trouble(lambda: Settings(**{section: {key: blank}}))
    name = f"CELLCACHE_{section}__{key}".upper()
    monkeypatch.setenv(name, blank)
    assert trouble(Settings.load) == f"environment variable {name} is blank: give it a value, or unset it"


def test_the_blanks_of_several_variables_are_a_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLCACHE_CACHE__URL", "")
    monkeypatch.setenv("CELLCACHE_DATABASE__URL", " ")
    with pytest.raises(CellCacheError) as caught:
        Settings.load()
    assert [line.split()[2] for line in str(caught.value).splitlines()] == [
        "CELLCACHE_CACHE__URL",
        "CELLCACHE_DATABASE__URL",
    ]
