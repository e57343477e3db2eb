"""Which SQL connections are not kept in their pool: those inside a transaction, and those to who refuses to serve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection, ExceptionContext
from sqlalchemy.pool import ConnectionPoolEntry

_MYSQL_IN_TRANSACTION = 1  # SERVER_STATUS_IN_TRANS
_POSTGRESQL_IDLE = 0  # PQTRANS_IDLE
_MYSQL_NO_PRIMARY = (1290, 1836, 1047)  # --read-only; read-only mode; a Galera node that has lost the others
_POSTGRESQL_NO_PRIMARY = ("25006", "57P01", "57P02", "57P03")  # read-only; being shut down, crashed, starting

_in_transaction: dict[str, Callable[[Any], bool]] = {  # as the driver knows it, without asking the server
    "sqlite": lambda connection: connection.in_transaction,
    "mysql": lambda connection: bool(connection.server_status & _MYSQL_IN_TRANSACTION),
    "mariadb": lambda connection: bool(connection.server_status & _MYSQL_IN_TRANSACTION),
    "postgresql": lambda connection: connection.pgconn.transaction_status != _POSTGRESQL_IDLE,
}


def close_what_is_in_a_transaction(engine: Engine) -> None:
    """Let no connection go back to the pool inside a transaction: its caller was interrupted before the end of it."""
    in_transaction = _in_transaction[engine.dialect.name]

    @event.listens_for(engine, "checkin")
    def look(connection: DBAPIConnection | None, record: ConnectionPoolEntry) -> None:
        if connection is not None and in_transaction(connection):
            record.invalidate()


def drop_those_to_who_refuses(engine: Engine) -> None:
    """Take a server that refuses what it is there for as one that is gone: its name may lead to another by now.

    A primary that has been demoted keeps its connections, which would be refused for good.
    """

    @event.listens_for(engine, "handle_error")
    def drop(context: ExceptionContext) -> None:
        if refuses_service(context.original_exception):
            context.is_disconnect = True


def refuses_service(error: BaseException) -> bool:
    """Return whether a driver's error says that this server is no primary (any more), or is being shut down."""
    return (bool(error.args) and error.args[0] in _MYSQL_NO_PRIMARY) or (
        getattr(error, "sqlstate", None) in _POSTGRESQL_NO_PRIMARY
    )
