"""Random sequences of what readers, writers and misfortune do to a few keys, beside a model of a dozen lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    rule,
    run_state_machine_as_test,
)

from cellcache.codec import encode
from cellcache.protocol import Absent, Fence, Fill, Lease, Settlement
from tests.caches import KINDS, Backend, Cache, new_key, open_cache
from tests.fake_redis import FakeRedis

VALUES = [encode(None), encode("0" * 32), encode("f" * 32)]
FOREIGN = [b"x", b"\x02" + bytes(16), b"garbage\r\n"]

KEYS = st.integers(0, 2)
PROCESSES = st.integers(0, 1)


@dataclass(frozen=True)
class Held:
    """A lease or a fence, and who holds it."""

    process: int
    key: int
    token: Lease | Fence
    number: int


Entry = None | bytes | tuple[str, int]  # absent, a value, ("lease" or "fence", its number)


class Operations(RuleBasedStateMachine):
    """Two processes use one cache; the model is a dictionary of what must stand under each key."""

    cache: Cache
    backends: tuple[Backend, Backend]
    leases = Bundle("leases")
    fences = Bundle("fences")

    @initialize()
    def begin(self) -> None:
        self.keys = [new_key() for _ in range(3)]
        self.model: dict[int, Entry] = dict.fromkeys(range(3))
        self.number = 0

    def next_number(self) -> int:
        self.number += 1
        return self.number

    def expect(self, key: int, entry: object) -> None:
        """Check what a lookup answered about something that is there."""
        standing = self.model[key]
        if isinstance(standing, bytes):
            assert entry == standing
        else:
            assert standing is not None
            assert entry is (Absent.LEASED if standing[0] == "lease" else Absent.FENCED)

    @rule(target=leases, process=PROCESSES, key=KEYS)
    def look_up(self, process: int, key: int) -> Any:
        held = self.looked(process, key, self.backends[process].lookup(self.keys[key]))
        return multiple() if held is None else held

    @rule(process=PROCESSES)
    def look_up_all(self, process: int) -> None:
        for key, entry in enumerate(self.backends[process].lookup_multi(self.keys)):
            self.looked(process, key, entry)

    def looked(self, process: int, key: int, entry: object) -> Held | None:
        if self.model[key] is not None:
            self.expect(key, entry)
            return None
        assert isinstance(entry, Lease)
        held = Held(process, key, entry, self.next_number())
        self.model[key] = ("lease", held.number)
        return held

    @rule(held=leases, value=st.sampled_from(VALUES))
    def fill(self, held: Held, value: bytes) -> None:
        assert isinstance(held.token, Lease)
        may = self.model[held.key] == ("lease", held.number)
        fill = Fill(self.keys[held.key], held.token, value, 600.0)
        assert self.backends[held.process].fill_multi([fill]) == [may]
        if may:
            self.model[held.key] = value

    @rule(target=fences, process=PROCESSES, key=KEYS)
    def fence(self, process: int, key: int) -> Held:
        (fence,) = self.backends[process].fence_multi([self.keys[key]])
        assert fence.confirmed
        held = Held(process, key, fence, self.next_number())
        self.model[key] = ("fence", held.number)
        return held

    @rule(held=fences, value=st.none() | st.sampled_from(VALUES))
    def settle(self, held: Held, value: bytes | None) -> None:
        self.settle_again(held, value)

    @rule(held=consumes(fences), value=st.none() | st.sampled_from(VALUES))
    def settle_and_forget(self, held: Held, value: bytes | None) -> None:
        self.settle_again(held, value)

    def settle_again(self, held: Held, value: bytes | None) -> None:
        assert isinstance(held.token, Fence)
        settlement = Settlement(self.keys[held.key], held.token, value, 600.0)
        assert self.backends[held.process].settle_multi([settlement]) == [True]
        standing = self.model[held.key]
        if standing == ("fence", held.number):
            self.model[held.key] = value
        elif not is_fence(standing):
            self.model[held.key] = None

    @rule(process=PROCESSES, chosen=st.sets(KEYS))
    def invalidate(self, process: int, chosen: set[int]) -> None:
        keys = [self.keys[key] for key in chosen]
        assert self.backends[process].invalidate_multi(keys) == [True] * len(keys)
        for key in chosen:
            if not is_fence(self.model[key]):
                self.model[key] = None

    @rule(process=PROCESSES, key=KEYS, value=st.sampled_from(VALUES))
    def store(self, process: int, key: int, value: bytes) -> None:
        self.backends[process].store_multi({self.keys[key]: value})
        self.model[key] = value

    @rule(key=KEYS)
    def evict(self, key: int) -> None:
        self.cache.evict(self.keys[key])
        self.model[key] = None

    @rule(key=KEYS, value=st.sampled_from(FOREIGN))
    def write_behind_our_back(self, key: int, value: bytes) -> None:
        self.cache.write(self.keys[key], value)
        self.model[key] = value

    def teardown(self) -> None:
        assert [backend.errors for backend in self.backends] == [0, 0]


def is_fence(entry: Entry) -> bool:
    return isinstance(entry, tuple) and entry[0] == "fence"


@pytest.fixture(scope="module")
def fake_redis() -> Iterator[FakeRedis]:
    with FakeRedis() as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_random_operations_do_what_the_model_does(kind: str, request: pytest.FixtureRequest) -> None:
    cache = open_cache(kind, request)

    class OnThisCache(Operations):
        pass

    OnThisCache.cache = cache
    OnThisCache.backends = (cache.backend(), cache.backend())
    try:
        run_state_machine_as_test(
            OnThisCache,
            settings=settings(
                max_examples=60,
                stateful_step_count=40,
                deadline=None,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
            ),
        )
    finally:
        cache.close()
