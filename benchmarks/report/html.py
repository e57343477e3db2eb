"""`report.html`: one page that needs nothing else, neither a network nor a script."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from benchmarks.goals import Outcome
from benchmarks.profiles import KINDS, Profile
from benchmarks.report import plots, tables, words
from benchmarks.results import Case, Results

_ACROSS = {
    "threads": "threads",
    "processes": "processes",
    "fleet": "processes",
    "nodes": "memcached nodes",
    "zipf": "size of the cache",
    "growth": "rows",
    "bulk": "instances at once",
}
_TITLES = {
    "hit": "One hit",
    "unmapped": "“Not mapped”, from the cache",
    "bulk": "Many hits at once",
    "miss": "Misses",
    "create": "Creating",
    "move": "Moving",
    "prune": "Pruning",
    "request": "A request as a whole",
    "memory": "Memory",
    "threads": "Threads",
    "processes": "Processes",
    "nodes": "Nodes",
    "zipf": "Favourites and small caches",
    "fleet": "A fleet's cold start",
    "growth": "A table that grows",
    "nova": "OpenStack Nova's own",
}


@dataclass(frozen=True, slots=True)
class Tile:
    figure: str
    what: str


@dataclass(frozen=True, slots=True)
class Shown:
    """A case as the page shows it; a derived one has a plot alone."""

    title: str
    plot: Markup
    table: tables.Table | None
    note: str


@dataclass(frozen=True, slots=True)
class Section:
    name: str
    title: str
    cases: list[Shown]


def page(results: Results, outcomes: list[Outcome]) -> str:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["code"] = _code
    environment.filters["parts"] = _parts
    template = environment.from_string(Path(__file__).with_name("page.html.j2").read_text("utf-8"))
    return template.render(
        results=results,
        words=words,
        tables=tables,
        settings=words.settings(results.settings),
        method=words.METHOD,
        outcomes=outcomes,
        goals=tables.of_goals(outcomes),
        positions=[_position(outcome) for outcome in outcomes],
        reached=sum(outcome.state == "reached" for outcome in outcomes),
        measured=sum(outcome.state != "not measured" for outcome in outcomes),
        missed=[(each, results.profile(each.case, each.of)) for each in outcomes if each.state == "missed"],
        tiles=_tiles(results),
        sections=_sections(results),
    )


def _sections(results: Results) -> list[Section]:
    names = list(dict.fromkeys(case.scenario for case in results.cases))
    sections = []
    for name in names:
        cases = [case for case in results.cases if case.scenario == name]
        shown = [each for case in cases for each in (*_derived(case), _shown(case))]
        if name == "bulk" and (derived := plots.per_instance(cases)):
            shown.insert(0, Shown(derived.title, Markup(plots.lines(derived, _ACROSS["bulk"])), None, ""))
        sections.append(Section(name, _TITLES.get(name, name), shown))
    return sections


def _derived(case: Case) -> Iterator[Shown]:
    if derived := plots.hit_ratios(case):
        yield Shown(derived.title, Markup(plots.lines(derived, _ACROSS[case.scenario])), None, "")


def _shown(case: Case) -> Shown:
    plot = plots.lines(case, _ACROSS[case.scenario]) if case.has_variants else plots.bars(case)
    return Shown(case.title, Markup(plot), tables.of_case(case), case.note)


def _tiles(results: Results) -> list[Tile]:
    tiles = []
    hit = results.case("hit-memcached")
    ours = hit.figure("cellcache.memcached") if hit else None
    if hit and ours:
        tiles.append(Tile(words.amount(ours.median, "us"), "one hit on memcached, through resolve_cell"))
        for key, what in (
            ("socket", "of what the network alone costs"),
            ("dogpile.pymemcache", "of a plain dogpile region"),
            ("sql.core", "of a bare SELECT through SQLAlchemy"),
        ):
            if found := hit.ratio(ours.key, key):
                tiles.append(Tile(f"{found.median:.2g}x", what))
    request = results.case("request")
    whole = request.figure("cellcache.memcached") if request else None
    if whole and "share of the lookup" in whole.extra:
        share = max(0.0, whole.extra["share of the lookup"])
        tiles.append(Tile(f"{share:.0%}", "of a request's database work is the lookup"))
    return tiles


def _position(outcome: Outcome) -> dict[str, float] | None:
    """Return where a goal's bar ends and its limit stands, in per cent of the width."""
    if outcome.measured is None:
        return None
    limit = float(outcome.limit.strip("≥ x"))
    widest = 1.25 * max(limit, outcome.measured.median)
    return {"bar": 100 * outcome.measured.median / widest, "limit": 100 * limit / widest}


def _parts(profile: Profile) -> list[tuple[str, str, float]]:
    """Return the parts of a call: kind, name, and share in per cent."""
    found = ((kind, name, 100 * profile.kinds_us[kind] / profile.call_us) for kind, name in KINDS.items())
    return [part for part in found if part[2] > 0.5]


def _code(text: str) -> Markup:
    """Turn `this` into code, as Markdown does."""
    parts = [escape(part) for part in text.split("`")]
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if number % 2 else part for number, part in enumerate(parts)
    )
