"""Signed entries: whoever can write to the cache and lacks the key makes entries go, and never makes them lie."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from dogpile.cache.api import NO_VALUE

from cellcache import CellDirectory, Settings, signing
from cellcache.agreement import Agreement
from cellcache.backends.meta import ttl as memcached_ttl
from cellcache.codec import NOT_MAPPED, Undecodable, decode, encode
from cellcache.database_clock import KnownTime
from cellcache.errors import InstanceNotMapped
from cellcache.protocol import Absent
from cellcache.signing import FORGED, OVER, SIGNATURE_SIZE, SIGNED_SIZE, SIGNED_VERSION, Signer, Signing
from tests.caches import eventually
from tests.directories import HERE, SHARED_CACHES, THERE, Site, new_database, new_uuids, open_site

OLD, NEW, FOREIGN = (digits * 4 for digits in ("0123456789abcdef", "123456789abcdef0", "23456789abcdef01"))
INSTANCE = "0d4ed1d2-8b8c-4e0a-9a43-3b1f3ad1e4ab"
CELL = "3f1f2e5c-52a6-4b0e-8a8f-0d6a3a6f9a01"


DEPLOYMENT = "7b2d9d0c-3c1f-4d57-9a57-1c6b8f0a2e11"


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


def is_right_or_absent(now: object, right: object) -> bool:
    """Entries that say the same differ in until when they say it."""
    assert isinstance(right, bytes)
    return now in {None, Absent.LEASED} or (
        isinstance(now, bytes) and now[:17] == right[:17] and len(now) == len(right)
    )


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


def signer_at(time: float, *keys: str, prefix: str = "", deployment: str = DEPLOYMENT) -> Signer:
    """A signer to whom the database's clock shows exactly this, as long as its own stands still."""
    return Signer([key.encode() for key in keys or (OLD,)], prefix, Agreement(deployment, KnownTime(time, time)))


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the monotonic clock that signers go by."""
    monkeypatch.setattr(signing, "monotonic", lambda: 0.0)


@pytest.mark.usefixtures("still")
def test_bytes_of_a_signed_entry_are_those_of_this_version() -> None:
    signer = signer_at(1_800_000_000.0, prefix="p:")
    for value, written in (
        (encode(CELL), "023f1f2e5c52a64b0e8a8f0d6a3a6f9a01006b49d23c1feb5a1cdb7652d15be5a54ba9a5b148"),
        (NOT_MAPPED, "02006b49d23ca83133fa51c2eafe949a3e2f57a06866"),
    ):
        assert signer.signed(INSTANCE, value, 60.0).hex() == written, (
            "The bytes of a signed entry have changed: while a fleet is being upgraded, old and new processes would "
            "misread each other's. If that is meant, raise SIGNED_VERSION, so that they refuse them and ask SQL, write "
            "the new bytes here, and tell the changelog."
        )
        assert signer.verified(INSTANCE, bytes.fromhex(written)) == value


@pytest.mark.usefixtures("still")
def test_signature_depends_on_all_that_the_entry_is_for() -> None:
    entries = [
        signer_at(0.0, key, prefix=prefix, deployment=deployment).signed(instance, encode(cell), ttl_s)
        for key in (OLD, NEW, OLD + "0", OLD * 30)
        for prefix in ("", "a", "ab", INSTANCE[:32])
        for deployment in (DEPLOYMENT, INSTANCE)
        for instance in (INSTANCE, CELL)
        for cell in (CELL, INSTANCE, None)
        for ttl_s in (1.0, 2.0)
    ]
    assert len({entry[-SIGNATURE_SIZE:] for entry in entries}) == 4 * 4 * 2 * 2 * 3 * 2


@pytest.mark.usefixtures("still")
def test_entry_is_worth_nothing_for_anything_else_and_after_its_time() -> None:
    entry = signer_at(1000.0, OLD, NEW, prefix="p").signed(INSTANCE, encode(CELL), 60.0)
    accepting: dict[str, Signer] = {
        "itself": signer_at(1000.0, OLD, prefix="p"),
        "after a rotation": signer_at(1000.0, NEW, OLD, prefix="p"),
        "in its last second": signer_at(1060.0, OLD, prefix="p"),
        "where the clock went back": signer_at(10.0, OLD, prefix="p"),
    }
    assert {what: signer.verified(INSTANCE, entry) for what, signer in accepting.items()} == dict.fromkeys(
        accepting, encode(CELL)
    )
    assert signer_at(1060.1, OLD, prefix="p").verified(INSTANCE, entry) == OVER
    refusing: dict[str, Signer] = {
        "another key": signer_at(1000.0, NEW, prefix="p"),
        "another prefix": signer_at(1000.0, OLD, prefix="q"),
        "none": signer_at(1000.0, OLD),
        "another deployment": signer_at(1000.0, OLD, prefix="p", deployment=INSTANCE),
    }
    assert {what: signer.verified(INSTANCE, entry) for what, signer in refusing.items()} == dict.fromkeys(
        refusing, FORGED
    )


@pytest.mark.parametrize("ttl_s", [0.1, 1.0, 1.4, 1.5, 5.0, 86_400.0])
def test_no_process_takes_an_entry_for_over_before_the_cache_drops_it(
    ttl_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever moment of a second each has read the database's clock in, and however long the answer took."""
    readings = [
        KnownTime.between(datetime.fromtimestamp(math.floor(1000 + moment), UTC), moment - before, moment + after)
        for moment in (0.0, 0.01, 0.5, 0.99)
        for before, after in ((0.0, 0.0), (0.3, 0.0), (0.0, 0.3))
    ]
    for writers, readers in itertools.product(readings, repeat=2):
        monkeypatch.setattr(signing, "monotonic", lambda: 2.0)
        entry = Signer([OLD.encode()], "", Agreement(DEPLOYMENT, writers)).signed(INSTANCE, encode(CELL), ttl_s)
        monkeypatch.setattr(signing, "monotonic", lambda: 2.0 + max(ttl_s, memcached_ttl(ttl_s)))
        assert Signer([OLD.encode()], "", Agreement(DEPLOYMENT, readers)).verified(INSTANCE, entry) == encode(CELL)


