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


_MEMCACHED = Tests("backend_contract fuzz_memcached time_limits backend_unreachable", WITH_SERVERS, "memcached")
_REDIS = Tests("backend_contract backend_redis time_limits backend_unreachable", WITH_SERVERS, "redis and not fake")
_CONNECTIONS = Tests("backend_contract time_limits interruptions backend_unreachable", WITH_SERVERS, "memcached")
_LEASES = Tests("leasing backend_contract dogpile_conformance fork", QUICK, "not fakeredis")

TESTS = {
    "cellcache/directory.py": Tests("directory_instances directory_cells directory_entries directory_close process"),
    "cellcache/read_through.py": Tests("directory_entries directory_flights round_trips directory_instances"),
    "cellcache/flights.py": Tests("directory_flights directory_threads round_trips"),
    "cellcache/write_through.py": Tests("invalidations directory_instances round_trips model_sequences"),
    "cellcache/transaction.py": Tests("directory_instances directory_database invalidations", WITH_SERVERS),
    "cellcache/invalidations.py": Tests("invalidations directory_close fork", WITH_SERVERS),
    "cellcache/maintenance.py": Tests("invalidations directory_close directory_cells"),
    "cellcache/purge.py": Tests("purge", WITH_SERVERS),
    "backends/breaker.py": _CONNECTIONS,
    "backends/keys.py": Tests("backend_contract backend_unreachable", WITH_SERVERS, "three or keys or prefix"),
    "backends/leasing.py": _LEASES,
    "backends/memcached.py": _MEMCACHED,
    "backends/memory.py": Tests("backend_contract leasing", QUICK, "memory or leasing"),
    "backends/meta.py": _MEMCACHED,
    "backends/node.py": _CONNECTIONS,
    "backends/redis.py": _REDIS,
    "backends/resp.py": _REDIS,
    "backends/stream.py": _CONNECTIONS,
    "backends/wire.py": _MEMCACHED,
}

CHANGE_NOTHING: dict[tuple[str, str], str] = {}
"""A changed line, by its file and as it stands once changed, and why nobody could notice: these are not tried."""
