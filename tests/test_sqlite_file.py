"""SQLite's file holds the passwords of all cells: it is its owner's alone, with all that SQLite keeps beside it."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url

from cellcache import CellDirectory, Settings, demo_databases, schema
from cellcache.cli import main
from cellcache.database import database_errors, open_engine
from cellcache.errors import DatabaseUnavailable
from cellcache.sqlite_file import make_private
from tests.directories import new_uuids

PRIVATE = 0o600


@pytest.fixture(autouse=True, params=[0o022, 0o000], ids=["umask 022", "umask 000"])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


@pytest.mark.parametrize("form", ["sqlite:///{}", "sqlite:///file:{}?uri=true", "sqlite:///file:{}?mode=rwc&uri=true"])
def test_the_file_and_those_beside_it_are_their_owners_alone(form: str, tmp_path: Path) -> None:
    url = form.format(tmp_path / "mappings.db")
    schema.upgrade(url)
    assert modes(tmp_path) == {"mappings.db": PRIVATE}
    with CellDirectory.open(Settings(database={"url": url})) as directory:
        cell = directory.create_cell("one", "sqlite:///nowhere/cell.db", "none:///")
        directory.map_instance(new_uuids(1)[0], cell.uuid, "project")
        assert modes(tmp_path) == dict.fromkeys(["mappings.db", "mappings.db-shm", "mappings.db-wal"], PRIVATE)


@pytest.mark.parametrize("use", ["read", "write"])
def test_a_lookup_that_comes_first_makes_no_other_file(use: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'mappings.db'}"
    engine = open_engine(url, pool_size=1, timeout_s=1.0, connect_timeout_s=1.0, use=use)  # type: ignore[arg-type]
    assert modes(tmp_path) == {}
    with engine.connect():
        assert modes(tmp_path)["mappings.db"] == PRIVATE
    engine.dispose()


def test_it_is_made_where_a_link_leads(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "mappings.db").symlink_to(tmp_path / "there" / "other.db")
    schema.upgrade(f"sqlite:///{tmp_path / 'mappings.db'}")
    assert modes(tmp_path / "there") == {"other.db": PRIVATE}


def test_one_that_is_there_keeps_its_mode_and_what_is_in_it(tmp_path: Path) -> None:
    file = tmp_path / "mappings.db"
    schema.upgrade(f"sqlite:///{file}")
    file.chmod(0o640)
    schema.upgrade(f"sqlite:///{file}")
    assert schema.current(f"sqlite:///{file}") == schema.head()
    assert modes(tmp_path) == {"mappings.db": 0o640}


@pytest.mark.parametrize("options", ["mode=ro&uri=true", "mode=rw&uri=true", "mode=memory&uri=true"])
def test_none_is_made_where_sqlite_would_make_none(options: str, tmp_path: Path) -> None:
    make_private(make_url(f"sqlite:///file:{tmp_path / 'mappings.db'}?{options}"))
    assert modes(tmp_path) == {}


def test_a_place_where_none_can_be_made_is_told_by_sqlite(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'nowhere' / 'mappings.db'}"
    engine = open_engine(url, pool_size=1, timeout_s=1.0, connect_timeout_s=1.0, use="read")
    with pytest.raises(DatabaseUnavailable, match="unable to open database file"), database_errors(url):
        engine.connect()


@pytest.mark.slow
def test_those_of_the_demonstration_are_private_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert main(["demo", "--keep", "--instances", "200", "--json"]) == 0
    (folder,) = tmp_path.glob("cellcache-demo-*")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    databases = {name: mode for name, mode in modes(folder).items() if ".db" in name}
    assert len(databases) > 1
    assert set(databases.values()) == {PRIVATE}
    demo_databases.make(make_url("sqlite:///x"), str(tmp_path / "another.db"))
    assert stat.S_IMODE((tmp_path / "another.db").stat().st_mode) == PRIVATE


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that every account of this host can look into."""
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(("mode", "told"), [(0o644, True), (0o602, True), (0o640, False), (PRIVATE, False)])
def test_doctor_says_that_others_can_read_it(
    reachable: Path, mode: int, told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    file, config = reachable / "mappings.db", reachable / "cellcache.toml"
    config.write_text(f'[database]\nurl = "sqlite:///{file}"\n')
    schema.upgrade(f"sqlite:///{file}")
    file.chmod(mode)
    assert main(["--config", str(config), "--json", "doctor"]) == (1 if told else 0)
    found = [each for each in map(json.loads, capsys.readouterr().out.splitlines()) if each["what"] == "file"]
    assert bool(found) is told
    for finding in found:
        assert finding["level"] == "problem"
        assert f"`chmod o-rwx {file}`" in finding["advice"]
    reachable.chmod(0o750)
    assert main(["--config", str(config), "--json", "doctor"]) == 0  # nobody else gets there
    capsys.readouterr()
