"""The tables' revisions: bring a database to one, say which it is at, and how it differs from the tables.

Each function that takes a URL opens connections of its own for the call. DatabaseUnavailable: the database does not
answer, refuses the connection, or keeps a lock for too long. ConfigError: the URL cannot be used. SchemaError: the
rest.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any, NamedTuple, TextIO

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, Connection, create_engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.pool import NullPool

from cellcache import migration_lock
from cellcache.arguments import demand_number, demand_switch
from cellcache.database import WRONG_OPTIONS, wrong_option
from cellcache.differences import OPTIONS, find_differences
from cellcache.errors import ConfigError, DatabaseUnavailable, InvalidValue, SchemaError
from cellcache.foreign import printable, shown
from cellcache.masking import mask_url
from cellcache.sqlite_file import make_private
from cellcache.texts import LONGEST_NAME, demand_text
from cellcache.tls import verifying_url
from cellcache.url_options import beside, joined_options

_ANSWER_S = 10
_LONGEST_LOCK_TIMEOUT_S = 86_400  # PostgreSQL and SQLite count milliseconds in 31 bits
_HINT = "; `cellcache db history` shows those there are"
_BACKENDS = ("mysql", "mariadb", "postgresql", "sqlite")
_ONE_THREAD = threading.Lock()  # Alembic keeps what it works on in globals


class Revision(NamedTuple):
    """One step in the tables' history; `phase` is "pre" or "post": to be run before a deployment, or after."""

    revision: str
    down_revision: str | None
    message: str
    phase: str


def head() -> str:
    """Return the newest revision of this release."""
    return history()[-1].revision


def history() -> list[Revision]:
    """Return the revisions of this release, oldest first. No database is asked."""
    scripts = ScriptDirectory.from_config(_config()).walk_revisions()
    return [_revision(script) for script in scripts][::-1]


def current(url: str | URL) -> str | None:
    """Return the revision that the database is at; None where cellcache's tables were never created.

    It may be one that this release does not know, if a newer one was here. An unreachable server takes 10 s.
    """
    with _connected(_parsed(url)) as connection:
        return revision_of(connection)


def revision_of(connection: Connection) -> str | None:
    """Return the same over a connection that is open already."""
    return MigrationContext.configure(connection, opts=OPTIONS).get_current_revision()


def check(url: str | URL) -> list[str]:
    """Return one line for each difference between the database and the tables: none, if all is well."""
    with _connected(_parsed(url)) as connection:
        found = revision_of(connection)
        differences = [] if found == head() else [f"the revision is {found or 'not set'}, this release needs {head()}"]
        return differences + find_differences(connection)


def upgrade(
    url: str | URL,
    revision: str = "head",
    *,
    sql: bool = False,
    output: TextIO | None = None,
    lock_timeout_s: float = migration_lock.LOCK_TIMEOUT_S,
) -> None:
    """Bring the database up to a revision; with `sql`, only write the statements to `output` (or stdout).

    Processes that do this at once take turns; one that waits longer than `lock_timeout_s` gives up. With `sql` the
    database is not asked: the statements begin at no tables at all, or, for "a:b", at revision a.
    """
    _run(command.upgrade, _parsed(url), revision, sql=sql, output=output, lock_timeout_s=lock_timeout_s)


def downgrade(
    url: str | URL,
    revision: str,
    *,
    sql: bool = False,
    output: TextIO | None = None,
    lock_timeout_s: float = migration_lock.LOCK_TIMEOUT_S,
) -> None:
    """Bring the database down to a revision, or to "base", which drops every table with all that is in it.

    The rest is as in `upgrade`; with `sql` the revision must be "from:to", as the database is not asked.
    """
    if demand_switch("sql", sql) and ":" not in demand_text("revision", revision, longest=LONGEST_NAME):
        raise SchemaError(f"to go down as SQL, give FROM:TO, such as {head()}:{revision}; the database is not asked")
    _run(command.downgrade, _parsed(url), revision, sql=sql, output=output, lock_timeout_s=lock_timeout_s)


@contextmanager
def alone(url: str | URL, *, lock_timeout_s: float = migration_lock.LOCK_TIMEOUT_S) -> Iterator[Connection]:
    """Connect, and let every upgrade and downgrade wait until the end of the block, which commits.

    On PostgreSQL and SQLite the block is one transaction. MySQL and MariaDB commit with each statement about a table.
    """
    limit_s = demand_number("lock_timeout_s", lock_timeout_s, least=0, most=_LONGEST_LOCK_TIMEOUT_S)
    with _connected(_parsed(url), slow=True) as connection, migration_lock.alone(connection, limit_s):
        yield connection


def create(connection: Connection) -> None:
    """Create the tables over a connection that is `alone`, as `upgrade` does."""
    _call(command.upgrade, "head", {"connection": connection})


