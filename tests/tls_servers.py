"""The servers of the tests with TLS: each with a certificate of its own, and where wanted asking for the client's."""

from __future__ import annotations

import socket
import ssl

from tests.certificates import Authority, Pair
from tests.servers import DatabaseServer, MariaDB, Memcached, PostgreSQL, Redis


class TLSMemcached(Memcached):
    """A memcached that speaks nothing but TLS."""

    def __init__(self, pair: Pair, clients: Authority | None = None) -> None:
        super().__init__()
        certificate, key = self.add_file("server.pem", pair.certificate), self.add_file("server.key", pair.key)
        extended = f"ssl_chain_cert={certificate},ssl_key={key}"
        if clients:
            extended += f",ssl_verify_mode=2,ssl_ca_cert={self.add_file('clients.pem', clients.pem)}"
        self.options = ("-Z", "-o", extended)

    def _ready(self) -> bool:
        return _speaks_tls(self.host, self.port)


class TLSRedis(Redis):
    """A Redis that speaks nothing but TLS."""

    scheme = "rediss"

    def __init__(self, pair: Pair, clients: Authority | None = None) -> None:
        super().__init__()
        certificate, key = self.add_file("server.pem", pair.certificate), self.add_file("server.key", pair.key)
        trusted = self.add_file("clients.pem", clients.pem if clients else pair.certificate)
        self.options = (
            *("--port", "0", "--tls-port", str(self.port)),
            *("--tls-cert-file", str(certificate), "--tls-key-file", str(key), "--tls-ca-cert-file", str(trusted)),
            *("--tls-auth-clients", "yes" if clients else "no"),
        )

    def _ready(self) -> bool:
        return _speaks_tls(self.host, self.port)


def with_tls(server: DatabaseServer, pair: Pair, clients: Authority) -> DatabaseServer:
    """Let a database that is not started yet offer TLS, and trust certificates of `clients`."""
    certificate, key = server.add_file("server.pem", pair.certificate), server.add_file("server.key", pair.key)
    trusted = server.add_file("clients.pem", clients.pem)
    if isinstance(server, MariaDB):
        server.options += (f"--ssl-cert={certificate}", f"--ssl-key={key}", f"--ssl-ca={trusted}")
    else:
        assert isinstance(server, PostgreSQL)
        server.options += (
            *("--ssl=on", f"--ssl_cert_file={certificate}", f"--ssl_key_file={key}"),
            f"--ssl_ca_file={trusted}",
        )
    return server


def _speaks_tls(host: str, port: int) -> bool:
    """Whether somebody answers with a certificate: the tests say of whom it must be."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((host, port), timeout=5) as plain, context.wrap_socket(plain):
            return True
    except OSError:
        return False
