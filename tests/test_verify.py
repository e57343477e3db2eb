"""`verify`: what differs for good is found, what is under way is not, and nothing is changed unasked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import insert

from cellcache import CellDirectory, DatabaseUnavailable, InvalidValue, VerifyReport, audit
from cellcache.backends.memory import MemoryBackend
from cellcache.cli import main
from cellcache.cli.coherence import with_nines
from cellcache.codec import FENCE, LEASE
from cellcache.protocol import Absent, Seen
from cellcache.tables import instance_mapping
from tests.directories import CACHES, DATABASES, HERE, SHARED_CACHES, THERE, Site, new_uuids, open_site
from tests.servers import Memcached, Redis


@pytest.fixture(params=CACHES)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, request.param) as site:
        yield site


@pytest.fixture
def directory(site: Site) -> CellDirectory:
    return site.open()


def last(reports: Iterator[VerifyReport]) -> VerifyReport:
    *_, report = reports
    return report


@pytest.mark.slow
def test_a_cache_that_follows_the_table_is_consistent(directory: CellDirectory) -> None:
    uuids = new_uuids(1500)
    directory.map_instances((uuid, HERE, "project") for uuid in uuids)
    report = last(directory.verify())
    assert (report.checked, report.cached, report.wrong, report.consistency) == (1500, 1500, 0, 1.0)


@pytest.mark.slow
def test_wrong_cell_and_wrong_not_mapped_are_found_and_left_alone(directory: CellDirectory) -> None:
    wrong_cell, not_mapped, *_ = uuids = new_uuids(20)
    directory.map_instances((uuid, HERE, "project") for uuid in uuids)
    directory.region.set(wrong_cell, THERE)
    directory.region.set(not_mapped, None)
    for _ in range(2):
        report = last(directory.verify())
        assert (report.checked, report.wrong, report.repaired) == (20, 2, 0)
        found = {one.instance_uuid: (one.cached_cell_uuid, one.mapped_cell_uuid) for one in report.differences}
        assert found == {wrong_cell: (THERE, HERE), not_mapped: (None, HERE)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHARED_CACHES)
def test_what_would_keep_answers_out_for_good_is_found_and_repaired(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with open_site(request, tmp_path, kind) as site:
        directory = site.open()
        leased, fenced, long, *_ = uuids = new_uuids(20)
        directory.map_instances((uuid, HERE, "project") for uuid in uuids)
        site.cache.evict(leased)
        site.cache.place_mark(leased, LEASE + b"12345678", 0)
        site.cache.place_mark(fenced, FENCE + b"12345678", 0)
        site.cache.write(long, b"x" * 100_000)
        report = last(directory.verify())
        assert (report.checked, report.cached, report.wrong, report.repaired) == (20, 20, 3, 0)
        assert {one.instance_uuid for one in report.differences} == {leased, fenced, long}
        endless = [one for one in report.differences if one.instance_uuid != long]
        assert [one.cached_cell_uuid for one in endless] == [Absent.ENDLESS.value] * 2
        assert last(directory.verify(repair=True)).repaired == 3
        assert last(directory.verify()).consistency == 1.0
        directory.resolve_cells(uuids)
        assert directory.resolve_cells(uuids).keys() == set(uuids)
        assert directory.stats().hits == 17 + 20


@pytest.mark.slow
def test_what_was_wrong_is_right_after_a_repair(directory: CellDirectory) -> None:
    (uuid,) = new_uuids(1)
    directory.map_instance(uuid, HERE, "project")
    directory.region.set(uuid, THERE)
    assert directory.resolve_cell(uuid).uuid == THERE
    assert last(directory.verify(repair=True)).repaired == 1
    assert directory.resolve_cell(uuid).uuid == HERE
    assert last(directory.verify()).wrong == 0


@pytest.mark.slow
def test_absent_entries_stay_absent(site: Site, directory: CellDirectory) -> None:
    uuids = new_uuids(5)
    directory.map_instances((uuid, HERE, "project") for uuid in uuids)
    directory.region.delete_multi(uuids)
    assert last(directory.verify()).cached == 0
    before = directory.stats()
    directory.resolve_cells(uuids)
    assert directory.stats().fills - before.fills == 5  # no lease of verify's stood in the way


def test_a_change_under_way_is_not_a_difference(directory: CellDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    (uuid,) = new_uuids(1)
    directory.map_instance(uuid, HERE, "project")
    peek = directory._here().backend.peek_multi
    moved = threading.Event()

    def peek_then_let_it_move(keys: Any) -> list[Seen]:
        entries = peek(keys)
        if not moved.is_set():
            moved.set()
            directory.move_instance(uuid, THERE)
        return entries

    reports = directory.verify()
    next(reports)
    monkeypatch.setattr(directory._here().backend, "peek_multi", peek_then_let_it_move)
    directory.region.set(uuid, THERE)  # what it sees first differs from the row that it has read
    assert last(reports).wrong == 0
    assert moved.is_set()


@pytest.fixture
def between_looks(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """What happens in each pause between two looks, in their order; the pauses themselves take no time."""
    happens: list[Callable[[], object]] = []

    def sleep(_seconds: float) -> None:
        if happens:
            happens.pop(0)()

    monkeypatch.setattr(audit, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    return happens


def test_a_write_that_settles_before_the_last_look_is_no_difference(
    directory: CellDirectory, between_looks: list[Callable[[], object]]
) -> None:
    """A writer may be between its commit and its settling for as long as a node's time limit, and longer."""
    (uuid,) = new_uuids(1)
    directory.map_instance(uuid, HERE, "project")
    directory.region.set(uuid, THERE)
    between_looks += [bool, bool, lambda: directory.region.set(uuid, HERE)]
    assert last(directory.verify()).wrong == 0
    assert between_looks == []
    assert sum(audit._LOOKS_AFTER_S) == pytest.approx(1.0)