@pytest.mark.usefixtures("still")
@pytest.mark.parametrize("year", [1970, 2038, 2106, 9999])
def test_whatever_the_databases_clock_shows_fits_in_an_entry(year: int) -> None:
    signer = signer_at(datetime(year, 12, 31, tzinfo=UTC).timestamp())
    entry = signer.signed(INSTANCE, encode(CELL), 1e9)
    assert len(entry) == SIGNED_SIZE
    assert signer.verified(INSTANCE, entry) == encode(CELL)


def test_signer_shows_none_of_its_keys() -> None:
    assert OLD[:8] not in repr(signer_at(0.0)) + repr(vars(signer_at(0.0)))


def test_signed_entry_is_21_bytes_longer(site: Site) -> None:
    directory = site.open(signing_key=OLD)
    (instance,) = mapped(directory, HERE)
    unmapped = new_uuids(1)[0]
    for _ in range(2):  # the second time, what the first has sent has arrived
        with pytest.raises(InstanceNotMapped):
            directory.resolve_cell(unmapped)
    for key, value in ((instance, encode(HERE)), (unmapped, NOT_MAPPED)):
        entry = stored(site, key)
        assert entry is not None
        assert (len(entry), entry[: len(value)]) == (len(value) + 21, SIGNED_VERSION + value[1:])


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
        assert is_right_or_absent(outsider.peek_multi([instance])[0], entry)


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
    assert all(map(is_right_or_absent, left, entries))
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
        entry = stored(site, instance)
        assert entry is not None
        assert signer_of(directory).verified(instance, entry) == encode(cell)
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


def test_older_entry_of_the_same_instance_is_believed_until_it_is_over(site: Site) -> None:
    """Should this ever fail, docs/security.md promises too little."""
    assert "**Replay until an entry is over.**" in (Path(__file__).parents[1] / "docs" / "security.md").read_text()
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


# -- what an entry is for, and until when ----------------------------------------------------------------------------


def signing_of(directory: CellDirectory) -> Signing:
    signing = directory._here().signing
    assert signing is not None
    return signing


def signer_of(directory: CellDirectory) -> Signer:
    signer = signing_of(directory).signer
    assert signer is not None
    return signer


