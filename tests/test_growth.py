"""The time that a regular expression takes grows with the text, not with its square: others choose the texts."""

from __future__ import annotations

import importlib
import pkgutil
import re
import time
import timeit
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest

import cellcache
import cellcache.backends
import cellcache.cli
from cellcache.backends.wire import _patterns

STARTS = ["", "x://", "x://h?", ": '", "-c", "VA 0 O", "HD O", "{scheme", "["]
PIECES = [
    *("a", "1", "-", ".", " ", ":", "'", "@", "/", "\\", "%70", "[::", ":1,", "\0", "\ud800", "\N{SNOWMAN}"),
    *("?pass", "&pass=", ";password=", "://", "a://b ", "x://u:p@h/", "a.", "{scheme", "' for column", ": '"),
    *("-c ", "--role=", "search_path=", "0d4ed1d2-", "VA 0 O1 c1 W\r\n\r\n", "HD O1\r\n", "VA 17 O1 c1\r\n", "O1"),
]
SIZE = 8_000  # characters


def modules() -> Iterator[Any]:
    for package in (cellcache, cellcache.backends, cellcache.cli):
        for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if not found.name.endswith("__main__"):
                yield importlib.import_module(found.name)


def expressions() -> dict[str, Callable[..., Any]]:
    """Each compiled expression that a module keeps, as it is used there: `match`, `search`, `sub` ..."""
    kept = {
        f"{module.__name__}.{name}": value
        for module in modules()
        for name, value in vars(module).items()
        if isinstance(getattr(value, "__self__", None), re.Pattern)
    }
    hits, each_hit = _patterns(17)
    return kept | {"backends.wire, hits": hits, "backends.wire, each hit": each_hit}


EXPRESSIONS = expressions()


@pytest.mark.slow
@pytest.mark.parametrize("use", EXPRESSIONS.values(), ids=EXPRESSIONS.keys())
def test_four_times_the_text_takes_less_than_six_times_as_long(use: Any) -> None:
    def least_s(start: str, piece: str, size: int) -> float:
        text: Any = start + piece * (size // len(piece))
        if isinstance(use.__self__.pattern, bytes):
            text = text.encode(errors="surrogatepass")
        arguments = (text[:0], text) if use.__name__ == "sub" else (text,)
        return min(timeit.repeat(lambda: use(*arguments), number=1, repeat=3, timer=time.process_time))

    for start, piece in product(STARTS, PIECES):
        # What takes less than the clock can tell is not compared: what grows with the square takes far longer.
        if least_s(start, piece, 4 * SIZE) > 6 * 0.002:
            assert least_s(start, piece, 4 * SIZE) < 6 * least_s(start, piece, SIZE), (start, piece)


@pytest.mark.slow
def test_an_expression_that_grows_with_the_square_would_be_found() -> None:
    with pytest.raises(AssertionError):
        test_four_times_the_text_takes_less_than_six_times_as_long(re.compile(r": '.*'(?= for column)").sub)


def test_the_expressions_are_found() -> None:
    assert {"cellcache.masking._rest_of_url", "cellcache.backends.wire._done"} <= EXPRESSIONS.keys()
    assert len(EXPRESSIONS) > 15
