"""Which database a URL leads to, as far as the URL alone tells.

Directories of one process over one database share what they keep in memory, and those over two must not. To open a
directory connects nothing, so nobody is asked: two names of one host are two hosts. User, password, driver and time
limits lead nowhere.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

from sqlalchemy import URL

from cellcache.sqlite_file import sqlite_file
from cellcache.url_options import postgresql_options

_DEFAULT_PORT = {"mysql": 3306, "postgresql": 5432}
_ALSO_CHOOSE = ("hostaddr", "init_command", "read_default_file", "read_default_group", "service")
_chosen_schema = re.compile(r"(?:-c\s*|--)(search[_-]path|role)=((?:\\.|[^\\\s])*)", re.IGNORECASE).findall


def database_identity(url: URL) -> str:
    """Return a hash that is the same for two URLs of one database. A relative path starts at the current folder."""
    return hashlib.sha256(repr(_led_to(url)).encode()).hexdigest()


def _led_to(url: URL) -> tuple[object, ...]:
    if url.get_backend_name() == "sqlite":
        return ("sqlite", sqlite_file(url))
    _, options = url.get_dialect()().create_connect_args(url)
    kind = "postgresql" if url.get_backend_name() == "postgresql" else "mysql"  # which is MariaDB's, too
    database = options.get("database") or options.get("db") or options.get("dbname")
    others = [(name, options[name]) for name in _ALSO_CHOOSE if name in options]
    return (kind, _places(kind, options), database, others, _schemas(url))


def _places(kind: str, options: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the hosts and ports, of which PostgreSQL's driver takes several."""
    if options.get("unix_socket"):
        return [(os.path.realpath(options["unix_socket"]), "")]
    hosts = str(options.get("host") or ("localhost" if kind == "mysql" else "")).split(",")
    ports = str(options.get("port") or "").split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    return sorted({(_host(host), port or str(_DEFAULT_PORT[kind])) for host, port in zip(hosts, ports, strict=False)})


def _host(name: str) -> str:
    """Return a host, or a socket's folder, in one spelling."""
    if name.startswith("/"):
        return os.path.realpath(name)
    name = name.lower().rstrip(".")
    try:
        address = ip_address(name)
    except ValueError:
        return name
    return "localhost" if str(address) in {"127.0.0.1", "::1"} else str(address)


def _schemas(url: URL) -> dict[str, list[str]]:
    """Return where PostgreSQL looks for a table; it reads names in lower case where they are not quoted."""
    if url.get_backend_name() != "postgresql":
        return {}
    lists = {
        setting.lower().replace("-", "_"): re.sub(r"\\(.)", r"\1", names).split(",")
        for setting, names in _chosen_schema(postgresql_options(url))  # the last of two holds
    }
    return {setting: [_name(name.strip()) for name in lists[setting]] for setting in sorted(lists)}


def _name(name: str) -> str:
    return name.strip('"') if name.startswith('"') else name.lower()
