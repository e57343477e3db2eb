"""Real servers for tests and benchmarks: memcached, Redis, MariaDB and PostgreSQL.

    with MariaDB() as mariadb:
        engine = create_engine(mariadb.create_database("nova_api"))

Each keeps its data in a temporary directory. The databases keep theirs in memory unless they are `durable`, yet lose
no commit when they are killed; `durable=True` is what production runs: a disk write for every commit.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import pymysql
import sqlalchemy

from tests.server_process import Server

Kind = Literal["memcached", "redis", "mariadb", "postgresql", "faketime"]

_USER = "cellcache"


class Memcached(Server):
    """A memcached. With `unix_socket`, it listens there and not on its port."""

    scheme = "memcached"

    def __init__(self, memory_mb: int = 64, options: Sequence[str] = (), *, unix_socket: bool = False) -> None:
        super().__init__(options)
        self.memory_mb = memory_mb
        self.socket_path = self.directory / "memcached.sock" if unix_socket else None

    @property
    def address(self) -> str:
        """The server as a configuration names it."""
        return f"unix:{self.socket_path}" if self.socket_path else super().address

    def _command(self) -> list[str]:
        listen = ["-s", str(self.socket_path)] if self.socket_path else ["-l", self.host, "-p", str(self.port)]
        return [_program("memcached"), *listen, "-U", "0", "-m", str(self.memory_mb)]

    def _ready(self) -> bool:
        if self.socket_path:
            return self.socket_path.exists()
        # Any answer will do: one that wants TLS or a password first hangs up.
        return self._ask(b"version\r\n") is not None


class Redis(Server):
    """A Redis that writes nothing to disk."""

    scheme = "redis"

    @property
    def url(self) -> str:
        return f"{super().url}/0"

    def _command(self) -> list[str]:
        where = ["--bind", self.host, "--port", str(self.port), "--dir", str(self.directory)]
        return [_program("redis-server"), *where, "--save", "", "--appendonly", "no"]

    def _ready(self) -> bool:
        reply = self._ask(b"PING\r\n")
        return reply is not None and not reply.startswith(b"-LOADING")


class DatabaseServer(Server):
    """What MariaDB and PostgreSQL have in common: databases, and one user who may do everything."""

    driver: ClassVar[str]

    def __init__(self, options: Sequence[str] = (), *, durable: bool = False) -> None:
        super().__init__(options, in_memory=not durable)
        self.durable = durable
        self.data = self.directory / "data"
        self._password = secrets.token_hex(16)

    @property
    def url(self) -> str:
        """The server itself, without a database."""
        return self.database_url(None)

    def database_url(self, name: str | None) -> str:
        url = sqlalchemy.URL.create(self.driver, _USER, self._password, self.host, self.port, name)
        return url.render_as_string(hide_password=False)

    def create_database(self, name: str) -> str:
        """Create an empty database and return its SQLAlchemy URL."""
        self.execute(f"CREATE DATABASE {name}")
        return self.database_url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database that nobody uses any more."""
        raise NotImplementedError

    def execute(self, statement: str) -> None:
        """Execute one statement as the server's administrator."""
        raise NotImplementedError


class MariaDB(DatabaseServer):
    """A MariaDB with InnoDB's small settings."""

    scheme = "mysql"
    driver = "mysql+pymysql"

    def drop_database(self, name: str) -> None:
        self.execute(f"SET STATEMENT lock_wait_timeout = 10 FOR DROP DATABASE {name}")

    def execute(self, statement: str) -> None:
        connection = pymysql.connect(
            host=self.host, port=self.port, user=_USER, password=self._password, autocommit=True
        )
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)

    def _prepare(self) -> None:
        init = f"CREATE USER IF NOT EXISTS {_USER}@{self.host} IDENTIFIED BY '{self._password}';\n"
        init += f"GRANT ALL ON *.* TO {_USER}@{self.host} WITH GRANT OPTION;\n"
        # The accounts that come with it have no password, and every account of this host can connect.
        init += f"DELETE FROM mysql.global_priv WHERE User NOT IN ('{_USER}', 'mariadb.sys');\nFLUSH PRIVILEGES;\n"
        self.add_file("init.sql", init.encode())
        self._run([
            _program("mariadb-install-db"),
            "--no-defaults",
            f"--datadir={self.data}",
            f"--tmpdir={self.directory}",
            "--auth-root-authentication-method=normal",
            "--skip-name-resolve",
            "--skip-test-db",
            "--innodb-log-file-size=16M",
            "--innodb-flush-method=nosync",
        ])  # fmt: skip

    def _command(self) -> list[str]:
        command = [
            _program("mariadbd"),
            "--no-defaults",
            f"--datadir={self.data}",
            f"--socket={self.directory / 'mariadb.sock'}",
            f"--pid-file={self.directory / 'mariadb.pid'}",
            f"--tmpdir={self.directory}",
            f"--init-file={self.directory / 'init.sql'}",
            f"--bind-address={self.host}",
            f"--port={self.port}",
            "--skip-name-resolve",
            "--character-set-server=utf8mb4",
            "--max-connections=300",
            "--innodb-buffer-pool-size=64M",
            "--innodb-log-file-size=16M",
        ]
        if self.durable:
            return [*command, "--innodb-flush-log-at-trx-commit=1"]
        # 2: a commit is handed to the kernel, so that it outlives the process, but not a power cut.
        return [*command, "--innodb-flush-log-at-trx-commit=2", "--innodb-flush-method=nosync"]

    def _ready(self) -> bool:
        return bool(self._ask(b""))


