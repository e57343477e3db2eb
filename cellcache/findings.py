"""What an examination finds."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Level(enum.StrEnum):
    FINE = "fine"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at. `advice` says what to do about it; there is none where all is well."""

    what: str
    name: str
    level: Level = Level.FINE
    says: str = ""
    version: str | None = None
    round_trip_s: float | None = None
    advice: str | None = None
