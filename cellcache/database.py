"""Engines with time limits, and errors of our own in place of the drivers'.

Reads run in autocommit: each statement sees what is committed when it begins, never a transaction's older snapshot.
Writes run at READ COMMITTED, where a row lock waits for the writer before and then sees what it wrote.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, Literal

from sqlalchemy import URL, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection, ExceptionContext
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry

from cellcache.cell_url import parsed_cell_url
from cellcache.database_url import demand_driver, parsed_database_url
from cellcache.errors import CellCacheError, ConfigError, DatabaseUnavailable, InvalidValue, SchemaError
from cellcache.foreign import printable
from cellcache.kept_connections import close_what_is_in_a_transaction, drop_those_to_who_refuses
from cellcache.masking import mask_url, sounds_secret
from cellcache.sql_pool import CountingPool
from cellcache.sqlite_file import make_private, sqlite_file
from cellcache.sqlite_forks import keep_closed_across_forks
from cellcache.texts import LONGEST_URL, demand_text
from cellcache.tls import verifying_url
from cellcache.url_options import beside

Use = Literal["read", "write", "as it is", "cell"]

_KEY_FILES = {"ssl_key", "sslkey"}  # which belong together with other options of the URL
_LOGGER = "cellcache"
# SQLAlchemy logs every row that it reads at DEBUG, those of `cell_mapping` with their passwords among them.
logging.getLogger(f"sqlalchemy.engine.Engine.{_LOGGER}").addFilter(lambda record: record.levelno > logging.DEBUG)

_STEPS = 10_000  # of SQLite's, between two looks at the clock
_MYSQL_NO_TABLE_OR_COLUMN = (1146, 1054)
_POSTGRESQL_NO_TABLE_OR_COLUMN = ("42P01", "42703")


LONGEST_ANSWER = 8 << 20
"""Bytes: far more than 10,000 UUIDs in any form, which is the most that we ask a cell's database for."""

DATABASE_ERRORS = (SQLAlchemyError, OSError, UnicodeError)
"""What comes out of a statement: the last where a text does not go through the encoding of the connection."""

WRONG_OPTIONS = (AttributeError, LookupError, OSError, OverflowError, RuntimeError, TypeError, ValueError)
"""What a driver raises before it connects, beside errors of its own: for an option of the URL that it does not know, or
a value of one, a file that cannot be read, cryptography that it lacks."""

_MYSQL_CANNOT_HOLD = (1366, 1406, 1267, 3988)
_POSTGRESQL_CANNOT_HOLD = ("22P05", "22001")
_POSTGRESQL_NOT_UTF8 = "22021"  # of what it reads: what we write is UTF-8


def demand_usable_url(url: str) -> str:
    """Return a cell's database URL that is for one of our drivers, which is installed, or raise InvalidValue."""
    demand_text("database_connection", url, longest=LONGEST_URL, secret=True)
    try:
        parsed = parsed_cell_url(url)
        demand_driver(parsed)
    except ValueError as error:
        raise InvalidValue(f"this database URL cannot be used: it {error}") from None
    verifying_url(parsed)
    return url