def test_answers_that_follow_each_other_are_no_difference(
    directory: CellDirectory, between_looks: list[Callable[[], object]]
) -> None:
    """Each of them differs from what the table says then, as where writes come one behind the other."""
    (uuid,) = new_uuids(1)
    directory.map_instance(uuid, HERE, "project")
    directory.region.set(uuid, THERE)
    between_looks += [lambda: directory.region.set(uuid, None)]
    assert last(directory.verify()).wrong == 0


def test_nothing_is_no_share(directory: CellDirectory) -> None:
    assert last(directory.verify(sample=10)) == last(directory.verify()) == VerifyReport()
    assert VerifyReport().consistency is None
    (uuid,) = new_uuids(1)
    directory.map_instance(uuid, HERE, "project")
    directory.region.delete(uuid)
    report = last(directory.verify())
    assert (report.checked, report.cached, report.consistency) == (1, 0, None)


# -- cache nodes that do not answer ----------------------------------------------------------------------------------


class Deaf:
    """Stands before a directory's backend: for some instances it has no answer, as if their node were away."""

    def __init__(self, directory: CellDirectory, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.away: dict[str, int] = {}
        """How many times more each of them is asked for in vain."""
        self.asked: list[list[str]] = []
        self._ask = getattr(directory._here().backend, method)
        self._unanswered = Absent.UNREACHABLE if method == "peek_multi" else False
        monkeypatch.setattr(directory._here().backend, method, self)

    def __call__(self, keys: Sequence[str]) -> list[object]:
        self.asked.append(list(keys))
        return [self._answer(key) for key in keys]

    def _answer(self, key: str) -> object:
        if self.away.get(key, 0) > 0:
            self.away[key] -= 1
            return self._unanswered
        (answer,) = self._ask([key])
        return answer


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that `verify` makes, written down and not made."""
    made: list[float] = []
    monkeypatch.setattr(audit, "time", SimpleNamespace(sleep=made.append, monotonic=time.monotonic))
    return made


EVER = 1_000_000


def test_what_a_node_did_not_answer_is_asked_again(
    directory: CellDirectory, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    uuids = sorted(new_uuids(3))
    directory.map_instances((uuid, HERE, "project") for uuid in uuids)
    directory.region.set(uuids[0], THERE)
    peek = Deaf(directory, "peek_multi", monkeypatch)
    peek.away = {uuids[0]: 2, uuids[1]: 1}
    report = last(directory.verify())
    assert (report.checked, report.unreachable, report.cached, report.wrong) == (3, 0, 3, 1)
    assert peek.asked[1:3] == [[uuids[0], uuids[1]], [uuids[0]]]
    assert all(pause > directory.settings.cache.retry_s for pause in pauses[:2])


def test_what_stays_unreachable_is_counted_and_in_no_share(
    directory: CellDirectory, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    away, wrong, *_ = uuids = new_uuids(4)
    directory.map_instances((uuid, HERE, "project") for uuid in uuids)
    directory.region.set(wrong, THERE)
    Deaf(directory, "peek_multi", monkeypatch).away = {away: EVER}
    report = last(directory.verify())
    assert (report.checked, report.unreachable, report.cached, report.wrong) == (4, 1, 3, 1)
    assert report.consistency == pytest.approx(2 / 3)
    Deaf(directory, "peek_multi", monkeypatch).away = dict.fromkeys(uuids, EVER)
    report = last(directory.verify())
    assert (report.checked, report.unreachable, report.cached, report.consistency) == (4, 4, 0, None)


@pytest.mark.parametrize("look", [1, 2, 3])
@pytest.mark.parametrize("back", [True, False], ids=["comes back", "stays away"])
def test_a_suspect_is_not_dropped_because_it_could_not_be_looked_at_again(
    directory: CellDirectory, pauses: list[float], monkeypatch: pytest.MonkeyPatch, look: int, back: bool
) -> None:
    (uuid,) = new_uuids(1)
    directory.map_instance(uuid, HERE, "project")
    directory.region.set(uuid, THERE)
    peek = Deaf(directory, "peek_multi", monkeypatch)
    begin = Deaf.__call__

    def go_away(self: Deaf, keys: Sequence[str]) -> list[object]:
        if len(self.asked) == look:
            self.away = {uuid: 2 if back else EVER}
        return begin(self, keys)

    monkeypatch.setattr(Deaf, "__call__", go_away)
    report = last(directory.verify())
    assert len(peek.asked) > look
    assert (report.wrong, report.unreachable) == ((1, 0) if back else (0, 1))
    assert report.cached == report.wrong


def test_a_node_that_stays_away_is_waited_for_in_one_batch_only(
    directory: CellDirectory, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    uuids = sorted(new_uuids(6))  # the order of their ids
    directory.map_instances((uuid, HERE, "project") for uuid in uuids)
    mappings = directory._here().store.mappings
    monkeypatch.setattr(directory._here().store, "mappings", lambda **page: mappings(**(page | {"limit": 1})))
    peek = Deaf(directory, "peek_multi", monkeypatch)
    peek.away = {uuids[0]: EVER, uuids[1]: EVER, uuids[3]: EVER}
    assert last(directory.verify()).unreachable == 3
    asked = [sum(keys == [uuid] for keys in peek.asked) for uuid in uuids]
    assert asked == [4, 1, 1, 4, 1, 1]  # the third was answered, so there was hope again
    assert len(pauses) == 6


def test_a_repair_that_was_not_confirmed_is_tried_again_and_else_not_counted(
    directory: CellDirectory, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    uuids = new_uuids(3)
    directory.map_instances((uuid, HERE, "project") for uuid in uuids)
    directory.region.set_multi(dict.fromkeys(uuids, THERE))
    Deaf(directory, "invalidate_multi", monkeypatch).away = {uuids[0]: 2, uuids[1]: EVER}
    report = last(directory.verify(repair=True))
    assert (report.wrong, report.repaired) == (3, 2)
    assert [directory.resolve_cell(uuid).uuid for uuid in uuids] == [HERE, THERE, HERE]


def test_a_server_that_was_slow_once_is_compared_in_full(
    cache_server: Memcached | Redis, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_site(request, tmp_path, "redis" if isinstance(cache_server, Redis) else "memcached") as site:
        directory = site.open(timeout_s=0.3, retry_s=0.1)
        uuids = new_uuids(1500)
        directory.map_instances((uuid, HERE, "project") for uuid in uuids)
        directory.region.set_multi(dict.fromkeys(uuids, THERE))

        def resume_and_sleep(seconds: float) -> None:
            cache_server.resume()
            time.sleep(seconds)

        monkeypatch.setattr(audit, "time", SimpleNamespace(monotonic=time.monotonic, sleep=resume_and_sleep))
        cache_server.suspend()
        report = last(directory.verify(repair=True))
        assert (report.checked, report.unreachable, report.wrong, report.repaired) == (1500, 0, 1500, 1500)
        assert {cell.uuid for cell in directory.resolve_cells(uuids).values()} == {HERE}


# -- samples -----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=DATABASES)
def databased(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(request, tmp_path, "memory", request.param) as site:
        yield site


def looked_at(directory: CellDirectory, size: int) -> list[str]:
    """Return the instances of one sample, each as often as it was looked at."""
    seen: list[str] = []
    peek = directory._here().backend.peek_multi

    def noted(keys: Sequence[str]) -> list[Seen]:
        seen.extend(keys)
        return peek(keys)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(directory._here().backend, "peek_multi", noted)
        report = last(directory.verify(sample=size))
    assert report.checked == len(seen)
    return seen


@pytest.mark.slow
def test_a_sample_looks_at_so_many_different_instances(databased: Site) -> None:
    directory = databased.open()
    old, new = new_uuids(1200), new_uuids(50)
    directory.map_instances((uuid, HERE, "project") for uuid in old)
    gap = "UPDATE instance_mapping SET id = id + 1000000 WHERE instance_uuid IN ('{}')"
    directory.map_instances((uuid, HERE, "project") for uuid in new)
    databased.run(gap.format("','".join(new)))
    for size in (1, 250, 1001, 1250, 5000):
        seen = looked_at(directory, size)
        assert len(seen) == len(set(seen)) == min(size, 1250)
        assert set(seen) <= {*old, *new}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["random", "numbered", "one end is no UUID"])
def test_every_instance_is_in_a_sample_sooner_or_later(databased: Site, kind: str) -> None:
    directory = databased.open()
    uuids = [str(UUID(int=number)) for number in range(1, 6)] if kind == "numbered" else sorted(new_uuids(5))
    directory.map_instances((uuid, HERE, "project") for uuid in uuids)
    if kind == "one end is no UUID":
        databased.run("UPDATE instance_mapping SET instance_uuid = 'zz' WHERE id = 1")
        uuids = uuids[1:]
    seen: set[str] = set()
    for _ in range(1000):  # the rarest of five random ones is drawn once in fifty
        seen |= set(looked_at(directory, 1)) - {"zz"}
        if seen == set(uuids):
            break
    assert seen == set(uuids)


@pytest.mark.slow
def test_a_sample_ends_where_the_rows_vanish_meanwhile(databased: Site) -> None:
    directory = databased.open()
    directory.map_instances((uuid, HERE, "project") for uuid in new_uuids(2500))
    reports = directory.verify(sample=10_000)
    next(reports)
    next(reports)
    databased.run("DELETE FROM instance_mapping")
    assert list(reports) == []


@pytest.mark.slow
def test_a_sample_is_read_by_the_index(databased: Site) -> None:
    databased.run(
        insert(instance_mapping).values(
            [{"instance_uuid": uuid, "cell_uuid": HERE, "project_id": "project"} for uuid in new_uuids(8000)]
        )
    )
    if databased.database_url.startswith("sqlite"):
        explain = "EXPLAIN QUERY PLAN"
    else:
        explain = "EXPLAIN"
        databased.run("ANALYZE" if "postgresql" in databased.database_url else "ANALYZE TABLE instance_mapping")
    place = "80000000-0000-4000-8000-000000000000"  # for the few behind the last a sort may be cheaper
    for rest in (f"> '{place}'", f"> '' AND instance_uuid <= '{place}'"):
        plan = databased.run(
            f"{explain} SELECT instance_uuid, cell_uuid FROM instance_mapping WHERE instance_uuid {rest} "
            "ORDER BY instance_uuid LIMIT 100"
        )
        assert "uniq_instance_mapping_instance_uuid" in str(plan), plan
        assert "sort" not in str(plan).lower()
        assert "b-tree" not in str(plan).lower()


def test_nonsense_is_refused(directory: CellDirectory) -> None:
    with pytest.raises(InvalidValue):
        next(directory.verify(sample=0))
    with pytest.raises(InvalidValue):
        next(directory.verify(rate_per_s=0.0))


@pytest.fixture
def here(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[CellDirectory, Path]]:
    """A directory in this process, and the configuration by which the command line finds its very cache."""
    with open_site(request, tmp_path, "memory") as site:
        config = tmp_path / "cellcache.toml"
        config.write_text(f'[database]\nurl = "{site.database_url}"\n', encoding="utf-8")
        with CellDirectory.open(config) as directory:
            yield directory, config


@pytest.mark.slow
def test_command_says_what_is_wrong_and_repairs_on_request(
    here: tuple[CellDirectory, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    directory, config = here
    wrong, *_ = uuids = new_uuids(200)
    directory.map_instances((uuid, HERE, "project") for uuid in uuids)
    verify = ["--config", str(config), "verify"]
    assert main(verify) == 0
    assert "100 %" in capsys.readouterr().out
    directory.region.set(wrong, THERE)
    assert main([*verify, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["checked"], report["wrong"], report["consistency"]) == (200, 1, 0.995)
    assert main([*verify, "--repair"]) == 1
    out = capsys.readouterr().out
    assert wrong in out
    assert "99.5 %" in out
    assert main(verify) == 0


@pytest.mark.slow
def test_command_says_what_it_could_not_ask(
    here: tuple[CellDirectory, Path],
    capsys: pytest.CaptureFixture[str],
    pauses: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory, config = here
    away, wrong, *_ = uuids = new_uuids(10)
    directory.map_instances((uuid, HERE, "project") for uuid in uuids)
    unreachable = {away}
    peek = MemoryBackend.peek_multi
    monkeypatch.setattr(
        MemoryBackend,
        "peek_multi",
        lambda self, keys: [
            Absent.UNREACHABLE if key in unreachable else entry
            for key, entry in zip(keys, peek(self, keys), strict=True)
        ],
    )
    verify = ["--config", str(config), "verify"]
    assert main(verify) == 4
    captured = capsys.readouterr()
    assert "did not answer for 1 instances" in captured.err
    assert captured.out.split()[:4] == ["instances", "looked", "at", "10"]
    assert main([*verify, "--json"]) == 4
    report = json.loads(capsys.readouterr().out)
    assert (report["checked"], report["unreachable"], report["consistency"]) == (10, 1, 1.0)
    directory.region.set(wrong, THERE)
    assert main(verify) == 1
    unreachable.update(uuids)
    assert main(verify) == 4
    assert "nothing was compared" in capsys.readouterr().out
    assert main([*verify, "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["consistency"] is None


@pytest.mark.slow
def test_command_says_what_it_could_not_repair(
    here: tuple[CellDirectory, Path],
    capsys: pytest.CaptureFixture[str],
    pauses: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory, config = here
    (uuid,) = new_uuids(1)
    directory.map_instance(uuid, HERE, "project")
    directory.region.set(uuid, THERE)
    monkeypatch.setattr(MemoryBackend, "invalidate_multi", lambda _, keys: [False] * len(keys))
    assert main(["--config", str(config), "verify", "--repair", "--json"]) == 1
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert (report["wrong"], report["repaired"]) == (1, 0)
    assert "1 wrong answers are still there" in captured.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (DatabaseUnavailable("it is away"), 3)], ids=["Ctrl-C", "database"]
)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_interrupted_command_prints_what_it_has_seen_as_it_was_asked_to(
    here: tuple[CellDirectory, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    at: int,
) -> None:
    _, config = here

    def interrupted(*_: object, **__: object) -> Iterator[VerifyReport]:
        yield from [VerifyReport(), VerifyReport(checked=1000, cached=1000)][:at]
        raise error

    monkeypatch.setattr(CellDirectory, "verify", interrupted)
    assert main(["--config", str(config), "verify", "--json"]) == code
    assert json.loads(capsys.readouterr().out)["checked"] == (1000 if at == 2 else 0)
    assert main(["--config", str(config), "verify"]) == code
    assert "instances looked at" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cached", "wrong", "text"),
    [
        (0, 0, "nothing was compared"),
        (1000, 0, "100 %"),
        (1000, 1, "99.90 % (3 nines)"),
        (10_000, 1, "99.990 % (4 nines)"),
        (10, 5, "50.0 % (0 nines)"),
    ],
)
def test_consistency_is_shown_with_its_nines(cached: int, wrong: int, text: str) -> None:
    assert with_nines(VerifyReport(checked=20_000, cached=cached, wrong=wrong)) == text
