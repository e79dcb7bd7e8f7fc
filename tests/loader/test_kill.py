"""SIGKILL at random moments of landing: nothing lost, nothing doubled, no byte changed."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

from tests.support.project import Project

KILLS = int(os.environ.get("TOKENLEDGER_TEST_KILLS", "5"))


def test_a_killed_loader_is_finished_by_the_next(project: Project, tmp_path: Path) -> None:
    seed = int(os.environ.get("TOKENLEDGER_TEST_SEED", str(random.randrange(10**9))))
    chance = random.Random(seed)
    print(f"seed {seed}")
    project.env["TOKENLEDGER_BATCH_LINES"] = "50"
    path = tmp_path / "a.ndjson"
    path.touch()
    written: list[str] = []
    for number in range(KILLS):
        new = [
            f'{{"request_json": {{"n":{number}.0, "k":{index}}},"response_json":1.0}}'
            if index % 10
            else f"bad {number} {index}"
            for index in range(2000)
        ]
        written += new
        with path.open("a") as file:
            file.write("\n".join(new) + "\n")
        process = project.start_loader(str(path))
        time.sleep(chance.uniform(0.2, 1.2))
        process.kill()
        process.communicate()
    project.loader(str(path), expect=None)
    again = project.loader(str(path))
    assert "landed 0 traces" in again.stdout
    rows = project.query(
        "select request_json as text from raw_traces union all select raw from raw_rejects"
    )
    wanted = [
        line
        if line.startswith("bad")
        else line[len('{"request_json": ') : -len(',"response_json":1.0}')]
        for line in written
    ]
    assert sorted(row["text"] for row in rows) == sorted(wanted)
    ledger = project.query(
        "select count() as batches, uniqExact(batch_id) as ids, sum(lines) as lines,"
        " sum(`rows` + rejects) as kept from raw_batches"
    )[0]
    assert ledger["batches"] == ledger["ids"]
    assert ledger["lines"] == ledger["kept"] == len(written)
