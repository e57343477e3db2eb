"""The process's own directory: where it comes from, and that there is one."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

import cellcache
from cellcache import CellDirectory, ConfigError, InstanceNotMapped, InvalidUUID, SchemaError, process, schema
from tests.directories import HERE, Site, new_uuids, open_site

PROJECT = "project-1"


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """As at the start of a process, in an empty working directory and without our variables."""
    for name in [name for name in os.environ if name.startswith("CELLCACHE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(process, "_directory", None)
    yield
    if process._directory is not None:
        process._directory.close()
        process._directory = None


@pytest.fixture(params=["memory", "fakeredis"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, request.param) as site:
        yield site
        if process._directory is not None:
            process._directory.close()
            process._directory = None


@pytest.fixture
def key(site: Site) -> str:
    """An instance that is mapped."""
    key = str(uuid4())
    site.open().map_instance(key, HERE, PROJECT)
    return key


def write_config(site: Site, path: Path) -> Path:
    place = site.cache.arguments()
    where = f'url = "{place["url"]}"' if "url" in place else ""
    path.write_text(
        f'[database]\nurl = "{site.database_url}"\n[cache]\nbackend = "{site.cache.entry_point}"\n{where}\n'
    )
    return path


def is_closed(directory: CellDirectory) -> bool:
    return directory._here().maintenance._thread is None


def test_file_that_the_environment_names(site: Site, key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CELLCACHE_CONFIG", str(write_config(site, tmp_path / "deployment.toml")))
    assert cellcache.resolve_cell(key.upper()).uuid == HERE
    assert cellcache.resolve_cells([key, str(uuid4())]).keys() == {key}
    with pytest.raises(InstanceNotMapped):
        cellcache.resolve_cell(uuid4())
    with pytest.raises(InvalidUUID):
        cellcache.resolve_cell("x")


def test_variable_of_one_key(site: Site, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLCACHE_DATABASE__URL", site.database_url)
    assert cellcache.resolve_cell(key).uuid == HERE


def test_without_a_configuration_it_says_what_to_do_and_believes_nobody(tmp_path: Path) -> None:
    """Whoever can write to the folder could have left a database there, with cells of his."""
    schema.upgrade("sqlite:///cellcache.db")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="for a first try with SQLite, `export CELLCACHE_DATABASE__URL="):
        cellcache.resolve_cell(uuid4())
    assert sorted(tmp_path.iterdir()) == before


def test_the_first_try_that_it_proposes_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLCACHE_DATABASE__URL", f"sqlite:///{tmp_path / 'cellcache.db'}")
    with pytest.raises(SchemaError, match="run `cellcache db upgrade`"):
        cellcache.resolve_cell(uuid4())
    schema.upgrade(f"sqlite:///{tmp_path / 'cellcache.db'}")
    directory, key = cellcache.configure(), str(uuid4())
    cell = directory.create_cell("cell1", "sqlite:///cell1.db", "fake://")
    directory.map_instance(key, cell.uuid, PROJECT)
    assert cellcache.resolve_cell(key) == cell
    assert directory.settings.cache.backend == "cellcache.memory"


def test_first_use_opens_and_the_next_uses_the_same(site: Site, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLCACHE_DATABASE__URL", site.database_url)
    cellcache.resolve_cell(key)
    opened = process._directory
    cellcache.resolve_cells([key])
    assert process._directory is opened
    assert opened is not None


@pytest.mark.slow
@pytest.mark.parametrize("form", ["Settings", "path", "text", "directory"])
def test_configure_takes(site: Site, key: str, tmp_path: Path, form: str) -> None:
    path = write_config(site, tmp_path / "cellcache.toml")
    source: Any = {
        "Settings": site.settings(),
        "path": path,
        "text": str(path),
        "directory": CellDirectory.open(site.settings()) if form == "directory" else None,
    }[form]
    directory = cellcache.configure(source)
    assert process._directory is directory
    assert cellcache.resolve_cell(key).uuid == HERE


def test_one_that_is_replaced_is_closed(site: Site, key: str) -> None:
    first = cellcache.configure(site.settings())
    second = cellcache.configure(site.settings())
    assert is_closed(first)
    assert not is_closed(second)
    assert cellcache.resolve_cell(key).uuid == HERE


def test_one_that_is_set_again_is_not_closed(site: Site, key: str) -> None:
    directory = cellcache.configure(site.settings())
    assert cellcache.configure(directory) is directory
    assert not is_closed(directory)
    assert cellcache.resolve_cell(key).uuid == HERE


@pytest.mark.slow
def test_configuration_that_cannot_be_used_leaves_the_one_before(site: Site, key: str, tmp_path: Path) -> None:
    directory = cellcache.configure(site.settings())
    broken = tmp_path / "broken.toml"
    broken.write_text("[cache]\nbackend = 'dogpile.cache.nosuch'\n")
    for source in (broken, tmp_path / "missing.toml"):
        with pytest.raises(ConfigError):
            cellcache.configure(source)
    assert process._directory is directory
    assert not is_closed(directory)
    assert cellcache.resolve_cell(key).uuid == HERE


def test_threads_that_race_at_first_use_open_one(site: Site, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLCACHE_DATABASE__URL", site.database_url)
    opened: list[CellDirectory] = []
    together = threading.Barrier(16)
    open_one = CellDirectory.open

    def counted() -> CellDirectory:
        opened.append(open_one())
        return opened[-1]

    monkeypatch.setattr(CellDirectory, "open", counted)

    def look_up(_number: int) -> str:
        together.wait(30)
        return cellcache.resolve_cell(key).uuid

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(look_up, range(16))) == [HERE] * 16
    assert opened == [process._directory]


@pytest.mark.slow
def test_replacing_it_under_lookups_disturbs_none(site: Site) -> None:
    keys = new_uuids(5)
    cellcache.configure(site.settings()).map_instances((key, HERE, PROJECT) for key in keys)
    stop = threading.Event()

    def look_up(_number: int) -> int:
        n = 0
        while not stop.is_set():
            assert cellcache.resolve_cells(keys).keys() == set(keys)
            assert cellcache.resolve_cell(keys[0]).uuid == HERE
            n += 1
        return n

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(look_up, number) for number in range(4)]
        try:
            for _ in range(10):
                cellcache.configure(site.settings())
        finally:
            stop.set()
        assert all(future.result() > 0 for future in futures)
