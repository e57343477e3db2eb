"""`cellcache cache`: what is made for the cache once, before it is used."""

from __future__ import annotations

import os
import secrets
from typing import Annotated

import typer

from cellcache.cli.commands import Session, command, group
from cellcache.cli.exits import UsageProblem
from cellcache.cli.render import print_json, print_line

app = group("cache", "Make what the cache needs before it is used.")


@command(app, "signing-key", "cellcache cache signing-key /etc/cellcache/signing.key")
def signing_key(
    session: Session,
    file: Annotated[
        str | None,
        typer.Argument(metavar="FILE", help="Where to put it, for its owner alone; else it is printed."),
    ] = None,
) -> None:
    """Make a random key, with which cache entries are signed: `cache.signing_key`, or FILE as `cache.signing_key_file`.

    Every process of a deployment has the same, and no other deployment. A file that is there already is left alone.
    """
    key = secrets.token_hex(32)
    if file is not None:
        _write_new(file, key)
    if session.json:
        print_json({"signing_key": key} if file is None else {"file": file})
    elif file is None:
        print_line(key)


def _write_new(file: str, key: str) -> None:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as opened:
            opened.write(f"{key}\n")
    except FileExistsError:
        raise UsageProblem(f"{file} is there already, and was left alone: a key that is in use must not go") from None
    except (OSError, ValueError) as error:  # ValueError: there is no such name
        raise UsageProblem(f"cannot write {file}: {getattr(error, 'strerror', error)}") from None
