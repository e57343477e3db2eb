"""The benchmarks work, and what they count is what cellcache promises. Nothing here asserts a time."""

# ruff: noqa: E402 - what the benchmarks need is an extra of its own

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest
from pydantic import ValidationError
from rich.console import Console

for _module in ("jinja2", "matplotlib", "numpy"):
    pytest.importorskip(_module, reason=f"{_module} is missing: pip install 'cellcache[bench]'")

from benchmarks.bench import Bench, WrongAnswer
from benchmarks.contenders import CONTENDERS, Contender, Operation
from benchmarks.contenders.memcached_clients import Pymemcache
from benchmarks.contenders.ours import OnMemcached, OnRedis
from benchmarks.contenders.sql import Core
from benchmarks.counting import CountingProxy
from benchmarks.goals import Goal, goals, missed, outcome, outcomes
from benchmarks.instances import Instances
from benchmarks.options import Options
from benchmarks.profiles import KINDS, profile
from benchmarks.progress import Progress
from benchmarks.race import Lane, race
from benchmarks.report import html, markdown
from benchmarks.results import Case, Figure, Results
from benchmarks.scenarios import SCENARIOS, memory, threads, write
from benchmarks.world import Counts, World
from tests.servers import Memcached

# dogpile.cache's, of redis-py
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")

_ROOT = Path(__file__).parent.parent
_OPTIONS = Options(rows=3_000).quick()

needs_servers = pytest.mark.needs("memcached", "redis", "mariadb")


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with (
        Progress(Console(quiet=True), 1) as progress,
        World(_OPTIONS.seed, progress.step) as world,
        closing(Bench(_OPTIONS, world, progress)) as bench,
    ):
        yield bench


def count(bench: Bench, contender: type[Contender], operation: Operation, arguments: Any, nodes: int = 1) -> Counts:
    opened = bench.loaded(contender, nodes)
    return bench.count(opened, operation, lambda _, size: arguments(size), cached=operation != "create")


# -- goals ---------------------------------------------------------------------------------------------------------


def test_goals_are_those_of_the_table() -> None:
    limits = [goal.limit for goal in goals()]
    assert limits == [
        *("1.4x", "0.9x", "0.3x", "0.08x"),
        *("0.25x", "4x"),
        "0.7x",
        *("0.6x", "0.05x", "0.3x"),
        *("1.3x", "1.7x", "1.3x"),
        *("0.5x", "1.3x", "≥ 0.9x"),
    ]


def test_goals_name_contenders_that_there_are() -> None:
    known = {contender.key for contender in CONTENDERS}
    assert {lane.partition("@")[0] for goal in goals() for lane in (goal.of, goal.against)} <= known


