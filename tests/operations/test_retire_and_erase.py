"""Retention and erasing: what goes is gone everywhere, what stays stays true, kills are mended."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import time
from pathlib import Path

import pytest

from tests.operations.test_reparse import FRESH, operation
from tests.support.project import Project
from tests.test_pipeline import record, write

# All that keeps or counts single traces, without the roll-ups.
PLAIN = ("--select", "+costed_batches", "+llm_traces_live", "+trace_conflicts")
AGE = (
    "alter table raw_batches update landed_at = landed_at - interval 100 day where 1"
    " settings mutations_sync = 2"
)


def land(project: Project, path: Path, records: list[dict[str, object]], broken: int = 0) -> None:
    """Land records and lines that are none; every tenth record has a user."""
    write(path, records)
    with path.open("a") as file:
        for number in range(broken):
            file.write(f'{{"org_id": "org-{number % 3}", "cut": \n')
    project.loader(str(path), expect=1 if broken else 0)


def subscribe(project: Project, path: Path, *rows: str) -> None:
    """Land subscriptions: organization, valid from, plan, cost source and customer."""
    header = "organization_id,valid_from,plan_type,cost_source,customer_id"
    path.write_text("\n".join([header, *rows]) + "\n")
    project.loader("billing", str(path))


def traces(first: int, last: int) -> list[dict[str, object]]:
    return [record(number, user_id=f"user-{number % 10}") for number in range(first, last)]


def test_retention_is_off_by_default(project: Project, tmp_path: Path) -> None:
    land(project, tmp_path / "a.ndjson", traces(1, 10))
    project.dbt("run")
    assert "nothing to retire" in operation(project, "retire")
    assert "whole number" in operation(project, "retire", expect=1, retain_raw_days="soon")
    assert project.value("select count() from raw_traces") == 9


def test_what_is_old_goes_and_the_rest_stays_true(project: Project, tmp_path: Path) -> None:
    land(project, tmp_path / "a.ndjson", traces(1, 31), broken=3)
    project.dbt("run")
    project.query(AGE)
    land(project, tmp_path / "b.ndjson", traces(31, 41))
    land(project, tmp_path / "c.ndjson", traces(41, 51), broken=2)
    before = project.query(FRESH)
    limits = {"retain_raw_days": 30, "retain_reject_days": 30, "retain_payload_days": 1}

    said = operation(project, "retire", "{dry_run: true}", **limits)
    assert "would retire" in said
    assert project.value("select count() from raw_traces") == 50
    operation(project, "retire", **limits)
    operation(project, "retire", **limits)
    assert project.value("select count() from raw_traces") == 20, "the pending stay"
    assert project.value("select count() from raw_rejects") == 2
    assert project.value("select count() from retired_batches") == 2
    # A delete goes on when who sent it was killed: it asks for nothing that the next call drops.
    asked = "select count() from system.mutations where database = currentDatabase() and "
    assert project.value(asked + "position(command, 'retired_batches') > 0") == 2
    assert project.value(asked + "position(command, 'retire_kept_') > 0") == 0
    unsynced = (
        "select name from system.tables where database = currentDatabase() and"
        " (name like 'raw\\_%' or name in ('retired_batches', 'erasures'))"
        " and create_table_query not like '%fsync_after_insert = 1%'"
    )
    assert project.query(unsynced) == []

    after = project.query(FRESH)
    changed = {"request_json": "", "response_json": ""}
    assert after == [row | changed for row in before], "tokens live on"
    done = project.dbt("build", "--vars", json.dumps(limits))
    assert "WARN=0" in done.stdout
    assert project.value("select count() from llm_traces") == 50
    project.loader(str(tmp_path / "a.ndjson"))
    assert project.value("select count() from raw_traces") == 20, "what is retired lands no more"

    # The same id again: a retired payload is no other payload.
    land(project, tmp_path / "d.ndjson", traces(1, 4))
    project.dbt("build")
    assert project.value("select count() from trace_conflicts") == 0


def test_what_mend_took_out_of_the_ledger_grows_old_too(embedded: Project, tmp_path: Path) -> None:
    land(embedded, tmp_path / "a.ndjson", traces(1, 7), broken=2)
    embedded.dbt("run", *PLAIN)
    embedded.query(AGE)
    embedded.query(
        "insert into raw_traces"
        " select * replace (landed_at - interval 100 day as landed_at) from raw_traces"
    )
    for gone in ("raw_traces delete where landed_at > now() - 86400", "raw_rejects delete where 1"):
        embedded.query(f"alter table {gone} settings mutations_sync = 2")
    operation(embedded, "mend")
    operation(embedded, "retire", retain_raw_days=30)
    assert embedded.value("select count() from raw_traces") > 0, "it is looked at again first"
    embedded.dbt("run", *PLAIN)
    operation(embedded, "retire", retain_raw_days=30)
    assert embedded.value("select count() from raw_traces") == 0


def test_what_is_opened_again_is_not_retired(embedded: Project, tmp_path: Path) -> None:
    """Retiring is killed behind its record, and erasing makes another arrival the trace."""
    embedded.dbt("run", *PLAIN)
    for organization in ("gone", "stays"):
        land(embedded, tmp_path / f"{organization}.ndjson", [record(3, org_id=organization)])
        embedded.dbt("run", *PLAIN)
    embedded.query(AGE)
    embedded.query(
        "insert into retired_batches select distinct batch_id, 'raw_traces', 'retention', true,"
        " [], now64(3, 'UTC') from raw_traces"
    )
    operation(embedded, "erase", "{organization: gone}")
    operation(embedded, "retire", retain_raw_days=30)
    assert embedded.value("select count() from int_batches__pending") == 1
    embedded.dbt("run", *PLAIN)
    stays = [{"id": "000003", "organization_id": "stays"}]
    assert embedded.query("select id, organization_id from llm_traces") == stays
    operation(embedded, "retire", retain_raw_days=30)
    assert embedded.value("select count() from raw_traces") == 0
    assert embedded.query("select id, organization_id from llm_traces") == stays


def test_what_was_landed_again_is_not_retired_before_a_run(
    embedded: Project, tmp_path: Path
) -> None:
    path = tmp_path / "a.ndjson"
    land(embedded, path, traces(1, 7), broken=1)
    embedded.dbt("run", *PLAIN)
    embedded.query(AGE)
    operation(embedded, "retire", retain_raw_days=30)
    for table in ("raw_rejects", "llm_traces"):
        embedded.query(f"alter table {table} delete where 1 settings mutations_sync = 2")
    assert str(path) in operation(embedded, "mend")
    embedded.loader(str(path), expect=1)
    operation(embedded, "retire", retain_raw_days=30)
    embedded.dbt("run", *PLAIN)
    assert embedded.value("select count() from llm_traces") == 6


def test_the_only_copy_of_a_lost_trace_is_not_retired(embedded: Project, tmp_path: Path) -> None:
    """Without a trace of the damage, and of a batch that lost raw rows; others of that day go."""
    lost = ("traces", "raw", "rejects")
    for number, name in enumerate((*lost, "whole")):
        first = 10 * number
        land(embedded, tmp_path / f"{name}.ndjson", traces(first + 1, first + 4), broken=1)
    embedded.dbt("run", *PLAIN)
    embedded.query(AGE)
    for gone in (
        "llm_traces delete where id = '000002'",
        "raw_traces delete where position(envelope_json, '000012') > 0",
        "raw_rejects delete where source like '%/rejects.ndjson'",
    ):
        embedded.query(f"alter table {gone} settings mutations_sync = 2")
    limits = {"retain_raw_days": 30, "retain_reject_days": 30}
    for options in ("{dry_run: true}", "{}"):
        said = operation(embedded, "retire", options, **limits)
        assert "raw_traces: keeping 3 batches" in said
        assert "raw_rejects: keeping 2 batches" in said
    assert embedded.value("select count() from raw_traces") == 8
    assert embedded.value("select count() from raw_rejects") == 1

    named = operation(embedded, "mend")
    assert [str(tmp_path / f"{name}.ndjson") in named for name in lost] == [False, True, True]
    for name in lost[1:]:
        embedded.loader(str(tmp_path / f"{name}.ndjson"), expect=1)
    embedded.dbt("run", *PLAIN)
    assert embedded.value("select count() from llm_traces") == 12
    embedded.query(AGE)
    assert "keeping" not in operation(embedded, "retire", **limits)
    assert embedded.value("select count() from raw_traces") == 0
    assert embedded.value("select count() from raw_rejects") == 0


def test_what_is_erased_leaves_no_money_where_others_bring_their_own_key(
    embedded: Project, tmp_path: Path
) -> None:
    embedded.loader("prices")
    byok = {"model": "gpt-4o", "model_endpoint_type": "openai", "provider_category": "byok"}
    own = {"model": "ft:gpt-4o:gone", "model_endpoint_type": "openai"}
    both = [
        record(3, org_id="gone", llm_config=own),
        record(4, org_id="stays", llm_config=byok),
    ]
    land(embedded, tmp_path / "a.ndjson", both)
    embedded.dbt("run")
    assert embedded.value("select sum(calls) from int_costs__by_utc_day") == 1
    operation(embedded, "erase", "{organization: gone}")
    embedded.dbt("run")
    assert embedded.query("select * from int_costs__by_utc_day") == []


def test_a_rebuild_is_refused_where_raw_rows_are_retired(project: Project, tmp_path: Path) -> None:
    land(project, tmp_path / "a.ndjson", traces(1, 31))
    project.dbt("run")
    before = project.query(FRESH)
    table = (
        "select toString(uuid) from system.tables"
        " where database = currentDatabase() and name = 'llm_traces'"
    )
    stood = project.value(table)
    project.dbt("run", "--full-refresh")
    assert project.value(table) == stood, "a plain full refresh does not touch it"
    project.dbt("run", "--full-refresh", "--vars", "rebuild_llm_traces: true")
    assert project.value(table) != stood, "it is built anew on purpose alone"
    assert project.query(FRESH) == before
    project.query(AGE)
    operation(project, "retire", retain_raw_days=30)
    done = project.dbt("run", "--full-refresh", "--vars", "rebuild_llm_traces: true", expect=1)
    assert "llm_traces cannot be built anew" in done.stdout
    assert project.query(FRESH) == before


def test_an_organization_is_erased_from_every_table(project: Project, tmp_path: Path) -> None:
    land(project, tmp_path / "a.ndjson", traces(1, 31), broken=6)
    # Another organization sends an id of the first again: it is the trace once that is gone.
    land(project, tmp_path / "b.ndjson", [record(3, org_id="org-2"), record(4, org_id="org-0")])
    project.dbt("build")
    land(project, tmp_path / "c.ndjson", traces(31, 40))
    rest = project.query(
        "select * except (transformed_at) from llm_traces where organization_id != 'org-0'"
        " order by id"
    )

    said = operation(project, "erase", "{organization: org-0, dry_run: true}")
    assert "dry run" in said
    assert project.value("select countIf(organization_id = 'org-0') from llm_traces") == 10
    operation(project, "erase", "{organization: org-0}")
    operation(project, "erase", "{organization: org-0}")
    project.dbt("build")
    done = project.dbt("build")
    assert "WARN=0" in done.stdout

    for table in ("llm_traces", "llm_traces_live", "trace_conflicts", "int_traces__unioned"):
        left = project.value(f"select countIf(organization_id = 'org-0') from {table}")
        assert left == 0, table
    assert (
        project.value("select countIf(position(envelope_json, '\"org-0\"') > 0) from raw_traces")
        == 0
    )
    assert project.value("select countIf(position(raw, '\"org-0\"') > 0) from raw_rejects") == 0
    assert project.value("select count() from raw_rejects") == 4
    kept = project.query(
        "select * except (transformed_at) from llm_traces where landed_at <= {t:String}"
        " order by id",
        t=max(str(row["landed_at"]) for row in rest),
    )
    assert [row for row in kept if row in rest] == rest
    assert project.value("select organization_id from llm_traces where id = '000003'") == "org-2"
    assert project.value("select count() from int_batches__pending") == 0
    assert project.value("select count() from erasures where traces = 10") == 1
    project.loader(str(tmp_path / "a.ndjson"))
    project.dbt("run")
    assert project.value("select countIf(organization_id = 'org-0') from llm_traces") == 0


def test_an_end_user_is_erased(project: Project, tmp_path: Path) -> None:
    land(project, tmp_path / "a.ndjson", traces(1, 41))
    project.dbt("run")
    operation(project, "erase", "{user: user-7, organization: org-1}")
    left = project.query("select id from llm_traces order by id")
    want = [n for n in range(1, 41) if not (n % 10 == 7 and n % 3 == 1)]
    assert [int(row["id"]) for row in left] == want
    assert "is empty" in operation(project, "erase", "{user: ''}", expect=1)
    assert "whose traces" in operation(project, "erase", expect=1)
    operation(project, "erase", '{organization: "x\' or 1=1 --"}')
    assert project.value("select count() from llm_traces") == len(want)
    project.dbt("build")


def test_killed_erasing_is_completed_by_the_same_call(project: Project, tmp_path: Path) -> None:
    land(project, tmp_path / "a.ndjson", traces(1, 2001), broken=6)
    project.dbt("run")
    chance = random.Random(3)
    for _ in range(4):
        process = project.start_dbt("run-operation", "erase", "--args", "{organization: org-1}")
        time.sleep(chance.uniform(3, 7))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        project.dbt("run")
    operation(project, "erase", "{organization: org-1}")
    done = project.dbt("build")
    assert "WARN=0" in done.stdout
    ids = project.query("select id from llm_traces order by id")
    assert [int(row["id"]) for row in ids] == [n for n in range(1, 2001) if n % 3 != 1]
    assert (
        project.value("select countIf(position(envelope_json, '\"org-1\"') > 0) from raw_traces")
        == 0
    )


def test_erasing_one_leaves_the_money_of_another(project: Project, tmp_path: Path) -> None:
    """An id that two organizations sent is the first one's, and stays so."""
    land(project, tmp_path / "a.ndjson", [record(1, org_id="kept"), record(2, org_id="kept")])
    project.loader("prices")
    project.dbt("run")
    project.query(AGE)
    operation(project, "retire", retain_raw_days=30)
    again = [record(1, org_id="gone", request_json={}), record(3, org_id="gone")]
    land(project, tmp_path / "b.ndjson", again)
    project.dbt("run")
    money = "select id, toString(total_cost_usd) as cost from llm_trace_costs order by id"
    before = project.query(money)
    operation(project, "erase", "{organization: gone}")
    assert project.query(money) == before[:2]
    project.dbt("build")
    assert project.query(money) == before[:2]
    assert project.value("select sum(calls) from llm_costs_daily") == 2


