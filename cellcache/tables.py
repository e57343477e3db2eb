"""The tables, as SQLAlchemy sees them. docs/tables.md says what each is for; migrations/ creates them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, Boolean, DateTime, Dialect, Index, Integer, MetaData, String, Table, Text, false
from sqlalchemy import Column as _Column
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeDecorator

metadata = MetaData()

_OPTIONS: dict[str, Any] = {
    "mysql_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_bin",
    "mariadb_engine": "InnoDB",
    "mariadb_charset": "utf8mb4",
    "mariadb_collate": "utf8mb4_bin",
    "sqlite_autoincrement": True,  # an `id` is never used again
}


class UTCDateTime(TypeDecorator[datetime]):
    """Aware UTC in Python, `datetime` without a zone in the database, whole seconds in both."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone")
        return value.astimezone(UTC).replace(tzinfo=None, microsecond=0)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], datetime | None] | None:
        """Take what is no time, as a row written by hand may hold, for an unknown one: nothing else stops at it."""
        read = super().result_processor(dialect, coltype)

        def read_or_none(value: Any) -> datetime | None:
            try:
                return read(value) if read is not None else value
            except (TypeError, ValueError):
                return None

        return read_or_none

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        return None if value is None else value.replace(tzinfo=UTC)


def _timestamp(name: str, *, nullable: bool = True) -> _Column[datetime]:
    return _Column(name, UTCDateTime, nullable=nullable)


def _medium_text(name: str) -> _Column[str]:
    return _Column(name, Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb"), nullable=False)


instance_mapping = Table(
    "instance_mapping",
    metadata,
    _timestamp("created_at"),
    _timestamp("updated_at"),
    _Column("id", Integer, primary_key=True, autoincrement=True),
    _Column("instance_uuid", String(36), nullable=False),
    _Column("cell_uuid", String(36), nullable=False),
    _Column("project_id", String(255), nullable=False),
    Index("uniq_instance_mapping_instance_uuid", "instance_uuid", unique=True),
    Index("ix_instance_mapping_project_id_id", "project_id", "id"),
    Index("ix_instance_mapping_cell_uuid_id", "cell_uuid", "id"),
    **_OPTIONS,
)

cell_mapping = Table(
    "cell_mapping",
    metadata,
    _timestamp("created_at"),
    _timestamp("updated_at"),
    _Column("id", Integer, primary_key=True, autoincrement=True),
    _Column("uuid", String(36), nullable=False),
    _Column("name", String(255), nullable=True),
    _medium_text("transport_url"),
    _medium_text("database_connection"),
    _Column("disabled", Boolean, nullable=False, server_default=false()),
    Index("uniq_cell_mapping_uuid", "uuid", unique=True),
    **_OPTIONS,
)

cache_invalidation = Table(
    "cache_invalidation",
    metadata,
    _timestamp("created_at", nullable=False),
    _timestamp("deliver_after", nullable=False),
    _Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    _medium_text("instance_uuids"),  # one write's instances, a comma between each: one row per transaction
    Index("ix_cache_invalidation_deliver_after", "deliver_after"),
    **_OPTIONS,
)

cache_agreement = Table(
    "cache_agreement",
    metadata,
    _Column("name", String(64), primary_key=True),
    _medium_text("value"),
    _timestamp("since", nullable=False),
    **{option: value for option, value in _OPTIONS.items() if option != "sqlite_autoincrement"},
)
