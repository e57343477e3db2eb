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


def beside(url: URL, limits: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of our limits that the URL does not set itself, with what it gives PostgreSQL as `options` in ours.

    libpq reads PGOPTIONS only where it is given no `options`. Of two values for one setting, PostgreSQL takes the last.
    """
    unsaid = {name: limit for name, limit in limits.items() if name not in url.query or name == "options"}
    if "options" in unsaid:
        theirs = joined_options(url).query.get("options", os.environ.get("PGOPTIONS", ""))
        unsaid["options"] = f"{unsaid['options']} {theirs}".strip()
    return unsaid
