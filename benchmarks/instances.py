"""The instances of a run: any number of them, from a seed, without keeping them in memory.

Instance number i has the same UUID, cell and project in every process and every run with the same seed. Those below
`count` are in the table; those from there on are not mapped, until a scenario creates them.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from random import Random

CELLS = 20
_PROJECTS = 1000

Row = tuple[str, str, str]
"""instance_uuid, cell_uuid, project_id"""


@dataclass(frozen=True, slots=True)
class Instances:
    """`count` mapped instances over 20 cells and 1,000 projects."""

    count: int
    seed: int

    def uuid(self, number: int) -> str:
        return self._uuid(b"instance", number)

    def cell(self, number: int) -> str:
        return self.cell_uuid(number % CELLS)

    def project(self, number: int) -> str:
        return f"{number % _PROJECTS:032x}"

    def cell_uuid(self, number: int) -> str:
        return self._uuid(b"cell", number)

    def cells(self) -> list[str]:
        return [self.cell_uuid(number) for number in range(CELLS)]

    def row(self, number: int) -> Row:
        return self.uuid(number), self.cell(number), self.project(number)

    def some(self, random: Random, size: int) -> list[str]:
        """Return the UUIDs of mapped instances, as new texts: nobody has worked out their hash before."""
        return [self.uuid(random.randrange(self.count)) for _ in range(size)]

    def distinct(self, random: Random, size: int) -> list[str]:
        """The same, none of them twice."""
        return [self.uuid(number) for number in random.sample(range(self.count), size)]

    def _uuid(self, kind: bytes, number: int) -> str:
        text = blake2b(b"%b %d %d" % (kind, self.seed, number), digest_size=16).hexdigest()
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
