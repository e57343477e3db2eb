"""Plots as SVG for a page: their colours are the page's own variables, so that they are right in light and in dark."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.report.tables import name
from benchmarks.report.words import amount
from benchmarks.results import Case, Figure, Unit

# matplotlib wants colours, the page wants variables: each of these stands for one until the SVG is written.
_VARIABLES = {
    "#010101": "var(--text)",
    "#020202": "var(--muted)",
    "#030303": "var(--grid)",
    "#040404": "var(--ours)",
    "#050505": "var(--other)",
    "#060606": "var(--floor)",
    "#070707": "var(--sql)",
    "#080808": "var(--line-1)",
    "#090909": "var(--line-2)",
    "#0a0a0a": "var(--line-3)",
    "#0b0b0b": "var(--line-4)",
    "#0c0c0c": "var(--line-5)",
    "#0d0d0d": "var(--line-6)",
}
_TEXT, _MUTED, _GRID, _OURS, _OTHER, _FLOOR, _SQL, *_LINES = _VARIABLES
_FLOORS = ("socket", "dict", "row")
_LOGARITHMIC_FROM = 15.0  # where the largest is so many times the smallest
_MANY_TICKS_FROM = 300.0
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": _TEXT,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _GRID,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _GRID,
    "xtick.color": _MUTED,
    "ytick.color": _TEXT,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def bars(case: Case) -> str:
    """Return a bar per contender with its quartiles, the fastest at the top."""
    figures = sorted(case.figures, key=lambda figure: figure.median, reverse=True)
    medians = [figure.median for figure in figures]
    with mpl.rc_context({**_STYLE, "svg.hashsalt": case.key}):
        canvas = Canvas(figsize=(8.6, 0.6 + 0.31 * len(figures)), layout="constrained")
        axes = canvas.add_subplot()
        logarithmic = max(medians) > _LOGARITHMIC_FROM * min(medians)
        left = min(medians) / 1.6 if logarithmic else 0.0
        axes.barh(
            range(len(figures)),
            [median - left for median in medians],
            left=left,
            height=0.66,
            color=[_colour(figure) for figure in figures],
        )
        low, high = np.transpose([np.percentile(figure.values, [25, 75]) for figure in figures])
        axes.hlines(range(len(figures)), low, high, color=_TEXT, linewidth=1.2)
        for place, (figure, edge) in enumerate(zip(figures, high, strict=True)):
            axes.annotate(
                amount(figure.median, case.unit),
                (max(edge, figure.median), place),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                color=_TEXT,
                fontweight="bold" if _is_ours(figure) else "normal",
            )
        axes.set_yticks(range(len(figures)), [name(figure) for figure in figures])
        for label, figure in zip(axes.get_yticklabels(), figures, strict=True):
            label.set_fontweight("bold" if _is_ours(figure) else "normal")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        if logarithmic:
            axes.set_xscale("log")
            axes.set_xlim(left, max(high) * (max(high) / left) ** 0.14)
        else:
            axes.set_xlim(0, max(high) * 1.16)
        _write_units(axes, "x", case.unit)
        return _svg(canvas, case.title)


def lines(case: Case, across: str) -> str:
    """Return a line per contender over the variants, such as numbers of threads; `across` says what they are."""
    variants = list(dict.fromkeys(figure.variant for figure in case.figures))
    contenders = list(dict.fromkeys(figure.contender for figure in case.figures))
    with mpl.rc_context({**_STYLE, "svg.hashsalt": case.key}):
        canvas = Canvas(figsize=(8.6, 3.2), layout="constrained")
        axes = canvas.add_subplot()
        colours = _line_colours(contenders)
        for contender in contenders:
            figures = [figure for figure in case.figures if figure.contender == contender]
            places = [variants.index(figure.variant) for figure in figures]
            ours = _is_ours(figures[0])
            colour, dashes = colours[contender]
            low, high = np.transpose([np.percentile(figure.values, [25, 75]) for figure in figures])
            axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(
                places,
                [figure.median for figure in figures],
                color=colour,
                linestyle=dashes,
                linewidth=2.4 if ours else 1.6,
                marker="o",
                markersize=4.5,
                label=figures[0].title,
            )
        axes.set_xticks(range(len(variants)), variants)
        axes.set_xlabel(across)
        axes.margins(x=0.04)
        medians = [figure.median for figure in case.figures]
        if max(medians) > _LOGARITHMIC_FROM * min(medians):
            axes.set_yscale("log")
        else:
            axes.set_ylim(0, None)
        _write_units(axes, "y", case.unit)
        canvas.legend(loc="outside right upper", frameon=False, labelcolor=_TEXT)
        return _svg(canvas, case.title)


def _line_colours(contenders: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return each contender's colour and dashes; several of a kind share a colour, and differ in their dashes."""
    dashes = ("-", "--", ":", "-.")
    taken: dict[str, int] = {}
    others = 0
    chosen = {}
    for contender in contenders:
        kind = next((name for name in ("cellcache", "sql") if contender.startswith(name)), "")
        if kind or contender in _FLOORS:
            colour = {"cellcache": _OURS, "sql": _SQL}.get(kind, _FLOOR)
            chosen[contender] = colour, dashes[taken.get(colour, 0) % len(dashes)]
            taken[colour] = taken.get(colour, 0) + 1
        else:
            chosen[contender] = _LINES[others % len(_LINES)], dashes[others // len(_LINES) % len(dashes)]
            others += 1
    return chosen


def _is_ours(figure: Figure) -> bool:
    return figure.contender.startswith("cellcache")


def _colour(figure: Figure) -> str:
    if _is_ours(figure):
        return _OURS
    if figure.contender in _FLOORS:
        return _FLOOR
    return _SQL if figure.contender.startswith("sql") else _OTHER


def _write_units(axes: Axes, direction: str, unit: Unit) -> None:
    axis = axes.xaxis if direction == "x" else axes.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: _round(value, unit)))
    axis.set_minor_formatter(NullFormatter())
    if axis.get_scale() == "log":
        low, high = sorted(axis.get_view_interval())
        axis.set_major_locator(LogLocator(subs=(1.0,) if high > _MANY_TICKS_FROM * low else (1.0, 2.0, 5.0)))
    axes.grid(axis="x" if direction == "x" else "y", which="major", linewidth=0.8)
    axes.tick_params(axis="x" if direction == "x" else "y", which="both", length=0)
    axis.set_tick_params(labelcolor=_MUTED)