class PostgreSQL(DatabaseServer):
    """A PostgreSQL of the newest version that is installed."""

    scheme = "postgresql"
    driver = "postgresql+psycopg"
    _stop_signal = signal.SIGINT
    # Not SIGKILL, which would leave its shared memory behind.
    _death_signal = "QUIT"

    def drop_database(self, name: str) -> None:
        self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def execute(self, statement: str) -> None:
        import psycopg

        url = sqlalchemy.make_url(self.database_url("postgres")).set(drivername="postgresql")
        with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as connection:
            connection.execute(statement.encode())

    def _prepare(self) -> None:
        password_file = self.add_file("password", self._password.encode())
        self._run([
            _program("initdb"),
            f"--pgdata={self.data}",
            f"--username={_USER}",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        ])  # fmt: skip

    def _command(self) -> list[str]:
        settings = {
            "listen_addresses": self.host,
            "port": self.port,
            "unix_socket_directories": "",
            "dynamic_shared_memory_type": "mmap",  # in the data directory, so that it goes with it
            "shared_buffers": "32MB",
            "max_connections": 200,
        }
        if not self.durable:
            settings |= {"fsync": "off", "full_page_writes": "off"}
        return [_program("postgres"), "-D", str(self.data), *(f"--{name}={value}" for name, value in settings.items())]

    def _ready(self) -> bool:
        ask = [_program("pg_isready"), "--quiet", f"--host={self.host}", f"--port={self.port}", "--timeout=5"]
        return subprocess.run(ask, check=False).returncode == 0


# What each kind needs: Debian's packages, the programs, a driver.
_NEEDS: dict[Kind, tuple[str, tuple[str, ...], str | None]] = {
    "memcached": ("memcached", ("memcached",), "pymemcache"),
    "redis": ("redis-server", ("redis-server",), "redis"),
    "mariadb": (
        "mariadb-server-core mariadb-client-core",
        ("mariadb-install-db", "my_print_defaults", "mariadbd"),
        "pymysql",
    ),
    "postgresql": ("postgresql", ("initdb", "postgres", "pg_isready"), "psycopg"),
    "faketime": ("faketime", ("faketime",), None),  # no server: it shows a process another time than the host's
}


def missing(kind: Kind) -> str | None:
    """Say in one line what to install before this server can run; None if it can."""
    packages, programs, driver = _NEEDS[kind]
    absent = [program for program in programs if _find(program) is None]
    if absent:
        return f"{kind}: {' and '.join(absent)} not found; install it with `apt-get install {packages}`"
    if driver is not None and importlib.util.find_spec(driver) is None:
        return f"{kind}: the driver {driver} is missing; install it with `pip install 'cellcache[redis,postgresql]'`"
    if _find("setpriv") is None:
        return f"{kind}: setpriv not found; install it with `apt-get install util-linux`"
    return None


def _program(name: str) -> str:
    path = _find(name)
    if path is None:
        raise FileNotFoundError(f"{name} is not installed")
    return path


def _find(name: str) -> str | None:
    """Find a program on the path, or where Debian keeps what ordinary users do not call."""
    newest_first = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -float(path.parent.name))
    places = [*map(str, newest_first), os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"]
    return shutil.which(name, path=os.pathsep.join(places))


def main() -> None:
    """Print a line for each server that cannot run here; with `--packages`, what to give to apt-get."""
    for kind, (packages, programs, _driver) in _NEEDS.items():
        if "--packages" in sys.argv:
            if not all(map(_find, programs)):
                print(packages)
        elif (reason := missing(kind)) is not None:
            print(reason)


if __name__ == "__main__":
    main()
