"""What a database's URL says about its connections holds; our limits stand beside it, never in its place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from sqlalchemy import URL


def joined_options(url: URL) -> URL:
    """Return the URL with PostgreSQL's `options` as one text, though they be given several times."""
    options = url.query.get("options")
    if url.get_backend_name() != "postgresql" or not isinstance(options, tuple):
        return url
    return url.update_query_dict({"options": " ".join(options)})


def postgresql_options(url: URL) -> str:
    """Return what a connection gives PostgreSQL: libpq reads PGOPTIONS only where the URL has no `options`."""
    return str(joined_options(url).query.get("options", os.environ.get("PGOPTIONS", "")))


def beside(url: URL, limits: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of our limits that the URL does not set itself, with what it gives PostgreSQL as `options` in ours.

    Of two values for one setting, PostgreSQL takes the last.
    """
    unsaid = {name: limit for name, limit in limits.items() if name not in url.query or name == "options"}
    if "options" in unsaid:
        unsaid["options"] = f"{unsaid['options']} {postgresql_options(url)}".strip()
    return unsaid
