"""How a function becomes a command: the options that every command takes, and the session it is given.

`--config`, `--json` and `--verbose` may stand before or after a command's name; what stands nearer to it wins.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec

import typer

from cellcache.cli.exits import printable
from cellcache.config import Settings
from cellcache.directory import CellDirectory
from cellcache.masking import mask_text

P = ParamSpec("P")

_PANEL = "For every command"

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="The configuration, TOML. Else $CELLCACHE_CONFIG; else SQLite in this folder and no server.",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="For programs: JSON on stdout, lists one a line.", rich_help_panel=_PANEL)
]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Log what happens to stderr.", rich_help_panel=_PANEL)
]


@dataclass(frozen=True, slots=True)
class Session:
    """What one run was asked for on top of its command."""

    config: Path | None = None
    json: bool = False
    verbose: bool = False

    def settings(self) -> Settings:
        return Settings.load(self.config)

    def directory(self) -> CellDirectory:
        """Open the directory that the configuration describes; close it with `with`."""
        return CellDirectory.open(self.settings())


class _Stderr(logging.Handler):
    """Writes to whatever stderr is at the time: a progress bar puts itself in between."""

    def emit(self, record: logging.LogRecord) -> None:
        for line in self.format(record).splitlines():
            sys.stderr.write(mask_text(printable(line)) + "\n")


def _log(*, verbose: bool) -> None:
    """Let the library's warnings through; with `verbose`, all that it has to say, with times."""
    handler = _Stderr()
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s" if verbose else "cellcache: %(message)s")
    )
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("cellcache").setLevel(logging.DEBUG if verbose else logging.NOTSET)


def _common(config: ConfigOption = None, json: JsonOption = False, verbose: VerboseOption = False) -> None:
    """Hold the signature that every command shares."""


_COMMON = list(inspect.signature(_common, eval_str=True).parameters.values())
_CONTEXT = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)


def _unwrapped(text: str) -> str:
    """Return paragraphs without the line breaks of the source; the reader's terminal sets its own."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def command(
    app: typer.Typer, name: str, *examples: str
) -> Callable[[Callable[Concatenate[Session, P], None]], Callable[Concatenate[Session, P], None]]:
    """Register a function whose first parameter is the session; the others are its own options and arguments."""

    def register(function: Callable[Concatenate[Session, P], None]) -> Callable[Concatenate[Session, P], None]:
        call: Callable[..., None] = function

        def run(*, ctx: typer.Context, config: Path | None, json: bool, verbose: bool, **given: Any) -> None:
            outer: Session = ctx.find_root().obj or Session()
            session = Session(config or outer.config, json or outer.json, verbose or outer.verbose)
            _log(verbose=session.verbose)
            call(session, **given)

        _, *own = inspect.signature(function, eval_str=True).parameters.values()
        parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (_CONTEXT, *own, *_COMMON)]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        epilog = "\n\n".join(f"[dim]Example:[/] {example}" for example in examples)
        app.command(name, help=_unwrapped(function.__doc__ or ""), epilog=epilog)(run)
        return function

    return register