def test_a_customer_is_erased_with_what_a_subscription_says(
    project: Project, tmp_path: Path
) -> None:
    accounts = tmp_path / "accounts.csv"
    subscribe(project, accounts, "org-0,2026-01-01T00:00:00Z,pro,credits,cus-0")
    own = {"plan_type": "own", "cost_source": "credits", "customer_id": "cus-1"}
    land(project, tmp_path / "a.ndjson", [record(3), record(6, billing_context=own), record(4)])
    land(project, tmp_path / "b.ndjson", [record(3)])
    project.dbt("run")
    land(project, tmp_path / "c.ndjson", [record(9), record(12, billing_context=own)])

    def counts(said: str) -> list[int]:
        rows = [line.split("|") for line in said.splitlines() if line.startswith("| ")]
        return [int(row[2]) for row in rows if row[1].strip() in ("llm_traces", "raw_traces")]

    assert counts(operation(project, "erase", "{customer: cus-0, dry_run: true}")) == [1, 3]
    assert counts(operation(project, "erase", "{customer: cus-0}")) == [1, 3]
    project.dbt("build")
    assert [row["id"] for row in project.query("select id from llm_traces order by id")] == [
        *("000004", "000006", "000012")
    ]
    assert project.value("select count() from raw_traces") == 3


