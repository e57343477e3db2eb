"""How a function becomes a command: the options that every command takes, and the session it is given.

`--config`, `--json` and `--verbose` may stand anywhere between the commands' names; the last `--config` wins.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Concatenate, ParamSpec

import typer

from cellcache.cli.exits import ExitCode
from cellcache.cli.logs import log_to_stderr
from cellcache.config import Settings
from cellcache.directory import CellDirectory
from cellcache.texts import is_blank

P = ParamSpec("P")

_PANEL = "For every command"

ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="The configuration, TOML. Else $CELLCACHE_CONFIG, else $CELLCACHE_DATABASE__URL and the like.",
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

    config: str | None = None
    json: bool = False
    verbose: bool = False

    def settings(self) -> Settings:
        return Settings.load(self.config)

    def directory(self) -> CellDirectory:
        """Open the directory that the configuration describes; close it with `with`."""
        return CellDirectory.open(self.settings())


def enter(
    ctx: typer.Context, config: ConfigOption = None, json: JsonOption = False, verbose: VerboseOption = False
) -> Session:
    """Return the session with what this level of the command line adds, for the levels below it to find."""
    _refuse_blanks(ctx)
    outer: Session = ctx.obj or Session()
    session = Session(outer.config if config is None else config, json or outer.json, verbose or outer.verbose)
    ctx.obj = session
    return session


def _refuse_blanks(ctx: typer.Context) -> None:
    """Refuse a blank text for any option or argument: an unset shell variable must not mean "all", or "the default"."""
    parameters: Iterable[Any] = ctx.command.params
    for parameter in parameters:
        given = ctx.params.get(parameter.name or "")
        for value in given if isinstance(given, list | tuple) else [given]:
            if isinstance(value, str) and is_blank(value):
                raise typer.BadParameter("it is blank; is a variable not set?", ctx=ctx, param=parameter)


def group(name: str, purpose: str) -> typer.Typer:
    """Return an application to register commands with, which shows its help when none of them is named."""
    app = typer.Typer(name=name, help=purpose, invoke_without_command=True)

    @app.callback()
    def begin(
        ctx: typer.Context, config: ConfigOption = None, json: JsonOption = False, verbose: VerboseOption = False
    ) -> None:
        enter(ctx, config, json, verbose)
        show_help_without_command(ctx)

    return app


def show_help_without_command(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        sys.stdout.write(ctx.get_help())  # with rich, it has printed itself and is empty
        raise typer.Exit(ExitCode.USAGE)


def _unwrapped(text: str) -> str:
    """Return paragraphs without the line breaks of the source; the reader's terminal sets its own."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def command(
    app: typer.Typer, name: str, *examples: str
) -> Callable[[Callable[Concatenate[Session, P], None]], Callable[Concatenate[Session, P], None]]:
    """Register a function whose first parameter is the session; the others are its own options and arguments."""

    def register(function: Callable[Concatenate[Session, P], None]) -> Callable[Concatenate[Session, P], None]:
        call: Callable[..., None] = function

        def run(*, ctx: typer.Context, config: str | None, json: bool, verbose: bool, **given: Any) -> None:
            session = enter(ctx, config, json, verbose)
            log_to_stderr(verbose=session.verbose)
            call(session, **given)

        _, *own = inspect.signature(function, eval_str=True).parameters.values()
        context, *common = inspect.signature(enter, eval_str=True).parameters.values()
        parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (context, *own, *common)]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        epilog = "\n\n".join(f"[dim]Example:[/] {example}" for example in examples)
        app.command(name, help=_unwrapped(function.__doc__ or ""), epilog=epilog)(run)
        return function

    return register
