"""A few points of the sweep: a kill right behind a commit call leaves what the next run completes.

All points: `python -m tests.soak.sweep --what loader` and `--what dbt`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.sweep import Sweep, why_not

REASON = why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


def test_a_loader_killed_behind_its_commits_is_finished_by_the_next(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "loader")
    calls = sweep.count().calls
    assert calls > 8, "database, three tables, and three parts of three batches are committed"
    for number in (2, 5, calls // 2 + 2, calls - 1):
        death, found = sweep.point(number)
        assert death.is_killed, death
        assert found == [], death


def test_a_dbt_run_killed_behind_its_commits_is_finished_by_the_next(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "dbt")
    calls = sweep.count().calls
    assert calls > 20
    for number in (calls * 2 // 3, calls - 4):
        death, found = sweep.point(number)
        assert death.is_killed, death
        assert found == [], death
