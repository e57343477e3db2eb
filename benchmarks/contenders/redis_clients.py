"""redis-py alone: what a GET costs in Python, without reading through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.contenders.base import Contender, batches
from benchmarks.instances import Instances
from benchmarks.world import Place


class RedisPy(Contender):
    key = "redis-py"
    title = "redis-py GET"
    family = "redis"
    how = "redis.Redis.from_url, get / mget (redis-py, Quickstart)"
    needs = ("redis",)
    turned = 1
    shares_threads = True

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        from redis import Redis

        self._client: Any = Redis.from_url(place.redis or "", socket_timeout=place.timeout_s)

    def lookup(self, key: str) -> Any:
        return self._client.get(key)

    def lookup_many(self, keys: Sequence[str]) -> Any:
        return self._client.mget(keys)

    def store(self, instances: Instances, numbers: Sequence[int]) -> None:
        for batch in batches(numbers):
            self._client.mset(self.answers(instances, batch))

    def cell_of(self, answer: Any) -> str | None:
        return None if answer is None else bytes(answer).decode()

    def cells_of(self, answer: Any, keys: Sequence[str]) -> dict[str, str | None]:
        return {key: self.cell_of(value) for key, value in zip(keys, answer, strict=True)}

    def close(self) -> None:
        self._client.close()