def let_pass(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let so much time pass for every signer, and none for the cache: whoever replays chooses its times to live."""
    monkeypatch.setattr(signing, "monotonic", lambda: time.monotonic() + seconds)


def test_entry_that_is_over_is_refused_though_the_cache_still_holds_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = site.open(signing_key=OLD, ttl_s=1000)
    (instance,) = mapped(directory, HERE)
    of_before = stored(site, instance)
    assert of_before is not None
    directory.move_instance(instance, THERE)
    let_pass(monkeypatch, 890)
    site.cache.write(instance, of_before)
    assert directory.resolve_cell(instance).uuid == HERE
    let_pass(monkeypatch, 1004)
    check_refused_once(site, directory, instance, THERE)
    site.cache.write(instance, of_before)
    assert cells_of(directory, [instance]) == [THERE]
    region: Any = directory.region
    site.cache.write(instance, of_before)
    assert region.get(instance) is NO_VALUE
    assert stored(site, instance) is None


def test_answer_that_an_instance_is_not_mapped_is_over_with_its_own_time_to_live(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = site.open(signing_key=OLD, negative_ttl_s=50)
    (instance,) = new_uuids(1)
    for _ in range(2):  # the second time, what the first has sent has arrived
        assert directory.resolve_cells([instance]) == {}
    of_before = stored(site, instance)
    assert of_before is not None
    directory.map_instance(instance, HERE, "project")
    let_pass(monkeypatch, 54)
    site.cache.write(instance, of_before)
    check_refused_once(site, directory, instance, HERE)


def test_shorter_time_to_live_refuses_nothing_that_was_signed_under_the_longer(site: Site) -> None:
    """Processes may differ in it, as while a change is rolled out."""
    (instance,) = mapped(site.open(signing_key=OLD, ttl_s=1000), HERE)
    reader = site.open(signing_key=OLD, ttl_s=10)
    assert reader.resolve_cell(instance).uuid == HERE
    assert reader.stats().hits == 1


@pytest.mark.slow
def test_verify_takes_what_is_over_for_absent(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = site.open(signing_key=OLD, ttl_s=1000)
    instances = mapped(directory, HERE, THERE)
    before = [stored(site, instance) for instance in instances]
    directory.move_instance(instances[0], THERE)
    assert before[0] is not None
    site.cache.write(instances[0], before[0])
    *_, report = directory.verify()
    assert (report.checked, report.cached, report.wrong) == (2, 2, 1)
    let_pass(monkeypatch, 1004)
    *_, report = directory.verify(repair=True)
    assert (report.checked, report.unreachable, report.cached, report.wrong) == (2, 0, 0, 0)
    assert [stored(site, instance) for instance in instances] == before


@pytest.fixture
def other_site(site: Site, request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    """Another deployment, with the same cells, over the same cache."""
    return Site(site.cache, new_database(request, tmp_path, "sqlite"))


@pytest.mark.parametrize("prefixes", [("", ""), ("a:", "bbbb:"), ("a", "a")])
def test_entry_of_another_deployment_with_the_same_key_is_refused(
    site: Site, other_site: Site, prefixes: tuple[str, str]
) -> None:
    """Be it under another prefix of the same servers, or because somebody copied it."""
    ours = site.open(signing_key=OLD, key_prefix=prefixes[0])
    theirs = other_site.open(signing_key=OLD, key_prefix=prefixes[1])
    assert ours.deployment() != theirs.deployment()
    (instance,) = mapped(ours, HERE)
    for answer in (NOT_MAPPED, encode(THERE)):
        entry = signer_of(theirs).signed(instance, answer, 1000)
        store(site, instance, entry, prefixes[0])
        assert ours.resolve_cell(instance).uuid == HERE
    assert (ours.stats().hits, ours.stats().undecodable) == (0, 2)
    other_site._directories.close()


def store(site: Site, instance: str, entry: bytes, prefix: str) -> None:
    outsider = site.cache.backend(key_prefix=prefix)
    outsider.store_multi({instance: entry})
    outsider.close()


def test_entry_under_another_prefix_is_refused(site: Site) -> None:
    before, now = site.open(signing_key=OLD, key_prefix="a:"), site.open(signing_key=OLD, key_prefix="b:")
    (instance,) = mapped(before, HERE)
    store(site, instance, signer_of(before).signed(instance, encode(THERE), 1000), "b:")
    assert now.resolve_cell(instance).uuid == HERE
    assert (now.stats().hits, now.stats().undecodable) == (0, 1)


def test_copy_of_a_database_is_another_deployment_once_its_row_is_deleted(site: Site) -> None:
    """As docs/tables.md says of a restored dump; running processes see it with their next refresh."""
    statement = "DELETE FROM cache_agreement WHERE name = 'deployment'"
    assert statement in (Path(__file__).parents[1] / "docs" / "tables.md").read_text()
    directory = site.open(signing_key=OLD)
    (instance,) = mapped(directory, HERE)
    before = directory.deployment()
    site.run(statement)
    signing_of(directory).refresh()
    assert directory.deployment() != before
    check_refused_once(site, directory, instance, HERE)


# -- before the identity is known ------------------------------------------------------------------------------------

AWAY, BACK = (
    "ALTER TABLE cache_agreement RENAME TO agreement_away",
    "ALTER TABLE agreement_away RENAME TO cache_agreement",
)


def test_before_the_identity_is_known_answers_are_from_sql_and_nothing_is_stored_or_removed(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    writer = site.open(signing_key=OLD)
    cached, moved, pruned = mapped(writer, HERE, HERE, HERE)
    entry, (fresh, unmapped) = stored(site, cached), new_uuids(2)
    site.run(AWAY)
    directory = site.open(signing_key=OLD)
    assert [directory.resolve_cell(cached).uuid for _ in range(2)] == [HERE, HERE]
    assert directory.resolve_cells([cached, unmapped]).keys() == {cached}
    assert "identity could not be read" in directory.explain(cached).steps[0].found
    assert directory.region.get(cached) is NO_VALUE
    directory.region.set(cached, THERE)
    assert stored(site, cached) == entry
    directory.map_instance(fresh, HERE, "project")
    directory.move_instance(moved, THERE)
    directory.prune([pruned])
    assert directory.resolve_cells([fresh, moved, pruned, cached]).keys() == {fresh, moved, cached}
    assert [stored(site, instance) for instance in (fresh, moved, pruned, unmapped)] == [None] * 4
    stats = directory.stats()
    assert (stats.hits, stats.undecodable, stats.fills) == (0, 0, 0)
    *_, report = directory.verify()
    assert (report.checked, report.unreachable, report.cached) == (3, 3, 0)
    assert sum("lacks a table" in record.message for record in caplog.records) == 1

    site.run(BACK)
    signing_of(directory)._next_try_at = 0.0
    assert directory.resolve_cell(cached).uuid == HERE
    assert directory.stats().hits == 1


def test_set_after_a_get_that_could_not_verify_stores_nothing(site: Site) -> None:
    """A writer may have come in between; the identity has become known meanwhile."""
    (instance,) = mapped(site.open(signing_key=OLD), HERE)
    entry = stored(site, instance)
    site.run(AWAY)
    directory = site.open(signing_key=OLD)
    region: Any = directory.region
    assert region.get(instance) is NO_VALUE
    assert region.get_multi([instance]) == [NO_VALUE]
    site.run(BACK)
    signing_of(directory).refresh()
    region.set(instance, THERE)
    assert stored(site, instance) == entry


def test_identity_that_cannot_be_read_is_asked_for_once_a_second(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    (instance,) = mapped(site.open(), HERE)
    site.run(AWAY)
    directory = site.open(signing_key=OLD)
    tries = []
    read, now = signing_of(directory)._read, time.monotonic() + 2

    def counted() -> Agreement:
        tries.append(now)
        return read()

    monkeypatch.setattr(signing_of(directory), "_read", counted)
    monkeypatch.setattr(signing, "monotonic", lambda: now)
    for _ in range(20):
        assert directory.resolve_cell(instance).uuid == HERE
    assert len(tries) == 1


def test_background_thread_reads_identity_and_clock_again(site: Site) -> None:
    settings = site.settings(signing_key=OLD)
    quick = Settings(database=settings.database, cache=settings.cache, cells={"refresh_s": 0.05})
    with CellDirectory.open(quick) as directory:
        before = signer_of(directory)
        assert eventually(lambda: signer_of(directory) is not before)


# -- beside the release before ---------------------------------------------------------------------------------------


class SignerOfBefore:
    """How the release before signed, for ever and for any deployment: format version 1, the signature behind it."""

    def __init__(self, key: str) -> None:
        self._key = blake2b(key.encode(), digest_size=32, person=b"cellcache-key").digest()

    def signed(self, key: str, value: bytes) -> bytes:
        return value + self._signature(key, value)

    def verified(self, key: str, entry: bytes) -> bytes:
        value, signature = entry[:-16], entry[-16:]
        return value if signature == self._signature(key, value) else b"\xff"

    def _signature(self, key: str, value: bytes) -> bytes:
        return blake2b(key.encode() + value, key=self._key, digest_size=16).digest()


def test_signer_of_before_is_that_of_before() -> None:
    assert (
        SignerOfBefore("k" * 32).signed(INSTANCE, encode(CELL)).hex()
        == "013f1f2e5c52a64b0e8a8f0d6a3a6f9a013c095155b9eb700b556487a113e9b0cf"
    )


def test_entry_of_the_release_before_is_refused(site: Site) -> None:
    """Whatever it says; it may be years old."""
    directory = site.open(signing_key=OLD)
    for answer in (THERE, None):
        (instance,) = mapped(directory, HERE)
        site.cache.write(instance, SignerOfBefore(OLD).signed(instance, encode(answer)))
        check_refused_once(site, directory, instance, HERE)


def test_release_before_refuses_an_entry_of_this_one(site: Site) -> None:
    """Its rule was to verify, where it had a key, and then to decode."""
    directory = site.open(signing_key=OLD)
    (instance,) = mapped(directory, HERE)
    (unmapped,) = new_uuids(1)
    for _ in range(2):  # the second time, what the first has sent has arrived
        assert directory.resolve_cells([unmapped]) == {}
    for key in (instance, unmapped):
        entry = stored(site, key)
        assert entry is not None
        for read in (entry, SignerOfBefore(OLD).verified(key, entry)):
            with pytest.raises(Undecodable):
                decode(read)
