"""docs/security.md names a test for what it says of an attacker; each of them is there."""

from __future__ import annotations

import re
from pathlib import Path

_TESTS = Path(__file__).parent
_PAGE = _TESTS.parent / "docs" / "security.md"


def test_every_test_that_the_threat_model_names_is_there() -> None:
    file, named = "", []
    for given, test in re.findall(r"`(test_\w+\.py)?(?:::(test_\w+))?`", _PAGE.read_text(encoding="utf-8")):
        file = given or file
        if test:
            named.append((file, test))
        assert (_TESTS / file).is_file(), file
    assert named
    for file, test in named:
        assert f"def {test}(" in (_TESTS / file).read_text(encoding="utf-8"), (file, test)
