"""A time limit on looking up a server's name, which the system's resolver has not: it may block for many seconds."""

from __future__ import annotations

import socket
import threading
import time
from ipaddress import ip_address


def demand_address(host: str, limit_s: float) -> float:
    """Make sure that the system can resolve `host` now; return how much of `limit_s` is left for connecting.

    Raises OSError if it cannot, or not within `limit_s`. The connection that is made next asks again, and is answered
    as quickly. A literal address costs nothing.
    """
    try:
        ip_address(host)
    except ValueError:
        began = time.monotonic()
        failure: list[OSError] = []
        thread = threading.Thread(target=_resolve, args=(host, failure), name="cellcache-resolver", daemon=True)
        thread.start()
        thread.join(limit_s)
        left_s = limit_s - (time.monotonic() - began)
        if thread.is_alive() or left_s <= 0:
            raise TimeoutError(f"the name {host} was not resolved in time") from None
        if failure:
            raise failure[0] from None
        return left_s
    return limit_s


def _resolve(host: str, failure: list[OSError]) -> None:
    try:
        socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        failure.append(error)
    except UnicodeError as error:  # two dots in a row, say: nobody can be asked for such a name
        failure.append(OSError(f"{host} is no host's name: {error}"))
