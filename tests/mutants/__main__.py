"""`make mutants`, or `python -m tests.mutants --sample 100 --only backends/redis.py`; docs/development.md reads it."""

from __future__ import annotations

import argparse
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.mutants.changes import Change, changes_of
from tests.mutants.covered import CHANGE_NOTHING, TESTS
from tests.mutants.trial import Trial

_PROJECT = Path(__file__).parents[2]
_LIMIT_S = 600.0  # for the unchanged module


def drawn(only: Sequence[str], *, sample: int, seed: int) -> list[Change]:
    """Return so many changes (0: all) of these modules, or of all; the next commit draws mostly the same."""
    changes = [
        change
        for path in TESTS
        if path in only or not only
        for change in changes_of(path, (_PROJECT / path).read_text(encoding="utf-8"))
        if change.known_as not in CHANGE_NOTHING
    ]
    chosen = sorted(changes, key=lambda change: change.lot(seed))[: sample or None]
    return sorted(chosen, key=lambda change: (list(TESTS).index(change.path), change.line))


def survivors(
    changes: Sequence[Change], trial: Trial, tests: Mapping[str, Sequence[str]], *, limit_s: float = _LIMIT_S
) -> Iterator[tuple[Change, bool]]:
    """Try each change, say what became of it, and yield it with whether it survived."""
    limits: dict[tuple[str, ...], float] = {}
    for change in changes:
        those = tuple(tests[change.path])
        if those not in limits:
            unchanged = trial.run(those, limit_s=limit_s)
            limits[those] = 2 * unchanged.took_s + 60.0  # whatever else the machine has to do meanwhile
            if unchanged.noticed_by is not None:
                print(f"{change.path}: not tried, its tests fail without any change ({unchanged.noticed_by})")
                limits[those] = 0.0
        if not limits[those]:
            continue
        outcome = trial.run(those, change, limit_s=limits[those])
        survived = outcome.noticed_by is None
        verdict = "SURVIVES" if survived else f"caught by {outcome.noticed_by}"
        print(f"{change.path}:{change.line} {change.within}: {verdict} ({outcome.took_s:.0f} s)")
        for sign, text in (("-", change.before), ("+", change.after)):
            for line in text.splitlines():
                print(f"    {sign}{line}", flush=True)
        yield change, survived


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--sample", type=int, default=0, help="how many changes to draw; 0 is all of them")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--only", action="append", default=[], choices=TESTS, help="a module, such as backends/redis.py"
    )
    chosen = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the tests under way end, their servers too
    changes = drawn(chosen.only, sample=chosen.sample, seed=chosen.seed)
    print(f"{len(changes)} changes, drawn with seed {chosen.seed}", flush=True)
    tests = {path: tests.arguments() for path, tests in TESTS.items()}
    tried, left = 0, list[Change]()
    with tempfile.TemporaryDirectory(prefix="cellcache-mutants-") as copy:
        try:
            for change, survived in survivors(changes, Trial(_PROJECT, Path(copy)), tests):
                tried += 1
                left += [change] if survived else []
        except KeyboardInterrupt:
            print("interrupted")
    print(f"\n{tried} of {len(changes)} changes tried: {tried - len(left)} caught, {len(left)} survive")
    for change in left:
        print(f"{change.path}:{change.line}\n    -{change.before.strip()}\n    +{change.after.strip()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
