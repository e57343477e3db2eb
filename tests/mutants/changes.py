"""The small changes that can be made to a module: an operator, a number, a condition, an argument, a statement.

Each is made in the text, so that whoever reads of a survivor sees the line as it stands in the file. What only people
read (documentation, messages, the log) and annotations stay as they are.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

_COMPARISONS: dict[type[ast.cmpop], tuple[bytes, bytes]] = {
    ast.Lt: (b"<", b"<="),
    ast.LtE: (b"<=", b"<"),
    ast.Gt: (b">", b">="),
    ast.GtE: (b">=", b">"),
    ast.Eq: (b"==", b"!="),
    ast.NotEq: (b"!=", b"=="),
    ast.Is: (b"is", b"is not"),
    ast.IsNot: (b"is not", b"is"),
    ast.In: (b"in", b"not in"),
    ast.NotIn: (b"not in", b"in"),
}
_REVERSED = {b"<": b">", b"<=": b">=", b">": b"<", b">=": b"<="}
_about_time = re.compile(rb"monotonic|now\b|deadline|_s\b|_at\b").search  # no two moments are the same
_closing = re.compile(rb"\s*\)").match
_ARITHMETIC: dict[type[ast.operator], tuple[bytes, bytes]] = {
    ast.Sub: (b"-", b"+"),
    ast.Mult: (b"*", b"/"),
    ast.Div: (b"/", b"*"),
}
_CALLED_INSTEAD = {
    b"any": b"all",
    b"all": b"any",
    b"min": b"max",
    b"max": b"min",
    b"sorted": b"list",
    b"secrets.token_bytes": b"bytes",
}
_LEFT_OUT = {"lower", "strip", "where", "order_by", "limit", "with_for_update", "group_by", "returning", "replace"}

Edit = tuple[int, int, bytes]
"""From this byte to that one, and what stands there instead."""


class Change(NamedTuple):
    """One small change of one module."""

    path: str
    line: int
    within: str
    """The function, or "" for the module itself."""
    before: str
    after: str
    text: str
    """The whole module with the change in it."""

    @property
    def known_as(self) -> tuple[str, str, str]:
        return self.path, self.before.strip(), self.after.strip()

    def lot(self, seed: int) -> str:
        """Return a number that this change draws: the same in every commit in which its line is the same."""
        drawn = f"{seed}\n{self.path}\n{self.within}\n{self.before}\n{self.after}"
        return hashlib.sha256(drawn.encode()).hexdigest()


def changes_of(path: str, text: str) -> list[Change]:
    """Return every change that can be made to a module."""
    source = text.encode()
    found: list[Change] = []
    seen: Counter[tuple[str, str, str]] = Counter()
    for within, (start, end, instead) in _Finder(source).found:
        changed = (source[:start] + instead + source[end:]).decode()
        first, last = source.rfind(b"\n", 0, start) + 1, source.find(b"\n", end)
        before = source[first:last].decode()
        after = (source[first:start] + instead + source[end:last]).decode()
        seen[within, before, after] += 1
        if seen[within, before, after] == 1:  # two ways to the same text are one change
            found.append(Change(path, source.count(b"\n", 0, start) + 1, within, before, after, changed))
    return found


class _Finder(ast.NodeVisitor):
    def __init__(self, source: bytes) -> None:
        self.found: list[tuple[str, Edit]] = []
        self._source = source
        self._lines = [0, *accumulate(map(len, source.splitlines(keepends=True)))]
        self._within: list[str] = []
        self.visit(ast.parse(source))

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.expr | ast.stmt | ast.comprehension):
            self.found += [(".".join(self._within), edit) for edit in self._edits(node)]
        super().visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._visit_in(node.name, node.body)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        defaults = [default for default in (*node.args.defaults, *node.args.kw_defaults) if default is not None]
        self._visit_in(node.name, [*defaults, *node.body])

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """A text for people."""

    def visit_Call(self, node: ast.Call) -> None:
        if not self._of(node).startswith(b"log."):
            self.generic_visit(node)

    def _visit_in(self, name: str, nodes: Sequence[ast.AST]) -> None:
        self._within.append(name)
        for node in nodes:
            self.visit(node)
        self._within.pop()

    def _edits(self, node: ast.AST) -> Iterator[Edit]:
        match node:
            case ast.Expr(value=ast.Call()) if not self._of(node).startswith(b"log."):
                yield self._instead(node, b"pass")
            case ast.AugAssign() | ast.Delete() | ast.Raise() | ast.Break() | ast.Continue():
                yield self._instead(node, b"pass")
            case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]) if self._within[-1:] != ["__init__"]:
                yield self._instead(node, b"pass")
            case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
                yield from self._opposite(test)
            case ast.comprehension(ifs=[test]):
                yield from self._opposite(test)
            case ast.UnaryOp(op=ast.Not()):
                yield self._start(node), self._start(node) + len(b"not "), b""
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                for comparison, (one, other) in zip(ops, pairwise([left, *comparators]), strict=True):
                    old, new = _COMPARISONS[type(comparison)]
                    if _about_time(self._of(node)):
                        new = _REVERSED.get(old, new)
                    yield from self._between(one, other, old, new)
            case ast.BoolOp(op=junction, values=values):
                swap = (b"and", b"or") if isinstance(junction, ast.And) else (b"or", b"and")
                for one, other in pairwise(values):
                    yield from self._between(one, other, *swap)
                    yield self._span(one)[1], self._span(other)[1], b""
                yield self._span(values[0])[0], self._span(values[1])[0], b""
            case ast.BinOp(left=left, op=ast.Add() | ast.Sub(), right=right) if self._within:
                yield self._span(left)[1], self._span(right)[1], b""
        match node:
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _ARITHMETIC:
                yield from self._between(left, right, *_ARITHMETIC[type(operator)])
            case ast.Constant(value=bool(value)):
                yield self._instead(node, b"%r" % (not value))
            case ast.Constant(value=int(value)):
                yield self._instead(node, b"%d" % (value + 1))
            case ast.Constant(value=float(value)):
                yield self._instead(node, b"%r" % (value * 10 or 1.0))
            case ast.Call(func=called, args=arguments, keywords=keywords):
                name = self._of(called)
                if name in _CALLED_INSTEAD:
                    yield self._instead(called, _CALLED_INSTEAD[name])
                if isinstance(called, ast.Attribute) and called.attr in _LEFT_OUT:
                    yield self._span(called.value)[1], self._end(node), b""
                if not name.startswith(b"log."):
                    for before, keyword in pairwise([called, *arguments, *keywords]):
                        if isinstance(keyword, ast.keyword) and keyword.arg is not None:
                            yield from self._without(keyword, before if before is not called else None)

    def _opposite(self, test: ast.expr) -> Iterator[Edit]:
        """Those that are made of operators are changed there."""
        if not isinstance(test, ast.Compare | ast.BoolOp | ast.UnaryOp | ast.Constant):
            yield self._instead(test, b"not (" + self._of(test) + b")")

    def _without(self, keyword: ast.keyword, before: ast.AST | None) -> Iterator[Edit]:
        """Leave out a keyword argument, and the comma in front of it or, of the first argument, behind it."""
        end = self._span(keyword.value)[1]
        if before is not None:
            yield self._span(before)[1], end, b""
        else:
            comma = re.compile(rb"\s*,?\s*").match(self._source, end)
            yield self._start(keyword), comma.end() if comma else end, b""

    def _between(self, one: ast.AST, other: ast.AST, old: bytes, new: bytes) -> Iterator[Edit]:
        at = self._source.find(old, self._end(one), self._start(other))
        if at >= 0:
            yield at, at + len(old), new

    def _instead(self, node: ast.AST, text: bytes) -> Edit:
        return self._start(node), self._end(node), text

    def _span(self, node: ast.AST) -> tuple[int, int]:
        """Return where a part of an expression begins and ends, with the parentheses that are its own."""
        start, end = self._start(node), self._end(node)
        while (opening := self._source[:start].rstrip()).endswith(b"(") and (closing := _closing(self._source, end)):
            start, end = len(opening) - 1, closing.end()
        return start, end

    def _of(self, node: ast.AST) -> bytes:
        return self._source[self._start(node) : self._end(node)]

    def _start(self, node: ast.AST) -> int:
        return int(self._lines[node.lineno - 1] + node.col_offset)  # type: ignore[attr-defined]

    def _end(self, node: ast.AST) -> int:
        return int(self._lines[node.end_lineno - 1] + node.end_col_offset)  # type: ignore[attr-defined]
