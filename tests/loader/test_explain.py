"""Pricing end to end: a trace's cost follows it once, whatever is killed, and can be explained."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

from loader.explain import _COST_COLUMNS, _MATCH_COLUMNS, _PRICE_COLUMNS, _TRACE_COLUMNS, _as_text
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


def test_what_a_terminal_would_obey_is_escaped() -> None:
    """Ids and models are what a trace says they are."""
    evil = "a\x1b]0;owned\x07\x1b[2J\r\n\x9b2Jb"
    price = dict.fromkeys(_PRICE_COLUMNS, evil) | {"valid_from": None}
    charge = {"unit": evil, "quantity": 1, "unit_price_usd": None, "amount_usd": None}
    told: dict[str, Any] = {
        "trace": dict.fromkeys(_TRACE_COLUMNS, evil),
        "cost": dict.fromkeys(_COST_COLUMNS, evil),
        "match": dict.fromkeys(_MATCH_COLUMNS, evil),
        "charges": [charge | {"price_id": evil, "price": price}],
    }
    for name in _TRACE_COLUMNS:
        if name.endswith(("_tokens", "_requests")):
            told["trace"][name] = None
    money = ("total_cost_usd", "billable_cost_usd", "provider_reported_cost_usd")
    told["cost"] |= dict.fromkeys((*money, "tier_start")) | {
        "unpriced_units": [{"unit": evil, "quantity": 1}]
    }
    for each in (told, told | {"cost": None}):
        lines = _as_text(each).split("\n")
        assert all(line.isprintable() for line in lines)
        assert lines[0].startswith("trace a\\u001b]0;owned\\u0007")
        assert "owned" in lines[1]


def test_a_book_that_lands_within_a_run_prices_the_next(project: Project, tmp_path: Path) -> None:
    project.dbt("run", *PRICED)
    project.loader(str(write(tmp_path / "a.ndjson", [record(0), record(1)])))
    project.dbt("run", "--select", "+llm_price_matches")
    project.loader("prices")
    project.dbt("run", "--select", "llm_trace_costs", "costed_batches")
    assert costs(project) == []
    assert project.value("select count() from costed_batches") == 0
    refused = project.dbt("run", "--full-refresh", "--select", "llm_trace_costs", expect=1)
    assert "1 models were not matched by the chosen price book yet" in refused.stdout
    project.dbt("run", *PRICED)
    assert [row["cost_status"] for row in costs(project)] == ["priced", "priced"]


def test_history_is_priced_again_by_a_chosen_book_after_a_look_at_the_difference(
    project: Project, tmp_path: Path
) -> None:
    records = [record(0), record(1), record(2, "gpt-4o-mini"), record(3, "no-such-model")]
    project.loader(str(write(tmp_path / "a.ndjson", records)))
    project.loader("prices")
    project.dbt("run", "--select", "+costed_batches", "llm_price_changes")
    first = project.value("select any(price_book_version) from llm_trace_costs")
    before = costs(project)
    assert project.query("select * from llm_price_changes") == []

    # A later book, in which one model costs twice as much.
    project.query(
        "insert into raw_price_rules select * replace('later' as price_book_version) from"
        " raw_price_rules"
    )
    project.query(
        "insert into raw_prices select * replace('later' as price_book_version,"
        " (unit_price_usd * if(model = 'gpt-4o', 2, 1))::Decimal(38, 24) as unit_price_usd)"
        " from raw_prices"
    )
    project.query(
        "insert into raw_price_books select * replace('later' as price_book_version,"
        " now64(3) as landed_at) from raw_price_books"
    )
    project.dbt("run", "--select", "llm_price_matches", "llm_trace_costs", "llm_price_changes")
    assert costs(project) == before
    changes = project.query(
        "select toString(usage_date) as day, provider, model, old_price_book_versions as old,"
        " new_price_book_version as new, calls_changed, toString(old_cost_usd) as was,"
        " toString(new_cost_usd) as becomes, toString(difference_usd) as difference"
        " from llm_price_changes order by day"
    )
    assert [(row["day"], row["model"], row["calls_changed"]) for row in changes] == [
        ("2026-11-01", "gpt-4o", 1),
        ("2026-11-02", "gpt-4o", 1),
    ]
    assert {(tuple(row["old"]), row["new"]) for row in changes} == {((first,), "later")}
    for row in changes:
        assert Decimal(row["becomes"]) == 2 * Decimal(row["was"]) != 0
        assert Decimal(row["difference"]) == Decimal(row["was"])

    published = ("run", "--select", "llm_trace_costs", "--full-refresh")
    project.dbt(*published)
    assert [row["total"] for row in costs(project)] != [row["total"] for row in before]
    assert project.query("select * from llm_price_changes") == []
    chosen = ("--vars", f"{{price_book_version: {first}}}")
    project.dbt(*published, *chosen)
    assert costs(project) == before

    # A model that came later is not matched by the first book: its costs would be left out.
    project.loader(str(write(tmp_path / "b.ndjson", [record(4, "gpt-4.1")])))
    project.dbt("run", "--select", "+costed_batches")
    refused = project.dbt(*published, *chosen, expect=1)
    assert "1 models were not matched by the chosen price book yet" in refused.stdout
    assert len(costs(project)) == 5
    project.dbt("run", "--select", "llm_price_matches", *chosen)
    project.dbt(*published, *chosen)
    assert costs(project)[:4] == before
    assert costs(project)[4]["cost_status"] == "priced"
