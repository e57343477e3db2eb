"""What others wrote steers no terminal, forges no line and floods nothing: on a screen, in a log, in an error."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, text

from cellcache import BackendUnsupported, CellDirectory, ConfigError, Settings
from cellcache.cli.logs import log_to_stderr
from cellcache.cli.render import print_line, progress
from cellcache.foreign import LONGEST, printable, shown
from tests.command_line import Deployment, Outcome, make_deployment
from tests.hostile import STEERING, UNPRINTABLE


@given(st.text() | st.integers() | st.binary())
def test_what_is_shown_is_one_line_that_steers_nothing(value: object) -> None:
    assert printable(value).isprintable()
    assert shown(value).isprintable()


def test_what_can_be_shown_is_shown_as_it_is() -> None:
    for fine in ("", "Zürich 東京", "a" * LONGEST, "[/b] ***"):
        assert printable(fine) == fine


def test_what_is_too_long_is_cut_and_says_so() -> None:
    assert printable("a" * 60_000) == "a" * LONGEST + "... (60,000 characters)"
    assert len(printable(STEERING)) < LONGEST + 50
    assert len(shown(STEERING)) < 100


@pytest.mark.parametrize("value", UNPRINTABLE, ids=range(len(UNPRINTABLE)))
def test_what_cannot_even_be_shown_is_named_by_its_type(value: object) -> None:
    assert any(kind in shown(value) for kind in ("type int", "type list", "_Unprintable"))
    assert len(shown(value)) < 100


# -- the command line --------------------------------------------------------------------------------------------------


def clean(outcome: Outcome) -> Outcome:
    """Check that nothing got through: rich's own colours and cursor movements end in m, K, A, h or l."""
    for stream in (outcome.out, outcome.err):
        assert "\x1b]" not in stream
        assert not {"\x07", "\x9b", "\u2028", "\N{RIGHT-TO-LEFT OVERRIDE}"} & set(stream)
        assert not any(line.startswith("cellcache: all is well") for line in stream.splitlines())
    return outcome


@pytest.fixture
def steered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Deployment:
    """A deployment in whose rows such texts stand, wherever a row has a text; SQLite takes them all."""
    deployment = make_deployment(tmp_path, capsys)
    steering = STEERING.replace("\udcff", "")
    cells = [str(uuid4()), str(uuid4()), steering]
    engine = create_engine(deployment.database_url)
    with engine.begin() as connection:
        for number, cell in enumerate(cells):
            connection.execute(
                text(
                    "INSERT INTO cell_mapping (uuid, name, transport_url, database_connection, disabled, created_at) "
                    "VALUES (:uuid, :name, :url, :database, 0, CURRENT_TIMESTAMP)"
                ),
                {
                    "uuid": cell,
                    "name": f"[/b]{steering}",
                    "url": f"rabbit://{steering}",
                    "database": deployment.cell_database("one") if not number else f"nonsense{steering}",
                },
            )
        for uuid, cell in ((str(uuid4()), cells[0]), (str(uuid4()), steering), (steering, cells[1])):
            connection.execute(
                text(
                    "INSERT INTO instance_mapping (instance_uuid, cell_uuid, project_id, created_at) "
                    "VALUES (:uuid, :cell, :project, CURRENT_TIMESTAMP)"
                ),
                {"uuid": uuid, "cell": cell, "project": steering},
            )
    engine.dispose()
    return deployment


