"""TLS to a cache server: the server is always verified, and a file that cannot be used is named."""

from __future__ import annotations

import ssl
from pathlib import Path

from cellcache.errors import ConfigError


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
