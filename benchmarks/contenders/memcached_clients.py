"""The clients for memcached that one could use alone: no reading through, no coherence."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from benchmarks.contenders.base import Contender, Lookup, batches
from benchmarks.instances import Instances
from benchmarks.world import Place, split_address

_READ_BUFFER = 1 << 20  # with meta-memcache's default of 4 KiB, answers larger than that stall for 40 ms each


class Pymemcache(Contender):
    key = "pymemcache.client"
    title = "pymemcache Client"
    family = "memcached"
    how = "Client with both time limits and no_delay, get / get_many (pymemcache, Best Practices)"
    needs = ("pymemcache",)
    turned = 1

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._client = self._open(place)

    @property
    def lookup(self) -> Lookup:
        return self._client.get  # type: ignore[no-any-return]

    @property
    def lookup_many(self) -> Lookup:
        return self._client.get_many  # type: ignore[no-any-return]

    @staticmethod
    def _open(place: Place) -> Any:
        from pymemcache.client.base import Client

        return Client(
            split_address(place.memcached[0]),
            connect_timeout=place.timeout_s,
            timeout=place.timeout_s,
            no_delay=True,
        )

    def store(self, instances: Instances, numbers: Sequence[int]) -> None:
        for batch in batches(numbers):
            self._client.set_many(self.answers(instances, batch), noreply=False)

    def cell_of(self, answer: Any) -> str | None:
        return None if answer is None else bytes(answer).decode()

    def close(self) -> None:
        self._client.close()


class PymemcachePooled(Pymemcache):
    key = "pymemcache.pooled"
    title = "pymemcache PooledClient"
    how = "PooledClient, which threads may share (pymemcache, Getting started)"
    shares_threads = True

    @staticmethod
    def _open(place: Place) -> Any:
        from pymemcache.client.base import PooledClient

        return PooledClient(
            split_address(place.memcached[0]),
            connect_timeout=place.timeout_s,
            timeout=place.timeout_s,
            no_delay=True,
            max_pool_size=40,
        )


class PymemcacheHash(Pymemcache):
    key = "pymemcache.hash"
    title = "pymemcache HashClient"
    how = "HashClient over all nodes, get / get_many (pymemcache, Using a memcached cluster)"
    many_nodes = True

    @staticmethod
    def _open(place: Place) -> Any:
        from pymemcache.client.hash import HashClient

        return HashClient(
            [split_address(address) for address in place.memcached],
            connect_timeout=place.timeout_s,
            timeout=place.timeout_s,
            no_delay=True,
        )


class Pylibmc(Contender):
    key = "pylibmc"
    title = "pylibmc (C)"
    family = "memcached"
    how = "binary=True with tcp_nodelay and ketama (pylibmc, README)"
    needs = ("pylibmc",)
    turned = 2
    many_nodes = True

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        import pylibmc

        behaviors = {"tcp_nodelay": True, "ketama": True}
        self._client = pylibmc.Client(list(place.memcached), binary=True, behaviors=behaviors)

    @property
    def lookup(self) -> Lookup:
        return self._client.get  # type: ignore[no-any-return]

    @property
    def lookup_many(self) -> Lookup:
        return self._client.get_multi  # type: ignore[no-any-return]

    def store(self, instances: Instances, numbers: Sequence[int]) -> None:
        for batch in batches(numbers):
            self._client.set_multi(self.answers(instances, batch))

    def close(self) -> None:
        self._client.disconnect_all()


class MetaMemcache(Contender):
    key = "meta-memcache"
    title = "meta-memcache"
    family = "memcached"
    how = "CacheClient.cache_client_from_servers, get / multi_get (README); a read buffer of 1 MiB"
    needs = ("meta_memcache",)
    turned = 3
    many_nodes = True
    shares_threads = True

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        from meta_memcache.cache_client import CacheClient
        from meta_memcache.configuration import ServerAddress

        self._sockets: list[socket.socket] = []
        self._client = CacheClient.cache_client_from_servers(
            servers=[ServerAddress(*split_address(address)) for address in place.memcached],
            connection_pool_factory_fn=self._pool,
        )

    @property
    def lookup(self) -> Lookup:
        return self._client.get

    @property
    def lookup_many(self) -> Lookup:
        return self._client.multi_get

    def store(self, instances: Instances, numbers: Sequence[int]) -> None:
        for key, cell in self.answers(instances, numbers).items():
            self._client.set(key, cell, ttl=3600)

    def cells_of(self, answer: Any, keys: Sequence[str]) -> dict[str, str | None]:
        found = {getattr(key, "key", key): value for key, value in answer.items()}
        return {key: self.cell_of(found[self.argument(key)]) for key in keys}

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()

    def _pool(self, server: Any) -> Any:
        """What its `connection_pool_factory_builder` makes, with sockets that we know of: its client has no `close`."""
        from meta_memcache.configuration import socket_factory_builder
        from meta_memcache.connection.pool import ConnectionPool

        connect = socket_factory_builder(
            host=server.host, port=server.port, connection_timeout=1, recv_timeout=1, no_delay=True
        )

        def socket_factory() -> socket.socket:
            self._sockets.append(connect())
            return self._sockets[-1]

        return ConnectionPool(
            server=str(server),
            socket_factory_fn=socket_factory,
            initial_pool_size=1,
            max_pool_size=40,
            read_buffer_size=_READ_BUFFER,
        )
