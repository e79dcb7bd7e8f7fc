"""The examples are what their script makes, what their README says, and nothing else.

Owns: the generator, the example files and the bills. Refuses to parse usage: whether the models
read the examples rightly is for the end-to-end test, which compares with ``expected.json``.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
FILES = ("server-2026-10-18.ndjson", "server-2026-10-25.ndjson.gz", "socket-2026-10-18.ndjson")
SERVER_KEYS = [
    "id",
    "org_id",
    "project_id",
    "agent_id",
    "run_id",
    "step_id",
    "trace_id",
    "agent_tags",
    "call_type",
    "source",
    "user_id",
    "request_json",
    "response_json",
    "llm_config",
    "compaction_settings",
    "billing_context",
    "latency_ms",
    "created_at",
]
SOCKET_KEYS = [
    "protocol_version",
    "provider_trace_id",
    "agent_id",
    "run_id",
    "step_id",
    "tags",
    "type",
    "source",
    "request",
    "response",
    "error",
    "error_type",
    "timestamp",
    "org_id",
    "user_id",
    "compaction_settings",
    "llm_config",
]


def load_generator() -> ModuleType:
    """Return ``examples/generate.py`` as a module."""
    spec = importlib.util.spec_from_file_location("examples_generate", EXAMPLES / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


generate = load_generator()


def lines_of(name: str) -> list[str]:
    """Return the lines of an example file."""
    data: bytes = generate.content(name, (EXAMPLES / name).read_bytes())
    return data.decode().splitlines()


def records_of(name: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the records of a file, and the lines that are none."""
    records, others = [], []
    for line in lines_of(name):
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if isinstance(value, dict):
            records.append(value)
        else:
            others.append(line)
    return records, others


def identity(record: dict[str, Any]) -> str:
    """Return the id of a record of either format."""
    return str(record.get("id") or record["provider_trace_id"])


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """The committed truth."""
    loaded: dict[str, Any] = json.loads((EXAMPLES / "expected.json").read_text("utf-8"))
    return loaded


@pytest.fixture(scope="module")
def first_records() -> list[dict[str, Any]]:
    """Each trace once, as it arrived first."""
    first: dict[str, dict[str, Any]] = {}
    for name in FILES:
        for record in records_of(name)[0]:
            first.setdefault(identity(record), record)
    return list(first.values())


def table(heading: str) -> list[list[str]]:
    """Return the rows of the README's table whose first heading is this."""
    text = (EXAMPLES / "README.md").read_text("utf-8")
    found = re.search(rf"^\| {heading} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert found, f"examples/README.md has no table of {heading}"
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in found[1].splitlines()]


def test_the_committed_files_are_what_the_generator_makes() -> None:
    assert generate.differing(EXAMPLES) == []


def test_two_runs_in_separate_processes_give_the_same_bytes(tmp_path: Path) -> None:
    script = str(EXAMPLES / "generate.py")
    subprocess.run([sys.executable, script, "--into", str(tmp_path)], check=True)
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    made = generate.make_files()
    assert written == set(made)
    for name, data in made.items():
        assert (tmp_path / name).read_bytes() == data


@pytest.mark.parametrize("damage", ["changed", "missing", "cut"])
def test_check_names_a_file_that_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    generate.main(["--into", str(tmp_path)])
    assert generate.main(["--into", str(tmp_path), "--check"]) == 0
    path = tmp_path / FILES[1]
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        path.write_bytes(gzip.compress(b"{}\n"))
    assert generate.main(["--into", str(tmp_path), "--check"]) == 1
    assert FILES[1] in capsys.readouterr().out


def test_the_gzip_file_has_neither_time_nor_name() -> None:
    header = (EXAMPLES / FILES[1]).read_bytes()[:10]
    assert header[3] == 0 and header[4:8] == bytes(4)


def test_files_are_small_enough_for_a_repository() -> None:
    assert sum((EXAMPLES / name).stat().st_size for name in FILES) < 900_000