def open_engine(
    url: str,
    *,
    pool_size: int,
    timeout_s: float,
    connect_timeout_s: float,
    use: Use,
    most_bytes: int | None = None,
) -> Engine:
    """Return an engine whose every wait is bounded; nothing is connected yet.

    "read" is autocommit, "write" takes the database's own locks early enough, "as it is" is what its owner has set up.
    So is "cell", a cell's own database, whose URL is from a table and not from the configuration: see cell_url.py.

    At most `pool_size` connections are open; whoever finds them all busy waits for up to `timeout_s`. A URL that cannot
    be used raises ConfigError. With `most_bytes`, an answer as a whole keeps to the time limit, and is no longer: a
    server that somebody else has set up may send for ever.
    """
    try:
        parsed = parsed_cell_url(url) if use == "cell" else parsed_database_url(url)
        demand_driver(parsed)
    except ValueError as error:
        raise ConfigError(f"database URL {mask_url(url)} cannot be used: it {error}") from None
    backend = parsed.get_backend_name()
    options: dict[str, Any] = {}
    if use == "read":
        options |= {"isolation_level": "AUTOCOMMIT", "skip_autocommit_rollback": True}
    elif use == "write" and backend != "sqlite":  # SQLite's writers take turns anyway
        options["isolation_level"] = "READ COMMITTED"
    ours = use in {"read", "write"}
    if ours:
        # We end every transaction that we begin, so the pool need not spend a round trip on a ROLLBACK of its own.
        options["pool_reset_on_return"] = None
    # SQLAlchemy shows the URL of an engine without its password, and with all its options.
    secret = {name: value for name, value in parsed.query.items() if sounds_secret(name) and name not in _KEY_FILES}
    try:
        engine = create_engine(
            verifying_url(parsed.difference_update_query(secret)),
            connect_args={**secret, **beside(parsed, _limits(backend, timeout_s, connect_timeout_s))},
            hide_parameters=True,
            logging_name=_LOGGER,
            poolclass=CountingPool,
            pool_size=pool_size,
            pool_timeout=timeout_s,
            **options,
        )
    except (ArgumentError, TypeError, ValueError) as error:
        if isinstance(error, InvalidValue):
            raise
        raise ConfigError(f"database URL {mask_url(url)} cannot be used: {_first_line(error)}") from error
    if backend == "sqlite":
        keep_closed_across_forks(engine, sqlite_file(parsed))
    _forget_values(engine)
    if backend == "sqlite" and ours:
        event.listen(engine, "do_connect", lambda *_: make_private(parsed))
    if backend != "postgresql":  # whose driver has errors of its own for that
        connect = _limited_mysql(timeout_s + 1, most_bytes) if most_bytes and backend != "sqlite" else None
        _name_wrong_options(engine, url, connect)
    if backend in {"mysql", "mariadb"}:
        _limit_mysql_statements(engine, timeout_s, strict=use != "cell")
    elif backend == "postgresql":
        _limit_postgresql_waits(engine, timeout_s + 1, most_bytes)
        if ours:
            _read_any_postgresql_time(engine)
    elif most_bytes:
        _limit_sqlite_statements(engine, timeout_s, most_bytes)
    elif ours:
        _prepare_sqlite(engine, use)
    drop_those_to_who_refuses(engine)
    if use != "cell":
        close_what_is_in_a_transaction(engine)
    return engine


def _forget_values(engine: Engine) -> None:
    """Let no error of SQLAlchemy's hold what a statement was about: they are chained to ours, logged and pickled.

    To insert a cell is about its URLs.
    """

    @event.listens_for(engine, "handle_error")
    def forget(context: ExceptionContext) -> None:
        if isinstance(context.sqlalchemy_exception, StatementError):
            context.sqlalchemy_exception.params = None
        codec = context.original_exception
        if isinstance(codec, UnicodeEncodeError | UnicodeDecodeError):  # PyMySQL encodes the values with the statement
            codec.object = codec.object[:0]
            codec.args = (codec.encoding, codec.object, codec.start, codec.end, codec.reason)


def close_engine(engine: Engine) -> None:
    """Close its idle connections now, and those that other threads are using when they give them back."""

    @event.listens_for(engine, "checkin")
    def close(_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        record.invalidate()

    engine.dispose()


def _limits(backend: str, timeout_s: float, connect_timeout_s: float) -> dict[str, Any]:
    if backend in {"mysql", "mariadb"}:
        # The statement's own limit strikes first; the socket's is for a server that has stopped altogether.
        return {
            "connect_timeout": connect_timeout_s,
            "read_timeout": timeout_s + 1,
            "write_timeout": timeout_s + 1,
            "local_infile": False,  # else a server may ask for any file of this host
        }
    if backend == "postgresql":
        milliseconds = int(timeout_s * 1000)
        return {
            "connect_timeout": max(2, round(connect_timeout_s)),  # libpq takes whole seconds and no fewer than two
            "tcp_user_timeout": milliseconds + 1000,
            "options": f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds}",
            "client_encoding": "UTF8",  # else the database's own: texts come as bytes where that is SQL_ASCII
        }
    return {"timeout": timeout_s}


