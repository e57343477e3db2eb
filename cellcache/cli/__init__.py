"""The command line: parsing, tables, exit codes. Every answer comes from the library."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from cellcache.cli import cache, cells, coherence, databases, demo, doctor, instances, lookups, pruning
from cellcache.cli.commands import ConfigOption, JsonOption, VerboseOption, enter, show_help_without_command
from cellcache.cli.exits import ExitCode, complain, complain_of_bug, epilog, exit_code_of, usage_problem
from cellcache.cli.streams import OutputLost, end_without_output, prepare_streams
from cellcache.errors import CellCacheError

app = typer.Typer(
    name="cellcache",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog=epilog(),
    context_settings={"help_option_names": ["-h", "--help"]},
)
lookups.register(app)
pruning.register(instances.app)
coherence.register(app)
app.add_typer(instances.app)
app.add_typer(cells.app)
app.add_typer(cache.app)
app.add_typer(databases.app)
doctor.register(app)
demo.register(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"cellcache {version('cellcache')}\n")
        raise typer.Exit


@app.callback()
def cellcache(
    ctx: typer.Context,
    config: ConfigOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    version: Annotated[  # noqa: ARG001 - its callback does the work
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Say which release this is.")
    ] = False,
) -> None:
    """Which cell does this instance live in? Ask, map, move, prune; migrate the tables; see that all is well."""
    enter(ctx, config, json, verbose)
    show_help_without_command(ctx)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; whatever goes wrong is one line on stderr."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        prepare_streams()
        code: int | None = app(given, prog_name="cellcache", standalone_mode=False)
        sys.stdout.flush()
    except CellCacheError as error:
        complain(error)
        return exit_code_of(error)
    except (KeyboardInterrupt, typer.Abort):
        return ExitCode.INTERRUPTED
    except OutputLost as lost:
        return end_without_output(lost)
    except Exception as error:  # noqa: BLE001 - a person gets one line, and how to see the rest
        problem = usage_problem(error)
        if problem is None:
            complain_of_bug(error, verbose=bool({"--verbose", "-v"} & set(given)))
            return ExitCode.BUG
        complain(problem)
        return ExitCode.USAGE
    return code or ExitCode.FINE
