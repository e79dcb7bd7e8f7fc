"""A batch counts as transformed only when each of its ids was read back from llm_traces."""

from __future__ import annotations

import random
from pathlib import Path

from tests.soak.truth import Truth, differences_of_traces
from tests.support.project import Project


def test_a_batch_that_is_not_in_llm_traces_stays_pending(project: Project, tmp_path: Path) -> None:
    truth = Truth()
    project.loader("prices")
    project.dbt("run")
    project.loader(str(truth.write(tmp_path / "a.ndjson", 20, random.Random(3))), expect=1)

    # The models behind llm_traces alone, as if its insert had been lost.
    project.dbt("run", "--select", "int_batches__due", "transformed_batches", "costed_batches")
    assert project.value("select count() from int_batches__pending") == 1
    assert project.value("select count() from transformed_batches") == 0

    # Without the costs, as if theirs had been.
    project.dbt("run", "--select", "+transformed_batches", "costed_batches")
    assert project.value("select count() from transformed_batches") == 1
    assert project.value("select count() from costed_batches") == 0

    project.dbt("run", "--select", "+costed_batches")
    assert differences_of_traces(project, truth) == []
