"""From a Redis URL to connections that are not made yet. redis-py reads the URL and opens the socket.

TLS differs: redis-py builds an SSLContext for each connection, which takes 20 ms and trusts the system's
authorities even beside one's own. Here it is built once, and a `ssl_ca_certs` is the only authority.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection, parse_url
from redis.exceptions import RedisError
from redis.retry import Retry

from cellcache.errors import ConfigError

_DEFAULT = "redis://127.0.0.1:6379/0"
_VERIFY = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}


class _TLSConnection(Connection):
    def __init__(self, tls_context: ssl.SSLContext, **options: Any) -> None:
        self._tls_context = tls_context
        super().__init__(**options)  # type: ignore[no-untyped-call]

    def _connect(self) -> socket.socket:
        plain: socket.socket = super()._connect()  # type: ignore[no-untyped-call]
        try:
            return self._tls_context.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise


def connector(arguments: Mapping[str, Any], timeout_s: float) -> Callable[[], AbstractConnection]:
    """Return what makes a connection's object, which opens its socket with `connect()` and does nothing else.

    Raises ConfigError without any part of the URL, which may hold a password.
    """
    url: str = arguments.get("url") or _DEFAULT
    options: dict[str, Any] = {}
    try:
        options = parse_url(url)  # type: ignore[no-untyped-call, unused-ignore]
        _check_database(url, options)
        kind: type[AbstractConnection] = options.pop("connection_class", Connection)
        if kind is SSLConnection:
            kind = _TLSConnection
            options["tls_context"] = arguments.get("tls_context") or _tls_context(options)
        options |= {name: arguments[name] for name in ("username", "password") if arguments.get(name)}
        options |= {
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            "retry": Retry(NoBackoff(), 0),
            "health_check_interval": 0,
            "protocol": 2,
            "redis_connect_func": _say_nothing,
        }
        kind(**options)
    except (KeyError, OSError, TypeError, ValueError, RedisError):
        raise ConfigError(
            "cache.url cannot be used: give redis://[user:password@]host:6379/0, the same with rediss:// for TLS, or "
            "unix:///path?db=0; rediss:// takes ssl_ca_certs, ssl_certfile, ssl_keyfile, ssl_check_hostname and "
            "ssl_cert_reqs after a question mark, where the files must be PEM that can be read"
        ) from None
    return lambda: kind(**options)


def shown(connection: AbstractConnection) -> str:
    """Return where a connection leads, without user and password."""
    if isinstance(connection, UnixDomainSocketConnection):
        return f"unix:{connection.path}?db={connection.db}"
    assert isinstance(connection, Connection)  # noqa: S101 - the other kinds do not come from a URL
    host = f"[{connection.host}]" if ":" in connection.host else connection.host
    return f"{host}:{connection.port}/{connection.db}"


def _check_database(url: str, options: Mapping[str, Any]) -> None:
    """redis-py takes a path that is no number for database 0."""
    path = urlsplit(url).path.strip("/")
    if "path" not in options and path and not path.isdecimal():
        raise ValueError(path)


def _tls_context(options: dict[str, Any]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=options.pop("ssl_ca_certs", None))
    certificate, key = options.pop("ssl_certfile", None), options.pop("ssl_keyfile", None)
    if certificate:
        context.load_cert_chain(certificate, key, password="")  # a passphrase is not asked for at a terminal
    mode = _VERIFY[options.pop("ssl_cert_reqs", "required")]
    context.check_hostname = options.pop("ssl_check_hostname", True) and mode is not ssl.CERT_NONE
    context.verify_mode = mode
    return context


def _say_nothing(connection: AbstractConnection) -> None:
    """Take the place of redis-py's handshake, of up to five round trips."""
