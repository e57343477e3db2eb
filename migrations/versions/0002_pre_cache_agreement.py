"""Create cache_agreement.

Run before the deployment of the release that signs entries for one deployment; the release before it does not look at
the table.

MySQL and MariaDB commit CREATE by itself, so an upgrade that dies right after it leaves the table behind. Therefore one
that is there already is left alone.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import context, op
from alembic.util import CommandError
from sqlalchemy.dialects import mysql

revision = "0002_pre_cache_agreement"
down_revision = "0001_pre_instance_mapping"
branch_labels = None
depends_on = None

_TABLE = "cache_agreement"


def upgrade() -> None:
    columns: list[sa.Column[Any]] = [
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("value", sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb"), nullable=False),
        sa.Column("since", sa.DateTime(), nullable=False),
    ]
    if not context.is_offline_mode() and _exists():
        found = {column["name"] for column in sa.inspect(op.get_bind()).get_columns(_TABLE)}
        if found != {column.name for column in columns}:
            message = f"the table {_TABLE} exists already, with other columns than cellcache's; rename it or drop it"
            raise CommandError(message)
        return
    # SQLAlchemy reads the one prefix for mysql:// and the other for mariadb://.
    options: dict[str, Any] = {
        f"{dialect}_{option}": value
        for dialect in ("mysql", "mariadb")
        for option, value in {"engine": "InnoDB", "charset": "utf8mb4", "collate": "utf8mb4_bin"}.items()
    }
    op.create_table(_TABLE, *columns, **options)


def downgrade() -> None:
    if context.is_offline_mode() or _exists():
        op.drop_table(_TABLE)


def _exists() -> bool:
    return sa.inspect(op.get_bind()).has_table(_TABLE)
