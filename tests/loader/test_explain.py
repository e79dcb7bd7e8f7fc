"""Pricing end to end: a trace's cost follows it once, whatever is killed, and can be explained."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

from tests.support.project import Project

PRICED = ("--select", "+costed_batches")


def record(number: int, model: str = "gpt-4o", **changes: object) -> dict[str, object]:
    usage = {
        "prompt_tokens": 1000 + number,
        "completion_tokens": 10,
        "total_tokens": 1010 + number,
        "prompt_tokens_details": {"cached_tokens": 400},
    }
    return {
        "id": f"provider_trace-{number:06d}",
        "org_id": "org-a",
        "step_id": f"step-{number}",
        "request_json": {"messages": []},
        "response_json": {"id": "x", "model": model, "usage": usage},
        "llm_config": {"model": model, "model_endpoint_type": "openai"},
        "created_at": f"2026-11-{1 + number % 20:02d}T12:00:00Z",
    } | changes


def write(path: Path, records: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return path


def costs(project: Project) -> list[dict[str, object]]:
    return project.query(
        "select id, cost_status, toString(total_cost_usd) as total, price_ids"
        " from llm_trace_costs order by id"
    )


def test_costs_follow_traces_once_and_are_explained(project: Project, tmp_path: Path) -> None:
    project.loader("prices")
    project.dbt("seed")
    first = [record(number) for number in range(3)] + [record(3, model="no-such-model")]
    project.loader(str(write(tmp_path / "a.ndjson", first)))
    project.dbt("run", *PRICED)
    before = costs(project)
    # 600 + n uncached at 2.50, 400 cached at 1.25, 10 written at 10 USD a million
    totals = [Decimal(str(row["total"])) for row in before[:3]]
    assert totals == [Decimal("0.0021") + number * Decimal("0.0000025") for number in range(3)]
    assert (before[3]["cost_status"], before[3]["total"]) == ("unpriced", None)

    # Killed after the costs were appended and before the ledger was: nothing doubles.
    project.query("truncate table costed_batches")
    project.dbt("run", *PRICED)
    assert costs(project) == before

    # Killed between two inserts: what is missing is appended, what is there stays.
    project.query("truncate table costed_batches")
    project.query("delete from llm_trace_costs where id in ('000001', '000003')")
    project.loader(str(write(tmp_path / "b.ndjson", [record(7)])))
    project.dbt("run", *PRICED)
    assert [row["id"] for row in costs(project)] == [
        "000000",
        "000001",
        "000002",
        "000003",
        "000007",
    ]
    assert costs(project)[:4] == before
    assert project.value("select count() from int_costs__pending") == 0

    told = json.loads(
        project.loader(
            "explain", "provider_trace-000001", "--organization", "org-a", "--json"
        ).stdout
    )
    assert told["match"]["match_rule"] == "equals gpt-4o"
    amounts = [Decimal(charge["amount_usd"]) for charge in told["charges"]]
    assert sum(amounts) == Decimal(told["cost"]["total_cost_usd"])
    assert all(Decimal(charge["price"]["unit_price_usd"]) > 0 for charge in told["charges"])
    words = project.loader("explain", "000003", "--organization", "org-a").stdout
    assert "unpriced" in words
    assert "unknown" in words

    refused = project.loader("explain", "000001", "--organization", "org-b", expect=2)
    assert "Traceback" not in refused.stderr
    assert "org-b" in refused.stderr