@pytest.mark.parametrize("limits", [{}, {"at_most": 1.0, "at_least": 1.0}, {"at_most": 0.0}, {"at_msot": 1.0}])
def test_goal_without_one_proper_limit_is_refused(limits: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Goal.model_validate({"title": "", "against_title": "", "case": "c", "of": "a", "against": "b", **limits})


def test_goal_compares_round_by_round() -> None:
    # The machine is ten times slower in the second round, which the ratios do not see.
    results = _results({"a": [1.0, 10.0, 2.0], "b": [2.0, 20.0, 4.0]})
    found = outcome(_goal(at_most=0.4), results)
    assert found.measured is not None
    assert (found.state, found.measured.median) == ("missed", 0.5)
    assert found.by == pytest.approx(-0.25)
    assert outcome(_goal(at_most=0.5), results).state == "reached"


def test_goal_of_a_rate_turns_the_ratio_of_times_around() -> None:
    results = _results({"a": [2.0, 2.0], "b": [1.0, 1.0]})
    assert outcome(_goal(at_least=0.5), results).state == "reached"
    assert outcome(_goal(at_least=0.6), results).state == "missed"


def test_goal_whose_case_did_not_run_is_not_measured() -> None:
    assert outcome(_goal(at_most=1.0), _results({"a": [1.0]})).state == "not measured"


def test_reasons_are_shown_only_where_the_goal_was_missed() -> None:
    results = _results({"a": [1.0], "b": [2.0]})
    goal = _goal(at_most=0.4).model_copy(update={"why": "because", "tried": "all"})
    found = outcome(goal, results)
    assert (found.state, found.why, found.tried) == ("missed", "because", "all")
    reached = outcome(goal.model_copy(update={"at_most": 0.6}), results)
    assert (reached.state, reached.why, reached.tried) == ("reached", "", "")
    assert outcome(goal, _results({"a": [1.0]})).why == ""


def _goal(**limit: Any) -> Goal:
    return Goal(title="", against_title="", case="case", of="a", against="b", **limit)


def _results(values: dict[str, list[float]]) -> Results:
    figures = [Figure(key, key, rounds) for key, rounds in values.items()]
    return Results({}, {}, {}, cases=[Case("case", "hit", "", "b", figures)])


# -- method --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_race_runs_every_lane_in_every_round_in_changing_order() -> None:
    ran: list[str] = []
    lanes = [Lane(key, key, ran.append, lambda size, key=key: [key] * size, per_batch=1) for key in "abcd"]  # type: ignore[misc]
    times = race(lanes, rounds=6, batch_s=0.001, case_s=60.0, random=Random(1))
    rounds = [ran[start : start + 4] for start in range(len(ran) - 24, len(ran), 4)]
    assert [sorted(each) for each in rounds] == [list("abcd")] * 6
    assert len({tuple(each) for each in rounds}) > 1
    assert [len(each.rounds_us) for each in times.values()] == [6] * 4


def test_instances_are_the_same_for_the_same_seed() -> None:
    one, same, other = Instances(10, 1), Instances(20, 1), Instances(10, 2)
    assert one.row(3) == same.row(3) != other.row(3)
    assert len({one.uuid(number) for number in range(1000)}) == 1000


@pytest.mark.needs("memcached")
def test_proxy_counts_a_request_in_pieces_once_and_two_requests_twice() -> None:
    with Memcached() as server, CountingProxy(server.host, server.port) as proxy:
        with socket.create_connection((proxy.host, proxy.port)) as client:
            client.sendall(b"mn\r")
            client.sendall(b"\nmn\r\n")
            received = b""
            while received.count(b"MN\r\n") < 2:
                received += client.recv(100)
            assert proxy.round_trips == 1
            client.sendall(b"mn\r\n")
            assert client.recv(100) == b"MN\r\n"
        assert proxy.round_trips == 2


# -- profiles ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_profile_calls_the_operation_with_fresh_arguments_and_names_what_it_calls() -> None:
    asked: list[int] = []

    def fresh(size: int) -> list[int]:
        start = len(asked)
        asked.extend(range(start, start + size))
        return asked[start:]

    called: list[int] = []

    def operation(argument: int) -> None:
        called.append(argument)

    found = profile("case", Lane("a", "A", operation, fresh, per_batch=7))
    assert called == asked == list(range(len(asked)))
    assert (found.case, found.lane, found.title) == ("case", "a", "A")
    calls = {line.function.rpartition(".")[2]: line.calls for line in found.lines}
    assert calls == {"operation": 1.0, "append": 1.0}


@pytest.mark.slow
def test_profile_tells_waiting_for_a_socket_from_work() -> None:
    here, there = socket.socketpair()

    def echo(request: bytes) -> bytes:
        there.sendall(request)
        return here.recv(10)

    with here, there:
        found = profile("case", Lane("a", "A", echo, lambda size: [b"x"] * size, per_batch=10))
    kinds = {line.function: (line.kind, line.calls) for line in found.lines}
    assert kinds["sendall"] == kinds["recv"] == ("cache", 1.0)
    assert found.kinds_us.keys() == KINDS.keys()
    assert found.kinds_us["cache"] > 0


@needs_servers
def test_profile_of_a_create_tells_cache_database_and_commit_apart(bench: Bench) -> None:
    next(write.run_create(bench))
    found = bench.profile("create", "cellcache.memcached")
    assert found is not None
    trips = {(line.function, line.kind): round(line.calls) for line in found.lines if line.kind != "work"}
    assert trips == {
        ("sendall", "cache"): 2,
        ("recv", "cache"): 2,
        ("sendall", "database"): 3,
        ("recv_into", "database"): 2,
        ("recv_into", "commit"): 1,
    }


@needs_servers
def test_profile_of_threads_is_of_one_of_them(bench: Bench) -> None:
    together = threads._Together(bench, bench.loaded(OnMemcached), 4)
    found = profile("threads", together.alone())
    together.close()
    assert found.lane == "cellcache.memcached@4"
    assert found.title.endswith(", in one thread")
    assert {(line.function, line.kind, line.calls) for line in found.lines if line.kind != "work"} == {
        ("sendall", "cache", 1.0),
        ("recv", "cache", 1.0),
    }


def test_case_without_timed_calls_has_no_profile() -> None:
    with Progress(Console(quiet=True), 1) as progress, World(1, progress.step) as world:
        assert Bench(_OPTIONS, world, progress).profile("memory-memcached", "cellcache.memcached") is None


@pytest.mark.slow
def test_report_says_of_each_missed_goal_why_and_where_the_time_goes() -> None:
    ours, others = "cellcache.memcached", ("dogpile.pymemcache", "sql.core")
    figures = [Figure(key, key, [1.0]) for key in (ours, *others)]
    settings = {"rows": 1, "rounds": 1, "batch_s": 1.0, "case_s": 1.0, "seed": 1}
    machine = {"processor": "", "cores": "", "Python": ""}
    results = Results(machine, {}, settings, cases=[Case("hit-memcached", "hit", "", ours, figures)])
    assert missed("hit-memcached", results) == [ours]
    results.profiles.append(profile("hit-memcached", Lane(ours, ours, lambda n: [n], lambda n: [0] * n)))
    both = [found for found in outcomes(results) if found.state == "missed"]
    assert len(both) == len(others)
    page, text = html.page(results, both), markdown.page(results, both)
    assert page.count('<details class="miss">') == text.count("### Missed: ") == 2
    assert all(found.why and found.why in page and found.why in text for found in both)
    assert page.count("<th>own time per call</th>") == 2
    assert text.count("| own time per call |") == 1  # the second refers to the first


# -- contenders ----------------------------------------------------------------------------------------------------


@needs_servers
@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda contender: contender.key)
def test_contender_gives_the_right_answers(bench: Bench, contender: type[Contender]) -> None:
    if (reason := contender.missing()) is not None:
        pytest.skip(reason)
    assert bench.loaded(contender).key == contender.key  # which has compared its answers with the table


