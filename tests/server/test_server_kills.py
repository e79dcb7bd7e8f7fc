"""SIGKILL to server, drainer and dbt in turn, under load: all that was acknowledged is there once.

TOKENLEDGER_SERVER_KILLS sets the rounds (default 5), TOKENLEDGER_SEED the moments; the seed is
printed. The truth is what the server said on its standard output after each write() returned.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loader.spool import spool_status
from loader.writer import Writer
from tests.support.project import ROOT, Project

ROUNDS = int(os.environ.get("TOKENLEDGER_SERVER_KILLS", "5"))
SEED = int(os.environ.get("TOKENLEDGER_SEED", str(random.randrange(10**6))))
THREADS = 2


def start_traffic(spool: Path, name: str, fsync: str) -> subprocess.Popen[str]:
    options = ["--fsync", fsync, "--threads", str(THREADS), "--pause", "0.002"]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.server.traffic", str(spool), "--name", name, *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_what_was_acknowledged_is_there_once(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        print(f"\nserver kills: {ROUNDS} rounds, TOKENLEDGER_SEED={SEED}")
    chance = random.Random(SEED)
    spool = tmp_path / "spool"
    Writer(spool).close()
    project.loader("init")
    acknowledged: list[str] = []
    started = 0
    killed = {"server": 0, "drainer": 0, "dbt": 0}
    drainer = dbt = None
    for round_ in range(ROUNDS):
        policy = chance.choice(["never", "interval", "each"])
        traffic = start_traffic(spool, f"r{round_}", policy)
        started += 1
        if drainer is None or drainer.poll() is not None:
            drainer = project.start_loader("drain", str(spool), "--follow", "--max-wait", "0.1")
        if round_ == ROUNDS // 2:
            dbt = project.start_dbt("run", "--select", "+transformed_batches")
        time.sleep(chance.uniform(0.6, 1.4))
        if chance.random() < 0.6:
            drainer.send_signal(signal.SIGKILL)
            drainer.communicate()
            killed["drainer"] += 1
        traffic.send_signal(signal.SIGKILL)
        acknowledged += traffic.communicate()[0].split()
        killed["server"] += 1
        if dbt is not None and round_ > ROUNDS // 2 and dbt.poll() is None:
            dbt.send_signal(signal.SIGKILL)
            dbt.communicate()
            killed["dbt"] += 1
            dbt = None
    if dbt is not None:
        dbt.communicate()
    if drainer is not None and drainer.poll() is None:
        drainer.send_signal(signal.SIGTERM)
        drainer.communicate(timeout=60)
    project.loader("drain", str(spool), expect=None)
    assert list(spool.iterdir()) == []

    project.dbt("run", "--select", "+transformed_batches")
    rows = [row["id"] for row in project.query("select id from llm_traces")]
    with capsys.disabled():
        print(f"killed: {killed}; acknowledged {len(acknowledged)}, in llm_traces {len(rows)}")
    assert len(acknowledged) > 50
    assert len(rows) == len(set(rows)), "doubled"
    assert set(acknowledged) - set(rows) == set(), "lost"
    assert len(rows) - len(acknowledged) <= started * THREADS, "no more than was on its way"


def test_segments_of_a_killed_server_are_landed_whole_or_told(tmp_path: Path) -> None:
    """A kill in the middle of a large write leaves a torn tail at most, never a broken spool."""
    spool = tmp_path / "spool"
    traffic = start_traffic(spool, "t", "never")
    while not spool.exists() or spool_status(spool)["records"] == 0:
        time.sleep(0.02)
    traffic.kill()
    acknowledged = traffic.communicate()[0].split()
    status = spool_status(spool)
    assert isinstance(status["records"], int)
    assert status["records"] >= len(acknowledged)
