"""The contenders, in the order in which reports name them."""

from __future__ import annotations

from benchmarks.contenders.base import Contender, Family, Operation
from benchmarks.contenders.dogpile_regions import DogpileMemcached, DogpileMemory, DogpileRedis, OsloCache
from benchmarks.contenders.floor import BareSocket
from benchmarks.contenders.in_process import CacheTools, Dictionary, LruCache
from benchmarks.contenders.memcached_clients import MetaMemcache, Pylibmc, Pymemcache, PymemcacheHash, PymemcachePooled
from benchmarks.contenders.ours import InMemory, OnMemcached, OnRedis
from benchmarks.contenders.redis_clients import RedisPy
from benchmarks.contenders.sql import BarePyMySQL, CellRow, Core, HeldCore

CONTENDERS: tuple[type[Contender], ...] = (
    OnMemcached,
    BareSocket,
    Pymemcache,
    PymemcachePooled,
    PymemcacheHash,
    Pylibmc,
    MetaMemcache,
    DogpileMemcached,
    OsloCache,
    OnRedis,
    RedisPy,
    DogpileRedis,
    InMemory,
    Dictionary,
    LruCache,
    CacheTools,
    DogpileMemory,
    Core,
    HeldCore,
    BarePyMySQL,
    CellRow,
)

__all__ = ["CONTENDERS", "Contender", "Family", "Operation"]
