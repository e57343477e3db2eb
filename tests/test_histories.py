"""Many processes, many faults, every answer checked: nobody is told what was true before, but in declared windows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults.campaign import Campaign, run

pytestmark = pytest.mark.quiet

SECONDS = float(os.environ.get("CAMPAIGN_S", "15"))
SEED = int(os.environ.get("CAMPAIGN_SEED", "1"))


@pytest.mark.slow
@pytest.mark.timeout(SECONDS * 2 + 240)
@pytest.mark.needs("memcached", "mariadb")
def test_under_faults_every_answer_fits_the_order_of_commits(tmp_path: Path) -> None:
    result = run(Campaign(seconds=SECONDS, seed=SEED), tmp_path)
    report = "\n".join(result.lines())
    print(report)
    assert not result.history.unexpected, report
    assert not result.findings.breaches, "\n".join([report, *result.stories()])
    assert not result.final_differences, report
    assert result.history.reads > 100 * SECONDS, report
    assert sum(map(len, result.journal.commits.values())) > 3 * SECONDS, report
    assert {event.name for event in result.events} >= {"node killed", "process died between commit and settle"}


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.needs("memcached", "mariadb")
def test_without_leases_the_same_campaign_finds_breaches(tmp_path: Path) -> None:
    """What would the check be worth that never objects? Entries live for a second, which makes for many fills."""
    result = run(Campaign(seconds=SECONDS, seed=SEED, instances=20, ttl_s=1.0, sabotage=True), tmp_path)
    report = "\n".join(result.lines())
    print(report)
    assert not result.history.unexpected, report
    assert result.findings.breaches, report
