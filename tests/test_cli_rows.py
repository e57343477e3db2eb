"""Mappings from CSV, and what people write for cells, times and URLs."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import typer

from cellcache.cli.choices import find_cell, seconds, secret_url
from cellcache.cli.exits import UsageProblem
from cellcache.cli.rows import read_rows
from cellcache.errors import CellNotFound, ConfigError
from cellcache.model import CellMapping

ONE = CellMapping(uuid="11111111-1111-4111-8111-111111111111", name="one", database_connection="", transport_url="")
TWO = CellMapping(uuid="22222222-2222-4222-8222-222222222222", name="two", database_connection="", transport_url="")
TWIN = CellMapping(uuid="33333333-3333-4333-8333-333333333333", name="two", database_connection="", transport_url="")
INSTANCE = "0f0e3f6e-2f6c-4a3b-9d5e-2f1f6a7f4c11"


def rows(text: str) -> list[tuple[str, ...]]:
    return [tuple(map(str, row)) for row in read_rows(io.BytesIO(text.encode()), [ONE, TWO])]


def test_a_header_comments_and_empty_lines_are_passed_over() -> None:
    text = f"uuid,cell,project\n# moved last year\n\n{INSTANCE.upper()}, one , p1\n".replace(" , ", ",")
    assert rows(text) == [(INSTANCE, ONE.uuid, "p1")]


def test_a_cell_is_named_by_its_name_or_its_uuid() -> None:
    assert rows(f"{INSTANCE},two,p\n{INSTANCE},{TWO.uuid},p\n") == [(INSTANCE, TWO.uuid, "p")] * 2


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm() -> None:
    assert rows(f"\ufeffuuid,cell,project\r\n{INSTANCE},one,p\r\n") == [(INSTANCE, ONE.uuid, "p")]


def test_a_quoted_project_may_hold_a_comma() -> None:
    assert rows(f'{INSTANCE},one,"a,b"\n') == [(INSTANCE, ONE.uuid, "a,b")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0f0e,one,p", "not a UUID"),
        (f"{INSTANCE},three,p", "there is no cell three"),
        (f"{INSTANCE},one", "2 fields"),
        (f"{INSTANCE},one,", "uuid,cell,project"),
        (f"{INSTANCE},one,p,q", "4 fields"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(line: str, reason: str) -> None:
    with pytest.raises(UsageProblem, match=rf"^line 2: .*{reason}"):
        rows(f"{INSTANCE},one,p\n{line}\n")


def test_text_that_is_not_utf_8_is_an_error_and_no_traceback() -> None:
    with pytest.raises(UsageProblem, match=r"^line 1: .*utf-8"):
        list(read_rows(io.BytesIO(b"\xff\xfe\x00,one,p\n"), [ONE]))


def test_a_name_that_two_cells_have_is_refused() -> None:
    with pytest.raises(UsageProblem, match=f"{TWO.uuid}, {TWIN.uuid}"):
        find_cell([ONE, TWO, TWIN], "two")
    assert find_cell([ONE, TWO, TWIN], TWIN.uuid.replace("-", "").upper()) is TWIN
    with pytest.raises(CellNotFound):
        find_cell([ONE], TWO.uuid)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("90s", 90), ("1.5m", 90), ("15min", 900), ("1h", 3600), ("2d", 172_800), (" 1 H ", 3600), ("0", 0)],
)
def test_a_length_of_time_is_a_number_and_a_unit(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "h", "-1h", "1y", "1h30m", "nan", "1e3"])
def test_anything_else_is_no_length_of_time(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        seconds(text)


def test_a_url_comes_from_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "url"
    file.write_text("mysql://from/file\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("mysql://from/stdin\nmore\n"))
    monkeypatch.setenv("SOME_URL", "mysql://from/environment")
    assert secret_url("--url", "mysql://given", None, "SOME_URL") == "mysql://given"
    assert secret_url("--url", None, str(file), "SOME_URL") == "mysql://from/file"
    assert secret_url("--url", "-", None, "SOME_URL") == "mysql://from/stdin"
    assert secret_url("--url", None, None, "SOME_URL") == "mysql://from/environment"
    assert secret_url("--url", None, None, None) is None
    with pytest.raises(UsageProblem, match="not both"):
        secret_url("--url", "mysql://given", str(file), None)


def test_a_url_file_that_is_missing_or_empty_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        secret_url("--url", None, str(tmp_path / "none"), None)
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ConfigError, match="holds nothing"):
        secret_url("--url", None, str(tmp_path / "empty"), None)
