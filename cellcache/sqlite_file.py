"""SQLite's file, which holds the passwords of all cells: where it is, and that none but its owner can read it."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sqlalchemy import URL

from cellcache.findings import Finding, Level

_MAKE_NONE = {"ro", "rw", "memory"}  # of the modes in a URL


def sqlite_file(url: URL) -> str:
    """Return the file's real path. SQLite itself reads `file:` and percent signs, and only where it says uri=true."""
    (name, *_), options = url.get_dialect()().create_connect_args(url)
    return os.path.realpath(unquote(urlsplit(name).path) if options.get("uri") and name.startswith("file:") else name)


def make_private(url: URL) -> None:
    """Make the file where SQLite would, for its owner alone. What SQLite keeps beside it (-wal, -shm) follows its mode.

    One that is there is left alone, and whatever is wrong with the place is left to SQLite to say.
    """
    if url.query.get("mode") not in _MAKE_NONE:
        with suppress(OSError):
            make_file(sqlite_file(url))


def make_file(path: str) -> None:
    """Create an empty file, which is an empty SQLite database; raise FileExistsError where there is one already."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def odd_file(url: URL) -> Iterator[Finding]:
    """Yield a finding where others can read the file; cellcache makes it private, but it is not alone to make files."""
    file = sqlite_file(url) if url.get_backend_name() == "sqlite" else ""
    if file and _is_open_to_others(Path(file)):
        yield Finding(
            what="file",
            name=file,
            level=Level.PROBLEM,
            says="every account of this host can read or write it, the passwords of all cells included",
            advice=f"Run `chmod o-rwx {shlex.quote(file)}`, and of those with -wal and -shm behind their names. "
            "Change the passwords if others may have read them.",
        )


def _is_open_to_others(file: Path) -> bool:
    """Return whether every account of this host can read the file or write to it, and reach it through its folders."""
    try:
        reachable = all(folder.stat().st_mode & stat.S_IXOTH for folder in file.parents)
        return reachable and bool(file.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH))
    except OSError:
        return False
