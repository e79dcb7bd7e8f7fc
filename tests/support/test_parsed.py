"""The shared parse is taken up: a call of dbt in a project of its own parses nothing anew."""

from __future__ import annotations

import pytest

from tests.support.project import Project


@pytest.mark.parametrize("vars_", [(), ("--vars", "{reporting_time_zone: Asia/Tokyo}")])
def test_dbt_takes_up_the_shared_parse(project: Project, vars_: tuple[str, ...]) -> None:
    listed = project.dbt("ls", "--select", "llm_traces", *vars_).stdout
    assert "tokenledger.marts.llm_traces" in listed
    assert not (project.folder / "target" / "partial_parse.msgpack").exists(), "parsed anew"
