"""What dogpile's two calls, get and set, remember between them."""

from __future__ import annotations

import os

import pytest
from dogpile.cache.api import NO_VALUE

from cellcache.backends import leasing
from cellcache.backends.memory import MemoryBackend


def test_a_thread_that_had_to_forget_misses_stores_nothing_that_may_be_their_fill(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leasing, "_MOST_REMEMBERED", 10)
    backend = MemoryBackend({"fence_ttl_s": 60.0})
    for number in range(11):
        assert backend.get_serialized(f"key {number}") is NO_VALUE
    backend.invalidate_multi(["key 0"])  # a write came in between
    backend.set_serialized("key 0", b"read before the write")
    assert backend.peek_multi(["key 0"]) == [None]
    backend.set_serialized("key 10", b"remembered")
    assert backend.get_serialized("key 10") == b"remembered"


def test_after_a_while_a_set_without_a_miss_stores_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leasing, "_MOST_REMEMBERED", 1)
    backend = MemoryBackend({"fence_ttl_s": 1e-9})
    backend.get_serialized("one")
    backend.get_serialized("two")
    backend.set_serialized("three", b"value")
    assert backend.get_serialized("three") == b"value"


def test_a_forked_child_of_a_plain_region_starts_afresh() -> None:
    backend = MemoryBackend({})
    backend.set_serialized("key", b"the parent's")
    child = os.fork()
    if child == 0:
        os._exit(0 if backend.get_serialized("key") is NO_VALUE else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert backend.get_serialized("key") == b"the parent's"
