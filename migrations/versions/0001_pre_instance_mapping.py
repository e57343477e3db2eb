"""Create instance_mapping, cell_mapping and cache_invalidation.

Run before the deployment of cellcache 0.1.

MySQL and MariaDB commit every CREATE by itself, so an upgrade that dies half-way leaves some of this behind.
Therefore what is there already is left alone, and running it again finishes the work.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import context, op
from alembic.util import CommandError
from sqlalchemy.dialects import mysql

revision = "0001_pre_instance_mapping"
down_revision = None
branch_labels = None
depends_on = None

_MEDIUM_TEXT = sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")
_BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

_OPTIONS: dict[str, Any] = {
    # SQLAlchemy reads the one prefix for mysql:// and the other for mariadb://.
    **{
        f"{dialect}_{option}": value
        for dialect in ("mysql", "mariadb")
        for option, value in {"engine": "InnoDB", "charset": "utf8mb4", "collate": "utf8mb4_bin"}.items()
    },
    # As on the servers, an id is never given twice: who deletes an invalidation by its id must not hit a younger one.
    "sqlite_autoincrement": True,
}


def upgrade() -> None:
    _create_table(
        "instance_mapping",
        sa.Column("created_at", sa.DateTime(), nullable=True),
        sa.Column("updated_at", sa.DateTime(), nullable=True),
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("instance_uuid", sa.String(36), nullable=False),
        sa.Column("cell_uuid", sa.String(36), nullable=False),
        sa.Column("project_id", sa.String(255), nullable=False),
    )
    _create_index("uniq_instance_mapping_instance_uuid", "instance_mapping", "instance_uuid", unique=True)
    _create_index("ix_instance_mapping_project_id_id", "instance_mapping", "project_id", "id")
    _create_index("ix_instance_mapping_cell_uuid_id", "instance_mapping", "cell_uuid", "id")

    _create_table(
        "cell_mapping",
        sa.Column("created_at", sa.DateTime(), nullable=True),
        sa.Column("updated_at", sa.DateTime(), nullable=True),
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("uuid", sa.String(36), nullable=False),
        sa.Column("name", sa.String(255), nullable=True),
        sa.Column("transport_url", _MEDIUM_TEXT, nullable=False),
        sa.Column("database_connection", _MEDIUM_TEXT, nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    _create_index("uniq_cell_mapping_uuid", "cell_mapping", "uuid", unique=True)

    _create_table(
        "cache_invalidation",
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("deliver_after", sa.DateTime(), nullable=False),
        sa.Column("id", _BIG_ID, primary_key=True, autoincrement=True),
        sa.Column("instance_uuids", _MEDIUM_TEXT, nullable=False),
    )
    _create_index("ix_cache_invalidation_deliver_after", "cache_invalidation", "deliver_after")


def downgrade() -> None:
    for table in ("cache_invalidation", "cell_mapping", "instance_mapping"):
        if _exists(table):
            op.drop_table(table)


def _exists(table: str) -> bool:
    return context.is_offline_mode() or sa.inspect(op.get_bind()).has_table(table)


def _create_table(name: str, *columns: sa.Column[object]) -> None:
    if context.is_offline_mode() or not _exists(name):
        op.create_table(name, *columns, **_OPTIONS)
        return
    found = {column["name"] for column in sa.inspect(op.get_bind()).get_columns(name)}
    if found != {column.name for column in columns}:
        message = f"the table {name} exists already, with other columns than cellcache's; rename it or drop it"
        raise CommandError(message)


def _create_index(name: str, table: str, *columns: str, unique: bool = False) -> None:
    if not context.is_offline_mode():
        found = {index["name"] for index in sa.inspect(op.get_bind()).get_indexes(table)}
        if name in found:
            return
    op.create_index(name, table, list(columns), unique=unique)
