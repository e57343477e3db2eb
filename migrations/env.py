"""Run the revisions: for `cellcache.schema`, or, with cellcache's settings, for plain `alembic`.

Nothing here touches logging, which belongs to whoever calls.
"""

from __future__ import annotations

from typing import Any

from alembic import context
from sqlalchemy import URL, Connection, create_engine
from sqlalchemy.pool import NullPool


def write(url: URL, options: dict[str, Any]) -> None:
    """Write the statements for a database of this kind, without connecting to it."""
    transactional = url.get_backend_name() not in {"mysql", "mariadb"}  # Alembic supposes that SQLite is not, either
    dialect = {"paramstyle": "named"}
    context.configure(url=url, literal_binds=True, dialect_opts=dialect, transactional_ddl=transactional, **options)
    with context.begin_transaction():
        context.run_migrations()


def execute(connection: Connection, options: dict[str, Any]) -> None:
    """Execute the statements over a connection that holds the lock."""
    context.configure(connection=connection, **options)
    with context.begin_transaction():
        context.run_migrations()


def run_for_alembic() -> None:
    """Do what `cellcache.schema` would have prepared, for those who run `alembic` itself."""
    from cellcache.config import Settings  # noqa: PLC0415
    from cellcache.differences import OPTIONS  # noqa: PLC0415
    from cellcache.migration_lock import LOCK_TIMEOUT_S, alone  # noqa: PLC0415

    url = Settings.load().database.sqlalchemy_url
    if context.is_offline_mode():
        write(url, OPTIONS)
        return
    with create_engine(url, poolclass=NullPool).connect() as connection, alone(connection, LOCK_TIMEOUT_S):
        execute(connection, OPTIONS)


prepared = context.config.attributes
if "connection" in prepared:
    execute(prepared["connection"], prepared["options"])
elif "url" in prepared:
    write(prepared["url"], prepared["options"])
else:
    run_for_alembic()
