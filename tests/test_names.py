"""A resolver that does not answer is a server that does not answer."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import pytest

from cellcache.backends.memcached import MemcachedBackend
from cellcache.backends.redis import RedisBackend
from cellcache.protocol import Absent


@pytest.mark.parametrize(
    ("backend", "arguments"),
    [(MemcachedBackend, {"servers": ["cache.example:11211"]}), (RedisBackend, {"url": "redis://cache.example:6379/0"})],
)
def test_a_resolver_that_hangs_costs_a_lookup_its_time_limit(
    backend: Any, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()

    def hang(*_: object, **__: object) -> list[Any]:
        answered.wait(20)
        raise socket.gaierror("no answer")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    cache = backend({**arguments, "timeout_s": 0.1})
    began = time.monotonic()
    assert cache.lookup("a") is Absent.UNREACHABLE
    assert time.monotonic() - began < 10
    assert cache.errors == 1
    assert "not resolved in time" in (cache.check()[0].trouble or "")
    answered.set()
    for thread in threading.enumerate():
        if thread.name == "cellcache-resolver":
            thread.join()
    cache.close()


def test_an_unknown_name_is_an_unreachable_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> list[Any]:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    cache = MemcachedBackend({"servers": ["cache.example:11211"]})
    assert cache.lookup("a") is Absent.UNREACHABLE
    assert "Name or service not known" in (cache.check()[0].trouble or "")
    cache.close()
