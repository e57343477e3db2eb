"""What happened around a finding, in the order of time: what one needs to see how it came about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tests.faults.checker import Finding
from tests.faults.history import Call, History
from tests.faults.journal import Journal
from tests.faults.nemesis import Event

_BEFORE_S = 0.5  # before the first write that the answer does not know of
_AFTER_S = 0.5


def story(finding: Finding, history: History, journal: Journal, events: Sequence[Event]) -> str:
    """Tell all that was done to the finding's instance, and every fault, in milliseconds from where the read began."""
    calls = history.calls.get(finding.key, [])
    overtaken = {commit.op for commit in journal.commits.get(finding.key, [])[finding.answered : finding.due]}
    begins = [finding.call.start, *(call.start for call in calls if call.op in overtaken)]
    first = min(begins) - int(_BEFORE_S * 1e9)
    last = (finding.call.end or finding.call.start) + int(_AFTER_S * 1e9)
    told = [
        *_calls(calls, finding.call.op, history, journal),
        *((event.start, f"{event.name} {event.target}", event.end) for event in events),
        *_rows(finding.key, overtaken, journal),
    ]
    return "\n".join(
        [
            str(finding),
            *(
                f"{_ms(start, finding):>10} to {_ms(end, finding):>9}  {text}"
                for start, text, end in sorted(told, key=lambda one: one[0])
                if start <= last and (end is None or end >= first)
            ),
        ]
    )


def _ms(moment: int | None, finding: Finding) -> str:
    return "?" if moment is None else f"{(moment - finding.call.start) / 1e6:+.1f}"


def _calls(
    calls: Sequence[Call], found: str, history: History, journal: Journal
) -> Iterator[tuple[int, str, int | None]]:
    for call in calls:
        text = f"{call.op} {'reads' if call.kind == 'read' else 'writes'} {call.value}"
        if call.kind == "write":
            text += f": {call.outcome}"
            if call.op in history.unreached:
                text += ", its node out of reach"
        yield call.start, text + (" <-- the finding" if call.op == found else ""), call.end


def _rows(key: str, overtaken: set[str], journal: Journal) -> Iterator[tuple[int, str, int]]:
    for version, commit in enumerate(journal.commits.get(key, []), start=1):
        yield commit.at, f"{commit.op} changes the row: version {version}, {commit.value}", commit.at
    for op in overtaken & journal.delivered_at.keys():
        yield journal.delivered_at[op], f"the invalidation of {op} is forgotten", journal.delivered_at[op]
