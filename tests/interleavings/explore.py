"""Walk every order of the steps of a scenario, with its faults at every point.

Two orders that differ only in neighbouring steps which do not touch each other lead to the same states, so one of
them is enough: that is what the sleep sets below see to (Godefroid, 1996). What a step has touched is measured, not
declared: whether it changed the entry, committed, or ended its operation.

A step that no other operation can notice (a statement inside a transaction) is never a place to switch or to die:
dying there is dying before the next step that somebody could notice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from tests.interleavings.caches import Entry
from tests.interleavings.checks import History, Property, Writer
from tests.interleavings.operations import READS
from tests.interleavings.world import Scenario, World

Verb = Literal["go", "crash", "evict", "restart"]

# A step after which the two readers of every state may answer otherwise.
_WATCHED = {"entry", "row", "floor"}


class Action(NamedTuple):
    verb: Verb
    operation: int = -1


class Footprint(NamedTuple):
    """What an action has looked at and changed."""

    read: frozenset[str]
    written: frozenset[str]

    def meets(self, other: Footprint) -> bool:
        """Return whether the order of the two matters."""
        return bool(
            self.written & (other.read | other.written)
            or other.written & self.read
            or (self.written & _WATCHED and other.written & _WATCHED)
        )


NOTHING = Footprint(frozenset(), frozenset())


class Run:
    """One schedule under way."""

    def __init__(self, world: World, scenario: Scenario) -> None:
        self.scenario = scenario
        self.trace: list[str] = []
        self.broken_at: dict[Property, list[str]] = {}  # the way to where each property broke first
        self._world = world
        self._operations = world.begin(scenario)
        self._faults = set(scenario.faults)  # those that are still to come
        self._disturbed = False
        processes = scenario.processes or tuple(range(len(self._operations)))
        self._alone = [processes.count(process) == 1 for process in processes]
        self._floors: dict[int, tuple[int, int]] = {}
        self.history = History([world.database.cell_of(world.key)])
        for operation in self._operations:
            if operation.name not in READS:
                self.history.writers[operation] = Writer()
        self._entry = world.peek()

    @property
    def over(self) -> bool:
        return all(operation.next is None for operation in self._operations)

    def choices(self) -> list[Action]:
        """Return what may happen now; nothing once all operations are over."""
        enabled = [at for at, one in enumerate(self._operations) if one.next is not None and one.next.enabled()]
        if not self.over and not enabled:
            raise AssertionError(f"every operation waits for another: {' > '.join(self.trace)}")
        for at in enabled:
            if self._is_unnoticed(at):
                return [Action("go", at)]
        choices = [Action("go", at) for at in enabled]
        if choices:
            choices += self._disturbances()
        return choices

    def is_noticed(self, action: Action) -> bool:
        """Return whether any other operation can tell that this has happened."""
        return action.verb != "go" or not self._is_unnoticed(action.operation)

    def take(self, action: Action) -> Footprint:
        """Let it happen, and judge the state that it leads to."""
        before, floor = self._entry, (self.history.wrote, self.history.seen)
        read, written = {"entry", "connections"}, set[str]()
        if action.verb == "go":
            read, written = self._go(action.operation)
        elif action.verb == "crash":
            operation = self._operations[action.operation]
            self.trace.append(f"{self._name(action.operation)} dies")
            if self._world.lock.holder is operation:
                written.add("lock")
            operation.abandon()
            self._world.release(operation)
            written.add("crash")
        else:
            self.trace.append("cache restarts" if action.verb == "restart" else f"{before.kind} is lost")
            self.history.lose(before)
            (self._world.restart if action.verb == "restart" else self._world.evict)()
            read.add("row")  # whether the writer has committed decides what its fence excuses
            written |= {action.verb} | ({"connections"} if action.verb == "restart" else set())
        if action.verb != "go":
            self._spend(action, before)
        self._entry = self._world.peek()
        if self._entry.raw != before.raw or self._entry.kind != before.kind:
            written.add("entry")
            self._note_fence(action)
        self.history.observe(self._entry)
        if (self.history.wrote, self.history.seen) != floor:
            written.add("floor")
        self._note_broken()
        return Footprint(frozenset(read), frozenset(written))

    def conclude(self) -> History:
        """Deliver what waits, and judge the state at rest."""
        dead = [operation for operation in self._operations if operation.abandoned]
        waiting = self._world.deliver(dead)
        self.history.rest(self._world.peek(), waiting, undisturbed=not self._disturbed)
        self._note_broken()
        return self.history

    def give_up(self) -> None:
        """Leave this schedule where it is."""
        self._world.give_up()
        self._world.deliver(self._operations)

    def next_label(self, at: int) -> str | None:
        step = self._operations[at].next
        return None if step is None else step.label

    def answer(self, at: int) -> object:
        return self._operations[at].answer

    def _go(self, at: int) -> tuple[set[str], set[str]]:
        operation, history = self._operations[at], self.history
        step = operation.next
        if step is None or not step.enabled():
            raise AssertionError(f"the same decisions have led elsewhere: {' > '.join(self.trace)}")
        read, written = set[str](), set[str]()
        if at not in self._floors and not self._is_unnoticed(at):  # as late as possible: that asks most of it
            self._floors[at] = (history.wrote, history.seen)
            read.add("floor")
        self.trace.append(f"{self._name(at)}: {step.label}")
        if self._world.advance(operation):
            history.commit(operation, self._world.database.cell_of(self._world.key))
            written |= {"row", "lock", "rows"}
        match step.kind:
            case "cache":
                read |= {"entry", "connections"}
            case "poll":
                read |= {"connections"}
            case "read":
                read |= {"row"}
            case "begin":
                written |= {"lock"}
            case "rows":
                read |= {"lock"}
                written |= {"rows"}
            case "flight":
                written |= {"flight"}
        if operation.next is None:
            if operation in history.writers:
                history.write_returned(operation)
                if self._world.lock.is_free():
                    written |= {"lock"}
            else:
                answer = operation.answer
                assert answer is None or isinstance(answer, str)
                history.answer(self._name(at), answer, *self._floors[at])
        return read, written

    def _disturbances(self) -> Iterator[Action]:
        if "crash" in self._faults:
            for at, operation in enumerate(self._operations):
                if operation.next is not None and operation.steps and self._alone[at]:
                    yield Action("crash", at)
        if self._entry.kind == "fence" and self._guards_a_commit(self._entry):
            if "lose fence" in self._faults:
                yield Action("evict")
        elif self._entry.kind != "absent" and "evict" in self._faults:
            yield Action("evict")
        if "restart" in self._faults:
            yield Action("restart")

    def _spend(self, action: Action, entry: Entry) -> None:
        """Each fault happens once."""
        self._disturbed = True
        if action.verb == "evict":
            self._faults.discard("lose fence" if entry.kind == "fence" and self._was_lost(entry) else "evict")
        else:
            self._faults.discard(action.verb)

    def _guards_a_commit(self, entry: Entry) -> bool:
        return any(one.fence == entry.raw and one.version is None for one in self.history.writers.values())

    def _was_lost(self, entry: Entry) -> bool:
        return any(one.fence == entry.raw and one.lost_its_fence for one in self.history.writers.values())

    def _note_fence(self, action: Action) -> None:
        if action.verb == "go" and self._entry.kind == "fence":
            writer = self.history.writers[self._operations[action.operation]]
            writer.fence = self._entry.raw

    def _note_broken(self) -> None:
        for what, how in self.history.broken.items():
            self.broken_at.setdefault(what, [*self.trace, how])

    def _is_unnoticed(self, at: int) -> bool:
        step = self._operations[at].next
        assert step is not None
        return (
            step.kind == "local"
            or (step.kind == "flight" and self._alone[at])
            or (step.kind == "poll" and "restart" not in self._faults)
        )

    def _name(self, at: int) -> str:
        return f"{self._operations[at].name} {at + 1}"


Way = Sequence[tuple[int, str | Sequence[str] | None] | Verb]
"""One schedule in parts: an operation up to a step of that name (or one of those), or to its end for None, or until
it "dies"; or a fault."""


def follow(run: Run, way: Way) -> None:
    for part in way:
        if isinstance(part, str):
            run.take(Action(part))
            continue
        at, until = part
        if until == "dies":
            run.take(Action("crash", at))
            continue
        ends = {None, *([until] if isinstance(until, str) else until or ())}
        while run.next_label(at) not in ends:
            run.take(Action("go", at))


@dataclass
class Report:
    """What a walk has seen."""

    schedules: int = 0  # from the first step to the state at rest
    cut: int = 0  # begun, and left because another order leads to the same states
    excused: int = 0  # with an answer that goes back, as declared, after a fence was lost before its commit
    broken: dict[Property, list[str]] = field(default_factory=dict)
    counts: dict[Property, int] = field(default_factory=dict)

    def add(self, run: Run, history: History) -> None:
        self.schedules += 1
        self.excused += bool(history.excused)
        for what, trace in run.broken_at.items():
            self.counts[what] = self.counts.get(what, 0) + 1
            if what not in self.broken or len(trace) < len(self.broken[what]):
                self.broken[what] = trace

    def include(self, other: Report) -> None:
        self.schedules += other.schedules
        self.cut += other.cut
        self.excused += other.excused
        for what, trace in other.broken.items():
            self.counts[what] = self.counts.get(what, 0) + other.counts[what]
            if what not in self.broken or len(trace) < len(self.broken[what]):
                self.broken[what] = trace

    def __str__(self) -> str:
        lines = [f"{self.schedules} schedules, {self.cut} cut, {self.excused} excused"]
        lines += [f"{what} in {self.counts[what]}: {' > '.join(trace)}" for what, trace in self.broken.items()]
        return "\n".join(lines)


@dataclass
class _Node:
    """A state on the way of the schedule under way: what is taken from it, and what is still to be tried."""

    action: Action
    to_do: list[Action]
    asleep: dict[Action, Footprint]  # what would only lead to states that are known by now
    before: _Node | None
    noticed: bool  # False for a step that no other operation can notice: it does not count as going on, nor as leaving
    stay: Action | None = None  # the next step of the operation that went last, if it can go on
    footprint: Footprint = NOTHING

    @property
    def mover(self) -> Action | None:
        """What went last, of all that others could notice."""
        return self.action if self.noticed or self.before is None else self.before.mover

    @property
    def switches(self) -> int:
        before = self.before.switches if self.before is not None else 0
        return before + (self.stay is not None and self.action != self.stay)


def walk(
    world: World,
    scenario: Scenario,
    *,
    reduce: bool = True,
    most_switches: int | None = None,
    until: Callable[[Report], bool] | None = None,
) -> Report:
    """Run every schedule, each from its beginning.

    Without `reduce`, orders that differ in nothing are run as well. With `most_switches`, only those in which
    something else happens at most so often while an operation could go on (and nothing is reduced: the two do not go
    together). `until` ends the walk early.
    """
    reduce = reduce and most_switches is None
    report, path = Report(), list[_Node]()
    while True:
        run = Run(world, scenario)
        for node in path:
            node.footprint = run.take(node.action)
        while choices := run.choices():
            last = path[-1] if path else None
            node = _Node(choices[0], choices, {}, last, run.is_noticed(choices[0]))
            if last is not None and reduce:
                node.asleep = {one: done for one, done in last.asleep.items() if not done.meets(last.footprint)}
                node.to_do = [one for one in choices if one not in node.asleep]
            elif last is not None and node.noticed and last.mover in choices:
                node.stay = last.mover
                if last.switches == most_switches:
                    node.to_do = [last.mover]
            if not node.to_do:
                break
            node.action = node.to_do.pop(0)
            path.append(node)
            node.footprint = run.take(node.action)
        if run.over:
            report.add(run, run.conclude())
        else:
            run.give_up()
            report.cut += 1
        if until is not None and until(report):
            return report
        while path and not path[-1].to_do:
            path.pop()
        if not path:
            return report
        node = path[-1]
        node.asleep[node.action] = node.footprint
        node.action = node.to_do.pop(0)