@pytest.mark.parametrize("name", FILES)
def test_every_line_is_a_record_or_a_known_bad_line(name: str) -> None:
    records, others = records_of(name)
    known = [generate.CUT_LINE, generate.STRING_LINE] if name == FILES[0] else []
    assert others == known
    keys = SOCKET_KEYS if name.startswith("socket") else SERVER_KEYS
    for record in records:
        assert list(record) == keys


def test_lines_and_rejects_are_as_documented(expected: dict[str, Any]) -> None:
    rows = {row[0]: (int(row[2]), int(row[3])) for row in table("file")}
    assert set(rows) == set(FILES)
    for entry in expected["files"]:
        name = entry["file"]
        records, others = records_of(name)
        assert rows[name] == (len(records) + len(others), len(others))
        assert rows[name] == (entry["lines"], entry["rejects"])


def test_what_arrives_twice_is_as_documented(expected: dict[str, Any]) -> None:
    payloads: dict[str, list[str]] = {}
    for name in FILES:
        for record in records_of(name)[0]:
            payloads.setdefault(identity(record), []).append(json.dumps(record))
    assert len(payloads) == expected["traces"] == 399
    again = [texts for texts in payloads.values() if len(texts) > 1]
    assert Counter(len(set(texts)) for texts in again) == {
        1: expected["sent_again_unchanged"],
        2: expected["sent_again_changed"],
    }


@pytest.mark.parametrize("by", ["organization", "provider"])
def test_counts_are_as_documented(
    by: str, expected: dict[str, Any], first_records: list[dict[str, Any]]
) -> None:
    key = "organization_id" if by == "organization" else "provider"
    columns = (
        "calls",
        "errors",
        "prompt_tokens",
        "completion_tokens",
        "cached_input_tokens",
        "cache_write_tokens",
    )
    documented = [[row[0], *map(int, row[1:])] for row in table(by)]
    meant = [[row[key], *(row[name] for name in columns)] for row in expected[f"by_{by}"]]
    assert documented == meant
    seen = Counter(
        record["org_id"] if by == "organization" else record["llm_config"]["model_endpoint_type"]
        for record in first_records
    )
    assert seen == {row[0]: row[1] for row in documented}


def test_billing_contexts_and_subscriptions_cover_everyone(
    expected: dict[str, Any], first_records: list[dict[str, Any]]
) -> None:
    without = [record for record in first_records if not record.get("billing_context")]
    assert len(first_records) - len(without) == expected["with_billing_context"]
    rows = [line.split(",") for line in (EXAMPLES / "subscriptions.csv").read_text().splitlines()]
    assert rows[0] == ["organization_id", "plan_type", "cost_source", "customer_id", "valid_from"]
    assert {record["org_id"] for record in without} == {row[0] for row in rows[1:]}
    starts = [row[4] for row in rows[1:] if row[0] == "org-initech"]
    assert starts[0] < "2026-10-18" < starts[1] < "2026-10-31"


def test_traces_lie_within_the_fortnight(
    expected: dict[str, Any], first_records: list[dict[str, Any]]
) -> None:
    seen = Counter(
        (record.get("created_at") or record["timestamp"])[:10] for record in first_records
    )
    assert dict(seen) == {row["date"]: row["calls"] for row in expected["by_date"]}
    assert len(seen) == 14 and min(seen) == "2026-10-18" and max(seen) == "2026-10-31"


def test_meant_tokens_hold_together() -> None:
    for trace in generate.make_traces():
        usage = trace.usage
        assert usage.prompt + usage.completion == usage.total
        assert (usage.cached or 0) + usage.written <= usage.prompt
        assert (usage.reasoning or 0) <= usage.completion
        if trace.fault:
            assert usage == generate.Usage()