READING = [
    "cell list", "cell list --json", "instance list", "instance list --json", "doctor", "doctor --json", "stats",
    "instance prune --purged --dry-run", "verify", "verify --json", "db check", "invalidations list",
]  # fmt: skip


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("line", READING)
def test_no_row_steers_the_terminal(
    steered: Deployment, line: str, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    outcome = clean(steered.run(*line.split(" "), "--verbose"))
    assert outcome.code in {0, 1, 2}, outcome.err
    if "--json" in line:
        assert [json.loads(document) for document in outcome.out.splitlines()]  # whole, for programs
    else:
        assert len(outcome.out) < 50_000


def test_no_row_steers_the_terminal_where_one_is_asked_for(steered: Deployment) -> None:
    rows = steered.run("instance", "list", "--json").documents
    for uuid in [row["instance_uuid"] for row in rows]:
        for command in (["resolve"], ["resolve", "--explain"], ["instance", "show"]):
            clean(steered.run(*command, uuid))
    for cell in steered.run("cell", "list", "--json").documents:
        clean(steered.run("cell", "show", cell["uuid"]))
        clean(steered.run("cell", "show", cell["uuid"], "--show-secrets"))
        clean(steered.run("cell", "show", cell["name"]))


@pytest.mark.parametrize("description", ["[/b]", "[red]x", "\x1b]0;owned\x07", "a\r\nb"])
def test_a_progress_bar_shows_a_name_as_it_is(
    description: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with progress() as bar:
        bar.add_task(description, total=1)
    assert printable(description) in capsys.readouterr().err


def test_a_line_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_line("[/b][red]x[/]")
    assert capsys.readouterr().out == "[/b][red]x[/]\n"


@pytest.mark.parametrize(
    "words",
    [
        ["resolve", STEERING],
        ["cell", "show", STEERING],
        ["instance", "list", "--project", STEERING],
        ["instance", "map", "--from", STEERING],
        ["cell", "create", STEERING, "--database-connection", STEERING],
        ["cell", "create", "c", "--database-connection-file", STEERING],
        ["db", "upgrade", STEERING],
        [STEERING],
    ],
    ids=lambda words: " ".join(words)[:30].encode("ascii", "backslashreplace").decode(),
)
def test_no_argument_does(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    clean(make_deployment(tmp_path, capsys).run(*words))


def test_no_log_record_is_more_than_a_line_but_for_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        log_to_stderr(verbose=False)
        logging.getLogger("anything").warning("it said %s", STEERING)
        captured = capsys.readouterr()
    finally:
        logging.basicConfig(handlers=handlers, level=level, force=True)
    assert captured.err.count("\n") == 1
    clean(Outcome(0, "", captured.err))


# -- the configuration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["database.url", "cache.backend", "cache.servers", "cache.key_prefix", "cache.other"])
def test_a_line_of_a_configuration_error_is_one_line(key: str) -> None:
    section, name = key.split(".")
    with pytest.raises(ConfigError) as caught:
        Settings(**{section: {name: [STEERING] if name == "servers" else STEERING}})
    assert str(caught.value).isprintable()


def test_no_name_of_a_file_a_key_or_a_variable_forges_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steering = STEERING[:60]
    file = tmp_path / "cellcache.toml"
    for content in (f"[cache]\n{json.dumps(steering)} = 1", f"[{json.dumps(steering)}]\na = 1"):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            Settings.load(file)
        assert str(caught.value).isprintable()
    with pytest.raises(ConfigError) as caught:
        Settings.load(tmp_path / steering)
    assert str(caught.value).isprintable()
    monkeypatch.setenv(f"CELLCACHE_{steering.replace('=', '')}", "1")
    with pytest.raises(ConfigError) as caught:
        Settings.load()
    assert str(caught.value).isprintable()


# -- servers -----------------------------------------------------------------------------------------------------------


@contextmanager
def answering(reply: bytes) -> Iterator[int]:
    """Run a server that answers whatever it is asked with this; yield its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    try:
                        while connection.recv(65_536):
                            connection.sendall(reply)
                    except OSError:
                        pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(10)


_STEERING = STEERING.replace("\r\n", "\n").encode("utf-8", "surrogateescape")

REPLIES = {
    "redis": [b"-ERR %b\r\n" % _STEERING, b"+%b\r\n" % _STEERING, b"-LOADING %b\r\n" % _STEERING],
    "memcached": [
        b"CLIENT_ERROR %b\r\n" % _STEERING,
        b"VERSION %b\r\n" % _STEERING[:1000],
        b"%b\r\n" % _STEERING[:900],
    ],
}


@pytest.mark.parametrize(("kind", "reply"), [(kind, reply) for kind, some in REPLIES.items() for reply in some])
def test_no_reply_of_a_cache_server_gets_into_the_log_or_an_error_as_it_is(
    kind: str, reply: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    deployment = make_deployment(tmp_path, capsys)
    with answering(reply) as port:
        place: Any = {"url": f"redis://127.0.0.1:{port}/0"} if kind == "redis" else {"servers": [f"127.0.0.1:{port}"]}
        lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in place.items())
        deployment.configure(
            f'[database]\nurl = "{deployment.database_url}"\n'
            f'[cache]\nbackend = "cellcache.{kind}"\ntimeout_s = 1\n{lines}'
        )
        assert clean(deployment.run("doctor")).code in {1, 4}
        for document in deployment.run("doctor", "--json").documents:
            assert all(len(str(value)) < LONGEST + 500 for value in document.values())
        clean(deployment.run("resolve", str(uuid4())))
        caplog.clear()
        with caplog.at_level(logging.DEBUG):
            said = ""
            try:
                with CellDirectory.open(Settings.load(deployment.config)) as directory:
                    assert directory.resolve_cells([str(uuid4())]) == {}
            except BackendUnsupported as error:
                said = str(error)
        assert said.isprintable()
        assert all(record.getMessage().isprintable() for record in caplog.records)