@needs_servers
def test_contender_with_a_wrong_answer_is_found_out(bench: Bench) -> None:
    class Liar(Pymemcache):
        key = "liar"

        def cell_of(self, answer: Any) -> str | None:
            return super().cell_of(answer[::-1])

    with pytest.raises(WrongAnswer, match="pymemcache Client answered"):
        bench.loaded(Liar)


@needs_servers
@pytest.mark.parametrize("contender", [OnMemcached, OnRedis])
def test_hit_costs_one_round_trip_and_no_sql(bench: Bench, contender: type[Contender]) -> None:
    found = count(bench, contender, "lookup", lambda size: bench.instances.some(bench.random, size))
    assert found == Counts(cache_round_trips=1, database_round_trips=0, statements=0, transaction_statements=0)


@needs_servers
@pytest.mark.parametrize("contender", [OnMemcached, OnRedis])
def test_negative_hit_costs_one_round_trip_and_no_sql(bench: Bench, contender: type[Contender]) -> None:
    found = count(bench, contender, "lookup_unmapped", bench.never_mapped)
    assert found == Counts(cache_round_trips=1, database_round_trips=0, statements=0, transaction_statements=0)


@needs_servers
@pytest.mark.parametrize("contender", [OnMemcached, OnRedis])
def test_miss_costs_two_round_trips_and_one_statement(bench: Bench, contender: type[OnMemcached | OnRedis]) -> None:
    opened = bench.loaded(contender)
    assert isinstance(opened, contender)

    def forgotten(_: Contender, size: int) -> list[str]:
        keys = bench.instances.distinct(bench.random, size)
        opened.forget(keys)
        return keys

    found = bench.count(opened, "lookup", forgotten, cached=False)
    assert found == Counts(cache_round_trips=2, database_round_trips=1, statements=1, transaction_statements=0)


