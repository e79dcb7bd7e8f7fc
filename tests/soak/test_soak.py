"""A short soak: all at once, killed a few times; the long one is `python -m tests.soak`."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.soak.__main__ import Soak

KILLS = int(os.environ.get("TOKENLEDGER_SOAK_KILLS", "12"))
SEED = int(os.environ.get("TOKENLEDGER_SEED", str(random.randrange(10**6))))


def test_all_at_once_under_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soak = Soak(tmp_path, SEED)
    found = soak.run(None, KILLS)
    with capsys.disabled():
        print(f"\nTOKENLEDGER_SEED={SEED}\n{soak.table()}")
    assert found == []
    assert soak.killed.total() >= KILLS
    assert soak.truth.traces