def test_a_user_of_a_customer_is_erased(embedded: Project, tmp_path: Path) -> None:
    """By what is charged the payloads are not at hand that tell of users."""
    subscribe(embedded, tmp_path / "accounts.csv", "org-0,2026-01-01T00:00:00Z,pro,credits,cus-0")
    users = [record(number, user_id=f"u{number % 2}") for number in (3, 4, 6, 9)]
    land(embedded, tmp_path / "a.ndjson", users)
    embedded.dbt("run")
    operation(embedded, "erase", "{user: u1, customer: cus-0}")
    held = embedded.query("select id from llm_traces order by id")
    assert [row["id"] for row in held] == ["000004", "000006"]


def test_what_was_erased_does_not_come_back_with_a_batch_that_was_lost(
    project: Project, tmp_path: Path
) -> None:
    path = tmp_path / "a.ndjson"
    land(project, path, traces(1, 7), broken=3)
    project.dbt("run")
    operation(project, "erase", "{organization: org-1}")
    for table in ("raw_traces", "raw_rejects"):
        project.query(f"alter table {table} delete where 1 settings mutations_sync = 2")
    operation(project, "mend")
    project.loader(str(path), expect=1)
    theirs = "countIf(position({}, '\"org-1\"') > 0)"
    assert project.value(f"select {theirs.format('envelope_json')} from raw_traces") == 2
    assert project.value("select count() from llm_traces_live") == 4
    assert "erased were landed again" in project.dbt("run").stdout
    assert project.value(f"select {theirs.format('envelope_json')} from raw_traces") == 0
    assert project.value(f"select {theirs.format('raw')} from raw_rejects") == 0
    assert project.value("select count() from llm_traces") == 4
    project.dbt("build")


def test_what_lost_rows_may_hide_is_named(embedded: Project, tmp_path: Path) -> None:
    """Only raw rows name a user: of those that are lost, erasing says how many batches had them."""
    path = tmp_path / "a.ndjson"
    land(embedded, path, traces(1, 7))
    embedded.dbt("run", *PLAIN)
    embedded.query("alter table raw_traces delete where 1 settings mutations_sync = 2")
    user = "{user: user-4}"
    unseen = "1 batches have lost raw rows"
    said = operation(embedded, "erase", user)
    assert unseen in said
    assert "erase again" in said
    operation(embedded, "mend")
    assert unseen in operation(embedded, "erase", "{user: user-4, dry_run: true}")
    assert embedded.value("select countIf(id = '000004') from llm_traces") == 1
    embedded.loader(str(path))
    assert "lost raw rows" not in operation(embedded, "erase", user)
    embedded.dbt("run", *PLAIN)
    assert embedded.query(
        "select count() as rows, countIf(id = '000004') as theirs from llm_traces"
    ) == [{"rows": 5, "theirs": 0}]


def test_what_will_not_come_again_is_not_named_as_lost(embedded: Project, tmp_path: Path) -> None:
    """The beginning of a line that is there whole, and a replay of what is a row by now."""
    path = tmp_path / "a.ndjson"
    line = json.dumps(record(1, step_id="x" * 1000))
    embedded.env["TOKENLEDGER_MAX_RECORD_BYTES"] = "500"
    for text in (line[:30], line + "\n"):
        path.write_text(text)
        embedded.loader(str(path), expect=1)
    del embedded.env["TOKENLEDGER_MAX_RECORD_BYTES"]
    embedded.loader("rejects", "--replay")
    embedded.dbt("run", *PLAIN)
    for table in ("raw_traces", "raw_rejects"):
        embedded.query(f"alter table {table} delete where 1 settings mutations_sync = 2")
    operation(embedded, "mend")
    nobody = "{user: nobody, dry_run: true}"
    assert "3 batches have lost raw rows" in operation(embedded, "erase", nobody)
    embedded.loader(str(path))
    assert "have lost raw rows" not in operation(embedded, "erase", nobody)


def test_what_may_come_back_of_unfinished_batches_is_counted(
    embedded: Project, tmp_path: Path
) -> None:
    """A loader was killed before the ledger row, and its file grew before it is landed again."""
    path = tmp_path / "a.ndjson"
    embedded.dbt("run", *PLAIN)
    land(embedded, path, traces(1, 7), broken=3)
    embedded.query("alter table raw_batches delete where 1 settings mutations_sync = 2")
    subject, theirs = "{organization: org-1}", "select count() from llm_traces_live"
    for args in ("{organization: org-1, dry_run: true}", subject):
        said = operation(embedded, "erase", args)
        assert "3 of them are of batches that are not finished" in said
        assert "land their sources, then erase again" in said
    assert "not finished" not in operation(embedded, "erase", subject)
    with path.open("a") as file:
        file.write(json.dumps(record(9)) + "\n")
    embedded.loader(str(path), expect=1)
    assert embedded.value(f"{theirs} where organization_id = 'org-1'") == 2
    assert "not finished" not in operation(embedded, "erase", subject)
    assert embedded.value(f"{theirs} where organization_id = 'org-1'") == 0
    embedded.dbt("run", *PLAIN)
    assert embedded.value(theirs) == 5


