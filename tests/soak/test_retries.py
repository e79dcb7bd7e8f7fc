"""Many small batches to a server that loses its answers: every line is there once.

TOKENLEDGER_RETRY_BATCHES sets the number of batches (default 100; 1000 is the long run),
TOKENLEDGER_SEED what is struck; the seed is printed.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from pathlib import Path

import pytest

from tests.soak.truth import Truth, differences_of_landing
from tests.support.http_front import Front
from tests.support.project import Project

BATCHES = int(os.environ.get("TOKENLEDGER_RETRY_BATCHES", "100"))
SEED = int(os.environ.get("TOKENLEDGER_SEED", str(random.randrange(10**6))))
LINES = 5

FAULTS: list[dict[str, object]] = [
    {"kind": "drop", "effect": "none", "inserts": True, "probability": 0.03},
    {"kind": "drop", "effect": "done", "inserts": True, "probability": 0.04},
    {"kind": "drop", "effect": "late", "inserts": True, "probability": 0.02, "seconds": 0.3},
    {"kind": "answer", "status": 500, "effect": "done", "inserts": True, "probability": 0.03},
    {"kind": "answer", "status": 500, "effect": "none", "inserts": True, "probability": 0.02},
    {"kind": "answer", "status": 503, "effect": "none", "probability": 0.02},
    {"kind": "drop", "effect": "none", "probability": 0.01},
]


def test_every_row_lands_once_whatever_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = Truth()
    # A repeated record and a line that is none are in it: two lines more than were asked for.
    file = truth.write(tmp_path / "a.ndjson", BATCHES * LINES - 2, random.Random(SEED))
    with Front(tmp_path / "server") as front:
        project = Project(
            tmp_path / "project", front.env("llm") | {"TOKENLEDGER_BATCH_LINES": str(LINES)}
        )
        project.loader("init")
        for number, fault in enumerate(FAULTS):
            kind = str(fault["kind"])
            rest = {name: value for name, value in fault.items() if name != "kind"}
            front.misbehave(kind, count=None, seed=SEED + number, **rest)
        runs, landed = 0, 0
        exit_code: int | None = None
        while exit_code not in (0, 1):
            runs += 1
            assert runs <= 20, "it does not come to an end"
            done = project.loader(str(file), "--json", expect=None)
            exit_code = done.returncode
            assert exit_code in (0, 1, 3), done.stderr
            assert "Traceback" not in done.stderr
            if exit_code in (0, 1):
                landed = json.loads(done.stdout)["rows"]
        struck: Counter[str] = Counter()
        for fault in front.stats()["faults"]:
            struck[f"{fault['kind']} {fault['effect']}"] += fault["done"]
        front.behave()
        with capsys.disabled():
            told = ", ".join(f"{count} {name}" for name, count in struck.items())
            print(f"\n{BATCHES} batches, {runs} runs, struck: {told}; TOKENLEDGER_SEED={SEED}")
        assert struck.total() >= BATCHES // 20
        assert landed <= truth.lines
        assert differences_of_landing(project, truth) == []
        assert project.value("select count() from raw_batches") == BATCHES