def _name_wrong_options(engine: Engine, url: str, connect: Callable[..., Any] | None) -> None:
    @event.listens_for(engine, "do_connect")
    def try_to_connect(dialect: Any, _record: Any, arguments: list[Any], options: dict[str, Any]) -> Any:
        try:
            return (connect or dialect.connect)(*arguments, **options)
        except WRONG_OPTIONS as error:
            said = wrong_option(engine.url, error)
            raise ConfigError(f"database {mask_url(url)} cannot be used: {said}") from error


def wrong_option(url: URL, error: Exception) -> str:
    """Return what one of WRONG_OPTIONS says, and the file that it does not name."""
    files = [(name, str(url.query[name])) for name in ("ssl_ca", "ssl_cert", "ssl_key") if name in url.query]
    unreadable = [f"{name} = {file} cannot be read" for name, file in files if not os.access(file, os.R_OK)]
    return "; ".join([_first_line(error), *unreadable])


def _limited_mysql(limit_s: float, most_bytes: int) -> Callable[..., Any]:
    from cellcache.mysql import connect_within  # noqa: PLC0415 - most processes do without, and with SQLite all

    return connect_within(limit_s, most_bytes)


def _limit_mysql_statements(engine: Engine, timeout_s: float, *, strict: bool) -> None:
    """Set the session up; if `strict`, what does not fit a column is refused, not stored with `?` for its letters."""

    @event.listens_for(engine, "connect")
    def limit(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        cursor.execute("SELECT VERSION()")
        row = cursor.fetchone()
        if row is not None and "mariadb" in row[0].lower():
            cursor.execute("SET SESSION max_statement_time = %s", (timeout_s,))
        else:
            cursor.execute("SET SESSION max_execution_time = %s", (int(timeout_s * 1000),))
        strictly = ", sql_mode = CONCAT(@@sql_mode, ',STRICT_TRANS_TABLES')" if strict else ""
        cursor.execute(f"SET SESSION innodb_lock_wait_timeout = %s{strictly}", (max(1, round(timeout_s)),))
        cursor.close()


def _limit_sqlite_statements(engine: Engine, limit_s: float, most_bytes: int) -> None:
    """End what takes too long, such as a view without an end that takes the place of a table."""
    deadline = 0.0

    @event.listens_for(engine, "connect")
    def limit(connection: Any, _record: ConnectionPoolEntry) -> None:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, most_bytes)
        connection.set_progress_handler(lambda: monotonic() > deadline, _STEPS)

    @event.listens_for(engine, "before_cursor_execute")
    def begin(*_: Any) -> None:
        nonlocal deadline
        deadline = monotonic() + limit_s


def _limit_postgresql_waits(engine: Engine, limit_s: float, most_bytes: int | None) -> None:
    from cellcache.postgresql import connect_within  # noqa: PLC0415 - psycopg is an extra

    connect = connect_within(limit_s, most_bytes)

    @event.listens_for(engine, "do_connect")
    def limited(_dialect: Any, _record: Any, arguments: list[Any], options: dict[str, Any]) -> Any:
        return connect(*arguments, **options)