def test_the_small_price_table_agrees_with_the_price_list() -> None:
    prices = pytest.importorskip("genai_prices")
    names = {"google_ai": "google", "xai": "x-ai"}
    usage = generate.Usage(9000, 700, 9700, cached=2000, written_5m=1500, written_1h=500)
    for (provider, model), row in generate.PRICES.items():
        call = generate.Usage(
            usage.prompt,
            usage.completion,
            usage.total,
            cached=usage.cached if row[1] else None,
            written_5m=usage.written_5m if row[2] else None,
            written_1h=usage.written_1h if row[3] else None,
        )
        # the package's own count of writes holds both lives
        units: dict[str, int] = {
            "input_tokens": call.prompt,
            "output_tokens": call.completion,
            "cache_read_tokens": call.cached or 0,
            "cache_write_tokens": call.written,
        }
        if call.written_1h:
            units["cache_write_1h_tokens"] = call.written_1h
        for day in (18, 31):
            answer = prices.calc_price(
                prices.Usage(**units),
                model,
                provider_id=names.get(provider, provider),
                genai_request_timestamp=datetime(2026, 10, day, 12, tzinfo=UTC),
            )
            ours = sum(generate.charges(provider, model, call).values(), Decimal(0))
            assert ours == answer.total_price, (provider, model, day)


def test_models_said_to_be_unpriced_are() -> None:
    prices = pytest.importorskip("genai_prices")
    for provider, model in (("openai", "acme-support-v2"), ("ollama", "llama3.1:8b")):
        with pytest.raises(LookupError):
            prices.calc_price(prices.Usage(input_tokens=1), model, provider_id=provider)


def list_cost(expected: dict[str, Any], provider: str) -> dict[str, Decimal]:
    """Return the expected list-price cost of a provider by day, customers' keys left out."""
    return {
        row["date"]: Decimal(row["list_cost_usd"])
        for row in expected["list_cost_without_byok"]
        if row["provider"] == provider
    }


def test_the_openai_bill_differs_by_one_price_and_one_unknown_model(
    expected: dict[str, Any],
) -> None:
    text = (EXAMPLES / "bills/openai-costs.json").read_text()
    page = json.loads(text, parse_float=Decimal)
    differences = {}
    for bucket in page["data"]:
        day = datetime.fromtimestamp(bucket["start_time"], UTC).date().isoformat()
        billed = sum((row["amount"]["value"] for row in bucket["results"]), Decimal(0))
        known = [row for row in bucket["results"] if "acme-support-v2" not in row["line_item"]]
        unknown = billed - sum((row["amount"]["value"] for row in known), Decimal(0))
        rest = billed - unknown - list_cost(expected, "openai").get(day, Decimal(0))
        if rest:
            differences[day] = rest
        if unknown:
            assert unknown == Decimal("0.0043")
    assert len(page["data"]) == 14
    assert list(differences) == ["2026-10-27"] and differences["2026-10-27"] > 0


def test_the_anthropic_bill_lacks_one_day(expected: dict[str, Any]) -> None:
    page = json.loads((EXAMPLES / "bills/anthropic-cost-report.json").read_text())
    billed = {
        bucket["starting_at"][:10]: sum(
            (Decimal(row["amount"]) for row in bucket["results"]), Decimal(0)
        )
        / 100
        for bucket in page["data"]
    }
    ours = list_cost(expected, "anthropic")
    assert ours.pop("2026-10-22") > 0
    assert "2026-10-22" not in billed and len(billed) == 13
    assert {day: amount for day, amount in billed.items() if amount} == ours


def test_the_plain_bill_has_one_line_without_traces(expected: dict[str, Any]) -> None:
    rows = (EXAMPLES / "bills/other-providers.csv").read_text().splitlines()
    assert rows[0] == "date,provider,model,amount_usd"
    extra = [row for row in rows[1:] if "rerank" in row]
    assert extra == ["2026-10-29,cohere,rerank-v3.5,0.042000"]
    for row in rows[1:]:
        day, provider, _, amount = row.split(",")
        if row not in extra:
            ours = list_cost(expected, provider)[day]
            assert abs(Decimal(amount) - ours) <= Decimal("0.0000005")