def test_a_trace_takes_the_beginning_of_its_line_that_was_landed_before(
    embedded: Project, tmp_path: Path
) -> None:
    """A file is landed while its last line is written, which names nobody yet."""
    for organization in ("gone", "stays"):
        path = tmp_path / f"{organization}.ndjson"
        first = json.dumps(record(1, org_id=organization, id=organization))
        line = json.dumps({"request_json": "private"} | record(2, org_id=organization))
        path.write_text(first + "\n" + line[:30])
        embedded.loader(str(path), expect=1)
        path.write_text(first + "\n" + line + "\n")
        embedded.loader(str(path))
    assert embedded.value("select count() from raw_rejects where reason = 'unfinished'") == 2
    embedded.dbt("run", *PLAIN)
    said = operation(embedded, "erase", "{organization: gone, dry_run: true}")
    assert "| raw_rejects |    1 |" in said
    operation(embedded, "erase", "{organization: gone}")
    rejects = embedded.query("select source from raw_rejects")
    assert rejects == [{"source": str(tmp_path / "stays.ndjson")}]
    assert "not whole any more" not in operation(embedded, "mend", "{dry_run: true}")


@pytest.mark.parametrize("subject", ["user: u", "customer: c"])
def test_the_beginning_of_a_line_goes_however_the_line_became_a_trace(
    embedded: Project, tmp_path: Path, subject: str
) -> None:
    """The customer is known from a subscription alone, and no line names him."""
    accounts = tmp_path / "accounts.csv"
    subscribe(embedded, accounts, "gone,2026-01-01T00:00:00Z,pro,credits,c")
    limit = "TOKENLEDGER_MAX_RECORD_BYTES"
    line = json.dumps(
        {"request_json": "private"} | record(2, org_id="gone", step_id="x" * 200, user_id="u")
    )
    replayed, large = tmp_path / "replayed.ndjson", tmp_path / "large.ndjson"
    for path, first_limit, then_limit in ((replayed, "1000", "100"), (large, "20", "1000")):
        for text, size in ((line[:30], first_limit), (line + "\n", then_limit)):
            path.write_text(text)
            embedded.env[limit] = size
            embedded.loader(str(path), expect=None)
    del embedded.env[limit]
    embedded.loader("rejects", "--replay", expect=None)
    embedded.dbt("run", *PLAIN, "+int_traces__rebilled")
    assert embedded.value("select uniqExact(source) from raw_rejects where length(raw) = 30") == 2
    operation(embedded, "erase", f"{{{subject}}}")
    assert embedded.value("select count() from raw_rejects") == 0
    assert "not whole any more" not in operation(embedded, "mend", "{dry_run: true}")


def test_what_another_wrote_where_an_erased_line_stood_stays(
    embedded: Project, tmp_path: Path
) -> None:
    path = tmp_path / "a.ndjson"
    torn = '{"org_id": "victim", "request_json": "only copy'
    path.write_text(torn)
    embedded.loader(str(path), expect=1)
    for _ in range(2):
        path.unlink()
        write(path, [record(1, org_id="gone")])
        embedded.loader(str(path))
        embedded.dbt("run", *PLAIN)
        operation(embedded, "erase", "{organization: gone}")
        path.unlink()
        path.write_text(torn)
        embedded.loader(str(path), expect=None)
        operation(embedded, "erase", "{organization: nobody}")
        assert embedded.query("select raw from raw_rejects") == [{"raw": torn}]


