"""What is installed: every package and no other, typed, with its entry points, and light to import.

These tests run twice: in the source tree, and (`make test-wheel`) in a folder without it, on the built wheel.
"""

from __future__ import annotations

import ast
import graphlib
import importlib
import importlib.metadata
import importlib.resources
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dogpile.cache.api import CacheBackend

import cellcache
from cellcache import errors
from cellcache.known_backends import OURS

pytestmark = pytest.mark.packaging

SOURCE = Path(os.environ.get("SOURCE_OF_WHEEL", Path(__file__).parents[1]))
PYPROJECT: dict[str, Any] = tomllib.loads((SOURCE / "pyproject.toml").read_text())
FOLDERS = {"cellcache": "cellcache", "backends": "cellcache/backends", "migrations": "cellcache/migrations"}


def source_files() -> Iterator[tuple[Path, Path]]:
    """Each file of the packages' folders, and where it is to be installed."""
    for folder, target in FOLDERS.items():
        for path in (SOURCE / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path, target / path.relative_to(SOURCE / folder)


@pytest.fixture
def wheel() -> importlib.metadata.Distribution:
    """The distribution as a wheel installed it."""
    if "SOURCE_OF_WHEEL" not in os.environ:
        pytest.skip("this is the source tree; `make test-wheel` looks at the wheel")
    return importlib.metadata.distribution("cellcache")


def test_every_package_on_disk_is_named_in_pyproject() -> None:
    found = {str(target.parent).replace("/", ".") for _, target in source_files() if target.suffix == ".py"}
    named = PYPROJECT["tool"]["setuptools"]["packages"]
    assert sorted(found) == sorted(named)


def test_every_package_has_an_init() -> None:
    packages = {path.parent for path, _ in source_files() if path.suffix == ".py"}
    assert [package for package in packages if not (package / "__init__.py").exists()] == []


def test_every_file_that_is_not_python_is_named_as_package_data() -> None:
    named = {
        Path(package.replace(".", "/")) / name
        for package, names in PYPROJECT["tool"]["setuptools"]["package-data"].items()
        for name in names
    }
    assert {target for _, target in source_files() if target.suffix != ".py"} == named


@pytest.mark.wheel
def test_the_wheel_holds_every_file_of_the_source_and_no_other(wheel: importlib.metadata.Distribution) -> None:
    installed = {Path(file) for file in wheel.files or () if file.suffix != ".pyc"}
    ours = {file for file in installed if file.parts[0] == "cellcache"}
    assert ours == {target for _, target in source_files()}
    assert {file.parts[0] for file in installed - ours} == {"..", f"cellcache-{wheel.version}.dist-info"}
    assert [file.name for file in installed if file.parts[0] == ".."] == ["cellcache"]  # the command


@pytest.mark.wheel
def test_the_wheel_is_what_these_tests_import(wheel: importlib.metadata.Distribution) -> None:
    for name in ("cellcache", "cellcache.backends", "cellcache.cli"):
        path = importlib.import_module(name).__file__
        assert path is not None
        assert Path(path).is_relative_to(sys.prefix)


@pytest.mark.wheel
@pytest.mark.slow
def test_the_wheel_is_strictly_typed(wheel: importlib.metadata.Distribution, tmp_path: Path) -> None:
    run_mypy(["-p", "cellcache"], tmp_path)


@pytest.mark.wheel
@pytest.mark.slow
def test_a_caller_of_the_wheel_sees_its_types(wheel: importlib.metadata.Distribution, tmp_path: Path) -> None:
    (tmp_path / "caller.py").write_text(
        "import cellcache\n\ncell: cellcache.CellMapping = cellcache.resolve_cell('u')\n"
    )
    run_mypy(["caller.py"], tmp_path)
    (tmp_path / "caller.py").write_text("import cellcache\n\ncell: int = cellcache.resolve_cell('u')\n")
    with pytest.raises(AssertionError, match='expression has type "CellMapping", variable has type "int"'):
        run_mypy(["caller.py"], tmp_path)


def run_mypy(arguments: list[str], folder: Path) -> None:
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_backends_are_found_by_their_names() -> None:
    entries = {entry.name: entry for entry in importlib.metadata.entry_points(group="dogpile.cache")}
    for name, place in OURS.items():
        assert entries[name].value == ":".join(place)
        assert issubclass(entries[name].load(), CacheBackend)


@pytest.mark.slow
def test_the_command_is_found_by_its_name() -> None:
    (entry,) = [
        entry for entry in importlib.metadata.entry_points(group="console_scripts") if entry.name == "cellcache"
    ]
    assert callable(entry.load())
    command = Path(sys.prefix) / "bin" / "cellcache"
    done = subprocess.run([command, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "resolve" in done.stdout


def test_the_migrations_are_found_where_they_are_installed() -> None:
    migrations = importlib.resources.files("cellcache.migrations")
    assert (migrations / "script.py.mako").is_file()
    assert (migrations / "env.py").is_file()
    assert [path for path in (migrations / "versions").iterdir() if path.name.endswith(".py")]


def test_the_names_that_cellcache_exports_are_those_it_lists() -> None:
    ours = {name for name, value in vars(cellcache).items() if getattr(value, "__module__", "").startswith("cellcache")}
    assert sorted(ours) == sorted(name for name in cellcache.__all__ if name != "__version__")
    assert all(hasattr(cellcache, name) for name in cellcache.__all__)


def test_every_error_is_exported() -> None:
    names = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert names <= set(cellcache.__all__)


def test_the_version_is_the_one_in_pyproject() -> None:
    assert cellcache.__version__ == PYPROJECT["project"]["version"] == importlib.metadata.version("cellcache")


@pytest.mark.slow
def test_importing_cellcache_loads_neither_the_command_line_nor_the_drivers() -> None:
    script = "import sys, cellcache; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "cellcache" in loaded
    assert loaded.isdisjoint({"typer", "rich", "click", "alembic", "mako", "redis", "pymemcache", "pymysql", "psycopg"})


def test_the_core_imports_neither_backends_nor_migrations() -> None:
    for module, imported in core_imports().items():
        assert not {name for name in imported if name.startswith(("cellcache.backends", "cellcache.migrations"))}, (
            module
        )


@pytest.mark.slow
def test_the_core_imports_in_one_direction() -> None:
    try:
        order = list(graphlib.TopologicalSorter(core_imports()).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"these modules import each other: {error.args[1]}")
    assert "cellcache.directory" in order


@pytest.mark.slow
def test_nothing_but_the_command_line_imports_the_command_line() -> None:
    for module, imported in core_imports().items():
        if not module.startswith("cellcache.cli"):
            assert not {name for name in imported if name.startswith("cellcache.cli")}, module


def test_the_backends_import_no_more_of_the_core_than_these() -> None:
    allowed = tuple(
        f"cellcache.{name}" for name in ["errors", "foreign", "codec", "protocol", "per_process", "counter", "event"]
    )
    for path in (SOURCE / "backends").rglob("*.py"):
        core = {name for name in imported_names(path) if name.startswith("cellcache.")}
        assert not {name for name in core if not name.startswith(allowed)}, path


def test_a_revision_imports_nothing_of_todays_tables() -> None:
    for path in (SOURCE / "migrations" / "versions").glob("*.py"):
        assert not {name for name in imported_names(path) if name.startswith("cellcache")}, path


def core_imports() -> dict[str, set[str]]:
    """Which modules of the core each of them imports."""
    modules = {}
    for path in (SOURCE / "cellcache").rglob("*.py"):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        modules[name] = path
    # A name that is no module is something inside one, which is named as well.
    theirs = ("cellcache.backends", "cellcache.migrations")
    return {
        module: {name for name in imported_names(path) if name in modules or name.startswith(theirs)} - {module}
        for module, path in modules.items()
        if module != "cellcache"  # it only collects what it exports
    }


def imported_names(path: Path) -> set[str]:
    """What a file imports when it runs, wherever in it: modules, and what is taken from them."""
    names: set[str] = set()
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.update([node.module, *(f"{node.module}.{alias.name}" for alias in node.names)])
        pending.extend(ast.iter_child_nodes(node))
    return names
