"""What must hold in every state: the three properties of the model in coherence.md, and that nothing is left behind.

Versions are numbered by commits. An answer is taken for the newest version that it fits: two prunes are told apart
by nothing, and neither are the answers that follow them.

Besides the operations there are two readers in every state, who cost no schedule: one who finds the value that
stands in the cache, and one who missed a while ago and reads the row now. So the cache must not hold what is older
than the last commit, from the commit on and not only from the return of the write: the first reader would answer
with less than what the second has seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tests.interleavings.caches import Entry
from tests.interleavings.scheduler import Operation

Property = Literal["stale read", "backward read", "stale rest", "fence left behind", "row left behind"]


@dataclass
class Writer:
    """What the checks remember of a write: the version that it committed, and whether it may excuse a reader."""

    version: int | None = None
    returned: bool = False
    fence: bytes | None = None
    lost_its_fence: bool = False  # before its commit: the declared exception, until it has settled
    unfenced: bool = False  # its node was unreachable: the declared window, until its row is delivered


@dataclass
class History:
    """One schedule so far, and what broke in it."""

    versions: list[str | None]
    wrote: int = 0  # the newest version of a write that has returned
    seen: int = 0  # the newest version that a reader has answered
    writers: dict[Operation, Writer] = field(default_factory=dict)
    broken: dict[Property, str] = field(default_factory=dict)
    excused: int = 0

    def version_of(self, cell_uuid: str | None) -> int:
        """Return the newest version that an answer fits."""
        if cell_uuid not in self.versions:
            return -1
        return len(self.versions) - 1 - self.versions[::-1].index(cell_uuid)

    def commit(self, operation: Operation, cell_uuid: str | None) -> None:
        self.versions.append(cell_uuid)
        writer = self.writers[operation]
        writer.version = len(self.versions) - 1
        writer.unfenced = operation.unfenced

    def write_returned(self, operation: Operation) -> None:
        writer = self.writers[operation]
        writer.returned = True
        if writer.version is not None and not writer.unfenced:
            self.wrote = max(self.wrote, writer.version)

    def lose(self, entry: Entry) -> None:
        """The entry goes: note whose fence that was, if its write has not committed."""
        for writer in self.writers.values():
            if entry.kind == "fence" and writer.fence == entry.raw and writer.version is None:
                writer.lost_its_fence = True

    def answer(self, who: str, cell_uuid: str | None, wrote: int, seen: int) -> None:
        """Judge an answer by what had been written and seen when its reader began."""
        version = self.version_of(cell_uuid)
        if version < wrote:
            self._break("stale read", f"{who} answers version {version} after the write of {wrote} had returned")
        elif version < seen:
            if self._is_excused(version):
                self.excused += 1
            else:
                self._break("backward read", f"{who} answers version {version} after another has answered {seen}")
        self.seen = max(self.seen, version)

    def observe(self, entry: Entry) -> None:
        """The two readers of every state: first the one who reads the row, then the one who hits."""
        self.seen = len(self.versions) - 1
        if entry.kind == "value":
            self.answer("a hit", entry.cell_uuid, self.wrote, self.seen)

    def rest(self, entry: Entry, rows: int, *, undisturbed: bool) -> None:
        """Everything has finished and every row is delivered."""
        if entry.kind == "value" and self.version_of(entry.cell_uuid) < len(self.versions) - 1:
            version = self.version_of(entry.cell_uuid)
            self._break("stale rest", f"the cache holds version {version}, the table {len(self.versions) - 1}")
        if undisturbed and entry.kind == "fence":
            self._break("fence left behind", "nobody will ever settle it")
        if rows:
            self._break("row left behind", f"{rows} invalidations wait though all are delivered")

    def _is_excused(self, version: int) -> bool:
        return any(
            writer.version is not None
            and version < writer.version
            and (writer.unfenced or (writer.lost_its_fence and not writer.returned))
            for writer in self.writers.values()
        )

    def _break(self, what: Property, how: str) -> None:
        self.broken.setdefault(what, how)