@needs_servers
@pytest.mark.parametrize("nodes", [1, 3])
def test_thousand_hits_cost_a_round_trip_per_node(bench: Bench, nodes: int) -> None:
    stored = bench.stored(nodes)
    found = count(
        bench, OnMemcached, "lookup_many", lambda n: [stored.distinct(bench.random, 1000) for _ in range(n)], nodes
    )
    assert found == Counts(cache_round_trips=nodes, database_round_trips=0, statements=0, transaction_statements=0)


@needs_servers
def test_create_costs_a_fence_and_a_settlement_beside_the_transaction(bench: Bench) -> None:
    found = count(
        bench, OnMemcached, "create", lambda size: [bench.instances.row(new) for new in bench.new_numbers(size)]
    )
    assert found.cache_round_trips == 2


@needs_servers
def test_bare_select_costs_a_rollback_as_well(bench: Bench) -> None:
    found = count(bench, Core, "lookup", lambda size: bench.instances.some(bench.random, size))
    assert found == Counts(cache_round_trips=0, database_round_trips=2, statements=1, transaction_statements=1)


@needs_servers
def test_mapping_takes_less_than_half_of_what_plain_dogpile_takes(bench: Bench) -> None:
    case = next(case for case in memory.run(bench) if case.key == "memory-memcached")
    ours, plain = case.figure("cellcache.memcached"), case.figure("dogpile.pymemcache")
    assert ours is not None
    assert plain is not None
    assert ours.median <= 96
    assert ours.median <= plain.median / 2


# -- the whole -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(300)
@needs_servers
def test_quick_run_writes_three_files(tmp_path: Path) -> None:
    scenarios = ["hit", "miss", "request", "memory", "processes", "fleet"]
    done = _run("--quick", "--scenarios", ",".join(scenarios), "--output", str(tmp_path / "results"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == [
        "report.html",
        "report.md",
        "results.json",
    ]
    found = json.loads((tmp_path / "results" / "results.json").read_text())
    assert {case["scenario"] for case in found["cases"]} == set(scenarios)
    assert len(found["goals"]) == len(goals())
    page = (tmp_path / "results" / "report.html").read_text()
    assert page.count("<svg") == len(found["cases"])
    assert not any(outside in page for outside in ("<script", "<link", "src=", "@import"))
    markdown = (tmp_path / "results" / "report.md").read_text()
    assert all(case["title"] in markdown for case in found["cases"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--scenarios", "hit,hti"], "hti"),
        (["--contenders", "memcache"], "memcache"),
        (["--servers", "1,x"], "list of numbers"),
        (["--sizes", "0"], "at least 1"),
    ],
)
def test_option_that_makes_no_sense_is_refused_before_anything_starts(arguments: list[str], complaint: str) -> None:
    done = _run(*arguments)
    assert done.returncode == 2
    assert complaint in done.stderr


def test_every_scenario_has_a_title() -> None:
    assert all(title for title, _ in SCENARIOS.values())


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments], cwd=_ROOT, capture_output=True, text=True, check=False
    )
