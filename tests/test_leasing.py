"""What dogpile's two calls, get and set, remember between them."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from dogpile.cache.api import NO_VALUE

from cellcache.backends import leasing
from cellcache.backends.memory import MemoryBackend
from cellcache.protocol import Absent, Lease


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


def test_set_after_a_value_that_was_passed_over_stores_nothing() -> None:
    backend = MemoryBackend({})
    backend.set_serialized("key", b"not to be judged")
    assert backend.get_serialized("key") == b"not to be judged"
    assert backend.pass_over("key") is NO_VALUE
    backend.set_serialized("key", b"read before some write")
    assert backend.get_serialized("key") == b"not to be judged"
    backend.set_serialized("key", b"an explicit set")
    assert backend.get_serialized("key") == b"an explicit set"


def test_after_a_while_a_set_without_a_miss_stores_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leasing, "_MOST_REMEMBERED", 1)
    backend = MemoryBackend({"fence_ttl_s": 1e-9})
    backend.get_serialized("one")
    backend.get_serialized("two")
    backend.set_serialized("three", b"value")
    assert backend.get_serialized("three") == b"value"


def test_second_look_of_who_holds_the_lease_costs_nothing_and_the_third_finds_what_was_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """dogpile looks again under its mutex; whoever looks on after that wants to know what has come since."""
    backend, asked = MemoryBackend({}), list[str]()
    lookup = backend.lookup

    def counted(key: str) -> bytes | Lease | Absent:
        asked.append(key)
        entry: bytes | Lease | Absent = lookup(key)
        return entry

    monkeypatch.setattr(backend, "lookup", counted)
    assert [backend.get_serialized("key") for _ in range(2)] == [NO_VALUE] * 2
    assert len(asked) == 1
    backend.store_multi({"key": b"another's"})
    assert backend.get_serialized("key") == b"another's"


def test_second_look_after_the_lease_has_ended_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, now = MemoryBackend({"lease_ttl_s": 5.0}), [1000.0]
    for module in ("leasing", "memory"):
        clock = SimpleNamespace(monotonic=lambda: now[0])
        monkeypatch.setattr(f"cellcache.backends.{module}.time", clock)
    assert backend.get_serialized("key") is NO_VALUE
    now[0] += 6.0
    assert backend.get_serialized("key") is NO_VALUE  # and takes the next lease
    backend.set_serialized("key", b"value")
    assert backend.get_serialized("key") == b"value"


@pytest.mark.parametrize("look", ["get_serialized", "get_serialized_multi"])
def test_set_after_ones_own_deletion_stores(look: str) -> None:
    """It is no fill of the miss that came before the deletion, whose lease is gone."""
    backend = MemoryBackend({})
    if look == "get_serialized":
        assert backend.get_serialized("key") is NO_VALUE
    else:
        assert backend.get_serialized_multi(["key"]) == [NO_VALUE]
    backend.delete("key")
    backend.set_serialized("key", b"value")
    assert backend.get_serialized("key") == b"value"


def test_a_forked_child_of_a_plain_region_has_a_copy_and_changes_its_own_alone() -> None:
    backend = MemoryBackend({})
    backend.set_serialized("key", b"the parent's")
    child = os.fork()
    if child == 0:
        looks = [backend.get_serialized("key")]
        backend.delete("key")
        looks.append(backend.get_serialized("key"))
        backend.set_serialized("key", b"the child's")
        looks.append(backend.get_serialized("key"))
        os._exit(0 if looks == [b"the parent's", NO_VALUE, b"the child's"] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert backend.get_serialized("key") == b"the parent's"
