"""Providers' bills: read exactly, landed once, and laid beside what was used."""

from __future__ import annotations

import json
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from loader.bills import read_bill, read_formats
from loader.documents import object_of
from loader.errors import SourceError
from loader.settings import Settings
from loader.sources import find_sources
from tests.support.project import ROOT, Project

BILLS = ROOT / "examples" / "bills"
# What is built on llm_traces, and its data tests.
MONEY = ("--exclude", "llm_traces_live", "--exclude-resource-type", "unit_test")


def read(tmp_path: Path, text: str, provider: str | None = None) -> list[tuple]:
    """Read a bill; return provider, begin, model, line item and amount of each line."""
    file = tmp_path / "bill"
    file.write_text(text)
    ((source,), _) = find_sources([str(file)])
    periods = read_bill(source, Settings(), read_formats(), provider)
    return [
        (line.provider, f"{line.starts_at:%Y-%m-%dT%H}", *line.texts[1:3], line.amount_usd)
        for period in periods
        for line in period.lines
    ]


def page(value: str, start: int = 1792281600) -> str:
    return (
        f'{{"object": "page", "data": [{{"object": "bucket", "start_time": {start}, "end_time": '
        f'{start + 86400}, "results": [{{"amount": {{"value": {value}, "currency": "usd"}}, '
        '"line_item": "m, input", "project_id": null}]}]}'
    )


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("0.1", "0.1"),
        ("1e-7", "0.0000001"),
        ("0.06999999999999999", "0.07"),
        ('"12345678901234.123456789012"', "12345678901234.123456789012"),
        ("-3", "-3"),
    ],
)
def test_amounts_are_exact_to_twelve_decimals(tmp_path: Path, written: str, meant: str) -> None:
    assert read(tmp_path, page(written)) == [
        ("openai", "2026-10-18T00", "", "m, input", Decimal(meant))
    ]


def test_cents_are_cents(tmp_path: Path) -> None:
    text = json.dumps(
        {
            "data": [
                {
                    "starting_at": "2026-10-18T02:00:00+02:00",
                    "ending_at": "2026-10-19T00:00:00Z",
                    "results": [{"currency": "USD", "amount": "123.45", "model": "m"}],
                }
            ],
            "has_more": False,
        }
    )
    assert read(tmp_path, text) == [("anthropic", "2026-10-18T00", "m", "", Decimal("1.2345"))]


def test_pages_may_follow_each_other_or_stand_in_a_list(tmp_path: Path) -> None:
    pages = [page("1"), page("2", 1792368000), '{"object": "page", "data": []}']
    lines = read(tmp_path, "\n".join(pages))
    assert [line[1] for line in lines] == ["2026-10-18T00", "2026-10-19T00"]
    assert read(tmp_path, f"[{', '.join(pages)}]") == lines


def test_a_day_in_two_formats_is_refused(tmp_path: Path) -> None:
    """One would be taken for a correction of the other."""
    other = {
        "starting_at": "2026-10-18T00:00:00Z",
        "results": [{"amount": "500", "currency": "USD", "description": "b"}],
    }
    both = page("1") + json.dumps({"data": [other]})
    assert len(read(tmp_path, both)) == 2, "of two providers"
    said = "gateway charges for 2026-10-18 in two formats, anthropic_cost_report and openai_org"
    with pytest.raises(SourceError, match=said):
        read(tmp_path, both, "gateway")
    other["results"] = []
    assert len(read(tmp_path, page("1") + json.dumps({"data": [other]}), "gateway")) == 1


def test_a_table_names_its_provider_or_the_caller_does(tmp_path: Path) -> None:
    named = "date,provider,model,amount_usd\n2026-10-18,p,m,1.5\n"
    assert read(tmp_path, named) == [("p", "2026-10-18T00", "m", "", Decimal("1.5"))]
    assert read(tmp_path, "amount_usd,date\n2,2026-10-18\n", "q")[0][0] == "q"


def test_a_page_that_stands_twice_is_refused(tmp_path: Path) -> None:
    empty = '{"object": "page", "data": []}'
    pages = [page("1"), empty, page("2", 1792368000), page("1").replace(": ", ":"), empty]
    for text in ("\n".join(pages), f"[{', '.join(pages)}]"):
        said = r"page 4, data\[0\].results\[0\] is a line of 2026-10-18 that page 1, data\[0\] has"
        with pytest.raises(SourceError, match=said + ".*Nothing of it was"):
            read(tmp_path, text)
    again = json.loads(pages[3]) | {"has_more": True, "next_page": "another token"}
    again["data"].insert(0, json.loads(page("3", 1792454400))["data"][0])
    with pytest.raises(SourceError, match=r"page 2, data\[1\].* that page 1, data\[0\] has"):
        read(tmp_path, page("1") + json.dumps(again))
    del pages[3]
    assert len(read(tmp_path, "\n".join(pages))) == 2, "a page without a day charges nothing"


