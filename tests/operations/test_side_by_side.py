"""A server on which loaders land while dbt runs, or that loses answers: all is there once.

The embedded store is one process's at a time; what happens at once there is the soak's.
"""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from tests.soak.truth import Truth, differences_of_landing, differences_of_traces
from tests.support.http_front import Front
from tests.support.project import Project

MODELS = ("--select", "+transformed_batches", "+costed_batches", "+llm_traces_live")


@pytest.fixture
def truth() -> Truth:
    return Truth()


def test_a_run_while_landing_goes_on(project: Project, truth: Truth, tmp_path: Path) -> None:
    chance = random.Random(11)
    project.env["TOKENLEDGER_BATCH_LINES"] = "100"
    project.loader("prices")
    project.dbt("run", *MODELS)
    files = [str(truth.write(tmp_path / f"{n}.ndjson", 400, chance)) for n in range(16)]
    is_over = threading.Event()

    def land(mine: list[str]) -> None:
        for file in mine:
            if project.start_loader(file, "--json").wait(300) != 1:
                failed.append(file)

    def land_all() -> None:
        threads = [threading.Thread(target=land, args=(files[n::2],)) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        is_over.set()

    failed: list[str] = []
    landing = threading.Thread(target=land_all)
    landing.start()
    runs = 0
    while not is_over.is_set():
        project.dbt("run", *MODELS)
        runs += 1
        doubled = "select count() - uniqExact(id) from"
        assert project.value(f"{doubled} llm_traces") == 0
        assert project.value(f"{doubled} llm_traces_live") == 0
    landing.join()
    assert failed == []
    assert runs >= 1
    project.dbt("run", *MODELS)
    assert differences_of_landing(project, truth) == []
    assert differences_of_traces(project, truth) == []


@pytest.mark.parametrize("effect", ["done", "none"])
def test_dbt_loses_answers(tmp_path: Path, truth: Truth, effect: str) -> None:
    """What an insert of dbt's did before its answer was lost is not done twice by the next run."""
    with Front(tmp_path / "server") as front:
        server = Project(tmp_path / "project", front.env())
        server.loader("prices")
        server.dbt("run", *MODELS)
        server.loader(str(truth.write(tmp_path / "a.ndjson", 500, random.Random(3))), expect=1)
        front.misbehave("drop", effect=effect, inserts=True, count=3, skip=1)
        codes = []
        while 0 not in codes:
            codes.append(server.dbt("run", *MODELS, expect=None).returncode)
            assert len(codes) < 8, codes
        assert front.stats()["faults"][0]["done"] >= 1
        front.behave()
        server.dbt("run", *MODELS)
        assert differences_of_landing(server, truth) == []
        assert differences_of_traces(server, truth) == []