def test_a_user_is_erased_whose_trace_came_back_in_pieces(
    embedded: Project, tmp_path: Path
) -> None:
    """Its file was looked at while it was copied back: what has landed is another batch."""
    path = write(
        tmp_path / "a.ndjson", [record(number, user_id=f"u{number}") for number in (1, 2, 3)]
    )
    whole = path.read_bytes()
    embedded.loader(str(path))
    embedded.dbt("run", *PLAIN)
    embedded.query("alter table raw_traces delete where true settings mutations_sync = 2")
    operation(embedded, "mend")
    path.write_bytes(whole[: len(whole) // 2])
    embedded.loader(str(path), expect=1)
    path.write_bytes(whole)
    embedded.loader(str(path))
    embedded.dbt("run", *PLAIN)
    operation(embedded, "erase", "{user: u2}")
    ids = embedded.query("select id from llm_traces order by id")
    assert [row["id"] for row in ids] == ["000001", "000003"]
    assert embedded.value("select count() from raw_rejects") == 0


@pytest.mark.parametrize("gone", ["retired", "lost"])
def test_an_arrival_of_somebody_else_takes_no_trace_that_has_no_raw_row(
    embedded: Project, tmp_path: Path, gone: str
) -> None:
    """Its agent is known without; and its user, where it is lost, once its source has landed."""
    path = tmp_path / "a.ndjson"
    own = {"agent_id": "own", "user_id": "own"}
    land(embedded, path, [record(1, **own), record(2, **own)])
    embedded.dbt("run", *PLAIN)
    if gone == "retired":
        embedded.query(AGE)
        operation(embedded, "retire", retain_raw_days=30)
    else:
        delete = "alter table raw_traces delete where position = 0"
        embedded.query(f"{delete} settings mutations_sync = 2")
        operation(embedded, "mend")
    other = {"agent_id": "other", "user_id": "other", "request_json": "another"}
    land(embedded, tmp_path / "b.ndjson", [record(1) | other])
    embedded.dbt("run", *PLAIN)
    subject = "{agent: other}" if gone == "retired" else "{user: other}"
    operation(embedded, "erase", subject)
    embedded.loader(str(path))
    embedded.dbt("run", *PLAIN)
    held = embedded.query("select id, agent_id::String as agent from llm_traces order by id")
    assert [tuple(row.values()) for row in held] == [("000001", "own"), ("000002", "own")]


def test_a_trace_of_a_lost_batch_takes_the_beginning_of_its_line_too(
    embedded: Project, tmp_path: Path
) -> None:
    path = tmp_path / "a.ndjson"
    line = json.dumps({"request_json": "private"} | record(2, org_id="gone"))
    path.write_text(line[:30])
    embedded.loader(str(path), expect=1)
    path.write_text(line + "\n")
    embedded.loader(str(path))
    embedded.dbt("run", *PLAIN)
    embedded.query("alter table raw_traces delete where true settings mutations_sync = 2")
    assert str(path) in operation(embedded, "mend")
    beginning = embedded.query("select * from raw_rejects")
    assert len(beginning) == 1
    operation(embedded, "erase", "{organization: gone}")
    assert embedded.value("select count() from raw_rejects") == 0


def test_a_replayed_trace_takes_the_reject_that_it_was(embedded: Project, tmp_path: Path) -> None:
    """Only a subscription knows the customer: nothing in the line names whom to erase."""
    accounts = tmp_path / "accounts.csv"
    since = "2026-01-01T00:00:00Z,pro,credits"
    subscribe(embedded, accounts, *(f"org-{n},{since},cus-{n}" for n in (0, 1)))
    path = tmp_path / "a.ndjson"
    # Every third is of an organization; each as a record, too large, and larger still.
    write(path, [record(number, step_id="x" * (2000 * (number % 4))) for number in range(1, 13)])
    limit = "TOKENLEDGER_MAX_RECORD_BYTES"
    embedded.env[limit] = "2000"
    embedded.loader(str(path), expect=1)
    embedded.env[limit] = "5000"
    embedded.loader("rejects", "--replay", expect=1)
    del embedded.env[limit]
    embedded.loader("rejects", "--replay")
    embedded.dbt("run", *PLAIN, "+int_traces__rebilled")
    lines = {number for number in range(1, 13) if number % 4}

    def left() -> list[tuple[int, int]]:
        found = embedded.query(
            "select line, count() as copies from raw_rejects group by line order by line"
        )
        return [(row["line"], row["copies"]) for row in found]

    # Those of more than 5000 bytes are in the first batch and in its replay.
    copies = {line: 2 if line % 4 == 3 else 1 for line in lines}
    assert left() == sorted(copies.items())
    said = operation(embedded, "erase", "{customer: cus-0, dry_run: true}")
    gone = [line for line in lines if line % 3 == 0]
    assert f"| raw_rejects | {sum(copies[line] for line in gone):>4} |" in said
    assert embedded.query("show tables like 'erase_%'") == [], "a dry run leaves no list"
    for customer, number in (("cus-0", 0), ("cus-1", 1)):
        operation(embedded, "erase", f"{{customer: {customer}}}")
        copies = {line: count for line, count in copies.items() if line % 3 != number}
        assert left() == sorted(copies.items())
    assert "not whole any more" not in operation(embedded, "mend", "{dry_run: true}")
    embedded.dbt("run", *PLAIN)
    ids = embedded.query("select id from llm_traces order by id")
    assert [int(row["id"]) for row in ids] == [2, 5, 8, 11]


def test_others_keep_their_rejects_where_those_of_a_replay_are_lost(
    embedded: Project, tmp_path: Path
) -> None:
    path = tmp_path / "a.ndjson"
    records = [record(1, org_id="gone", id="gone", step_id="x" * 2000)]
    path.write_text(
        "".join(json.dumps(each) + "\n" for each in records) + '{"org_id":"other"\n' * 2
    )
    limit = "TOKENLEDGER_MAX_RECORD_BYTES"
    embedded.env[limit] = "2000"
    embedded.loader(str(path), expect=1)
    del embedded.env[limit]
    embedded.loader("rejects", "--replay", expect=1)
    embedded.dbt("run", *PLAIN)
    is_replay = "batch_id in (select batch_id from raw_batches where source like 'replay/%')"
    embedded.query(
        f"alter table raw_rejects delete where {is_replay} settings mutations_sync = 2,"
        " allow_nondeterministic_mutations = 1"
    )
    assert "replay/" in operation(embedded, "mend")
    operation(embedded, "erase", "{organization: gone}")
    lines = embedded.query("select line from raw_rejects order by line")
    assert lines == [{"line": 2}, {"line": 3}]
    # What was lost is made again without it, or stays with its origin, and is listed once.
    embedded.loader("rejects", "--replay", expect=1)
    assert len(embedded.loader("rejects").stdout.splitlines()) == 2
    embedded.dbt("run", *PLAIN)
    assert embedded.value("select count() from llm_traces") == 0
    assert embedded.value("select count() from raw_traces") == 0


def test_a_replayed_line_that_was_erased_does_not_come_back_with_its_first_batch(
    embedded: Project, tmp_path: Path
) -> None:
    """Whose rejects were lost when the trace was erased, and which was landed again then."""
    path = tmp_path / "a.ndjson"
    write(path, [record(3), record(1, id=None, step_id="x" * 2000), record(2, step_id="x" * 2000)])
    limit = "TOKENLEDGER_MAX_RECORD_BYTES"
    embedded.env[limit] = "2000"
    embedded.loader(str(path), expect=1)
    embedded.loader("rejects", "--replay", expect=1)
    del embedded.env[limit]
    embedded.loader("rejects", "--replay")
    embedded.dbt("run", *PLAIN)
    embedded.query("alter table raw_rejects delete where true settings mutations_sync = 2")
    assert str(path) in operation(embedded, "mend")
    operation(embedded, "erase", "{organization: org-1}")
    embedded.env[limit] = "2000"
    embedded.loader(str(path), expect=1)
    del embedded.env[limit]
    embedded.loader("rejects", "--replay", expect=None)
    left = [{"id": "000002"}, {"id": "000003"}]
    assert embedded.query("select id from llm_traces_live order by id") == left
    embedded.dbt("run", *PLAIN)
    assert embedded.query("select id from llm_traces order by id") == left
    assert embedded.value("select uniqExact(line) from raw_rejects where line = 2") == 0
    assert "not whole any more" not in operation(embedded, "mend", "{dry_run: true}")


@pytest.mark.parametrize("then", ["run", "replay", "erase"])
def test_an_erased_reject_does_not_come_back_as_a_trace(
    embedded: Project, tmp_path: Path, then: str
) -> None:
    """A line that was too large and was erased, landed again with a batch that had been lost."""
    path = tmp_path / "a.ndjson"
    write(path, [record(3), record(7, step_id="x" * 2000), record(5)])
    limit = "TOKENLEDGER_MAX_RECORD_BYTES"
    embedded.env[limit] = "2000"
    embedded.loader(str(path), expect=1)
    embedded.dbt("run", *PLAIN)
    operation(embedded, "erase", "{organization: org-1}")
    assert embedded.value("select count() from raw_rejects") == 0
    embedded.query("alter table raw_traces delete where position = 0 settings mutations_sync = 2")
    operation(embedded, "mend")
    if then == "replay":
        embedded.loader(str(path), expect=1)
        del embedded.env[limit]
        assert "landed 0 lines" in embedded.loader("rejects", "--replay").stdout
    else:
        del embedded.env[limit]
        embedded.loader(str(path))
    left = [{"id": "000003"}, {"id": "000005"}]
    assert embedded.query("select id from llm_traces_live order by id") == left
    if then == "erase":
        operation(embedded, "erase", "{organization: somebody}")
    said = embedded.dbt("run", *PLAIN).stdout
    assert ("1 rows that had been erased were landed again" in said) == (then != "erase")
    for table in ("llm_traces", "int_traces__unioned"):
        assert embedded.query(f"select id from {table} order by id") == left
    assert embedded.value("select count() from raw_rejects") == 0
    assert embedded.value("select count() from int_batches__pending") == 0
    assert "not whole any more" not in operation(embedded, "mend", "{dry_run: true}")
    embedded.dbt("test", "--select", "assert_every_line_is_a_row_or_a_reject")


def test_what_was_erased_and_lands_again_within_a_run_breaks_no_law(
    embedded: Project, tmp_path: Path
) -> None:
    land(embedded, tmp_path / "a.ndjson", traces(1, 4))
    embedded.dbt("run", "--select", "+transformed_batches")
    embedded.query(
        "insert into retired_batches select batch_id, 'raw_traces', 'erasure', false, [position],"
        " now64(3, 'UTC') - 3600 from llm_traces where id = '000001'",
        "alter table llm_traces delete where id = '000001' settings mutations_sync = 2",
    )
    law = ("test", "--select", "assert_every_landed_id_is_in_llm_traces")
    embedded.dbt(*law)
    assert "erased were landed again" in embedded.dbt("run", "--select", "+int_batches__due").stdout
    embedded.query("alter table llm_traces delete where 1 settings mutations_sync = 2")
    embedded.dbt(*law, expect=1)


def test_a_reject_goes_however_it_spells_the_name(project: Project, tmp_path: Path) -> None:
    name = 'org/\u00e9\U0001f600"'
    ascii_ = json.dumps(name)
    lines = [
        json.dumps(name, ensure_ascii=False),
        ascii_,
        ascii_.replace("/", "\\/"),
        ascii_.replace("e9", "E9").replace("org", "\\u006frg"),
        json.dumps(json.dumps({"org_id": name})),
        json.dumps(json.dumps({"org_id": name}, ensure_ascii=False)),
        json.dumps(json.dumps(json.dumps(json.dumps({"org_id": name})))),
        json.dumps(json.dumps(ascii_.replace("e9", "E9"))),
        json.dumps(ascii_).replace('\\"', "\\u0022"),
        '" ' + ascii_,
    ]
    path = tmp_path / "a.ndjson"
    cut = "".join(f'{{"org_id": {line}, "cut": \n' for line in [*lines, '"org/"'])
    not_utf8 = b'{"a": "\xff", "org_id": %s}\n' % lines[3].encode()
    path.write_bytes(cut.encode() + not_utf8)
    project.loader(str(path), expect=1)
    project.dbt("run", "--select", "+llm_traces_live", "+transformed_batches")
    operation(project, "erase", json.dumps({"organization": name}, ensure_ascii=False))
    assert [row["line"] for row in project.query("select line from raw_rejects")] == [
        len(lines) + 1
    ]


def test_a_reject_goes_where_the_id_is_a_number(embedded: Project, tmp_path: Path) -> None:
    names = ["4711, ", " 4711}", "[1,4711]", '["a, b",4711]', '"[4711]"', '"4711"']
    names.append(json.dumps('{"user_id":\n4711\n}'))
    others = ["14711,", "47110,", "4711.5,", '"x4711",', "4711x,"]
    # A text that begins with the number, or holds it; what may be the beginning of another number.
    others += [
        '"4711, Inc"',
        '"4711}"',
        '"\\"4711, 12\\""',
        '["a, 4711, b"]',
        '"4711',
        "4711",
        "4711\0\0,",
    ]
    path = tmp_path / "a.ndjson"
    path.write_text("".join(f'{{"cut": {{"user_id":{line}\n' for line in [*names, *others]))
    embedded.loader(str(path), expect=1)
    embedded.dbt("run", "--select", "+llm_traces_live", "+transformed_batches")
    operation(embedded, "erase", '{user: "4711"}')
    left = [row["line"] for row in embedded.query("select line from raw_rejects order by line")]
    assert left == [len(names) + 1 + number for number in range(len(others))]


@pytest.mark.parametrize(
    ("subject", "theirs", "others"),
    [
        (
            {"organization": "1"},
            [
                '{"org_id": "1", "cut":',
                '{"request_json": {"n": 2}, "org_id":1, "cut":',
                '{"request_json": "{\\"organization_id\\": \\"1\\", \\"cut',
                '{"org_id": "org-B", "org_id": "1"}',
                '{"orgId": "1", "of": "another format"}',
                '{"\\u006frg_id": "1", "cut":',
                '{"\\u004frg\\u005fID": "1", "cut":',
                '{"org_\\u0069\\u0064": "1", "cut":',
                '{"request_json": "{\\"org\\u0049d\\"\\u003a\\u0020\\"1\\", \\"cut',
                # The rest of a line, whose key is cut or was cut off.
                'rg_id": "1", "step_id": "s"}',
                '_id": "1", "step_id": "s", "org_id": null}',
                '": "1", "step_id": "s"}',
                ' "1", "step_id": "s"}',
                '"1", "step_id": "s"}',
                '{"org\0\0\0\0id": "1", "step_id": "s"}',
            ],
            [
                '{"org_id": "org-B", "request_json": {"n": 1, "tools": [1, 2], "cut":',
                '{"org_id": "org-B", "request_json": {"temperature": "1", "seed": 1}, "cut":',
                '{"org_id": "org-1", "user_id": "1", "agent_id": "1", "cut":',
                '{"request_json": "the org \\"1\\" is mentioned", "cut":',
                '"1", "step_id": "s", "org_id": "org-B"}',
                '": "1", "step_id": "s", "org_id": 2}',
                'ep_id": "1", "cut":',
                # A number that may be the end of another; a document written over several lines.
                '1, "step_id": "s"}',
                '    "1",',
                '    "step_id": "1",',
            ],
        ),
        (
            {"user": "user"},
            [
                '{"org_id": "org-B", "user_id": "user", "cut":',
                '{"org_id": "org-B", "request_json": {"user": "user", "cut":',
                '{"request_json": "{\\"metadata\\": {\\"user_id\\": \\"user\\"}, \\"cut',
                '{"request_json": {"safety_identifier": "user", "cut":',
                '{"end_user_id": "user", "of": "another format"}',
                'er": "user", "org_id": "org-B"}',
                '{"request_json": {"SAFETY\\u005f\\u0049DENTIFIER": "user", "cut":',
                '\\u0052_\\u0069d": "user", "org_id": "org-B"}',
            ],
            [
                '{"request_json": {"messages": [{"role": "user", "content": "user"}], "cut":',
                '{"request_json": {"enum": ["agent", "user"], "cut":',
                '{"user_id": "user-1", "request_json": {"messages": [{"role": "user", "cut":',
                'le": "user", "content": "cut',
            ],
        ),
        (
            {"customer": "pro"},
            ['{"billing_context": {"customer_id": "pro", "cut":'],
            ['{"billing_context": {"plan_type": "pro", "customer_id": "c", "cut":'],
        ),
        (
            {"user": "u", "organization": "1"},
            ['{"org_id": "1", "user_id": "u", "cut":'],
            ['{"org_id": "2", "user_id": "u", "n": 1, "cut":', '{"user_id": "u", "n": 1, "cut":'],
        ),
    ],
    ids=["organization", "user", "customer", "both"],
)
def test_a_reject_goes_by_the_key_that_names_whose_it_is(
    embedded: Project,
    tmp_path: Path,
    subject: dict[str, str],
    theirs: list[str],
    others: list[str],
) -> None:
    """Ids are short, and words of the protocol: as the value of any key they are everybody's."""
    path = tmp_path / "a.ndjson"
    path.write_text("".join(line + "\n" for line in [*theirs, *others]))
    embedded.loader(str(path), expect=1)
    embedded.dbt("run", "--select", "+transformed_batches", "+int_traces__rebilled")
    operation(embedded, "erase", json.dumps(subject))
    left = embedded.query("select raw from raw_rejects order by position")
    assert [row["raw"] for row in left] == others


def test_a_long_name_is_erased_whole_or_not_at_all(embedded: Project, tmp_path: Path) -> None:
    long, longer = ("user-" * 300, "user_" * 1800)
    lines = [record(1, org_id="org", user_id=long), record(2, org_id="org", user_id=longer)]
    path = write(tmp_path / "a.ndjson", lines)
    with path.open("a") as file:
        for name in (long, longer):
            file.write(f'{{"org_id": "org", "user_id": "{name}", "cut": \n')
    embedded.loader(str(path), expect=1)
    embedded.dbt("run", *PLAIN)
    subject = {"user": long, "organization": "org"}
    said = operation(embedded, "erase", json.dumps(subject | {"dry_run": True}))
    assert [line.split("|")[2].strip() for line in said.splitlines() if "raw_" in line] == [
        "1",
        "1",
    ]
    assert embedded.query("show tables like 'erase_%'") == []
    counts = "select count() from raw_traces union all select count() from raw_rejects"
    assert [row["count()"] for row in embedded.query(counts)] == [2, 2]
    operation(embedded, "erase", json.dumps(subject))
    assert [row["count()"] for row in embedded.query(counts)] == [1, 1]
    said = operation(embedded, "erase", json.dumps({"user": longer}), expect=1)
    assert "user are too long" in said and "Nothing was erased" in said
    assert [row["count()"] for row in embedded.query(counts)] == [1, 1]
    # What it says to do is enough.
    size = said.split("Set max_query_size to ")[1].split()[0]
    profile = embedded.folder / "profiles.yml"
    setting = "custom_settings:\n        use_query_condition_cache: 0\n"
    given = profile.read_text().replace(setting, f"{setting}        max_query_size: {size}\n")
    profile.write_text(given)
    operation(embedded, "erase", json.dumps({"user": longer}))
    assert [row["count()"] for row in embedded.query(counts)] == [0, 0]
    assert embedded.value("select count() from llm_traces") == 0


def test_a_reject_that_was_listed_and_lost_does_not_come_back(
    embedded: Project, tmp_path: Path
) -> None:
    """Erasing is killed when rejects have been listed, and their batch is lost."""
    path = tmp_path / "a.ndjson"
    theirs, others = (f'{{"org_id": "org", "user_id": "{user}", "cut": ' for user in "ux")
    path.write_text(f"{theirs}\n{others}\n")
    embedded.loader(str(path), expect=1)
    embedded.dbt("run", *PLAIN)
    subject = {"organization": "org", "user": "u"}
    rejects = f"erase_list_{hashlib.md5(json.dumps(subject).encode()).hexdigest()}_rejects"
    embedded.query(
        f"create table {rejects} (batch_id String, position UInt32)"
        " engine = MergeTree order by batch_id",
        f"insert into {rejects} select batch_id, position from raw_rejects where line = 1",
        "alter table raw_rejects delete where 1 settings mutations_sync = 2",
    )
    said = operation(embedded, "erase", "{organization: other, dry_run: true}")
    assert "1 erasures for somebody else were begun and are not complete" in said
    assert "for somebody else" not in operation(embedded, "erase", json.dumps(subject))
    assert embedded.query("show tables like 'erase_%'") == []
    operation(embedded, "mend")
    embedded.loader(str(path), expect=1)
    assert embedded.value("select count() from raw_rejects") == 2
    embedded.dbt("run", *PLAIN)
    assert embedded.query("select raw from raw_rejects") == [{"raw": others}]
    embedded.dbt("test", "--select", "assert_every_line_is_a_row_or_a_reject")


def test_what_yaml_makes_of_a_name_is_refused(project: Project, tmp_path: Path) -> None:
    land(project, tmp_path / "a.ndjson", traces(1, 4))
    project.dbt("run", "--select", "+llm_traces_live", "+transformed_batches")
    for args in (
        "{organization: , user: user-1}",
        "{organization: 0123}",
        "{organization: [org-1, org-2]}",
        "{customer: true}",
    ):
        assert "Write it in quotes" in operation(project, "erase", args, expect=1)
    assert "is no argument" in operation(project, "erase", "{organisation: org-1}", expect=1)
    assert "dry_run is" in operation(
        project, "erase", "{organization: org-1, dry_run: 'no'}", expect=1
    )
    assert project.value("select count() from llm_traces") == 3


def test_what_an_erased_name_left_beside_the_traces_goes_too(
    project: Project, tmp_path: Path
) -> None:
    own = {"model": "ft:gpt-4o:org-0:x", "model_endpoint_type": "openai"}
    land(project, tmp_path / "a.ndjson", [record(3, llm_config=own), record(1)])
    project.loader("prices")
    project.dbt("run")
    project.query(
        "create table llm_traces_reparsed engine = MergeTree order by id as"
        " select id from llm_traces"
    )
    operation(project, "erase", "{organization: org-0}")
    assert project.value("select countIf(model like 'ft:%') from llm_price_matches") == 0
    assert project.query("show tables like 'llm_traces_reparsed'") == []


def test_a_rebuild_is_refused_where_raw_rows_are_lost(embedded: Project, tmp_path: Path) -> None:
    lost = tmp_path / "a.ndjson"
    land(embedded, lost, traces(1, 4))
    # One of them was sent by another organization too: that is no substitute.
    land(embedded, tmp_path / "b.ndjson", [*traces(4, 7), record(2, org_id="other")])
    embedded.dbt("run")
    embedded.query(
        "alter table raw_traces delete where batch_id in (select batch_id from raw_batches"
        " where endsWith(source, 'a.ndjson')) settings mutations_sync = 2,"
        " allow_nondeterministic_mutations = 1"
    )
    for state in ("lost", "mended", "landed again, and lost from the ledgers"):
        if state == "mended":
            operation(embedded, "mend")
        elif state != "lost":
            embedded.loader(str(lost))
            embedded.query(
                "alter table raw_batches delete where endsWith(source, 'a.ndjson')"
                " settings mutations_sync = 2",
                "truncate table raw_lost_batches",
            )
        done = embedded.dbt(
            *("run", "--full-refresh", "--vars", "rebuild_llm_traces: true"), expect=None
        )
        assert done.returncode != 0, state
        assert "3 of its traces are in no raw row any more" in done.stdout
    assert embedded.value("select count() from llm_traces") == 6
    embedded.loader(str(lost))
    embedded.dbt("run", "--full-refresh", "--vars", "rebuild_llm_traces: true")
    embedded.dbt("build")
    assert embedded.value("select count() from llm_traces") == 6


def test_a_rebuild_takes_the_rows_of_a_batch_that_lost_others(
    embedded: Project, tmp_path: Path
) -> None:
    land(embedded, tmp_path / "a.ndjson", traces(1, 4), broken=1)
    embedded.dbt("run")
    embedded.query("alter table raw_rejects delete where true settings mutations_sync = 2")
    operation(embedded, "mend")
    embedded.dbt("run", "--full-refresh", "--vars", "rebuild_llm_traces: true")
    assert embedded.value("select count() from llm_traces") == 4 - 1


def test_costs_follow_traces_whose_raw_rows_are_retired(embedded: Project, tmp_path: Path) -> None:
    """The ledgers are lost, and only llm_traces knows what each batch brought."""
    embedded.loader("prices")
    land(embedded, tmp_path / "a.ndjson", traces(1, 6))
    embedded.dbt("run")
    embedded.query(AGE)
    operation(embedded, "retire", retain_raw_days=30)
    land(embedded, tmp_path / "b.ndjson", traces(6, 8))
    embedded.dbt("run")
    money = "select id, total_cost_usd, billable_cost_usd from llm_trace_costs order by id"
    before = embedded.query(money)
    assert len(before) == 7
    for table in ("transformed_batches", "costed_batches", "llm_trace_costs"):
        embedded.query(f"alter table {table} delete where 1 settings mutations_sync = 2")
    embedded.dbt("build")
    assert embedded.query(money) == before


def test_what_is_erased_after_retention_stays_erased(embedded: Project, tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    land(embedded, path, traces(1, 7), broken=1)
    land(embedded, tmp_path / "b.ndjson", [record(3, org_id="org-1")])
    embedded.dbt("run")
    assert embedded.value("select any(organization_id) from trace_conflicts") == "org-1"
    embedded.query(AGE)
    operation(embedded, "retire", retain_raw_days=30, retain_reject_days=30)
    said = operation(embedded, "erase", "{organization: org-1}")
    assert "1 batches have no rejects any more" in said
    assert embedded.value("select count() from trace_conflicts") == 0
    named = "select count() from system.mutations where position(command, 'org-1') > 0"
    assert embedded.value(named) == 0, "the engine keeps the text of what it deletes by"
    embedded.query("alter table retired_batches delete where is_whole settings mutations_sync = 2")
    assert str(path) in operation(embedded, "mend")
    embedded.loader(str(path), expect=1)
    embedded.dbt("build")
    for theirs in (
        "raw_traces where position(envelope_json, '\"org-1\"') > 0",
        "llm_traces where organization_id = 'org-1'",
    ):
        assert embedded.value(f"select count() from {theirs}") == 0
    assert embedded.value("select count() from llm_traces") == 4


def test_a_customer_is_who_is_charged_now(embedded: Project, tmp_path: Path) -> None:
    subscribe(embedded, tmp_path / "first.csv", "org-1,2026-01-01T00:00:00Z,pro,credits,typo")
    land(embedded, tmp_path / "a.ndjson", traces(1, 7))
    embedded.dbt("run")
    embedded.query(AGE)
    operation(embedded, "retire", retain_raw_days=30)
    since = "2026-01-01T00:00:00Z,pro,credits"
    subscribe(embedded, tmp_path / "later.csv", f"org-0,{since},late", f"org-1,{since},right")
    embedded.dbt("run")
    of = "select organization_id, count() as traces from llm_traces group by all order by all"
    whole = [{"organization_id": f"org-{number}", "traces": 2} for number in range(3)]
    operation(embedded, "erase", "{customer: typo}")
    assert embedded.query(of) == whole, "nobody is charged under that name any more"
    operation(embedded, "erase", "{customer: late}")
    assert embedded.query(of) == whole[1:]
    operation(embedded, "erase", "{customer: right}")
    assert embedded.query(of) == whole[2:]


def kill_once_listed(project: Project, subject: str) -> None:
    """Begin to erase, and kill that when what is to go has been listed."""
    process = project.start_dbt("run-operation", "erase", "--args", subject)
    deadline = time.monotonic() + 120
    while not project.value(
        "select sum(total_rows) from system.tables where database = currentDatabase()"
        " and startsWith(name, 'erase_list_')"
    ):
        assert process.poll() is None
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_what_is_broken_off_is_completed_for_nobody_else(server: Project, tmp_path: Path) -> None:
    land(server, tmp_path / "a.ndjson", traces(1, 7))
    server.dbt("run", *PLAIN)
    kill_once_listed(server, "{organization: org-2}")
    left = server.value("select count() from llm_traces where organization_id = 'org-2'")
    said = operation(server, "erase", "{organization: org-1, dry_run: true}")
    assert "1 erasures for somebody else were begun and are not complete" in said
    operation(server, "erase", "{organization: org-1}")
    of = "select count() from llm_traces where organization_id = "
    assert [server.value(f"{of}'org-{number}'") for number in range(3)] == [2, 0, left]
    operation(server, "erase", "{organization: org-2}")
    assert [server.value(f"{of}'org-{number}'") for number in range(3)] == [2, 0, 0]
    assert server.query("select traces from erasures order by erased_at") == [
        *({"traces": 2}, {"traces": left})
    ]


def test_a_name_of_several_lines_is_no_other_subject(server: Project, tmp_path: Path) -> None:
    land(server, tmp_path / "a.ndjson", [record(1, org_id="a", user_id="b"), record(2)])
    server.dbt("run", *PLAIN)
    both, lines = {"organization": "a", "user": "b"}, {"organization": "a\nuser\nb"}
    kill_once_listed(server, json.dumps(both))
    said = operation(server, "erase", json.dumps(lines))
    assert "1 erasures for somebody else were begun and are not complete" in said
    assert "for somebody else" not in operation(server, "erase", json.dumps(both))
    assert server.query("select id from llm_traces") == [{"id": "000002"}]
    hashes = server.query("select subject_hash from erasures order by erased_at")
    assert [row["subject_hash"] for row in hashes] == [
        hashlib.sha256(json.dumps(subject).encode()).hexdigest() for subject in (lines, both)
    ]


def test_what_an_earlier_version_began_is_completed(embedded: Project, tmp_path: Path) -> None:
    """It named its list otherwise, and deleted the rows that say whose the trace is."""
    land(embedded, tmp_path / "a.ndjson", [record(1, org_id="a", user_id="b"), record(2)])
    embedded.dbt("run", *PLAIN)
    former = "erase_list_" + hashlib.md5(b"organization\na\nuser\nb").hexdigest()
    embedded.query(
        f"create table {former} (id String, batch_id String, position UInt32,"
        " organization_id String, created_date Date32) engine = MergeTree order by id",
        f"insert into {former} select id, batch_id, position, organization_id,"
        " toDate32(created_at) from llm_traces where organization_id = 'a'",
        "alter table raw_traces delete where position = 0 settings mutations_sync = 2",
    )
    lines = json.dumps({"organization": "a\nuser\nb"})
    assert "1 erasures for somebody else were begun" in operation(embedded, "erase", lines)
    operation(embedded, "erase", "{user: b, organization: a}")
    assert embedded.query("select id from llm_traces") == [{"id": "000002"}]
    assert embedded.query("show tables like 'erase_%'") == []


@pytest.mark.parametrize("is_pending", [False, True])
def test_a_trace_and_its_cost_stay_where_its_repetition_is_erased(
    embedded: Project, tmp_path: Path, is_pending: bool
) -> None:
    """Sent twice in one batch by one organization, by two agents, of which one is erased."""
    embedded.loader("prices")
    both = [record(3, agent_id="stays"), record(3, agent_id="gone"), record(4, agent_id="gone")]
    if is_pending:
        embedded.dbt("run", *PLAIN)
    land(embedded, tmp_path / "a.ndjson", both)
    if not is_pending:
        embedded.dbt("run", *PLAIN)
    operation(embedded, "erase", "{agent: gone}")
    if is_pending:
        embedded.dbt("run", *PLAIN)
    for table in ("llm_traces", "llm_trace_costs"):
        assert embedded.query(f"select id from {table}") == [{"id": "000003"}]


def test_what_stays_is_found_though_a_run_came_between(server: Project, tmp_path: Path) -> None:
    """Erasing is killed, a run comes, and the delete that was under way ends only then."""
    server.loader("prices")
    land(server, tmp_path / "a.ndjson", [record(3, org_id="gone"), record(5, org_id="stays")])
    land(server, tmp_path / "b.ndjson", [record(3, org_id="stays")])
    server.dbt("run", *PLAIN)
    kill_once_listed(server, "{organization: gone}")
    server.dbt("run", *PLAIN)
    server.query(
        "alter table llm_traces delete where organization_id = 'gone' settings mutations_sync = 2"
    )
    operation(server, "erase", "{organization: gone}")
    server.dbt("run", *PLAIN)
    for table in ("llm_traces", "llm_trace_costs"):
        assert server.query(f"select id, organization_id from {table} order by id") == [
            {"id": "000003", "organization_id": "stays"},
            {"id": "000005", "organization_id": "stays"},
        ]
