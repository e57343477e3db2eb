"""Which tests look at which module, and which changes are known to change nothing.

A module's tests are those that a change of it ought to fail, the likeliest first. They run for each of its changes, so
they are few and quick: what only minutes of faults would notice counts as noticed by nobody.
"""

from __future__ import annotations

from typing import NamedTuple

QUICK = "not slow and not servers"
WITH_SERVERS = "not slow"


class Tests(NamedTuple):
    """The files in tests/ that a module's changes are tried against, and which of their tests."""

    files: str
    marked: str = QUICK
    named: str = ""

    def arguments(self) -> list[str]:
        """Return what pytest is given."""
        files = [f"tests/test_{name}.py" for name in self.files.split()]
        return [*files, "-m", self.marked, *(["-k", self.named] if self.named else [])]


_MEMCACHED = Tests(
    "backend_memcached backend_contract keys fuzz_memcached time_limits interruptions backend_unreachable",
    WITH_SERVERS,
    "memcached or test_keys",
)
_REDIS = Tests(
    "backend_contract backend_redis keys time_limits interruptions backend_unreachable authentication",
    WITH_SERVERS,
    "redis and not fake and not mariadb and not postgresql or test_backend_redis",
)
_CONNECTIONS = Tests(
    "node stream time_limits interruptions backend_contract backend_unreachable",
    WITH_SERVERS,
    "memcached or test_node or test_stream",
)

TESTS = {
    "cellcache/directory.py": Tests("directory_instances directory_cells directory_entries directory_close process"),
    "cellcache/read_through.py": Tests("directory_entries directory_flights round_trips directory_instances"),
    "cellcache/flights.py": Tests("directory_flights directory_threads round_trips"),
    "cellcache/write_through.py": Tests(
        "invalidations directory_database directory_instances round_trips model_sequences"
    ),
    "cellcache/transaction.py": Tests("directory_database directory_instances invalidations", WITH_SERVERS),
    "cellcache/invalidations.py": Tests("invalidations directory_close fork", WITH_SERVERS),
    "cellcache/maintenance.py": Tests("invalidations directory_close directory_cells"),
    "cellcache/purge.py": Tests("purge purge_verdict", WITH_SERVERS),
    "cellcache/purge_verdict.py": Tests("purge_verdict"),
    "cellcache/cell_instances.py": Tests("cell_instances", WITH_SERVERS),
    "backends/breaker.py": _CONNECTIONS,
    "backends/keys.py": Tests(
        "keys backend_contract backend_unreachable", WITH_SERVERS, "test_keys or three or keys or prefix"
    ),
    "backends/leasing.py": Tests("leasing backend_contract dogpile_conformance fork", QUICK, "not fakeredis"),
    "backends/memcached.py": _MEMCACHED,
    "backends/memory.py": Tests("backend_memory backend_contract leasing", QUICK, "memory or leasing"),
    "backends/meta.py": _MEMCACHED,
    "backends/node.py": _CONNECTIONS,
    "backends/redis.py": _REDIS,
    "backends/resp.py": _REDIS,
    "backends/stream.py": _CONNECTIONS,
    "backends/wire.py": _MEMCACHED,
}

CHANGE_NOTHING = {
    (
        "cellcache/flights.py",
        "return 0 < self._began < moment",
        "return 0 < self._began <= moment",
    ): "no two beginnings have one number",
    (
        "cellcache/maintenance.py",
        "self._thread = None",
        "pass",
    ): "to wait again for a thread that has ended takes no time",
    (
        "backends/memcached.py",
        "received = connection.recv(512)",
        "received = connection.recv(513)",
    ): "one reply to one lookup is shorter, and a longer one is read on",
    (
        "backends/memcached.py",
        "if wait or len(fills) > _AT_ONCE:",
        "if wait or len(fills) >= _AT_ONCE:",
    ): "to wait for the replies to 1,000 is slower and as right",
}
"""Changes, by module and line before and after, with the reason why nobody could notice: they are not tried."""
