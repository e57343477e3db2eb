"""What is the memory backend's own: how many entries it holds."""

from __future__ import annotations

import pytest

from cellcache.backends.memory import MemoryBackend
from cellcache.protocol import Lease


@pytest.mark.parametrize("most", [1, 2, 9, 10, 11, 100])
def test_it_never_holds_more_than_it_may(most: int) -> None:
    backend = MemoryBackend({"max_entries": most})
    for number in range(3 * most):
        assert isinstance(backend.lookup(f"key {number}"), Lease)
        assert len(backend.held) <= most


def test_the_oldest_tenth_goes_when_it_is_full() -> None:
    backend = MemoryBackend({"max_entries": 100})
    keys = [f"key {number}" for number in range(101)]
    backend.store_multi(dict.fromkeys(keys[:100], b"value"))
    backend.lookup(keys[50])
    backend.store_multi({keys[50]: b"again"})  # it is there already, and takes no place
    assert len(backend.held) == 100
    backend.store_multi({keys[100]: b"value"})
    assert list(backend.held) == keys[11:]
