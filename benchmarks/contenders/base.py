"""What a contender is: an adapter that does, in the way its own documentation recommends, what cellcache does.

To add one: a class with the methods that it can do, named in `contenders/__init__.py`. A scenario runs every contender
that has its method, and checks the answers before it times anything. Where the library has that very method, a
property that returns it saves a Python call that would not be the library's:

    lookup(key)           the cell of one instance, from the cache
    lookup_many(keys)     those of many
    create(row)           a row is (instance_uuid, cell_uuid, project_id)
    create_many(rows)
    move((key, cell))
    prune([key])          one or many
    listing(project_id)   the first page of a project's mappings
    request(key)          the instance's row, from the database of its cell

`reads_through` says that a lookup of what is not in the cache reads it from SQL and keeps it; such a contender has
`forget(keys)` as well. What a lookup answers may be anything from which `cell_of` gets the cell's UUID.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Literal

from benchmarks.instances import Instances
from benchmarks.world import Place

Family = Literal["memcached", "redis", "memory", "sql"]
Operation = Literal[
    "lookup",
    "lookup_unmapped",
    "lookup_many",
    "create",
    "create_many",
    "move",
    "prune",
    "listing",
    "request",
]

Lookup = Callable[[str], Any]

_AT_ONCE = 1000


class Contender:
    """One way to look up a cell. `place` says where its servers are, which others use as well."""

    key: ClassVar[str]
    title: ClassVar[str]
    family: ClassVar[Family]
    how: ClassVar[str]
    """How it is used, and which page of its documentation says so; one line for the report."""
    turned: ClassVar[int] = 0
    """By how many characters its keys are turned, for those whose keys would be the same as another's in one cache."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Modules without which it is left out."""
    many_nodes: ClassVar[bool] = False
    reads_through: ClassVar[bool] = False
    shares_threads: ClassVar[bool] = False
    """Whether threads may share one, as its documentation says."""

    def __init__(self, place: Place) -> None:
        self.place = place

    @classmethod
    def missing(cls) -> str | None:
        """Say in one line what to install before it can run; None if it can."""
        absent = [name for name in cls.needs if importlib.util.find_spec(name) is None]
        return f"{cls.title}: left out, {' and '.join(absent)} is not installed" if absent else None

    @classmethod
    def can(cls, operation: Operation) -> bool:
        return hasattr(cls, operation)

    def operation(self, name: Operation) -> Callable[[Any], Any]:
        """Return what is timed."""
        call: Callable[[Any], Any] = getattr(self, name)
        return call

    def store(self, instances: Instances, numbers: Sequence[int]) -> None:
        """Put the answers for these instances into the cache; most will do so in the bulk form they have."""

    def argument(self, key: str) -> Any:
        """Return what `lookup` takes for an instance, made before the clock starts."""
        return key[self.turned :] + key[: self.turned]

    def argument_many(self, keys: Sequence[str]) -> Any:
        """The same for `lookup_many`."""
        return [self.argument(key) for key in keys] if self.turned else keys

    def cell_of(self, answer: Any) -> str | None:
        """Return the cell's UUID from what `lookup` answered."""
        return None if answer is None else str(answer)

    def cells_of(self, answer: Any, keys: Sequence[str]) -> dict[str, str | None]:
        """Return the cells' UUIDs from what `lookup_many` answered for these keys."""
        return {key: self.cell_of(answer[self.argument(key)]) for key in keys}

    def answers(self, instances: Instances, numbers: Iterable[int]) -> dict[str, str]:
        """Return what it is to store: the cell's UUID by its own key."""
        return {self.argument(instances.uuid(number)): instances.cell(number) for number in numbers}

    def close(self) -> None:
        """Close its connections."""


def batches(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(numbers), _AT_ONCE):
        yield numbers[start : start + _AT_ONCE]
