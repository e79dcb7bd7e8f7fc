"""`get`: the newest trace of a step, within one organization, payloads as objects."""

from __future__ import annotations

import json

import pytest

from tests.support.project import Project

# What dbt makes, as far as reading a trace needs it: nothing is pending.
TABLE = """
create table llm_traces
(
    id String, organization_id LowCardinality(String), project_id String, agent_id String,
    agent_tags Array(LowCardinality(String)), run_id String, step_id String, trace_id String,
    call_type LowCardinality(String), provider LowCardinality(String),
    model LowCardinality(String), request_json String, response_json String,
    created_at DateTime64(6, 'UTC'), landed_at DateTime64(3, 'UTC')
)
engine = MergeTree order by id
"""
BESIDE = (
    "create view llm_traces_live as select * from llm_traces",
    "create table int_batches__pending (batch_id String) engine = MergeTree order by batch_id",
    "create table int_traces__unioned (id String, organization_id String, step_id String,"
    " batch_id String) engine = MergeTree order by id",
)

HOSTILE = "s' or 1=1 -- %_\\"


@pytest.fixture
def project(project: Project) -> Project:
    project.loader("init")
    rows = [
        ("old", "o", "s", "{}", "{}", 1),
        ("new", "o", "s", '{"a": 1.0}', "[1]", 2),
        ("other", "p", "s", "{}", "{}", 3),
        ("text", "o", "t", "no json", "{", 1),
        ("hostile", "o", HOSTILE, "null", '"\\ud800"', 1),
    ]
    tuples = ", ".join(f"({{t{index}:Array(String)}}, {row[-1]})" for index, row in enumerate(rows))
    project.query(
        TABLE,
        *BESIDE,
        "insert into llm_traces (id, organization_id, step_id, request_json,"
        " response_json, created_at) select row.1[1], row.1[2], row.1[3], row.1[4], row.1[5],"
        f" toDateTime64('2026-11-01', 6, 'UTC') + row.2 from (select arrayJoin([{tuples}]) as row)",
        **{f"t{index}": list(row[:-1]) for index, row in enumerate(rows)},
    )
    return project


def get(project: Project, step: str, organization: str) -> dict[str, object]:
    done = project.loader("get", "--organization", organization, "--json", "--", step)
    assert done.stdout.count("\n") == 1
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_gets_the_newest_within_the_organization(project: Project) -> None:
    found = get(project, "s", "o")
    assert found["id"] == "provider_trace-new"
    assert found["request_json"] == {"a": 1.0}
    assert found["response_json"] == {"_value": [1]}
    assert found["created_at"] == "2026-11-01T00:00:02+00:00"
    assert get(project, "s", "p")["id"] == "provider_trace-other"


def test_text_that_is_no_json_comes_back_as_it_is(project: Project) -> None:
    found = get(project, "t", "o")
    assert (found["request_json"], found["response_json"]) == ({"_raw": "no json"}, {"_raw": "{"})


def test_names_are_compared_and_never_run(project: Project) -> None:
    found = get(project, HOSTILE, "o")
    assert found["id"] == "provider_trace-hostile"
    assert found["request_json"] == {"_value": None}
    assert found["response_json"] == {"_value": "\ud800"}


@pytest.mark.parametrize(("step", "organization"), [("t", "p"), ("s", "%"), ("%", "o")])
def test_another_organization_has_no_such_step(
    project: Project, step: str, organization: str
) -> None:
    done = project.loader("get", step, "--organization", organization, expect=1)
    assert done.stdout == ""
    assert "no trace of step" in done.stderr


def test_an_organization_must_be_named(project: Project) -> None:
    for verb in ("get", "explain"):
        assert "--organization" in project.loader(verb, "s", expect=2).stderr
        done = project.loader(verb, "s", "--organization", "", expect=2)
        assert "no organization: traces are read within one organization only" in done.stderr
