"""A short soak: all at once, killed a few times; the long one is `python -m tests.soak`.

On the server every other loader redacts.
"""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path

import pytest

from tests.soak.__main__ import Soak
from tests.support.http_front import Front

KILLS = int(os.environ.get("TOKENLEDGER_SOAK_KILLS", "12"))
SEED = int(os.environ.get("TOKENLEDGER_SEED", str(random.randrange(10**6))))


@pytest.mark.parametrize("store", ["embedded", "server"])
def test_all_at_once_under_kills(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], store: str
) -> None:
    with Front(tmp_path / "server") if store == "server" else contextlib.nullcontext() as front:
        soak = Soak(tmp_path, SEED, front, with_rules=store == "server")
        found = soak.run(None, KILLS)
    with capsys.disabled():
        print(f"\nTOKENLEDGER_SEED={SEED}\n{soak.table()}")
    assert found == []
    assert soak.killed.total() >= KILLS
    assert soak.truth.traces
