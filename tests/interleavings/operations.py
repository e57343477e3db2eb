"""What is interleaved: the directory's calls about one instance."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cellcache import CellDirectory, InstanceNotMapped, MappingExists

READS = {"resolve", "resolve many"}
PROJECT = "project"

Call = Callable[[CellDirectory, str, str], object]
"""Given the directory, the instance and a cell that no other operation of the schedule uses."""


def _resolve(directory: CellDirectory, key: str, _cell: str) -> str | None:
    try:
        return directory.resolve_cell(key).uuid
    except InstanceNotMapped:
        return None


def _resolve_many(directory: CellDirectory, key: str, _cell: str) -> str | None:
    found = directory.resolve_cells([key]).get(key)
    return None if found is None else found.uuid


def _create(directory: CellDirectory, key: str, cell: str) -> bool:
    try:
        directory.map_instance(key, cell, PROJECT)
    except MappingExists:
        return False
    return True


def _create_many(directory: CellDirectory, key: str, cell: str) -> bool:
    try:
        return directory.map_instances([(key, cell, PROJECT)]) == 1
    except MappingExists:
        return False


def _move(directory: CellDirectory, key: str, cell: str) -> bool:
    try:
        directory.move_instance(key, cell)
    except InstanceNotMapped:
        return False
    return True


def _prune(directory: CellDirectory, key: str, _cell: str) -> bool:
    return directory.prune([key]) == 1


def _deliver(directory: CellDirectory, _key: str, _cell: str) -> None:
    directory._here().invalidations.deliver()


OPERATIONS: Mapping[str, Call] = {
    "resolve": _resolve,
    "resolve many": _resolve_many,
    "create": _create,
    "create many": _create_many,
    "move": _move,
    "prune": _prune,
    "deliver": _deliver,
}