def _read_any_postgresql_time(engine: Engine) -> None:
    from cellcache.postgresql import read_any_time  # noqa: PLC0415 - as above

    @event.listens_for(engine, "connect")
    def prepare(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
        read_any_time(connection)


def _prepare_sqlite(engine: Engine, use: Use) -> None:
    @event.listens_for(engine, "connect")
    def prepare(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # we begin transactions ourselves
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode")
        if cursor.fetchone() != ("wal",):  # so that readers go on while a writer writes
            with contextlib.suppress(sqlite3.OperationalError):  # locked just now: the next connection will do it
                cursor.execute("PRAGMA journal_mode = WAL")
        cursor.close()

    @event.listens_for(engine, "close")
    def roll_back(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
        # Of an interrupted caller a cursor may be left somewhere: with it the library keeps the transaction open.
        connection.rollback()

    if use == "write":

        @event.listens_for(engine, "begin")
        def begin(connection: Any) -> None:
            # Were the lock only taken at the first write, two readers that turn writers would each wait for the other.
            connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def database_errors(url: str) -> Iterator[None]:
    """Turn what SQLAlchemy and the drivers raise into errors of ours."""
    try:
        yield
    except DATABASE_ERRORS as error:
        raise translated(error, url) from error


def translated(error: Exception, url: str, *, tables: str = "") -> CellCacheError:
    """Return our error for one of DATABASE_ERRORS or a driver's: SchemaError, InvalidValue, else DatabaseUnavailable.

    Its text is one line and holds no password.

    `tables` names the tables that the statement needed, if they are not those of `cellcache db upgrade`.
    """
    if isinstance(error, PoolTimeout):
        return DatabaseUnavailable(
            f"database {mask_url(url)}: all pooled connections stayed busy; raise database.pool_size, or look for "
            "slow statements"
        )
    cause, text = _cause(error), reason_of(error)
    if _lacks_table(cause):
        remedy = f"is it a cell's database, with its table {tables}?" if tables else "run `cellcache db upgrade`"
        return SchemaError(f"database {mask_url(url)} lacks a table or column ({text}); {remedy}")
    if isinstance(cause, UnicodeDecodeError) or getattr(cause, "sqlstate", None) == _POSTGRESQL_NOT_UTF8:
        return SchemaError(f"database {mask_url(url)} holds a text in another encoding than its connection's: {text}")
    if _cannot_hold(cause):
        return InvalidValue(f"database {mask_url(url)} cannot hold this text, nor find it: {_without_bytes(text)}")
    return DatabaseUnavailable(f"database {mask_url(url)} did not do as asked: {text}")


def _without_bytes(text: str) -> str:
    """Leave out what MariaDB quotes of the value: of a URL, maybe, whose password that is."""
    begin, end = text.find(": '"), text.rfind("' for column")
    return text[:begin] + text[end + 1 :] if 0 <= begin < end else text


def reason_of(error: Exception) -> str:
    """Return what the driver said, in one line."""
    return _first_line(_cause(error))


def _cause(error: Exception) -> BaseException:
    return error.orig if isinstance(error, DBAPIError) and error.orig is not None else error


def _first_line(error: BaseException) -> str:
    numbered = len(error.args) == 2 and isinstance(error.args[0], int)  # PyMySQL: number and text, which may be empty
    said = str(error.args[1] if numbered else error).strip() or type(error).__name__
    return printable(said.splitlines()[0]) + (f" ({error.args[0]})" if numbered else "")


def _cannot_hold(cause: BaseException) -> bool:
    """Return whether it is the text's fault: the encoding of the connection or of the database lacks its letters."""
    return (
        isinstance(cause, UnicodeEncodeError)
        or (bool(cause.args) and cause.args[0] in _MYSQL_CANNOT_HOLD)
        or getattr(cause, "sqlstate", None) in _POSTGRESQL_CANNOT_HOLD
    )


def _lacks_table(cause: BaseException) -> bool:
    return (
        (bool(cause.args) and cause.args[0] in _MYSQL_NO_TABLE_OR_COLUMN)
        or getattr(cause, "sqlstate", None) in _POSTGRESQL_NO_TABLE_OR_COLUMN
        or str(cause).startswith(("no such table", "no such column"))
    )
