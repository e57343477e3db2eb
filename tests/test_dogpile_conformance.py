"""dogpile.cache's own suites over our backends: whatever a region may ask of a backend, ours do."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

import pytest
from dogpile.cache import CacheRegion
from dogpile.testing import fixtures

from tests.servers import Memcached, Redis

# A region's own time limit is short; here nothing is to fail because the machine is slow.
PATIENT: dict[str, Any] = {"timeout_s": 10.0}


class _OurFixture:
    """Closes what dogpile's fixture leaves open."""

    config_args: ClassVar[dict[str, Any]]
    _opened: list[Any]

    def setup_method(self) -> None:
        self._opened = []
        # dogpile's tests use the same few keys again and again; a server keeps what each leaves behind.
        self.config_args["arguments"]["key_prefix"] = uuid.uuid4().hex

    def teardown_method(self, method: Any) -> None:
        super().teardown_method(method)  # type: ignore[misc, unused-ignore]
        for backend in self._opened:
            backend.close()

    def _region(self, *args: Any, **kwargs: Any) -> CacheRegion:
        region: CacheRegion = super()._region(*args, **kwargs)  # type: ignore[misc, unused-ignore]
        self._opened.append(region.backend)
        return region

    def _backend(self) -> Any:
        backend = super()._backend()  # type: ignore[misc, unused-ignore]
        self._opened.append(backend)
        return backend


class _Suite(_OurFixture, fixtures._GenericBackendTestSuite):
    """With our own serializer: JSON."""

    @pytest.mark.slow
    def test_threaded_dogpile(self) -> None:
        super().test_threaded_dogpile()  # type: ignore[misc, unused-ignore]

    @pytest.mark.slow
    def test_threaded_get_multi(self) -> None:
        super().test_threaded_get_multi()  # type: ignore[misc, unused-ignore]

    @pytest.mark.slow
    def test_region_expire(self) -> None:
        super().test_region_expire()  # type: ignore[misc, unused-ignore]

    def test_no_mutex_of_its_own_so_the_mutex_suite_does_not_apply(self) -> None:
        """A region then takes one of threading's: the lease, not a lock, keeps other processes from storing."""
        assert self._backend().get_mutex("key") is None


class _SerializerSuite(_OurFixture, fixtures._GenericSerializerTestSuite, fixtures._GenericBackendFixture):
    """With a serializer of the region's."""


class _OnMemory:
    backend = "cellcache.memory"
    config_args: ClassVar[dict[str, Any]] = {"arguments": {"ttl_s": 60.0}}


class _OnMemcached:
    backend = "cellcache.memcached"
    config_args: ClassVar[dict[str, Any]] = {"arguments": dict(PATIENT)}

    @pytest.fixture(autouse=True)
    def _address(self, memcached: Memcached) -> None:
        self.config_args["arguments"]["servers"] = [memcached.address]


class _OnMemcacheds:
    backend = "cellcache.memcached"
    config_args: ClassVar[dict[str, Any]] = {"arguments": dict(PATIENT)}

    @pytest.fixture(autouse=True)
    def _address(self, memcacheds: list[Memcached]) -> None:
        self.config_args["arguments"]["servers"] = [server.address for server in memcacheds]


class _OnRedis:
    backend = "cellcache.redis"
    config_args: ClassVar[dict[str, Any]] = {"arguments": dict(PATIENT)}

    @pytest.fixture(autouse=True)
    def _address(self, redis_server: Redis) -> None:
        self.config_args["arguments"]["url"] = redis_server.url


class TestMemory(_OnMemory, _Suite):
    pass


class TestMemorySerializer(_OnMemory, _SerializerSuite):
    pass


class TestMemcached(_OnMemcached, _Suite):
    pass


class TestMemcachedSerializer(_OnMemcached, _SerializerSuite):
    pass


class TestSeveralMemcacheds(_OnMemcacheds, _Suite):
    pass


class TestRedis(_OnRedis, _Suite):
    pass


class TestRedisSerializer(_OnRedis, _SerializerSuite):
    pass
