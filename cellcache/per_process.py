"""State that belongs to one process and is made at its first use there.

A fork copies whatever its parent held: sockets that both would then read from, and locks of threads that the child
does not have. Python tells of a fork (`os.register_at_fork`) only where it made it itself: uWSGI's, and any C
program's that embeds Python, go by in silence. So whoever uses such state asks for it, which compares process ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from os import getpid
from typing import Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """Hands each process what `make` makes for it; threads that come first at the same time get the same.

    A parent's is kept in its child, unused: to close it, or to let it be collected, might say goodbye to a server in
    the parent's name.
    """

    def __init__(self, make: Callable[[], T], *, begin: Callable[[T], object] | None = None) -> None:
        """`begin` is called once with what a process has made, when it is the one that all its threads use."""
        self._make = make
        self._begin = begin
        self._made: dict[tuple[int, int], T] = {}  # by predecessor and process: a number comes round again
        self._process = 0
        self.latest: T
        """The same without asking whose it is: for what a child may read of its parent's."""

    def get(self) -> T:
        return self.latest if self._process == getpid() else self._of_this_process()

    def of_parents(self) -> Iterator[T]:
        """Yield what its parents had made when each was left, as it was at that moment."""
        mine = self.get()
        return (made for made in list(self._made.values()) if made is not mine)

    def _of_this_process(self) -> T:
        predecessor, process = self._process, getpid()
        if predecessor == process:  # another thread has come in between
            return self.latest
        ours = self._make()
        mine = self._made.setdefault((predecessor, process), ours)
        if mine is ours and self._begin is not None:
            self._begin(mine)
        self.latest = mine
        self._process = process  # last: whoever sees it finds the rest
        return mine
