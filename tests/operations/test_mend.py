"""A damaged file: a run refuses, says so, and what is lost comes back from what is left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.operations.test_reparse import FRESH, operation
from tests.operations.test_retire_and_erase import AGE, PLAIN, land
from tests.support.project import ROOT, Project
from tests.test_pipeline import record, write


def first_part(project: Project, table: str) -> str:
    path: str = project.value(
        "select path from system.parts where active and database = currentDatabase()"
        f" and table = '{table}'"
        " order by name limit 1"
    )
    return path


def damage(project: Project, table: str) -> None:
    """Cut the largest file of a table's first part in two."""
    path = first_part(project, table)
    file = max(Path(path).glob("*.*"), key=lambda one: one.stat().st_size if one.is_file() else 0)
    os.truncate(file, file.stat().st_size // 2)


def lose(project: Project, path: Path) -> None:
    """Let the raw rows of a file and its traces be lost, and mend that."""
    for table in ("raw_traces", "llm_traces"):
        project.query(
            f"alter table {table} delete where batch_id in (select batch_id from raw_batches"
            " where source = {source:String}) settings mutations_sync = 2,"
            " allow_nondeterministic_mutations = 1",
            source=str(path),
        )
    assert str(path) in operation(project, "mend")


def costs_and_traces(project: Project) -> list[list[dict[str, object]]]:
    of = "select id, created_at, batch_id, organization_id from {} order by id, created_at"
    return [project.query(of.format(table)) for table in ("llm_trace_costs", "llm_traces")]


@pytest.mark.long
def test_the_cost_of_a_lost_trace_waits_for_it_and_is_in_no_report(
    embedded: Project, tmp_path: Path
) -> None:
    """Its source may be gone. Of its month a call is left that the caller's own key paid."""
    embedded.loader("prices")
    byok = {"model": "gpt-4o", "model_endpoint_type": "openai", "provider_category": "byok"}
    files = {name: tmp_path / f"{name}.ndjson" for name in ("stays", "lost", "late")}
    for name, month, numbers in (("stays", 10, (1, 2)), ("lost", 11, (3, 4)), ("late", 10, (5,))):
        time = f"2026-{month}-05T12:00:00Z"
        write(files[name], [record(number, created_at=time) for number in numbers])
    with files["stays"].open("a") as file:
        own = record(6, created_at="2026-11-05T13:00:00Z", llm_config=byok)
        file.write(json.dumps(own) + "\n")

    def run() -> list[object]:
        embedded.dbt("run", "--select", "+int_costs__by_utc_day")
        embedded.dbt("test", "--select", "assert_costs_follow_traces")
        traces = "select id from llm_traces"
        (row,) = embedded.query(
            "select sumIf(calls, unit = '') as calls, toString(sum(amount_usd)) as amount,"
            " (select toString(sum(total_cost_usd)) from llm_trace_costs"
            f"  where not is_byok and id in ({traces})) as cost from int_costs__by_utc_day"
        )
        assert row["amount"] == row["cost"]
        return [row["calls"], embedded.value("select count() from llm_trace_costs")]

    for name in ("stays", "lost"):
        embedded.loader(str(files[name]))
    assert run() == [4, 5]
    priced = "select id, priced_at from llm_trace_costs where id like '%3' order by id"
    before = embedded.query(priced)
    lose(embedded, files["lost"])
    assert run() == [2, 5]
    embedded.loader(str(files["late"]))
    assert run() == [3, 6]
    embedded.loader(str(files["lost"]))
    assert run() == [5, 6]
    assert embedded.query(priced) == before


def test_a_run_behind_a_killed_mending_charges_every_trace(
    embedded: Project, tmp_path: Path
) -> None:
    """Of the same ids another file brought the traces, which count as costed by what is lost."""
    embedded.loader("prices")
    number, were_killed = 0, True
    while were_killed:
        number += 1
        records = [record(1000 * number + each, org_id=f"org-{number}") for each in (1, 2, 3)]
        land(embedded, tmp_path / f"a{number}.ndjson", records)
        embedded.dbt("run", *PLAIN)
        for table in ("raw_traces", "llm_traces"):
            embedded.query(f"alter table {table} delete where true settings mutations_sync = 2")
        land(embedded, tmp_path / f"b{number}.ndjson", [each | {"n": 1} for each in records])
        embedded.dbt("run", *PLAIN)
        deletes = "alter table .* delete where"
        were_killed = embedded.dbt_killed_before(deletes, number, "run-operation", "mend")
        embedded.dbt("run", *PLAIN)
        costs = "select id from llm_trace_costs where id in (select id from llm_traces) order by id"
        assert embedded.query(costs) == embedded.query("select id from llm_traces order by id")
    assert number > 2


def test_a_batch_of_two_ledger_rows_is_listed_once(embedded: Project, tmp_path: Path) -> None:
    """A second row says what was not known at first: which beginning of a line it goes on from."""
    source = write(tmp_path / "a.ndjson", [record(number) for number in range(1, 4)])
    embedded.loader(str(source))
    embedded.query(
        "insert into raw_batches select * replace (['begun'] as continues) from raw_batches",
        "alter table raw_traces delete where true settings mutations_sync = 2",
    )
    (listed,) = (line for line in operation(embedded, "mend").splitlines() if str(source) in line)
    assert [column.strip() for column in listed.strip("| ").split("|")] == [str(source), "1", "3"]


def test_a_truncated_file_is_noticed_and_mended(embedded: Project, tmp_path: Path) -> None:
    source = write(tmp_path / "a.ndjson", [record(number) for number in range(1, 200)])
    embedded.loader(str(source))
    embedded.dbt("run")
    before = embedded.query(FRESH)

    for table in ("llm_traces", "raw_traces"):
        damage(embedded, table)
        done = embedded.dbt("run", expect=None)
        assert done.returncode != 0, table
        assert "the store is damaged" in done.stdout
        assert table in done.stdout
        assert "set aside as broken" in operation(embedded, "mend", "{dry_run: true}")
        said = operation(embedded, "mend")
        if table == "raw_traces":
            assert str(source) in said
            embedded.loader(str(source))
        embedded.dbt("run")
        after = embedded.query(FRESH)
        assert [row | {"landed_at": 0} for row in after] == [
            row | {"landed_at": 0} for row in before
        ]
    assert "WARN=0" in embedded.dbt("build").stdout


def test_a_part_that_a_power_failure_took_comes_back(embedded: Project, tmp_path: Path) -> None:
    # What dbt builds is not synced: the ledger can be on the disk, and what it counts not.
    source = write(tmp_path / "a.ndjson", [record(number) for number in range(1, 50)])
    embedded.loader(str(source))
    embedded.dbt("run")
    before = embedded.query(FRESH)

    for table in ("llm_traces", "llm_trace_costs"):
        shutil.rmtree(first_part(embedded, table))
        embedded.dbt("run")
        assert embedded.value(f"select count() from {table}") < len(before), "it is not noticed"
        said = operation(embedded, "mend")
        assert "batches to build again" in said
        embedded.dbt("run")
        assert embedded.query(FRESH) == before
        assert embedded.value(f"select uniqExact(id) from {table}") == len(before)
        assert embedded.value(f"select count() from {table}") == len(before)
    assert "stand there already" not in said
    assert "WARN=0" in embedded.dbt("build").stdout

    embedded.query("insert into llm_traces select * from llm_traces where id = '000001'")
    said = operation(embedded, "mend", "{dry_run: true}")
    assert "llm_traces holds 1 rows of ids that stand there already" in said


def test_what_is_lost_of_subscriptions_and_bills_is_named(
    embedded: Project, tmp_path: Path
) -> None:
    """The first of two statements, which the second corrected, is lost."""
    files: dict[str, list[str]] = {"billing": [], "bills": []}
    for number, name in enumerate(("first", "second")):
        account = tmp_path / f"{name}-accounts.csv"
        account.write_text(
            "organization_id,plan_type,cost_source,customer_id,valid_from\n"
            f"o,pro,credits,customer-{number},2026-11-01\n"
        )
        bill = tmp_path / f"{name}-bill.csv"
        bill.write_text(f"date,provider,amount_usd\n2026-11-01,p,{number}\n")
        for verb, file in (("billing", account), ("bills", bill)):
            embedded.loader(verb, str(file))
            files[verb].append(str(file))
    embedded.dbt("seed", "--select", "bill_units")
    embedded.dbt("run", *PLAIN, "stg_bills__lines")
    for table in ("raw_billing_accounts", "raw_provider_bills"):
        damage(embedded, table)
    assert "the store is damaged" in embedded.dbt("run", expect=None).stdout
    said = operation(embedded, "mend")
    for verb, (lost, left) in files.items():
        assert f"python -m loader {verb} --restate" in said
        assert left in said
        assert lost not in said
        for file in (lost, left):
            embedded.loader(verb, "--restate", file)
    embedded.dbt("run", *PLAIN, "stg_bills__lines")
    holds = (
        "select (select any(customer_id) from stg_billing__accounts) as customer_id,"
        " (select toFloat64(sum(amount_usd)) from stg_bills__lines) as usd"
    )
    assert embedded.query(holds) == [{"customer_id": "customer-1", "usd": 1}]


def test_what_is_lost_of_raw_rows_and_of_what_was_built_comes_back(
    embedded: Project, tmp_path: Path
) -> None:
    embedded.loader("prices")
    source = write(tmp_path / "a.ndjson", [record(number) for number in range(1, 9)])
    embedded.loader(str(source))
    embedded.dbt("run", *PLAIN)
    money = "select id, total_cost_usd, priced_at from llm_trace_costs order by id"
    priced = embedded.query(money)
    before = embedded.query(FRESH)
    lose(embedded, source)
    embedded.loader(str(source))
    embedded.dbt("run", *PLAIN)
    after = embedded.query(FRESH)
    assert [row | {"landed_at": 0} for row in after] == [row | {"landed_at": 0} for row in before]
    assert embedded.query(money) == priced, "what it cost is not reckoned anew"


@pytest.mark.parametrize("is_built_before", [False, True])
def test_what_is_left_of_a_batch_is_built_though_its_source_is_gone(
    embedded: Project, tmp_path: Path, is_built_before: bool
) -> None:
    """Of one batch the rejects are lost, and of another a row; neither was built yet."""
    embedded.loader("prices")
    if is_built_before:
        land(embedded, tmp_path / "built.ndjson", [record(1)])
        embedded.dbt("run", *PLAIN)
    land(embedded, tmp_path / "a.ndjson", [record(2), record(3)], broken=1)
    land(embedded, tmp_path / "b.ndjson", [record(4), record(5)], broken=2)
    for gone in (
        "raw_rejects delete where source like '%/a.ndjson'",
        "raw_traces delete where position(envelope_json, '000005') > 0",
    ):
        embedded.query(f"alter table {gone} settings mutations_sync = 2")
    assert "land these sources again" in operation(embedded, "mend")
    status = json.loads(embedded.loader("status", "--json").stdout)
    assert (status["lost_batches"], status["unfinished_batches"]) == (2, 0)
    assert status["rejected_by_reason"] == {"not_json": 2}
    charged = "select id, cost_status from llm_trace_costs order by id"

    def is_charged(*numbers: int) -> None:
        embedded.dbt("run", *PLAIN)
        wanted = [{"id": f"{number:06}", "cost_status": "priced"} for number in numbers]
        assert embedded.query(charged) == wanted
        assert embedded.value("select count() from llm_traces") == len(wanted)
        assert embedded.value("select count() from int_batches__pending") == 0

    first = [1] * is_built_before
    is_charged(*first, 2, 3, 4)
    embedded.query("alter table llm_traces delete where id != '000001' settings mutations_sync = 2")
    assert "batches to build again" in operation(embedded, "mend")
    is_charged(*first, 2, 3, 4)

    # Once more, of the batch that had all its rows: nothing of that is seen before it lands again.
    for table in ("raw_traces", "llm_traces", "llm_trace_costs"):
        embedded.query(
            f"alter table {table} delete where batch_id in (select batch_id from raw_lost_batches"
            " where source like '%/a.ndjson') settings mutations_sync = 2,"
            " allow_nondeterministic_mutations = 1"
        )
    # And the memory of what is lost is damaged as well.
    damage(embedded, "raw_lost_batches")
    operation(embedded, "mend", "{forget: true}")
    is_charged(*first, 4)
    embedded.loader(str(tmp_path / "a.ndjson"), str(tmp_path / "b.ndjson"), expect=1)
    assert embedded.value("select count() from raw_rejects") == 3
    is_charged(*first, 2, 3, 4, 5)
    assert json.loads(embedded.loader("status", "--json").stdout)["lost_batches"] == 0


def test_what_was_built_of_a_batch_that_is_lost_is_charged(
    embedded: Project, tmp_path: Path
) -> None:
    """A run was killed behind llm_traces, and then the raw rows went."""
    embedded.loader("prices")
    land(embedded, tmp_path / "a.ndjson", [record(1)])
    embedded.dbt("run", *PLAIN)
    land(embedded, tmp_path / "b.ndjson", [record(2), record(3)])
    embedded.dbt("run", "--select", "+llm_traces")
    embedded.query(
        "alter table raw_traces delete where position(envelope_json, '000001') = 0"
        " settings mutations_sync = 2"
    )
    operation(embedded, "mend")
    embedded.dbt("run", *PLAIN)
    costs, stored = costs_and_traces(embedded)
    assert costs == stored
    assert len(costs) == 3


def test_a_line_is_one_trace_whether_it_landed_or_was_replayed(
    embedded: Project, tmp_path: Path
) -> None:
    """A lost batch lands again by other limits, is killed, and then its rejects are replayed."""
    embedded.loader("prices")
    path = tmp_path / "a.ndjson"
    write(path, [record(1), record(2, id=None, step_id="x" * 2000)])
    limit = "TOKENLEDGER_MAX_RECORD_BYTES"
    embedded.env[limit] = "2000"
    embedded.loader(str(path), expect=1)
    del embedded.env[limit]
    embedded.dbt("run", *PLAIN)
    embedded.query("alter table raw_traces delete where true settings mutations_sync = 2")
    operation(embedded, "mend")
    embedded.loader("rejects", "--replay")
    embedded.query(
        "insert into raw_traces select left(batch_id, 32) as batch_id, * except (batch_id)"
        " from raw_traces where position = 1"
    )
    for _ in range(2):
        embedded.dbt("run", *PLAIN)
        costs, stored = costs_and_traces(embedded)
        assert costs == stored
        assert len(costs) == 2
        assert embedded.value("select count() from int_batches__pending") == 0
        embedded.loader(str(path), expect=None)
    assert embedded.value("select count() from trace_conflicts") == 0


def test_where_a_ledger_is_damaged_nothing_is_forgotten_by_itself(
    embedded: Project, tmp_path: Path
) -> None:
    embedded.loader("prices")
    path = tmp_path / "a.ndjson"
    land(embedded, path, [record(1), record(2)])
    embedded.dbt("run", *PLAIN)
    land(embedded, tmp_path / "b.ndjson", [record(3)])
    for _ in range(2):  # of a batch that was built, and of one that was not
        damage(embedded, "raw_batches")
    for options in ("{}", "{dry_run: true}"):
        said = operation(embedded, "mend", options, expect=1)
        assert "what is lost of raw_batches stands in no other table" in said
    assert "the store is damaged" in embedded.dbt("run", expect=None).stdout
    operation(embedded, "mend", "{forget: true}")
    embedded.dbt("run", *PLAIN)
    ids = "select id from llm_trace_costs order by id"
    assert [row["id"] for row in embedded.query(ids)] == ["000001", "000002", "000003"]
    write(path, [record(1), record(2), record(4)])
    embedded.loader(str(path), str(tmp_path / "b.ndjson"))
    embedded.dbt("run", *PLAIN)
    assert [row["id"] for row in embedded.query(ids)] == [
        f"00000{number}" for number in range(1, 5)
    ]
    assert "not whole any more" not in operation(embedded, "mend", "{dry_run: true}")


def test_what_is_landed_again_after_retention_can_be_lost_again(
    embedded: Project, tmp_path: Path
) -> None:
    """That its raw rows were retired once says nothing of those that came since."""
    path = tmp_path / "a.ndjson"
    land(embedded, path, [record(number) for number in range(1, 4)], broken=1)
    embedded.dbt("run", *PLAIN)
    embedded.query(AGE)
    operation(embedded, "retire", retain_raw_days=30)
    assert str(path) not in operation(embedded, "mend", "{dry_run: true}")
    for gone in ("raw_rejects delete where 1", "llm_traces delete where 1"):
        embedded.query(f"alter table {gone} settings mutations_sync = 2")
    assert str(path) in operation(embedded, "mend")
    embedded.loader(str(path), expect=1)
    embedded.query("alter table raw_traces delete where position = 1 settings mutations_sync = 2")
    embedded.dbt("run", *PLAIN)
    assert embedded.value("select count() from int_batches__pending") == 1
    assert str(path) in operation(embedded, "mend")
    embedded.loader(str(path), expect=1)
    embedded.dbt("run", *PLAIN)
    assert embedded.value("select count() from llm_traces") == 3
    assert embedded.value("select count() from int_batches__pending") == 0


@pytest.mark.parametrize("is_retired_first", [True, False])
def test_a_replay_that_is_lost_once_its_origin_s_rejects_are_retired_comes_from_the_file(
    embedded: Project, tmp_path: Path, is_retired_first: bool
) -> None:
    path = write(tmp_path / "a.ndjson", [record(1), record(2, step_id="x" * 3000)])
    limit = "TOKENLEDGER_MAX_RECORD_BYTES"
    embedded.env[limit] = "2000"
    embedded.loader(str(path), expect=1)
    del embedded.env[limit]
    embedded.loader("rejects", "--replay")
    embedded.dbt("run", *PLAIN)
    embedded.query(AGE)
    if is_retired_first:
        operation(embedded, "retire", retain_reject_days=30)
    for table in ("raw_traces", "llm_traces"):
        embedded.query(
            f"alter table {table} delete where position(batch_id, '-') > 0"
            " settings mutations_sync = 2"
        )
    if not is_retired_first:
        assert "replay/" in operation(embedded, "mend")
        operation(embedded, "retire", retain_reject_days=30)
    assert embedded.value("select count() from raw_rejects") == 0
    said = operation(embedded, "mend")
    assert ("replay/" in said) == is_retired_first
    assert str(path) in said
    embedded.loader(str(path))
    embedded.dbt("run", *PLAIN)
    assert [row["id"] for row in embedded.query("select id from llm_traces order by id")] == [
        "000001",
        "000002",
    ]
    assert json.loads(embedded.loader("status", "--json").stdout)["lost_batches"] == 0
    assert str(path) not in operation(embedded, "mend", "{dry_run: true}")


def test_nothing_is_retired_of_a_damaged_store(embedded: Project, tmp_path: Path) -> None:
    said = operation(embedded, "retire", expect=1, retain_raw_days=30)
    assert "there is no llm_traces" in said
    land(embedded, tmp_path / "a.ndjson", [record(number) for number in range(1, 100)])
    embedded.dbt("run", *PLAIN)
    embedded.query(AGE)
    damage(embedded, "llm_traces")
    assert "would retire" in operation(embedded, "retire", "{dry_run: true}", retain_raw_days=30)
    said = operation(embedded, "retire", expect=1, retain_raw_days=30)
    assert "the store is damaged" in said
    assert embedded.value("select count() from raw_traces") == 99
    operation(embedded, "mend")
    embedded.dbt("run", *PLAIN)
    assert embedded.value("select count() from llm_traces") == 99


def test_conflicts_that_are_lost_are_found_again(embedded: Project, tmp_path: Path) -> None:
    land(embedded, tmp_path / "a.ndjson", [record(1), record(2)])
    other = record(1)
    other["response_json"]["usage"]["prompt_tokens"] = 7
    land(embedded, tmp_path / "b.ndjson", [other, record(3)])
    embedded.dbt("run", *PLAIN)
    conflicts = "select id, position, differs_in from trace_conflicts"
    before = embedded.query(conflicts)
    assert before == [{"id": "000001", "position": 0, "differs_in": ["response"]}]
    damage(embedded, "trace_conflicts")
    assert "the store is damaged" in embedded.dbt("run", expect=None).stdout
    assert "transformed_batches: 1 batches to build again" in operation(embedded, "mend")
    embedded.dbt("run", *PLAIN)
    assert embedded.query(conflicts) == before


@pytest.mark.parametrize("is_mended_twice", [False, True])
def test_what_names_no_time_is_charged_once_when_it_comes_back(
    embedded: Project, tmp_path: Path, is_mended_twice: bool
) -> None:
    """A trace without a time is of the time it landed at, which is another one then."""
    embedded.loader("prices")
    undated = [
        {name: value for name, value in record(number).items() if name != "created_at"}
        for number in range(1, 6)
    ]
    source = write(tmp_path / "a.ndjson", undated[1:])
    for path in (write(tmp_path / "first.ndjson", undated[:1]), source):
        embedded.loader(str(path))
    embedded.dbt("run", *PLAIN)
    lose(embedded, source)
    embedded.loader(str(source))
    if is_mended_twice:
        operation(embedded, "mend")
    embedded.dbt("run", *PLAIN)
    costs, stored = costs_and_traces(embedded)
    assert costs == stored
    assert len(costs) == 5


def test_another_arrival_that_becomes_the_trace_is_charged_instead(
    embedded: Project, tmp_path: Path
) -> None:
    """Lost files come back in another order, and an id is sent again before its file is."""
    embedded.loader("prices")
    early, late = "2026-10-05T12:00:00Z", "2026-10-07T12:00:00Z"
    first, second, third = (tmp_path / f"{name}.ndjson" for name in ("first", "second", "third"))
    land(embedded, first, [record(1, created_at=early), record(2, created_at=late, org_id="one")])
    land(embedded, second, [record(1, created_at=late), record(2, created_at=late, org_id="two")])
    land(embedded, third, [record(3, created_at=early)])
    embedded.dbt("run", *PLAIN)
    for path in (first, second, third):
        lose(embedded, path)
    land(embedded, tmp_path / "again.ndjson", [record(3, created_at=late)])
    embedded.loader(str(second))
    embedded.dbt("run", *PLAIN)
    for path in (first, third):
        embedded.loader(str(path))
    embedded.dbt("run", *PLAIN)
    costs, stored = costs_and_traces(embedded)
    assert costs == stored
    assert [str(row["created_at"])[:10] for row in costs] == [late[:10]] * 3
    assert costs[1]["organization_id"] == "two"


SLOW_CLOCK = """
import sys, datetime
import loader.batches, loader.landing
from loader.cli import main
class Slow(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.now(tz) - datetime.timedelta(seconds=90)
loader.batches.datetime = loader.landing.datetime = Slow
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("organization", ["first", "other"])
def test_what_comes_from_elsewhere_after_a_run_is_charged_once(
    embedded: Project, tmp_path: Path, organization: str
) -> None:
    """A schedule goes on while a batch is lost; its records are sent again in another file."""
    embedded.loader("prices")
    sent = record(1, org_id="first", created_at=None)
    path = write(tmp_path / "a.ndjson", [sent])
    embedded.loader(str(path))
    embedded.dbt("run", *PLAIN)
    lose(embedded, path)
    for number in (2, 3):  # the run of something else, and of what comes again
        embedded.dbt("run", *PLAIN)
        assert embedded.value("select count() from llm_trace_costs where id = '000001'") == 1
        write(tmp_path / f"{number}.ndjson", [sent | {"org_id": organization}])
        embedded.loader(str(tmp_path / f"{number}.ndjson"))
    embedded.dbt("run", *PLAIN)
    costs, stored = costs_and_traces(embedded)
    assert costs == stored
    assert [row["organization_id"] for row in stored] == [organization]


def test_a_replay_that_is_made_again_after_a_run_is_charged_once(
    embedded: Project, tmp_path: Path
) -> None:
    """By other limits; and what a user is erased by stands in its raw rows alone."""
    embedded.loader("prices")
    sizes = {1: 0, 2: 2000, 3: 9000}
    path = tmp_path / "a.ndjson"
    write(
        path,
        [
            record(number, created_at=None, user_id=f"user-{number}", step_id="x" * size)
            for number, size in sizes.items()
        ],
    )
    for limit, verb in (("1000", [str(path)]), ("5000", ["rejects", "--replay"])):
        embedded.env["TOKENLEDGER_MAX_RECORD_BYTES"] = limit
        embedded.loader(*verb, expect=1)
    del embedded.env["TOKENLEDGER_MAX_RECORD_BYTES"]
    embedded.dbt("run", *PLAIN)
    for tables in (("raw_traces",), ("raw_traces", "llm_traces")):
        for table in tables:
            embedded.query(
                f"alter table {table} delete where position(batch_id, '-') > 0"
                " settings mutations_sync = 2"
            )
        assert "replay/" in operation(embedded, "mend")
        embedded.dbt("run", *PLAIN)
        embedded.loader("rejects", "--replay")
        embedded.dbt("run", *PLAIN)
        costs, stored = costs_and_traces(embedded)
        assert costs == stored
        assert len(costs) == len(sizes)
    said = operation(embedded, "erase", "{user: user-2}")
    assert "lost raw rows" not in said
    ids = embedded.query("select id from llm_traces order by id")
    assert [row["id"] for row in ids] == ["000001", "000003"]


@pytest.mark.parametrize("day", ["2026-10-05", "2026-10-07"])
def test_an_arrival_whose_loader_had_a_slow_clock_is_charged_instead(
    embedded: Project, tmp_path: Path, day: str
) -> None:
    """It came second and landed earlier, so that it is the trace once the trace is lost."""
    embedded.loader("prices")
    first = write(tmp_path / "first.ndjson", [record(1, created_at="2026-10-05T12:00:00Z")])
    embedded.loader(str(first))
    embedded.dbt("run", *PLAIN)
    other = record(1, created_at=f"{day}T12:00:00Z")
    other["response_json"]["usage"]["prompt_tokens"] = 1_000_000
    second = write(tmp_path / "second.ndjson", [other])
    subprocess.run(
        [sys.executable, "-c", SLOW_CLOCK, str(second)], cwd=ROOT, env=embedded.env, check=True
    )
    embedded.dbt("run", *PLAIN)
    shutil.rmtree(first_part(embedded, "llm_traces"))
    operation(embedded, "mend")
    embedded.dbt("run", *PLAIN)
    costs, stored = costs_and_traces(embedded)
    assert costs == stored
    (cost,) = embedded.query("select total_cost_usd > 1 as is_dear from llm_trace_costs")
    assert cost["is_dear"]


def test_the_cost_of_a_trace_that_is_lost_for_good_goes(embedded: Project, tmp_path: Path) -> None:
    embedded.loader("prices")
    early, late = "2026-10-05T12:00:00Z", "2026-10-07T12:00:00Z"
    first = [record(1, created_at=early), record(2), record(3, org_id="gone")]
    land(embedded, tmp_path / "a.ndjson", first)
    embedded.dbt("run", *PLAIN)
    embedded.query(AGE)
    operation(embedded, "retire", retain_raw_days=30)
    land(embedded, tmp_path / "b.ndjson", [record(1, created_at=late)])
    embedded.dbt("run", *PLAIN)
    embedded.query(
        "alter table llm_traces delete where id in ('000001', '000003') settings mutations_sync = 2"
    )
    assert "llm_trace_costs: 2 rows of traces that are lost" in operation(embedded, "mend")
    embedded.dbt("run", *PLAIN)
    costs, stored = costs_and_traces(embedded)
    assert costs == stored
    assert (costs[0]["id"], str(costs[0]["created_at"])[:10]) == ("000001", late[:10])


def test_what_is_lost_of_a_file_lands_as_it_was_cut(project: Project, tmp_path: Path) -> None:
    """Records that do not name themselves are what their place in their batch makes them."""
    project.loader("prices")
    lines = [
        json.dumps({name: value for name, value in record(number).items() if name != "id"})
        for number in range(1, 10)
    ]
    path = tmp_path / "a.ndjson"
    for first in (0, 3, 6):
        with path.open("a") as file:
            file.write("\n".join(lines[first : first + 3]) + "\n")
        project.loader(str(path))
    project.dbt("run")
    operation(project, "erase", "{organization: org-1}")
    project.dbt("run")
    state = (
        "select (select count() from llm_traces) as traces, (select uniqExact(id) from llm_traces)"
        " as ids, (select countIf(organization_id = 'org-1') from llm_traces) as erased,"
        " (select sum(total_cost_usd) from llm_trace_costs) as cost,"
        " (select count() from raw_traces) as raw, (select count() from raw_batches) as batches"
    )
    before = project.query(state)
    assert [before[0][name] for name in ("traces", "raw", "batches")] == [6, 6, 3]

    for table in ("raw_traces", "raw_rejects"):
        project.query(
            f"alter table {table} delete where batch_id in (select batch_id from raw_batches"
            " where start_offset = 0 or first_line = 4) settings mutations_sync = 2,"
            " allow_nondeterministic_mutations = 1"
        )
    assert str(path) in operation(project, "mend")
    project.env["TOKENLEDGER_BATCH_LINES"] = "2"
    summary = json.loads(project.loader(str(path), "--json").stdout)
    assert (summary["batches"], summary["rows"], summary["batches_already"]) == (2, 6, 1)
    project.dbt("run")
    assert project.query(state) == before
    project.dbt("build")
