"""`make mutants`: which changes it makes, and that it tells those that a test notices from those that none does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.__main__ import drawn, survivors
from tests.mutants.changes import changes_of
from tests.mutants.covered import CHANGE_NOTHING, TESTS
from tests.mutants.trial import Trial

MODULE = '''\
"""Says whether somebody may vote."""


def may_vote(age: int, *, banned: bool = False) -> bool:
    log.info("asked for %d", age)
    if age < 0:
        raise ValueError(f"age {age + 1}")
    return age >= 18 and not banned
'''


def test_a_module_is_changed_in_one_place_at_a_time() -> None:
    changed = {(change.line, change.after.strip()) for change in changes_of("voting.py", MODULE)}
    assert changed == {
        (4, "def may_vote(age: int, *, banned: bool = True) -> bool:"),
        (6, "if age <= 0:"),
        (6, "if age < 1:"),
        (7, "pass"),
        (8, "return age > 18 and not banned"),
        (8, "return age >= 19 and not banned"),
        (8, "return age >= 18 or not banned"),
        (8, "return age >= 18 and banned"),
        (8, "return age >= 18"),
        (8, "return not banned"),
    }


@pytest.mark.parametrize(
    ("statement", "changed"),
    [
        ("f(a, timeout=b)", {"pass", "f(a)"}),
        ("x = all(f(y) for y in z)", {"x = any(f(y) for y in z)"}),
        ("x = [y for y in z if f(y)]", {"x = [y for y in z if not (f(y))]"}),
        ("x = uuid.lower()", {"x = uuid"}),
        ("x = MARK + secrets.token_bytes(n)", {"x = MARK", "x = MARK + bytes(n)"}),
        ("x = (a or b) and c", {"x = (a and b) and c", "x = (a) and c", "x = (b) and c"}),
        ("self.closed = flag", {"pass"}),
        ("x = now - began > limit_s", {"x = now > limit_s", "x = now + began > limit_s", "x = now - began < limit_s"}),
    ],
)
def test_what_is_changed_in_a_statement(statement: str, changed: set[str]) -> None:
    changes = {change.after.strip() for change in changes_of("module.py", f"def function():\n    {statement}\n")}
    assert changed <= changes


@pytest.mark.slow
def test_every_change_leaves_the_module_python() -> None:
    for change in drawn([], sample=0, seed=1):
        compile(change.text, change.path, "exec")


@pytest.mark.slow
def test_a_change_survives_where_a_test_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project, copy = tmp_path / "project", tmp_path / "copy"
    (project / "voting").mkdir(parents=True)
    (project / "tests").mkdir()
    (project / "voting" / "__init__.py").write_text("def may_vote(age, banned):\n    return age >= 18 and not banned\n")
    (project / "tests" / "test_voting.py").write_text(
        "from voting import may_vote\n\n\n"
        "def test_age():\n    assert may_vote(18, False) and not may_vote(17, False)\n\n\n"
        "def test_banned():\n    assert may_vote(20, False)\n"
    )
    path = "voting/__init__.py"
    changes = changes_of(path, (project / path).read_text())
    trial = Trial(project, copy, {"voting": "voting"})
    tried = dict(survivors(changes, trial, {path: ["tests"]}, limit_s=60))
    assert [change.after.strip() for change, survived in tried.items() if survived] == ["return age >= 18"]
    assert len(tried) == len(changes) == 6
    assert "SURVIVES" in capsys.readouterr().out
    assert (project / path).read_text() == (copy / path).read_text()


@pytest.mark.slow
def test_nothing_is_said_of_a_module_whose_tests_fail_anyway(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("project/voting", "project/tests"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "project/tests/test_voting.py").write_text("def test_fails():\n    assert False\n")
    trial = Trial(tmp_path / "project", tmp_path / "copy", {"voting": "voting"})
    changes = changes_of("voting/__init__.py", MODULE)
    assert list(survivors(changes, trial, {"voting/__init__.py": ["tests"]}, limit_s=60)) == []
    assert capsys.readouterr().out.count("its tests fail without any change") == 1


def test_the_same_changes_are_drawn_again() -> None:
    first, again, other = (drawn([], sample=20, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert len(first) == len(other) == 20
    assert first != other


def test_what_is_known_to_change_nothing_is_there_still_to_be_changed() -> None:
    project = Path(__file__).parents[1]
    made = {change.known_as for path in TESTS for change in changes_of(path, (project / path).read_text())}
    assert CHANGE_NOTHING.keys() <= made
