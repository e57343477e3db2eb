"""What the database itself writes down by triggers: the order of commits, and what became of invalidation rows."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import sqlalchemy
from sqlalchemy import text

from tests.faults.checker import Commit
from tests.faults.history import clock

_TRIGGERS = """
CREATE TABLE journal (
    seq BIGINT AUTO_INCREMENT PRIMARY KEY, at DATETIME(6) NOT NULL DEFAULT SYSDATE(6), what CHAR(9) NOT NULL,
    op VARCHAR(64), instance_uuid VARCHAR(36), cell_uuid VARCHAR(36), row_id BIGINT
);
CREATE TRIGGER created AFTER INSERT ON instance_mapping FOR EACH ROW
    INSERT INTO journal (at, what, op, instance_uuid, cell_uuid)
    VALUES (SYSDATE(6), 'commit', @op, NEW.instance_uuid, NEW.cell_uuid);
CREATE TRIGGER moved AFTER UPDATE ON instance_mapping FOR EACH ROW
    INSERT INTO journal (at, what, op, instance_uuid, cell_uuid)
    VALUES (SYSDATE(6), 'commit', @op, NEW.instance_uuid, NEW.cell_uuid);
CREATE TRIGGER pruned AFTER DELETE ON instance_mapping FOR EACH ROW
    INSERT INTO journal (at, what, op, instance_uuid, cell_uuid)
    VALUES (SYSDATE(6), 'commit', @op, OLD.instance_uuid, NULL);
CREATE TRIGGER recorded AFTER INSERT ON cache_invalidation FOR EACH ROW
    INSERT INTO journal (at, what, op, row_id) VALUES (SYSDATE(6), 'recorded', @op, NEW.id);
CREATE TRIGGER delivered AFTER DELETE ON cache_invalidation FOR EACH ROW
    INSERT INTO journal (at, what, op, row_id) VALUES (SYSDATE(6), 'delivered', @op, OLD.id);
"""


@dataclass
class Journal:
    """The order of commits per instance, and when invalidations were delivered."""

    commits: dict[str, list[Commit]] = field(default_factory=dict)
    delivered_at: dict[str, int] = field(default_factory=dict)  # by write; absent: not yet
    recorded: set[str] = field(default_factory=set)  # writes that left an invalidation row


def create_journal(url: str) -> None:
    with connected(url) as connection:
        for statement in _TRIGGERS.split(";\n"):
            if statement.strip():
                connection.exec_driver_sql(statement)


def read_journal(url: str) -> Journal:
    journal = Journal()
    rows: dict[int, str] = {}  # the write of each invalidation row
    query = "SELECT what, op, instance_uuid, cell_uuid, row_id, UNIX_TIMESTAMP(at) FROM journal ORDER BY seq"
    with connected(url) as connection:
        offset = clock() - time.time_ns()
        for what, op, key, cell, row_id, at in connection.execute(text(query)):
            at_ns = int(at * 1_000_000) * 1000 + offset
            if what == "commit":
                journal.commits.setdefault(key, []).append(Commit(op, cell, at_ns))
            elif what == "recorded" and op is not None:
                rows[row_id] = op
                journal.recorded.add(op)
            elif what == "delivered" and row_id in rows:
                journal.delivered_at[rows[row_id]] = at_ns
    return journal


@contextlib.contextmanager
def connected(url: str) -> Iterator[sqlalchemy.Connection]:
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()
