"""What a run found, for people: on the terminal, as Markdown, and as one page of HTML."""

from __future__ import annotations

from pathlib import Path

from benchmarks.goals import outcomes
from benchmarks.report import html, markdown
from benchmarks.results import Results


def write(results: Results, folder: Path) -> list[Path]:
    """Write `results.json`, `report.md` and `report.html` into the folder; return where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    found = outcomes(results)
    results.write(folder / "results.json", found)
    (folder / "report.md").write_text(markdown.page(results, found), encoding="utf-8")
    (folder / "report.html").write_text(html.page(results, found), encoding="utf-8")
    return [folder / name for name in ("results.json", "report.md", "report.html")]
