"""TLS to a server, verified unless a URL says outright that it shall not be. A file that cannot be used is named."""

from __future__ import annotations

import ssl
from pathlib import Path

from sqlalchemy import URL

from cellcache.errors import ConfigError, InvalidValue

_NO = {"0", "false", "no", "off"}
_VERIFY_MYSQL = {"ssl_verify_cert", "ssl_verify_identity"}


def verifying_context(ca: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """Return a context that trusts `ca`, or else what the system trusts, and shows our certificate if there is one."""
    files = f"cache.tls_ca = '{ca}'"
    try:
        context = ssl.create_default_context(cafile=ca)
        if certificate:
            files = f"cache.tls_cert = '{certificate}'" + (f", cache.tls_key = '{key}'" if key else "")
            context.load_cert_chain(certificate, key, password="")  # a passphrase is not asked for at a terminal
        return context
    except (OSError, ValueError) as error:
        reason = (error.reason if isinstance(error, ssl.SSLError) else None) or getattr(error, "strerror", None) or ""
    raise ConfigError(f"{files}: must be PEM files that can be read, a key with no passphrase ({reason or 'bad text'})")


def verifying_url(url: URL) -> URL:
    """Return a database's URL with which its driver verifies the server: whose certificate it is, and for which host.

    Left alone where it names no authority (`ssl_ca`, `sslrootcert`), or says that nothing shall be verified. Raises
    InvalidValue, without any part of the URL, for what PyMySQL would do by halves.
    """
    options = url.query
    if url.get_backend_name() == "postgresql":
        # libpq's default asks for TLS and goes on without, and verifies nothing.
        unsaid = "sslrootcert" in options and "sslmode" not in options
        return url.update_query_dict({"sslmode": "verify-full"}) if unsaid else url
    if url.get_driver_name() != "pymysql":
        return url
    refused = {name for name in _VERIFY_MYSQL if str(options.get(name, "true")).lower() in _NO}
    if "ssl_ca" not in options:
        if options.keys() & (_VERIFY_MYSQL - refused):  # it would take any host that the system's authorities know
            raise InvalidValue("ssl_verify_cert and ssl_verify_identity need ssl_ca, the authority to trust")
        return url
    # SQLAlchemy hands PyMySQL the authority and the certificate in one argument and these two each in its own, and
    # then PyMySQL forgets the former. Without them it verifies all there is to verify.
    if "ssl_verify_cert" in refused:
        return url
    url = url.difference_update_query(_VERIFY_MYSQL)
    return url.update_query_dict({"ssl_check_hostname": "false"}) if refused else url
