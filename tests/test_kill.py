"""SIGKILL at any instant: what a killed loader or dbt leaves, the next run completes.

TOKENLEDGER_KILLS sets the number of kills (default 4), TOKENLEDGER_SEED the moments; the seed is
printed. The truth is computed apart: from the records that were written to the files.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.support.project import Project
from tests.test_pipeline import record

KILLS = int(os.environ.get("TOKENLEDGER_KILLS", "4"))
SEED = int(os.environ.get("TOKENLEDGER_SEED", str(random.randrange(10**6))))


def test_nothing_is_lost_or_doubled_under_kills(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        print(f"\nkills: {KILLS}, TOKENLEDGER_SEED={SEED}")
    chance = random.Random(SEED)
    truth: dict[str, tuple[str, int]] = {}
    rejects: list[str] = []
    number = 0
    killed = {"loader": 0, "dbt": 0}

    def more(name: str) -> Path:
        """Write a file of records, known ids among them, with a line that is none."""
        nonlocal number
        path = tmp_path / f"{name}.ndjson"
        lines = []
        for _ in range(chance.randrange(200, 3000)):
            number += 1
            one = record(number)
            lines.append(json.dumps(one))
            truth[f"{number:06d}"] = (json.dumps(one["response_json"]), number)
        lines.append(lines[0])
        rejects.append(f'{{"cut": {number}')
        lines.insert(chance.randrange(len(lines)), rejects[-1])
        path.write_text("\n".join(lines) + "\n")
        return path

    project.loader("init")
    begun = time.monotonic()
    project.dbt("run")
    longest = {"loader": 1.5, "dbt": time.monotonic() - begun}
    waiting: list[Path] = []
    for round_ in range(KILLS):
        what = chance.choice(["loader", "dbt"])
        if what == "loader" or not waiting:
            what = "loader"
            waiting.append(more(f"file{round_}"))
            process = project.start_loader(str(waiting[-1]))
        else:
            process = project.start_dbt("run")
        begun = time.monotonic()
        time.sleep(chance.uniform(0.05, longest[what]))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            killed[what] += 1
        else:
            longest[what] = max(0.2, 0.9 * (time.monotonic() - begun))
        if chance.random() < 0.4:
            project.loader(*map(str, waiting), expect=None)
            project.dbt("run")

    waiting.append(more("last"))
    project.loader(*map(str, waiting), expect=None)
    project.dbt("build")

    with capsys.disabled():
        print(f"killed while running: {killed}")
    rows = project.query("select id, response_json, prompt_tokens from llm_traces")
    assert len(rows) == len(truth), "doubled or lost"
    found = {row["id"]: (row["response_json"], row["prompt_tokens"]) for row in rows}
    assert found == truth
    assert sorted(row["raw"] for row in project.query("select raw from raw_rejects")) == sorted(
        rejects
    )
    assert project.value("select count() from int_batches__pending") == 0
    assert project.value("select count() - uniqExact(batch_id) from transformed_batches") == 0
    assert project.value("select count() - uniqExact(batch_id, position) from raw_traces") == 0
