"""What one mapping takes: in memcached with all that the server adds, and in a process."""

from __future__ import annotations

import contextlib
import socket
import tracemalloc
from collections.abc import Iterator

from benchmarks.bench import Bench
from benchmarks.results import Case, Figure
from benchmarks.world import Place, split_address

TITLE = "memory per mapping"
_STORED = 20_000


def run(bench: Bench) -> Iterator[Case]:
    yield from _in_memcached(bench)
    yield from _in_process(bench)


def _in_memcached(bench: Bench) -> Iterator[Case]:
    figures = []
    for contender in bench.who_can("lookup", ("memcached",)):
        place = bench.place(contender, alone=True)
        with contextlib.closing(contender(place)) as opened:
            opened.store(bench.instances, range(min(_STORED, bench.options.rows)))
        slots, items = _slots(place.memcached[0])
        figures.append(Figure(contender.key, contender.title, [slots / items]))
    if figures:
        yield Case(
            "memory-memcached",
            "memory",
            "Memory per mapping in memcached",
            figures[0].key,
            figures,
            unit="bytes",
            note="The slots of memcached's slab classes that are in use, over the entries: header, key, value, waste.",
        )


def _in_process(bench: Bench) -> Iterator[Case]:
    figures = []
    size = min(_STORED, bench.options.rows)
    for contender in bench.who_can("lookup", ("memory",)):
        place = Place(bench.world.database(bench.options.rows).url, bench.world.cell_database(), bench.instances)
        with contextlib.closing(contender(place)) as opened:
            opened.store(bench.instances, range(1))
            tracemalloc.start()
            opened.store(bench.instances, range(1, size))
            taken, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        figures.append(Figure(contender.key, contender.title, [taken / (size - 1)]))
    if figures:
        yield Case(
            "memory-process",
            "memory",
            "Memory per mapping in a process",
            figures[0].key,
            figures,
            unit="bytes",
            note="What Python allocated for them, the keys' own text of some 85 bytes included.",
        )


def _slots(address: str) -> tuple[int, int]:
    """Return the bytes of all slots in use, and the number of entries."""
    slabs = _stats(address, b"stats slabs\r\n")
    taken = sum(
        int(value) * int(slabs[name.replace("used_chunks", "chunk_size")])
        for name, value in slabs.items()
        if name.endswith(":used_chunks")
    )
    return taken, int(_stats(address, b"stats\r\n")["curr_items"])


def _stats(address: str, command: bytes) -> dict[str, str]:
    with socket.create_connection(split_address(address)) as connection:
        connection.sendall(command)
        received = b""
        while not received.endswith(b"END\r\n"):
            received += connection.recv(1 << 16)
    lines = [line.split(" ", 2) for line in received.decode().split("\r\n") if line.startswith("STAT ")]
    return {line[1]: line[2] for line in lines}
