"""What the recorded responses cost, beside what they should and what their providers said."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.support.project import Project

NEAR = Decimal("1e-9")

# Costs that are ours on purpose, by case; docs/costs.md says why, one by one.
OURS = {
    **dict.fromkeys(
        ("openai-14ade55073", "openai-ae36ff2bcb", "openai-c6a3f79d82", "openai-ed59b472c9"),
        "all of the prompt is sound, which the book prices apart",
    ),
    "googleai-dcd7bcd321": "most of the prompt is a picture, which the book prices apart",
}

# Providers whose statements hold more than list prices; docs/costs.md has a row for each class.
MORE_THAN_LIST_PRICES = {"azure", "openrouter", "perplexity", "xai"}


def expected_rows(corpus: Path) -> dict[str, dict[str, Any]]:
    """Return what is known of each trace; numbers as they were written, none a float."""
    with gzip.open(corpus / "expected.ndjson.gz", "rt") as lines:
        rows = (json.loads(line, parse_float=Decimal) for line in lines)
        return {row["id"]: row for row in rows}


def money(value: Any) -> Decimal | None:
    return None if value is None else Decimal(value)


def near(one: Decimal | None, other: Decimal | None) -> bool:
    return one is not None and other is not None and abs(one - other) <= NEAR


def test_the_recorded_responses_cost_what_they_should(
    project: Project, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project.loader(str(corpus / "traces.ndjson.gz"))
    project.loader("prices")
    # With the data tests that need no more than this: charges sum to the total, and so on.
    project.dbt("build", "--select", "+llm_trace_costs", "--indirect-selection", "cautious")
    costs = {
        row["id"]: row
        for row in project.query(
            "select id, cost_status, toString(total_cost_usd) as total,"
            " toString(provider_reported_cost_usd) as reported from llm_trace_costs"
        )
    }
    expected = expected_rows(corpus)
    assert costs.keys() == expected.keys()

    known = {
        id: Decimal(row["expected_cost_usd"])
        for id, row in expected.items()
        if row["expected_cost_usd"] is not None
    }
    missed = {
        expected[id]["case_id"] for id in known if not near(money(costs[id]["total"]), known[id])
    }
    share = Decimal(len(known) - len(missed)) / len(known)

    # A shape in which a server stores a response says what the response itself does, or nothing.
    by_case = {
        row["case_id"]: money(row["provider_reported_cost_usd"]) for row in expected.values()
    }
    read, misread = 0, []
    for id, row in expected.items():
        own, ours = money(row["provider_reported_cost_usd"]), money(costs[id]["reported"])
        if own is None and ours is None:
            continue
        if near(ours, by_case[row["case_id"].split("-letta_")[0]] if own is None else own):
            read += 1
        else:
            misread.append(id)

    agreeing: Counter[str] = Counter()
    stated: Counter[str] = Counter()
    disagreeing = []
    for id, row in costs.items():
        if row["reported"] is None or row["cost_status"] not in ("priced", "partly_priced"):
            continue
        provider = expected[id]["provider"]
        agrees = near(money(row["total"]), money(row["reported"]))
        stated[provider] += 1
        agreeing[provider] += agrees
        if not agrees:
            disagreeing.append(id)
    with capsys.disabled():
        print(f"\ncorpus costs: {len(known) - len(missed)} of {len(known)}, {share:.5f}")
        print(
            f"corpus statements: {read} read, {len(misread)} wrong; equal to ours: "
            + ", ".join(f"{name} {agreeing[name]} of {stated[name]}" for name in sorted(stated))
        )

    assert share >= Decimal("0.999")
    assert missed == set(OURS)
    assert not misread
    # Where a statement and a list price are both sure, they are one. A 0 beside a list price says
    # that another one sends the bill.
    assert not [id for id in disagreeing if id in known and money(costs[id]["reported"]) != 0]
    assert {expected[id]["provider"] for id in disagreeing} <= MORE_THAN_LIST_PRICES
