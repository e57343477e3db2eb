"""Signed entries: whoever can write to the cache and lacks the key makes entries go, and never makes them lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from dogpile.cache.api import NO_VALUE

from cellcache import CellDirectory
from cellcache.codec import NOT_MAPPED, encode
from cellcache.errors import InstanceNotMapped
from cellcache.protocol import Absent
from cellcache.signing import SIGNATURE_SIZE, Signer
from tests.directories import HERE, SHARED_CACHES, THERE, Site, new_uuids, open_site

OLD, NEW, FOREIGN = "old" * 20, "new" * 20, "foreign" * 20
INSTANCE = "0d4ed1d2-8b8c-4e0a-9a43-3b1f3ad1e4ab"
CELL = "3f1f2e5c-52a6-4b0e-8a8f-0d6a3a6f9a01"


@pytest.fixture(params=SHARED_CACHES)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, request.param) as site:
        yield site


def stored(site: Site, instance: str) -> bytes | None:
    """Return the entry as whoever reads the cache sees it."""
    backend = site.cache.backend()
    (entry,) = backend.peek_multi([instance])
    backend.close()
    return entry if isinstance(entry, bytes) else None


def mapped(directory: CellDirectory, *cells: str) -> list[str]:
    """Map one new instance into each cell, by way of the cache."""
    instances = new_uuids(len(cells))
    directory.map_instances((instance, cell, "project") for instance, cell in zip(instances, cells, strict=True))
    return instances


def cells_of(directory: CellDirectory, instances: list[str]) -> list[str]:
    found = directory.resolve_cells(instances)
    return [found[instance].uuid for instance in instances]


def check_refused_once(site: Site, reader: CellDirectory, instance: str, cell: str) -> None:
    """An entry that does not verify is counted and removed; the right answer is given, stored and given again."""
    refused, before = stored(site, instance), reader.stats()
    assert refused is not None
    assert reader.resolve_cell(instance).uuid == cell
    after = reader.stats()
    assert (after.undecodable - before.undecodable, after.hits - before.hits) == (1, 0)
    assert stored(site, instance) != refused
    assert [reader.resolve_cell(instance).uuid for _ in range(3)] == [cell] * 3
    last = reader.stats()
    assert (last.undecodable - after.undecodable, last.fills - before.fills) == (0, 1)
    assert last.hits - after.hits >= 2


# -- the bytes -------------------------------------------------------------------------------------------------------


def test_bytes_of_a_signed_entry_are_those_of_this_version() -> None:
    signer = Signer([b"k" * 32])
    assert (
        signer.signed(INSTANCE, encode(CELL)).hex()
        == "013f1f2e5c52a64b0e8a8f0d6a3a6f9a013c095155b9eb700b556487a113e9b0cf"
    ), (
        "The bytes of a signed entry have changed: while a fleet is being upgraded, old and new processes refuse each "
        "other's entries, and lookups go to SQL. If that is meant, write the new bytes here, and tell the changelog."
    )
    assert signer.signed(INSTANCE, NOT_MAPPED).hex() == "01f0c5b420ce290d867c377ccede5d4b7a"


def test_signature_depends_on_key_instance_and_value() -> None:
    entries = {
        Signer([key]).signed(instance, encode(cell))
        for key in (b"k" * 32, b"l" * 32, b"k" * 33, b"k" * 1000)
        for instance in (INSTANCE, CELL)
        for cell in (CELL, INSTANCE, None)
    }
    assert len({entry[-SIGNATURE_SIZE:] for entry in entries}) == 4 * 2 * 3


def test_signer_shows_none_of_its_keys() -> None:
    assert "kkkk" not in repr(Signer([b"k" * 32]))


def test_signed_entry_is_16_bytes_longer(site: Site) -> None:
    directory = site.open(signing_key=OLD)
    (instance,) = mapped(directory, HERE)
    unmapped = new_uuids(1)[0]
    for _ in range(2):  # the second time, what the first has sent has arrived
        with pytest.raises(InstanceNotMapped):
            directory.resolve_cell(unmapped)
    for key, value in ((instance, encode(HERE)), (unmapped, NOT_MAPPED)):
        entry = stored(site, key)
        assert entry is not None
        assert (len(entry), entry[: len(value)]) == (len(value) + 16, value)


# -- what does not verify --------------------------------------------------------------------------------------------


def test_valid_entry_of_another_instance_is_refused(site: Site) -> None:
    writer, reader = site.open(signing_key=OLD), site.open(signing_key=OLD)
    here, there = mapped(writer, HERE, THERE)
    assert reader.resolve_cell(there).uuid == THERE
    of_here = stored(site, here)
    assert of_here is not None
    site.cache.write(there, of_here)
    check_refused_once(site, reader, there, THERE)
    assert reader.resolve_cell(here).uuid == HERE
    assert reader.stats().undecodable == 1


def test_valid_entry_of_another_instance_is_what_an_unsigned_cache_believes(site: Site) -> None:
    """The attack itself: were it not for the key, the test before this one could not fail."""
    directory = site.open()
    here, there = mapped(directory, HERE, THERE)
    of_here = stored(site, here)
    assert of_here is not None
    site.cache.write(there, of_here)
    assert directory.resolve_cell(there).uuid == HERE


def test_answer_that_an_instance_is_not_mapped_cannot_be_moved_either(site: Site) -> None:
    directory = site.open(signing_key=OLD)
    (instance,) = mapped(directory, HERE)
    unmapped = new_uuids(1)[0]
    for _ in range(2):  # the second time, what the first has sent has arrived
        assert directory.resolve_cells([unmapped]) == {}
    nothing = stored(site, unmapped)
    assert nothing is not None
    for forged in (nothing, NOT_MAPPED):
        site.cache.write(instance, forged)
        check_refused_once(site, directory, instance, HERE)


@pytest.mark.slow
def test_every_flipped_bit_is_refused(site: Site) -> None:
    directory = site.open(signing_key=OLD)
    (instance,) = mapped(directory, HERE)
    outsider = site.cache.backend()
    (entry,) = outsider.peek_multi([instance])
    assert isinstance(entry, bytes)
    for bit in range(8 * len(entry)):
        changed = bytearray(entry)
        changed[bit // 8] ^= 1 << bit % 8
        outsider.store_multi({instance: bytes(changed)})
        before = directory.stats()
        assert directory.resolve_cell(instance).uuid == HERE
        after = directory.stats()
        assert (after.hits, after.misses) == (before.hits, before.misses + 1), bit
        assert after.undecodable == before.undecodable + 1, bit
        assert outsider.peek_multi([instance])[0] in {None, Absent.LEASED, entry}


@pytest.mark.slow
def test_entry_of_every_other_length_is_refused(site: Site) -> None:
    directory = site.open(signing_key=OLD)
    (instance,) = mapped(directory, HERE)
    outsider = site.cache.backend()
    (entry,) = outsider.peek_multi([instance])
    assert isinstance(entry, bytes)
    others = [entry[:length] for length in range(1, len(entry))]
    others += [entry + b"\0", entry + entry, entry[1:], encode(HERE) + entry, b"x" * 10_000]
    for number, other in enumerate(others, start=1):
        outsider.store_multi({instance: other})
        assert directory.resolve_cell(instance).uuid == HERE
        assert directory.stats().undecodable == number, other


def test_unsigned_entry_is_refused_once_signing_is_on(site: Site) -> None:
    instances = mapped(site.open(), HERE, THERE)
    reader = site.open(signing_key=OLD)
    check_refused_once(site, reader, instances[0], HERE)
    check_refused_once(site, reader, instances[1], THERE)


def test_signed_entry_is_refused_once_signing_is_off(site: Site) -> None:
    directory = site.open(signing_key=OLD)
    instances = mapped(directory, HERE, THERE)
    (unmapped,) = new_uuids(1)
    for _ in range(2):  # the second time, what the first has sent has arrived
        assert directory.resolve_cells([unmapped]) == {}
    reader = site.open()
    check_refused_once(site, reader, instances[0], HERE)
    check_refused_once(site, reader, instances[1], THERE)
    # "Not mapped" and its signature are as long as a cell's entry, and name a cell that does not exist.
    assert reader.resolve_cells([unmapped]) == {}
    assert reader.stats().undecodable == 3
    assert stored(site, unmapped) in {None, NOT_MAPPED}


def test_entry_of_another_key_is_refused(site: Site) -> None:
    (instance,) = mapped(site.open(signing_key=FOREIGN), HERE)
    check_refused_once(site, site.open(signing_key=OLD, previous_signing_key=NEW), instance, HERE)


@pytest.mark.slow
def test_in_bulk_only_what_verifies_is_a_hit(site: Site) -> None:
    writer, reader = site.open(signing_key=OLD), site.open(signing_key=OLD)
    instances = mapped(writer, *[HERE, THERE] * 600)
    outsider = site.cache.backend()
    entries = outsider.peek_multi(instances[:30])
    for at in range(10):
        moved, bare, garbled = entries[at + 20], encode(HERE), b"x" * 33
        assert isinstance(moved, bytes)
        outsider.store_multi({instances[3 * at]: moved if 3 * at != at + 20 else garbled})
        outsider.store_multi({instances[3 * at + 1]: bare})
        outsider.store_multi({instances[3 * at + 2]: garbled})
    assert cells_of(reader, instances) == [HERE, THERE] * 600
    stats = reader.stats()
    assert (stats.hits, stats.misses, stats.undecodable) == (1170, 30, 30)
    left = outsider.peek_multi(instances[:30])
    assert all(now in {None, Absent.LEASED, before} for now, before in zip(left, entries, strict=True))
    for _ in range(2):
        assert cells_of(reader, instances) == [HERE, THERE] * 600
    stats = reader.stats()
    assert (stats.undecodable, stats.fills) == (30, 30)
    assert stats.hits >= 1170 + 1170 + 1200


# -- who else looks --------------------------------------------------------------------------------------------------


def test_region_signs_and_verifies(site: Site) -> None:
    directory = site.open(signing_key=OLD)
    region: Any = directory.region
    first, second, third = mapped(directory, HERE, THERE, HERE)
    assert region.get(first) == HERE
    assert region.get_multi([first, second]) == [HERE, THERE]
    of_first = stored(site, first)
    assert of_first is not None
    site.cache.write(second, of_first)
    site.cache.write(third, encode(THERE))
    assert region.get(second) is NO_VALUE
    assert region.get_multi([first, second, third]) == [HERE, NO_VALUE, NO_VALUE]
    assert (stored(site, second), stored(site, third)) == (None, None)

    fresh = new_uuids(2)
    region.set(fresh[0], HERE)
    region.set_multi({fresh[1]: None})
    for instance, cell in zip(fresh, (HERE, None), strict=True):
        assert stored(site, instance) == Signer([OLD.encode()]).signed(instance, encode(cell))
    assert directory.resolve_cell(fresh[0]).uuid == HERE
    assert directory.stats().undecodable == 0


def test_explain_tells_an_entry_that_does_not_verify(site: Site) -> None:
    directory = site.open(signing_key=OLD)
    (instance,) = mapped(directory, HERE)
    site.cache.write(instance, encode(THERE))
    explanation = directory.explain(instance)
    assert explanation.cell is not None
    assert (explanation.cell.uuid, explanation.source) == (HERE, "sql")
    assert "mean nothing" in explanation.steps[0].found
    assert "removed" in [step.found for step in explanation.steps]


@pytest.mark.slow
def test_verify_finds_and_repairs_what_does_not_verify(site: Site) -> None:
    directory = site.open(signing_key=OLD)
    instances = mapped(directory, HERE, THERE, HERE)
    entry = stored(site, instances[0])
    assert entry is not None
    site.cache.write(instances[1], entry)
    *_, report = directory.verify(repair=True)
    assert (report.checked, report.cached, report.wrong, report.repaired) == (3, 3, 1, 1)
    assert report.differences[0].instance_uuid == instances[1]
    assert stored(site, instances[1]) is None


def test_promise_says_that_entries_are_signed(site: Site) -> None:
    assert "signed" in site.open(signing_key=OLD).promise
    assert "signed" not in site.open().promise


# -- rotation --------------------------------------------------------------------------------------------------------

STEPS: list[Mapping[str, Any]] = [
    {"signing_key": OLD},
    {"signing_key": OLD, "previous_signing_key": NEW},
    {"signing_key": NEW, "previous_signing_key": OLD},
    {"signing_key": NEW},
]
"""As docs/configuration.md has it: the new key as the previous one, then the two swapped, then the old one gone."""


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2, 3])
def test_keys_are_rotated_without_a_wrong_answer_or_a_lost_hit(site: Site, step: int) -> None:
    """While a fleet goes from one step to the next, some of its processes are at the one and some at the other."""
    behind, ahead = site.open(**STEPS[step - 1]), site.open(**STEPS[step])
    for writer in (behind, ahead):
        written = mapped(writer, HERE, THERE)
        (missing,) = new_uuids(1)
        for reader in (behind, behind, ahead, writer):  # the second time, what the first has sent has arrived
            assert [reader.resolve_cell(instance).uuid for instance in written] == [HERE, THERE]
            assert reader.resolve_cells([*written, missing]).keys() == set(written)
        writer.move_instance(written[0], THERE)
        for reader in (behind, ahead):
            assert reader.resolve_cell(written[0]).uuid == THERE
            assert reader.region.get(written[0]) == THERE
        writer.prune(written[1:])
        for reader in (behind, behind, ahead):
            assert reader.resolve_cells(written).keys() == {written[0]}
    statistics = [directory.stats() for directory in (behind, ahead)]
    assert [stats.undecodable for stats in statistics] == [0, 0]
    # Only the first to ask for what is missing or pruned misses, twice with each writer.
    assert sum(stats.misses for stats in statistics) == 4


@pytest.mark.slow
def test_entries_of_before_a_rotation_go_on_being_hits_until_the_old_key_is_left_out(site: Site) -> None:
    instances = mapped(site.open(**STEPS[0]), HERE, THERE)
    for step in STEPS[:3]:
        reader = site.open(**step)
        assert [reader.resolve_cell(instance).uuid for instance in instances] == [HERE, THERE]
        assert (reader.stats().hits, reader.stats().undecodable) == (2, 0)
    last = site.open(**STEPS[3])
    for instance, cell in zip(instances, (HERE, THERE), strict=True):
        check_refused_once(site, last, instance, cell)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param({}, STEPS[0], id="switching it on"),
        pytest.param(STEPS[0], {}, id="switching it off"),
        pytest.param(STEPS[0], STEPS[3], id="changing the key in one step"),
    ],
)
def test_change_that_skips_the_steps_costs_misses_and_no_wrong_answer(
    site: Site, before: Mapping[str, Any], after: Mapping[str, Any]
) -> None:
    directories = [site.open(**before), site.open(**after)]
    for writer in directories:
        instances = mapped(writer, HERE, THERE)
        for _ in range(3):
            for reader in directories:
                assert [reader.resolve_cell(instance).uuid for instance in instances] == [HERE, THERE]
                assert cells_of(reader, instances) == [HERE, THERE]
        writer.move_instance(instances[0], THERE)
        assert [reader.resolve_cell(instances[0]).uuid for reader in directories] == [THERE, THERE]
        writer.prune(instances)
        assert [reader.resolve_cells(instances) for reader in directories] == [{}, {}]


# -- what signing does not stop --------------------------------------------------------------------------------------


def test_older_entry_of_the_same_instance_verifies_as_the_threat_model_says(site: Site) -> None:
    """Signing does not stop replay. Should this ever fail, docs/security.md promises too little."""
    assert "**Replay.**" in (Path(__file__).parents[1] / "docs" / "security.md").read_text()
    writer, reader = site.open(signing_key=OLD), site.open(signing_key=OLD)
    (instance,) = mapped(writer, HERE)
    of_before = stored(site, instance)
    assert of_before is not None
    writer.move_instance(instance, THERE)
    assert reader.resolve_cell(instance).uuid == THERE
    site.cache.write(instance, of_before)
    assert reader.resolve_cell(instance).uuid == HERE
    assert reader.stats().undecodable == 0
    writer.move_instance(instance, HERE)
    writer.move_instance(instance, THERE)
    assert reader.resolve_cell(instance).uuid == THERE, "the next write puts it right"


def test_instance_is_signed_in_its_one_form(site: Site) -> None:
    directory = site.open(signing_key=OLD)
    (instance,) = mapped(directory, HERE)
    for form in (instance.upper(), instance.replace("-", ""), UUID(instance)):
        assert directory.resolve_cell(form).uuid == HERE
    assert (directory.stats().hits, directory.stats().undecodable) == (3, 0)
