"""A database's URL: made for one of the drivers whose time limits we know how to set, with nothing left to fill in.

Whatever is wrong with one is said without quoting it: it may hold a password in any place, most of all where it is
malformed.
"""

from __future__ import annotations

import re

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from cellcache.texts import demand_host

DRIVERS = ("mysql+pymysql", "mariadb+pymysql", "postgresql+psycopg", "sqlite", "sqlite+pysqlite")
"""Each driver has options of its own for time limits; these are the ones that we know."""

ESCAPE = "in a user name or password, write '@' as %40, ':' as %3A, '/' as %2F, '#' as %23, '?' as %3F, '%' as %25"

_BARE = {
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
}
_field_of_template = re.compile(r"\{(?:scheme|username|password|hostname|port|path|query|fragment)\d*}").search


def parsed_database_url(text: str) -> URL:
    """Take it apart; raise ValueError, whose text follows the name of the thing, for what can't be a database's URL."""
    if _field_of_template(text):
        raise ValueError("is a template of Nova's, which fills it in from its own configuration: write it out")
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError(f"must be driver://user:password@host:port/database; {ESCAPE}") from None
    if url.drivername in _BARE:
        raise ValueError(f"names no driver: begin it with {_BARE[url.drivername]}://")
    if url.drivername not in DRIVERS:
        raise ValueError("must begin with " + ", ".join(f"{driver}://" for driver in DRIVERS))
    if url.port is not None and not 1 <= url.port <= 65535:
        raise ValueError("must have a port from 1 to 65535, or none")
    if url.get_backend_name() == "sqlite" and (
        url.database in {None, "", ":memory:", "file::memory:"} or url.query.get("mode") == "memory"
    ):
        raise ValueError(
            "is an SQLite database in memory, which is gone with its connection: name a file, sqlite:///path"
        )
    demand_host(url.host or "")
    if "local_infile" in url.query:
        raise ValueError(
            "has the option local_infile, with which a server may ask for any file of this host: leave it out"
        )
    return url


def demand_driver(url: URL) -> None:
    """Raise ValueError where the package with its driver is not installed."""
    try:
        url.get_dialect().import_dbapi()
    except ImportError:
        raise ValueError(
            f"needs {url.get_driver_name()}, which is not installed here: pip install 'cellcache[postgresql]' brings "
            "PostgreSQL's, and cellcache itself the others"
        ) from None