def _run(
    step: Callable[..., None], url: URL, revision: str, *, sql: bool, output: TextIO | None, lock_timeout_s: float
) -> None:
    demand_text("revision", revision, longest=LONGEST_NAME)
    if output is not None and not callable(getattr(output, "write", None)):
        raise InvalidValue(f"output {shown(output)} is nothing to write to")
    if demand_switch("sql", sql):
        if revision.count(":") > 1:
            raise SchemaError(f"{revision!r} is neither a revision nor FROM:TO{_HINT}")
        _call(step, revision, {"url": url}, sql=True, output=output)
        return
    _refuse_newer(url)
    with alone(url, lock_timeout_s=lock_timeout_s) as connection:
        _call(step, revision, {"connection": connection}, output=output)


def _call(
    step: Callable[..., None],
    revision: str,
    attributes: dict[str, Any],
    *,
    sql: bool = False,
    output: TextIO | None = None,
) -> None:
    config = _config(output or sys.stdout)
    config.attributes.update(attributes, options=OPTIONS)
    with _ONE_THREAD, _alembic_errors(revision):
        step(config, revision, sql=sql)


def _refuse_newer(url: URL) -> None:
    found = current(url)
    if found is not None and found not in {revision.revision for revision in history()}:
        raise SchemaError(
            f"{_shown(url)} is at revision {found}, which this release does not know (its newest is {head()}): "
            "a newer cellcache migrated it; run that one"
        )


def _config(output: TextIO | None = None) -> Config:
    config = Config(output_buffer=output)
    config.set_main_option("script_location", str(files("cellcache.migrations")).replace("%", "%%"))
    return config


@contextmanager
def _alembic_errors(revision: str) -> Iterator[None]:
    try:
        yield
    except CommandError as error:
        raise SchemaError(_one_line(error) + (_HINT if "revision" in str(error) else "")) from error
    except AssertionError as error:  # how Alembic answers "head+1" and the like
        raise SchemaError(f"no revision is found by {revision!r}{_HINT}") from error


@contextmanager
def _connected(url: URL, *, slow: bool = False) -> Iterator[Connection]:
    """Connect for one call. `slow` waits for replies as long as they take: building an index may be hours."""
    where = _shown(url)
    if url.get_backend_name() == "sqlite":
        make_private(url)
    try:
        connection = create_engine(url, poolclass=NullPool, connect_args=_time_limits(url, slow=slow)).connect()
    except (ImportError, *WRONG_OPTIONS) as error:
        raise ConfigError(f"{where} cannot be used with what is installed: {wrong_option(url, error)}") from error
    except DBAPIError as error:
        raise DatabaseUnavailable(f"cannot reach {where}: {_reason(url, error)}") from error
    try:
        with connection:
            yield connection
    except TimeoutError as error:
        raise DatabaseUnavailable(f"{where}: {_one_line(error)}; try again when it has finished") from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise DatabaseUnavailable(f"lost the connection to {where}: {_reason(url, error)}") from error
        raise SchemaError(f"{where} refused: {_reason(url, error)}") from error


def _revision(script: Script) -> Revision:
    down = script.down_revision
    phase = script.revision.split("_")[1]
    return Revision(script.revision, None if down is None else str(down), script.doc, phase)  # there are no branches


def _parsed(url: str | URL) -> URL:
    try:
        parsed = make_url(url)
        parsed.get_dialect()
        if parsed.get_backend_name() in _BACKENDS and parsed.database not in {None, "", ":memory:"}:
            return joined_options(verifying_url(parsed))
    except InvalidValue:
        raise
    except (ArgumentError, NoSuchModuleError, ValueError):
        pass
    raise ConfigError(  # without the URL: what cannot be understood cannot be rid of its password, either
        "the database's URL cannot be used; write mysql+pymysql://user:password@host/database, "
        "postgresql+psycopg://user:password@host/database or sqlite:///file"
    )


def _time_limits(url: URL, *, slow: bool) -> dict[str, Any]:
    limits: dict[str, Any] = {"timeout": _ANSWER_S}
    if url.get_backend_name() != "sqlite":
        limits = {"connect_timeout": _ANSWER_S}
    if url.get_backend_name() == "postgresql":
        limits["client_encoding"] = "UTF8"
    if url.get_driver_name() == "pymysql" and not slow:
        limits["read_timeout"] = _ANSWER_S  # also for the greeting of a server that has stopped
    return beside(url, limits)


def _shown(url: URL) -> str:
    return f"the database {mask_url(url.render_as_string(hide_password=False))}"


def _reason(url: URL, error: DBAPIError) -> str:
    arguments = getattr(error.orig, "args", ())
    reason = _one_line(arguments[-1] if arguments else error.orig)
    return reason.replace(str(url.password), "***") if url.password else reason


def _one_line(what: object) -> str:
    return printable(" ".join(str(what).split())).rstrip(".")