def _round(value: float, unit: Unit) -> str:
    return re.sub(r"(\.\d*?)0+(?=\D|$)", r"\1", amount(value, unit)).replace(". ", " ") if value else "0"


def _svg(canvas: Canvas, title: str) -> str:
    file = io.StringIO()
    canvas.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'font: ([^;"]*?)\'[^"]*"', r'font: \1inherit"', svg)
    label = title.replace("&", "&amp;").replace('"', "&quot;")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def per_instance(cases: Sequence[Case]) -> Case | None:
    """Return the bulk cases of one node as one: the time per instance, by how many are asked for at once."""
    figures = [
        Figure(
            f"{figure.key}@{figure.instances:,}", figure.title, [value / figure.instances for value in figure.values]
        )
        for case in cases
        if case.scenario == "bulk" and case.key.endswith("nodes-1")
        for figure in case.figures
    ]
    if not figures:
        return None
    return Case("bulk-per-instance", "bulk", "Time per instance, by how many are asked for at once", "", figures)


def hit_ratios(case: Case) -> Case | None:
    """Return the hit ratios of a case whose lanes have them."""
    figures = [
        Figure(figure.key, figure.title, [figure.extra["hit ratio"]])
        for figure in case.figures
        if "hit ratio" in figure.extra
    ]
    if not figures:
        return None
    return Case(f"{case.key}-ratio", case.scenario, f"Hit ratio: {case.title}", "", figures, unit="share")
