"""The whole path, on both kinds of store: examples in, llm_traces out, and again without change."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.project import ROOT, Project

EXPECTED = json.loads((ROOT / "examples" / "expected.json").read_text())


def record(number: int, **changes: object) -> dict[str, object]:
    """Make a small trace of an OpenAI-like call; `changes` replaces keys."""
    usage = {"prompt_tokens": number, "completion_tokens": 1, "total_tokens": number + 1}
    return {
        "id": f"provider_trace-{number:06d}",
        "org_id": f"org-{number % 3}",
        "agent_id": "agent-1",
        "step_id": f"step-{number}",
        "call_type": "agent_step",
        "request_json": {"messages": [{"role": "user", "content": "é" * 10}], "n": 1.0},
        "response_json": {"id": "x", "model": "gpt-4o", "usage": usage},
        "llm_config": {"model": "gpt-4o", "model_endpoint_type": "openai"},
        "created_at": f"2026-10-{1 + number % 28:02d}T12:00:00Z",
    } | changes


def write(path: Path, records: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return path


RUN = ("run", "--select", "+llm_traces_live", "+transformed_batches", "+trace_conflicts")
TOKENS = [
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "reasoning_tokens",
]


def snapshot(project: Project) -> list[dict[str, object]]:
    """Return all of llm_traces that must not change from run to run."""
    return project.query("select * except (transformed_at) from llm_traces order by id")


def test_the_examples_become_what_they_mean(project: Project) -> None:
    project.loader("examples", expect=1)  # two lines of the examples are no records
    project.dbt("build")

    sums = ", ".join(f"sum({name}) as {name}" for name in TOKENS)
    groups = "organization_id, provider, model"
    found = project.query(
        f"select {groups}, count() as calls, countIf(is_error) as errors, {sums}"
        f" from llm_traces group by {groups} order by {groups}"
    )
    for row in found:
        row.update({name: row[name] or 0 for name in TOKENS})
    meant = sorted(
        EXPECTED["by_organization_provider_model"],
        key=lambda row: (row["organization_id"], row["provider"], row["model"]),
    )
    names = ["organization_id", "provider", "model", "calls", "errors", *TOKENS]
    assert found == [{name: row[name] for name in names} for row in meant]

    classes = project.query(
        "select error_class, count() as calls from llm_traces where is_error group by error_class"
    )
    assert {row["error_class"]: row["calls"] for row in classes} == EXPECTED["errors_by_class"]
    assert project.value("select count() from trace_conflicts") == EXPECTED["sent_again_changed"]

    before = snapshot(project)
    assert len(before) == EXPECTED["traces"]
    project.loader("examples", expect=None)
    project.dbt("run")
    assert snapshot(project) == before


def test_all_compiles_on_a_store_that_has_nothing(embedded: Project) -> None:
    embedded.dbt("--quiet", "compile")


def test_a_trace_is_readable_before_and_after_dbt(project: Project, tmp_path: Path) -> None:
    project.dbt(*RUN)  # nothing has landed yet
    project.loader(str(write(tmp_path / "a.ndjson", [record(1), record(2)])))
    live = "select * except (transformed_at) from llm_traces_live order by id"
    waiting = project.query(live)
    assert [row["id"] for row in waiting] == ["000001", "000002"]
    assert project.value("select count() from llm_traces") == 0
    project.dbt(*RUN)
    # A cache that loses rows is off, and a join gives what the models ask for, in each session and
    # for whoever reads a view.
    for name in ("use_query_condition_cache", "join_use_nulls"):
        setting = f"select value from system.settings where name = '{name}'"
        assert project.value(setting) == "0"
        views = (
            f"select countIf(position(create_table_query, '{name} = 0') > 0), count()"
            " from system.tables where database = currentDatabase() and engine = 'View'"
        )
        assert len(set(project.query(views)[0].values())) == 1
    assert project.query(live) == waiting
    assert snapshot(project) == waiting


def test_an_id_that_comes_again_stays_what_it_was(project: Project, tmp_path: Path) -> None:
    first, other = record(7), record(7, created_at="2025-01-01T00:00:00Z", org_id="org-other")
    # Without a time of its own it has that of its landing, which is another each time.
    timeless = record(6)
    del timeless["created_at"]
    project.loader(str(write(tmp_path / "a.ndjson", [first, record(8), first, timeless])))
    project.dbt(*RUN)
    before = snapshot(project)
    project.loader(
        str(write(tmp_path / "b.ndjson", [other, record(8), record(9), record(9), timeless]))
    )
    project.dbt(*RUN)
    after = snapshot(project)
    assert [row for row in after if row["id"] != "000009"] == before
    assert [row["id"] for row in after] == ["000006", "000007", "000008", "000009"]
    conflicts = project.query(
        "select id, organization_id, differs_in from trace_conflicts order by id"
    )
    assert conflicts == [
        {"id": "000007", "organization_id": "org-other", "differs_in": ["organization"]}
    ]
    assert project.value("select count() from int_batches__pending") == 0

    # In another one's name, while a run goes on, and behind what it had to look at.
    owner = {"plan_type": "pro", "cost_source": "credits", "customer_id": "cus-other"}
    project.loader(str(write(tmp_path / "c.ndjson", [record(8, billing_context=owner)])))
    project.dbt("run", "--select", "transformed_batches")
    assert project.value("select count() from int_batches__pending") == 1
    project.dbt(*RUN, "--full-refresh")
    assert project.query(
        "select id, organization_id, differs_in from trace_conflicts order by id"
    ) == [
        *conflicts,
        {
            "id": "000008",
            "organization_id": before[2]["organization_id"],
            "differs_in": ["envelope"],
        },
    ]
    assert project.value("select count() from int_batches__pending") == 0


def test_no_shape_of_response_breaks_a_run_or_loses_a_row(project: Project, tmp_path: Path) -> None:
    bodies = [
        *("", "null", "true", "0", "-1.5e300", "123456789012345678901234567890", '""', '"text"'),
        *("[]", "{}", "[1,2,3]", "[[]]", '[{"usage":3}]', '{"usage":null}', '{"usage":{}}'),
        *('{"usage":[1]}', '{"usage":"x"}', '{"usage":7}', '{"usage":{"prompt_tokens":null}}'),
        *('{"usage":{"prompt_tokens":{"a":1}}}', '{"usage":{"prompt_tokens":-5}}'),
        *('{"usage":{"prompt_tokens":1e400}}', '{"usage":{"prompt_tokens":99999999999999999999}}'),
        *('{"usage":{"prompt_tokens":1.5}}', '{"usage":{"prompt_tokens":"12"}}'),
        *('{"error":null}', '{"error":[]}', '{"error":{"message":{"a":1}}}', '{"error":1}'),
        *(r'{"a":"\ud800"}', r'{"error":"\udfff x"}', '{"usage":NaN}', '{"seed":1E+999}'),
        '{"a":' * 900 + "1" + "}" * 900,
        '{"a":"' + "x" * 1_000_000 + '"}',
    ]
    lines = []
    for number, body in enumerate(bodies):
        response = f', "response_json": {body}' if body else ""
        lines.append(
            f'{{"id": "{number:03d}", "org_id": "o", "request_json": null{response},'
            ' "llm_config": {"model_endpoint_type": "openai", "model": "m"}}'
        )
    path = tmp_path / "hostile.ndjson"
    path.write_text("\n".join(lines))
    project.loader(str(path))
    project.dbt("build")
    assert project.value("select count() from llm_traces") == len(bodies)
    assert project.value("select uniqExact(id) from llm_traces") == len(bodies)
    stored = project.query("select id, response_json from llm_traces order by id")
    same = [row["response_json"] == bodies[int(row["id"])] for row in stored]
    assert [bodies[n] for n, kept in enumerate(same) if not kept] == ['{"usage":NaN}']


def test_the_recorded_responses_land_whole(
    project: Project, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The corpus: every line a row, none rejected, none doubled, and the share that is right."""
    project.loader(str(corpus / "traces.ndjson.gz"))
    project.dbt("run")
    assert project.value("select count() from llm_traces") == 7868
    assert project.value("select uniqExact(id) from llm_traces") == 7868
    assert project.value("select count() from raw_rejects") == 0
    columns = "id, is_error, error_type, error_message, " + ", ".join(TOKENS)
    actual = tmp_path / "actual.ndjson"
    rows = project.query(f"select {columns} from llm_traces")
    actual.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scored = subprocess.run(
        [sys.executable, corpus / "score.py", corpus / "expected.ndjson.gz", actual],
        capture_output=True,
        text=True,
        check=True,
    )
    last = scored.stdout.splitlines()[-1]
    with capsys.disabled():
        print(f"\ncorpus: {last}")
    score = {
        name: float(value)
        for name, value in zip(last.split()[::2], last.split()[1::2], strict=True)
        if value != "n/a"
    }
    assert (score["missing"], score["duplicated"]) == (0, 0)
    assert min(score["usage"], score["errors"]) >= 0.999
