"""Subscriptions: landed once, corrected by rows more, and what they do to money that is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.project import Project

# What is built on llm_traces, and its data tests.
MONEY = ("--exclude", "llm_traces_live", "--exclude-resource-type", "unit_test")


def write(path: Path, *records: dict[str, object]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def subscription(
    plan: str | None, valid_from: str = "2026-10-01T00:00:00Z", **more: object
) -> dict:
    return {"organization_id": "o", "plan_type": plan, "valid_from": valid_from} | more


def plans(project: Project) -> list[str]:
    """Return the plans in the order in which they were known."""
    rows = project.query("select plan_type from raw_billing_accounts order by known_at, line")
    return [row["plan_type"] for row in rows]


def test_ndjson_and_csv_say_the_same(project: Project, tmp_path: Path) -> None:
    csv = tmp_path / "a.csv"
    csv.write_text(
        "organization_id,plan_type,cost_source,customer_id,valid_from\n"
        'o,pro,"credits",,2026-10-25T02:00:00+02:00\n\n'
    )
    project.loader("billing", str(csv))
    record = subscription("pro", "2026-10-25T00:00:00Z", cost_source="credits", customer_id=None)
    done = project.loader("billing", write(tmp_path / "a.ndjson", record), "--json")
    assert json.loads(done.stdout) == {"landed": 0, "already_there": 1, "rejected": 0}
    (row,) = project.query(
        "select plan_type, customer_id, toString(valid_from) as at from raw_billing_accounts"
    )
    assert row == {"plan_type": "pro", "customer_id": None, "at": "2026-10-25 00:00:00.000000"}


def test_a_correction_is_a_row_more_and_an_old_file_does_not_undo_it(
    project: Project, tmp_path: Path
) -> None:
    old = write(tmp_path / "old.ndjson", subscription("free"))
    new = write(tmp_path / "new.ndjson", subscription("pro"))
    for file in (old, new, old, new, old):
        project.loader("billing", file)
    assert plans(project) == ["free", "pro"]
    for _ in range(2):
        project.loader("billing", old, "--restate")
    assert plans(project) == ["free", "pro", "free"]


def test_two_changes_at_one_instant_keep_their_order(project: Project, tmp_path: Path) -> None:
    file = write(tmp_path / "a.ndjson", subscription("first"), subscription("second"))
    project.loader("billing", file)
    project.loader("billing", file, "--restate")
    assert plans(project) == ["first", "second"]
    again = write(tmp_path / "b.ndjson", *map(subscription, ("first", "third", "first")))
    for _ in range(2):
        project.loader("billing", again)
    assert plans(project) == ["first", "second", "third", "first"], "the lower line holds"
    earlier = subscription("trial") | {"known_at": "2026-01-01T00:00:00Z"}
    project.loader("billing", write(tmp_path / "a.ndjson", earlier, subscription("second")))
    assert plans(project) == ["trial", "first", "second", "third", "first"], "nothing is undone"


def test_what_is_known_is_said_by_the_record_where_it_says_so(
    project: Project, tmp_path: Path
) -> None:
    late = subscription("late", known_at="2026-10-03T00:00:00Z")
    early = subscription("early", known_at="2026-10-02T00:00:00Z")
    project.loader("billing", write(tmp_path / "a.ndjson", late))
    project.loader("billing", write(tmp_path / "b.ndjson", early))
    assert plans(project) == ["early", "late"]


def test_an_id_with_a_blank_more_is_another(project: Project, tmp_path: Path) -> None:
    ids = ["o", "o ", "\u00a0o", "\to"]
    lines = [
        {"organization_id": name, "valid_from": "2026-10-01", "customer_id": f"c{name}"}
        for name in ids
    ]
    project.loader("billing", write(tmp_path / "a.ndjson", *lines))
    rows = project.query("select organization_id as id, customer_id from raw_billing_accounts")
    assert sorted(row["id"] for row in rows) == sorted(ids)
    assert all(row["customer_id"] == "c" + row["id"] for row in rows)

    csv = tmp_path / "a.csv"
    csv.write_text("organization_id, valid_from,plan_type\no , 2026-11-01,p\np, 2026-11-01, p\n")
    done = project.loader("billing", str(csv), expect=1)
    assert f"{csv}:2: organization_id has blanks around it" in done.stderr
    (row,) = project.query(
        "select plan_type from raw_billing_accounts where valid_from > '2026-10-02'"
    )
    assert row == {"plan_type": "p"}


def test_of_two_files_that_name_one_time_the_one_that_landed_later_holds(
    project: Project, tmp_path: Path
) -> None:
    """So that an older file, landed again with --restate, does hold again."""
    known = {"known_at": "2026-10-02T00:00:00Z"}
    first = write(
        tmp_path / "a.ndjson", subscription("other", "2026-09-01"), subscription("first", **known)
    )
    second = write(tmp_path / "b.ndjson", subscription("second", **known))
    for file in (first, second):
        project.loader("billing", file)
    said = project.loader("billing", second, "--restate", "--json").stdout
    assert json.loads(said)["landed"] == 0, "it holds"
    project.loader("billing", first, "--restate")
    assert plans(project)[-1] == "first"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"organization_id": "o"}', "both needed"),
        ('{"organization_id": "", "valid_from": "2026-10-01"}', "both needed"),
        (
            '{"organization_id": "a", "valid_from": "2026-10-01", "organization_id": "b"}',
            "the key organization_id stands twice",
        ),
        ('{"organization_id": "o", "valid_from": "soon"}', "valid_from is no time"),
        ('{"organization_id": "o", "valid_from": "2026-13-01"}', "is no time"),
        ('{"organization_id": "o", "valid_from": "2026-10-01", "plan": "x"}', "unknown key plan:"),
        (
            '{"organization_id": "o", "valid_from": "2026-10-01", "known_at": "2199-01-01"}',
            "future",
        ),
        ('{"organization_id": ["o"], "valid_from": "2026-10-01"}', "is no text"),
        ('{"organization_id": "\\ud800", "valid_from": "2026-10-01"}', "surrogate"),
        ('{"organization_id": ', "no JSON"),
    ],
)
def test_a_bad_record_is_named_and_the_others_land(
    project: Project, tmp_path: Path, line: str, said: str
) -> None:
    file = tmp_path / "a.ndjson"
    file.write_text(f"{json.dumps(subscription('pro'))}\n{line}\n")
    done = project.loader("billing", str(file), expect=1)
    assert f"{file}:2: " in done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert plans(project) == ["pro"]


def test_a_header_that_does_not_fit_lands_nothing(project: Project, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("organization_id,valid_from,plan\no,2026-10-01,pro\n")
    done = project.loader("billing", str(file), expect=2)
    assert f"{file}:1: the header is" in done.stderr


def trace(number: int, day: str, **more: object) -> dict[str, object]:
    usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
    return {
        "id": f"t{number}",
        "org_id": "o",
        "request_json": {"model": "gpt-4o"},
        "response_json": {"id": "x", "model": "gpt-4o-2024-08-06", "usage": usage},
        "llm_config": {"model": "gpt-4o", "model_endpoint_type": "openai"},
        "created_at": day,
    } | more


DAILY = (
    "select * except (day_fingerprint) from llm_costs_daily"
    " order by usage_date, billing_plan_type, model"
)


def test_money_follows_late_traces_and_late_corrections_and_rests_otherwise(
    project: Project, tmp_path: Path
) -> None:
    """Days that changed are built again, and no others; months that vanish leave nothing behind."""
    own = {"plan_type": "own", "cost_source": "credits", "customer_id": "c"}
    first = [
        trace(1, "2026-09-30T22:30:00Z"),
        trace(2, "2026-10-02T12:00:00Z"),
        trace(3, "2026-10-03T12:00:00Z", billing_context=own),
    ]
    project.loader(write(tmp_path / "a.ndjson", *first))
    project.loader("prices")
    project.dbt("run")
    before = project.query(DAILY)
    assert [(row["usage_date"], row["calls"], row["billing_source"]) for row in before] == [
        ("2026-09-30", 1, "none"),
        ("2026-10-02", 1, "none"),
        ("2026-10-03", 1, "trace"),
    ]
    parts = (
        "select name, modification_time from system.parts where active and table = {table:String}"
    )
    untouched = project.query(parts, table="llm_costs_daily")
    project.dbt("run")
    assert project.query(DAILY) == before
    assert project.query(parts, table="llm_costs_daily") == untouched

    # A trace that comes late, and a subscription that should have been known.
    project.loader(write(tmp_path / "late.ndjson", trace(4, "2026-10-03T13:00:00Z")))
    known = subscription("pro", "2026-10-02T00:00:00Z", cost_source="quota", customer_id="c")
    project.loader("billing", write(tmp_path / "s.ndjson", known))
    project.dbt("run")
    rows = project.query(DAILY)
    assert [(row["usage_date"], row["calls"], row["billing_plan_type"]) for row in rows] == [
        ("2026-09-30", 1, None),
        ("2026-10-02", 1, "pro"),
        ("2026-10-03", 1, "own"),
        ("2026-10-03", 1, "pro"),
    ]
    # llm_traces keeps what was known when each was transformed; what comes after knows more.
    stored = project.query("select id, billing_source from llm_traces order by id")
    assert [row["billing_source"] for row in stored] == ["none", "none", "trace", "subscription"]
    kept = project.query(
        "select usage_date, day_fingerprint from llm_costs_daily where usage_date < '2026-10-01'"
    )

    # In Berlin the first call is October's: September has nothing left.
    vars_ = ("--vars", "reporting_time_zone: Europe/Berlin")
    project.dbt("build", *MONEY, *vars_)
    days = [row["usage_date"] for row in project.query(DAILY)]
    assert days == ["2026-10-01", "2026-10-02", "2026-10-03", "2026-10-03"]
    assert len(kept) == 1


def test_a_day_that_was_cut_short_is_built_again(project: Project, tmp_path: Path) -> None:
    """A first run that is killed leaves part of its rows: REGRESSIONS of empty and half tables."""
    traces = [trace(n, f"2026-10-{1 + n % 3:02d}T12:00:00Z", agent_id=f"a{n}") for n in range(9)]
    project.loader(write(tmp_path / "a.ndjson", *traces))
    project.dbt("run")
    whole = project.query(DAILY)
    project.query(
        "alter table llm_costs_daily delete where agent_id = 'a4' settings mutations_sync=2"
    )
    project.query("truncate table llm_errors_daily")
    project.dbt("build", *MONEY)
    assert sorted(map(str, project.query(DAILY))) == sorted(map(str, whole))
    assert project.value("select sum(calls) from llm_errors_daily") == 9


def test_only_what_is_pending_is_read_and_looked_up(project: Project, tmp_path: Path) -> None:
    # Each batch stays a part of its own, so that reading one can be told from reading all.
    project.loader("init")
    project.query(
        "alter table raw_traces modify setting max_bytes_to_merge_at_max_space_in_pool = 1"
    )
    for number in range(6):
        project.loader(write(tmp_path / f"{number}.ndjson", trace(number, "2026-10-02T12:00:00Z")))
    project.dbt("run")
    project.loader(write(tmp_path / "6.ndjson", trace(6, "2026-10-02T12:00:00Z")))
    assert project.query("select id from int_traces__billed") == [{"id": "t6"}]

    def read_rows(view: str) -> int:
        rows = project.query(f"explain estimate select id, billing_plan_type from {view}")
        return sum(row["rows"] for row in rows if row["table"] == "raw_traces")

    everything = project.value("select count() from raw_traces")
    assert 0 < read_rows("int_traces__billed") <= everything // 3


def test_each_organization_pays_by_its_own_subscription_however_they_are_read(
    embedded: Project, tmp_path: Path
) -> None:
    """Subscriptions lie in as many parts as there were files, read by threads in any order."""
    count = 200
    for part in range(7):
        rows = [
            {"organization_id": f"org-{n}", "customer_id": f"cus-{n}", "valid_from": "2026-01-01"}
            for n in range(part, count, 7)
        ]
        embedded.loader("billing", write(tmp_path / f"{part}.ndjson", *rows))
    traces = [
        {"id": str(n), "org_id": f"org-{n}", "response_json": {}, "created_at": "2026-10-01"}
        for n in range(count)
    ]
    embedded.loader(write(tmp_path / "traces.ndjson", *traces))
    embedded.dbt("run", "--select", "+int_traces__rebilled")
    own = "billing_customer_id = replaceOne(organization_id::String, 'org', 'cus')"
    for relation in ("llm_traces", "int_traces__rebilled"):
        for threads in (1, 2, 4, 8) * 3:
            sql = f"select countIf({own}) from {relation} settings max_threads = {threads}"
            assert embedded.value(sql) == count, (relation, threads)
