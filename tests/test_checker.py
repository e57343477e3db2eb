"""The judge is judged: true histories pass, and each kind of lie is found."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults import history
from tests.faults.checker import Commit, check
from tests.faults.history import Call, History, Outcome, Recorder
from tests.faults.journal import Journal
from tests.faults.judgement import judge
from tests.faults.nemesis import Event
from tests.faults.story import story

KEY = "instance"


def read(value: str | None, start: int, end: int, op: str = "r") -> Call:
    return Call(op, "read", value, start, end)


def write(op: str, value: str | None, start: int, end: int | None, outcome: Outcome = "done") -> Call:
    return Call(op, "write", value, start, end, outcome)


def kinds(commits: Sequence[Commit], calls: Sequence[Call], first: str | None = "a") -> list[str]:
    return [finding.kind for finding in check(KEY, first, commits, calls)]


B, C = Commit("w1", "b"), Commit("w2", "c")
WRITE_B, WRITE_C = write("w1", "b", 10, 20), write("w2", "c", 30, 40)

TRUE_HISTORIES = {
    "nothing happened": ([], [read("a", 1, 2), read("a", 3, 4)]),
    "a read after a write": ([B], [WRITE_B, read("b", 21, 22)]),
    "reads beside a write, the new one first to end": ([B], [WRITE_B, read("b", 11, 12), read("a", 11, 19)]),
    "a read that began before the write returned": ([B], [WRITE_B, read("a", 19, 50)]),
    "an unknown write that nobody saw": ([], [write("w1", "b", 10, None, "unknown"), read("a", 30, 40)]),
    "an unknown write that happened late": (
        [B],
        [write("w1", "b", 10, None, "unknown"), read("a", 30, 40), read("b", 41, 42)],
    ),
    "an unknown write after a later one": (
        [C, B],
        [write("w1", "b", 10, None, "unknown"), WRITE_C, read("c", 41, 42), read("b", 43, 44)],
    ),
    "two writes at once, in the other order": (
        [C, B],
        [write("w1", "b", 10, 40), write("w2", "c", 10, 40), read("b", 41, 42)],
    ),
    "a write that failed": ([], [write("w1", "b", 10, 20, "failed"), read("a", 30, 40)]),
    "unmapped twice": (
        [Commit("w1", None), Commit("w2", "b"), Commit("w3", None)],
        [
            write("w1", None, 10, 20),
            read(None, 21, 22),
            write("w2", "b", 30, 40),
            read("b", 35, 36),
            write("w3", None, 50, 60),
            read(None, 61, 62),
        ],
    ),
    "an answer that fits two versions, of which only the newer will do": (
        [B, Commit("w2", "a")],
        [WRITE_B, write("w2", "a", 30, 40), read("a", 35, 36), read("a", 41, 42)],
    ),
}

FALSE_HISTORIES = {
    "stale read": ([B], [WRITE_B, read("a", 21, 22)]),
    "stale read, two versions back": ([B, C], [WRITE_B, WRITE_C, read("a", 41, 42)]),
    "stale read, of the unmapped": ([Commit("w1", None)], [write("w1", None, 10, 20), read("a", 21, 22)]),
    "backward read": ([B], [WRITE_B, read("b", 11, 12), read("a", 13, 14)]),
    "backward read, of an unknown write": (
        [B],
        [write("w1", "b", 10, None, "unknown"), read("b", 20, 21), read("a", 30, 31)],
    ),
    "backward read, though the value comes again later": (
        [B, Commit("w2", "a")],
        [write("w1", "b", 10, 90), write("w2", "a", 50, 90), read("b", 20, 21), read("a", 30, 31)],
    ),
    "lost write": ([], [WRITE_B]),
    "lost write, and its value is seen by nobody": ([C], [WRITE_B, WRITE_C, read("c", 41, 42)]),
    "denied write": ([B], [write("w1", "b", 10, 20, "failed"), read("b", 30, 40)]),
    "never written": ([B], [WRITE_B, read("x", 21, 22)]),
    "never written, but asked for in vain": ([], [write("w1", "b", 10, 20, "failed"), read("b", 30, 40)]),
    "read too early": ([B], [read("b", 1, 2), WRITE_B]),
    "written twice": ([B, Commit("w1", "b")], [WRITE_B]),
    "unknown write": ([B], [read("a", 1, 2)]),
    "out of order": ([C, B], [WRITE_B, WRITE_C]),
}


@pytest.mark.parametrize(("commits", "calls"), TRUE_HISTORIES.values(), ids=list(TRUE_HISTORIES))
def test_a_true_history_is_accepted(commits: list[Commit], calls: list[Call]) -> None:
    assert kinds(commits, calls) == []


@pytest.mark.parametrize(("name", "history"), FALSE_HISTORIES.items(), ids=list(FALSE_HISTORIES))
def test_a_false_history_is_objected_to(name: str, history: tuple[list[Commit], list[Call]]) -> None:
    commits, calls = history
    assert name.partition(",")[0] in kinds(commits, calls)


def test_a_stale_answer_is_reported_with_its_age() -> None:
    ms = 1_000_000
    calls = [write("w1", "b", 0, 10 * ms), write("w2", "c", 20 * ms, 30 * ms), read("a", 35 * ms, 36 * ms)]
    (finding,) = check(KEY, "a", [B, C], calls)
    assert (finding.answered, finding.due, finding.age_s) == (0, 2, 0.025)
    assert "stale read: r of instance, a, version 0 where 2 was due, 25.0 ms after" in str(finding)


# -- what the promise allows for ---------------------------------------------------------------------------------------


SECOND = 1_000_000_000


def judged(
    commits: list[Commit], calls: list[Call], delivered_at: Mapping[str, int], *, unreached: str = "", killed: int = 0
) -> tuple[int, int, int]:
    """Return how many answers were old in a window, old after a fence was lost, and in breach of the promise.

    `delivered_at` tells when a write's invalidation was, and `killed` when a node was. Times are in seconds.
    """
    calls = [
        replace(call, start=call.start * SECOND, end=None if call.end is None else call.end * SECOND) for call in calls
    ]
    found = History(calls={KEY: calls}, unreached={unreached: {KEY}})
    journal = Journal({KEY: commits}, {op: at * SECOND for op, at in delivered_at.items()})
    events = [Event("node killed", "node", killed * SECOND, (killed + 1) * SECOND)] if killed else []
    outcome = judge(found, journal, events)
    for finding in outcome.breaches:
        assert story(finding, found, journal, events).count("<-- the finding") == 1
    return len(outcome.in_a_window), len(outcome.fence_lost), len(outcome.breaches)


FROM_NOTHING = Commit("w0", "a")
WRITE_A = write("w0", "a", 1, 2)


def test_an_old_answer_is_excused_while_the_invalidation_of_an_unreachable_node_waits() -> None:
    calls = [WRITE_A, WRITE_B, read("a", 21, 22, "r1"), read("b", 23, 24, "r2"), read("a", 25, 26, "r3")]
    assert judged([FROM_NOTHING, B], calls, {}, unreached="w1") == (2, 0, 0)
    assert judged([FROM_NOTHING, B], calls, {"w1": 30}, unreached="w1") == (2, 0, 0)
    assert judged([FROM_NOTHING, B], calls, {"w1": 24}, unreached="w1") == (1, 0, 1)
    assert judged([FROM_NOTHING, B], calls, {"w1": 30}) == (0, 0, 2)


def test_a_node_that_was_killed_excuses_until_the_write_returns() -> None:
    calls = [
        WRITE_A,
        write("w1", "b", 10, 50),
        read("b", 21, 22, "r1"),
        read("a", 25, 26, "r2"),
        read("a", 51, 52, "r3"),
    ]
    delivered_at = {"w1": 60}
    assert judged([FROM_NOTHING, B], calls, delivered_at, killed=15) == (0, 1, 1)
    assert judged([FROM_NOTHING, B], calls, delivered_at, killed=9) == (0, 1, 1), "perhaps only after the write began"
    assert judged([FROM_NOTHING, B], calls, delivered_at, killed=5) == (0, 0, 2)
    assert judged([FROM_NOTHING, B], calls, delivered_at) == (0, 0, 2)


def test_an_old_answer_in_a_window_is_not_taken_for_a_later_write_of_the_same_value() -> None:
    """While another write of "a" is under way, who reads "a" in the window of "b" need not have seen that."""
    commits = [FROM_NOTHING, B, Commit("w2", "a")]
    calls = [WRITE_A, WRITE_B, write("w2", "a", 25, 40), read("a", 26, 27, "r1"), read("b", 28, 29, "r2")]
    assert judged(commits, calls, {}, unreached="w1") == (0, 0, 0)
    assert judged(commits, calls, {"w1": 22}, unreached="w1") == (0, 0, 1), "it can only have been the later write"


@pytest.mark.slow
def test_the_verdict_is_that_of_trying_every_order() -> None:
    """On thousands of small random histories, true and false ones in plenty."""
    verdicts = []
    dice = random.Random(4)
    for _ in range(4000):
        commits, calls = random_history(dice)
        accepted = kinds(commits, calls) == []
        assert accepted == some_order_explains(commits, calls), (commits, calls)
        verdicts.append(accepted)
    assert 400 < sum(verdicts) < 3600


def random_history(dice: random.Random) -> tuple[list[Commit], list[Call]]:
    """Up to three commits in some order, and up to four reads of a few values, at random times."""

    def interval() -> tuple[int, int]:
        start = dice.randrange(0, 20)
        return start, start + dice.randrange(1, 8)

    commits, calls = [], []
    for number in range(dice.randrange(1, 4)):
        op, value, (start, end) = f"w{number}", dice.choice(["a", "b", None]), interval()
        commits.append(Commit(op, value))
        unknown = dice.random() < 0.3
        calls.append(write(op, value, start, None if unknown else end, "unknown" if unknown else "done"))
    dice.shuffle(commits)
    for number in range(dice.randrange(1, 4)):
        start, end = interval()
        calls.append(read(dice.choice(["a", "b", None]), start, end, op=f"r{number}"))
    return commits, calls


def some_order_explains(commits: Sequence[Commit], calls: Sequence[Call]) -> bool:
    """Try every order of all calls that keeps the commits in theirs."""
    return any(explains(order, commits) for order in itertools.permutations(calls))


def explains(order: Sequence[Call], commits: Sequence[Commit]) -> bool:
    if [call.op for call in order if call.kind == "write"] != [commit.op for commit in commits]:
        return False
    for earlier, later in itertools.combinations(order, 2):
        if later.end is not None and later.end < earlier.start:
            return False
    value: str | None = "a"
    for call in order:
        if call.kind == "write":
            value = call.value
        elif call.value != value:
            return False
    return True


def test_what_was_recorded_is_read_back(tmp_path: Path) -> None:
    with Recorder(tmp_path / "history") as recorder:
        start = recorder.begin("w1", {"i": "b", "j": None})
        recorder.unreached("w1", ["i"])
        recorder.end("w1", "done")
        recorder.read("r1", history.clock(), {"i": "b"})
        recorder.begin("w2", {"i": "c"})
    with (tmp_path / "history").open("ab") as file:
        file.write(b'{"op": "w2", "outcome": "do')  # killed in the middle of a line
    loaded = history.load([tmp_path / "history"])
    assert loaded.unreached == {"w1": {"i"}}
    assert [(call.op, call.value, call.outcome) for call in loaded.calls["i"]] == [
        ("w1", "b", "done"),
        ("r1", "b", "done"),
        ("w2", "c", "unknown"),
    ]
    first, _, last = loaded.calls["i"]
    assert first.start == start
    assert first.end is not None
    assert last.end is None
    assert loaded.calls["j"][0].value is None


@pytest.mark.slow
def test_a_history_passes_only_as_long_as_nobody_changes_it() -> None:
    """A long true history, and the same with one answer replaced by an older one."""
    dice = random.Random(7)
    for _ in range(50):
        commits, calls = true_history(dice)
        assert kinds(commits, calls, first="0") == []
        for changed in changed_for_the_worse(calls):
            assert kinds(commits, changed, first="0")


def true_history(dice: random.Random) -> tuple[list[Commit], list[Call]]:
    """Calls that take effect one after the other, each at a moment within its time."""
    commits: list[Commit] = []
    calls: list[Call] = []
    for moment in range(100, 3000, 20):
        start, end = moment - dice.randrange(1, 60), moment + dice.randrange(1, 60)
        if dice.random() < 0.3:
            commits.append(Commit(f"w{moment}", str(moment)))
            outcome: Outcome = dice.choice(["done", "done", "unknown"])
            calls.append(write(f"w{moment}", str(moment), start, end if outcome == "done" else None, outcome))
        else:
            calls.append(read(commits[-1].value if commits else "0", start, end, op=f"r{moment}"))
    return commits, calls


def changed_for_the_worse(calls: Sequence[Call]) -> Iterator[list[Call]]:
    """Each read once with the answer that was right before a write which returned before it began."""
    for position, call in enumerate(calls):
        if call.kind == "read" and any(w.kind == "write" and w.end and w.end < call.start for w in calls):
            yield [*calls[:position], read("0", call.start, call.end or 0, op=call.op), *calls[position + 1 :]]