def test_a_day_that_was_fetched_twice_is_refused_though_its_amounts_differ(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"page 2, data\[0\].* that page 1, data\[0\] has"):
        read(tmp_path, page("3.00") + page("4.00"))
    part = page("4.00").replace('"project_id": null', '"project_id": "p"')
    assert len(read(tmp_path, page("3.00") + part)) == 2, "a day may be exported in parts"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("date,amount_usd\n2026-10-18,1\n", "line 2: no provider is named"),
        ("date,provider,amount_usd\n2026-10-18,p,1.2.3\n", "line 2: amount_usd is no amount"),
        ("date,provider,amount_usd\n2026-10-18,p,1_0\n", "line 2: amount_usd is no amount"),
        ("date,provider,amount_usd\n2026-10-18,p,NaN\n", "line 2: amount_usd is no amount"),
        ("date,provider,amount_usd\n2026-10-18,p,1e60\n", "line 2: amount_usd is no amount"),
        ("date,provider,amount_usd\n18.10.2026,p,1\n", "line 2: date is no time"),
        ("date,provider,amount_usd\n2026-10-18,p\n", "line 2: 2 cells instead of 3"),
        ("date,provider,amount_usd,cost\n2026-10-18,p,1,1\n", "line 1: the columns may be"),
        ("a,b\n1,2\n", "line 1: no bill of a known format"),
        ('{"object": "list"}', "page 1: no bill of a known format"),
        ('{"object": "page", "data": {}}', "no list of objects"),
        ('{"object": "page", "data": null}', "no list of objects"),
        (page("true"), "page 1, data[0].results[0]: amount.value is no text and no number"),
        (page("null"), "page 1, data[0].results[0]: amount.value is missing"),
        (page("1").replace('"usd"', '"eur"'), "the currency is eur"),
        (page("1")[:-2], "Expecting"),
        (page("1").replace('"usd"', '"usd", "value": 2'), "the key value stands twice"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_a_bill_that_is_not_whole_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SourceError) as caught:
        read(tmp_path, text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bill_nested_however_deep_is_read_or_refused(tmp_path: Path) -> None:
    outcomes = set()
    for depth in range(sys.getrecursionlimit() - 300, sys.getrecursionlimit() + 10):
        nested = "[" * depth + "]" * depth
        try:
            read(tmp_path, page("1").replace('"usd"', f'"usd", "x": {nested}'))
        except SourceError as error:
            assert "nested too deep" in str(error)
            outcomes.add("refused")
        else:
            outcomes.add("read")
    assert outcomes == {"read", "refused"}


def test_the_key_that_stands_twice_is_found_in_one_pass() -> None:
    compared = 0

    class Key(str):
        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    keys = [Key(number) for number in (*range(2000), 1999)]
    with pytest.raises(ValueError, match="stands twice"):
        object_of([(key, 1) for key in keys])
    assert compared < 10 * len(keys)


def test_a_broken_file_among_others_lands_nothing(project: Project, tmp_path: Path) -> None:
    broken = tmp_path / "broken.csv"
    broken.write_text("date,amount_usd\n2026-10-18,1\n")
    project.loader("bills", str(BILLS / "other-providers.csv"), str(broken), expect=2)
    if "CHDB_PATH" in project.env:
        assert not Path(project.env["CHDB_PATH"]).exists()
    else:
        with pytest.raises(AssertionError, match="does not exist"):
            project.query("select 1")


def emptied(text: str) -> str:
    """Take the lines out of each bucket."""
    document = json.loads(text)
    for bucket in document["data"]:
        bucket["results"] = []
    return json.dumps(document)


def test_a_bucket_without_lines_says_so_where_no_other_page_has_some(tmp_path: Path) -> None:
    nothing = ("openai", "2026-10-18T00", "", "", Decimal(0))
    assert read(tmp_path, emptied(page("1"))) == [nothing]
    lines = read(tmp_path, page("1"))
    assert read(tmp_path, emptied(page("1")) + page("1")) == lines
    assert read(tmp_path, page("1") + emptied(page("1"))) == lines
    (unlisted,) = json.loads(page("1"))["data"]
    del unlisted["results"]
    unlisted["result"] = [{"amount": {"value": 1, "currency": "usd"}}]
    with pytest.raises(SourceError, match=r"data\[0\]: results, the list of what.*is missing"):
        read(tmp_path, json.dumps({"object": "page", "data": [unlisted]}))


def test_a_bill_that_is_corrected_to_nothing_charges_nothing(
    embedded: Project, tmp_path: Path
) -> None:
    def land(text: str, *more: str) -> list[int]:
        """Land a bill; return new periods and lines, periods already there and emptied."""
        file = tmp_path / "bill.json"
        file.write_text(text)
        return list(
            json.loads(embedded.loader("bills", str(file), "--json", *more).stdout).values()
        )

    two_days = page("1") + page("2", 1792368000)
    embedded.dbt("seed", "--select", "bill_units")
    assert land(emptied(page("9"))) == [0, 0, 0, 0], "it was never charged: nothing to say"
    assert land(two_days) == [2, 2, 0, 0]
    assert land(emptied(page("9"))) == [0, 0, 0, 1]
    assert land(emptied(page("9"))) == [0, 0, 0, 0]
    embedded.dbt("run", "--select", "stg_bills__lines")
    amounts = "select toFloat64(amount_usd) as usd from stg_bills__lines order by usage_date"
    assert embedded.query(amounts) == [{"usd": 2}]
    assert land(two_days) == [0, 0, 2, 0]
    assert embedded.query(amounts) == [{"usd": 2}]
    assert land(two_days, "--restate") == [1, 1, 1, 0]
    assert embedded.query(amounts) == [{"usd": 1}, {"usd": 2}]


def test_the_bills_of_the_examples_differ_where_they_are_meant_to(project: Project) -> None:
    project.loader("examples", expect=1)
    project.loader("prices")
    project.loader("billing", str(ROOT / "examples" / "subscriptions.csv"))
    files = [str(path) for path in sorted(BILLS.iterdir())]
    project.loader("bills", *files)
    again = project.loader("bills", *files, "--json")
    assert json.loads(again.stdout) == {
        "periods": 0,
        "lines": 0,
        "periods_already_there": 62,
        "periods_emptied": 0,
    }

    project.dbt("build", *MONEY)
    differing = project.query(
        "select usage_date, provider, model, class from provider_bill_reconciliation"
        " where level = 'model' and class != 'within_tolerance' and provider in"
        " ('openai', 'anthropic', 'cohere', 'groq', 'mistral', 'xai', 'google_ai')"
        " order by usage_date, provider, model"
    )
    found = [tuple(row.values()) for row in differing]
    assert ("2026-10-22", "anthropic", "claude-sonnet-4-5", "no_bill") in found
    assert ("2026-10-27", "openai", "gpt-4.1", "price") in found
    assert ("2026-10-29", "cohere", "rerank-v3.5", "no_traces") in found
    # Priced by an override or by nothing: either way it is not the list price.
    rest = [row[:3] for row in found if row[3] in ("price", "unpriced")]
    assert rest == [
        ("2026-10-27", "openai", "acme-support-v2"),
        ("2026-10-27", "openai", "gpt-4.1"),
    ]
    (line,) = project.query(
        "select unit, theirs_usd, ours_usd from provider_bill_reconciliation"
        " where level = 'line_item' and class = 'price' and model = 'gpt-4.1'"
    )
    assert line["unit"] == "output_tokens"
    assert Decimal(line["theirs_usd"]) == Decimal(line["ours_usd"]) * Decimal("1.25")

    # The bill comes again, corrected: of that day only the new one holds.
    corrected = project.folder / "corrected.csv"
    corrected.write_text("date,provider,model,amount_usd\n2026-10-29,cohere,rerank-v3.5,0.5\n")
    project.loader("bills", str(corrected))
    day = "where provider = 'cohere' and usage_date = '2026-10-29'"
    assert project.query(f"select toString(amount_usd) as usd from stg_bills__lines {day}") == [
        {"usd": "0.5"}
    ]
    # The old file does not undo it, unless it is to.
    project.loader("bills", str(BILLS / "other-providers.csv"))
    assert project.value(f"select toString(sum(amount_usd)) from stg_bills__lines {day}") == "0.5"
    project.loader("bills", str(BILLS / "other-providers.csv"), "--restate")
    assert project.value(f"select toString(sum(amount_usd)) from stg_bills__lines {day}") == "0.042"
