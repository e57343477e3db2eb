"""What a run does: how much of everything, and where the results go."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The defaults are those of `make bench`: some minutes on two cores."""

    scenarios: tuple[str, ...] = ()
    contenders: tuple[str, ...] = ()  # all
    rows: int = 200_000  # of the table and in the caches: they do not fit the processor's own
    sizes: tuple[int, ...] = (1, 10, 100, 1_000, 10_000)  # instances at once
    servers: tuple[int, ...] = (1, 3, 8)  # memcached nodes
    threads: tuple[int, ...] = (1, 4, 16, 32)
    processes: tuple[int, ...] = (1, 2, 4)
    growth: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    rounds: int = 40
    batch_s: float = 0.01  # how long each contender runs in each round
    case_s: float = 12.0  # after so long a case ends, with however many rounds it has
    seed: int = 1
    output: Path = Path("bench-results")

    def quick(self) -> Self:
        """As much as shows that everything works; the figures mean little."""
        return replace(
            self,
            rows=2_000,
            sizes=(1, 100, 1_000),
            servers=(1, 3),
            threads=(1, 4),
            processes=(1, 2),
            growth=(1_000, 4_000),
            rounds=3,
            batch_s=0.001,
            case_s=1.0,
        )

    def large(self) -> Self:
        """With ten million rows: a quarter of an hour more, and some 5 GB of disk."""
        return replace(self, growth=(*self.growth, 10_000_000))
