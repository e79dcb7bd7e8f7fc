"""One run at a time on a shared store: the second waits or refuses, a dead one is passed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.operations.test_reparse import landed, operation, spoil
from tests.support.project import Project
from tests.test_pipeline import record, write

LOCKS = "select name, comment from system.tables where name like 'run_lock_%' order by name"


def make_lock(server: Project, number: int, owner: str) -> None:
    server.query(
        f"create table run_lock_{number} (nothing UInt8) engine = Null comment '{owner} made'"
    )


def test_a_run_takes_and_frees_the_lock(server: Project) -> None:
    server.dbt("run")
    server.dbt("run")
    ((lock),) = server.query(LOCKS)
    assert lock["name"] == "run_lock_2", "older locks are removed"
    assert lock["comment"].startswith("free ")


def test_a_second_run_refuses_clearly_while_another_holds_it(server: Project) -> None:
    server.dbt("run")
    make_lock(server, 7, "11111111-2222-3333-4444-555555555555")
    done = server.dbt("run", "--vars", "run_lock_wait_seconds: 3", expect=2)
    assert "another run holds the store: 11111111-2222" in done.stdout
    assert "Nothing was done" in done.stdout
    printed = operation(server, "erase", "{organization: x}", expect=1, run_lock_wait_seconds=3)
    assert "another run holds the store" in printed


def test_erasing_looks_at_what_there_is_behind_the_lock(server: Project) -> None:
    """The run that holds the lock may be the first, and about to make what is looked for."""
    unknown = "there is no {} yet, and nothing else says whose the traces are"
    refused = operation(server, "erase", "{organization: x}", expect=1)
    assert unknown.format("int_traces__unioned") in refused
    unknown = unknown.format("int_traces__rebilled")
    server.dbt("run", "--select", "+llm_traces")
    server.query("drop view if exists int_traces__rebilled")
    customer = "{customer: x}"
    assert unknown in operation(server, "erase", customer, expect=1)
    (lock,) = server.query(LOCKS)
    assert lock["comment"].startswith("free "), "refusing holds nothing"
    make_lock(server, 7, "11111111-2222-3333-4444-555555555555")
    refused = operation(server, "erase", customer, expect=1, run_lock_wait_seconds=3)
    assert "another run holds the store" in refused
    assert unknown in operation(server, "erase", "{customer: x, dry_run: true}", expect=1)


def test_a_dead_owner_is_passed_over(server: Project) -> None:
    server.dbt("run")
    make_lock(server, 7, "11111111-2222-3333-4444-555555555555")
    done = server.dbt("run", "--vars", "run_lock_stale_seconds: 2")
    assert "ended without freeing its lock" in done.stdout
    assert [row["name"] for row in server.query(LOCKS)] == ["run_lock_8"]


def test_an_owner_that_was_passed_over_stops_before_its_next_model(server: Project) -> None:
    server.dbt("run")
    process = server.start_dbt("run")
    while not any(row["name"] == "run_lock_2" for row in server.query(LOCKS)):
        time.sleep(0.2)
    make_lock(server, 99, "11111111-2222-3333-4444-555555555555")
    stdout, _ = process.communicate()
    assert process.returncode == 1
    assert "lost its lock to 11111111-2222" in stdout


@pytest.mark.parametrize(
    ("name", "args", "asleep_before"),
    [
        # What it asks for is done when it wakes, and nothing behind that.
        ("reparse", "{apply: true}", "delete where id in"),
        ("erase", "{organization: org-1}", "delete where"),
    ],
)
def test_an_operation_that_was_passed_over_stops_before_it_changes_a_trace(
    server: Project, tmp_path: Path, name: str, args: str, asleep_before: str
) -> None:
    landed(server, tmp_path, rows=6)
    spoil(server)
    operation(server, "reparse")
    stored = "select * from llm_traces order by id"
    traces = server.query(stored)
    asked = ("run-operation", name, "--args", args)
    process = server.dbt_stopped_before(asleep_before, 1, *asked)
    make_lock(server, 99, "11111111-2222-3333-4444-555555555555")
    assert "lost its lock to 11111111-2222" in server.woken(process)
    assert server.query(stored) == traces
    assert server.value("select count() from raw_traces") == 6
    operation(server, name, args)
    assert server.query(stored) != traces


def test_a_run_that_was_passed_over_appends_nothing(server: Project, tmp_path: Path) -> None:
    """On a first run nothing is compared with what another has appended since."""
    server.loader(str(write(tmp_path / "a.ndjson", [record(n) for n in range(5)])))
    first = ("run", "--select", "+llm_traces")
    process = server.dbt_stopped_before(r"create table \S*llm_traces\W", 1, *first)
    make_lock(server, 99, "11111111-2222-3333-4444-555555555555")
    assert "lost its lock to 11111111-2222" in server.woken(process)
    assert server.value("select count() from llm_traces") == 0
    server.dbt("run", "--select", "+llm_traces")
    assert server.value("select count() from llm_traces") == 5


def test_a_first_run_that_was_passed_over_leaves_no_trace_uncosted(
    server: Project, tmp_path: Path
) -> None:
    """It empties what another has filled meanwhile."""
    server.loader(str(write(tmp_path / "a.ndjson", [record(n) for n in range(5)])))
    build = ("run", "--select", "+costed_batches")
    process = server.dbt_stopped_before(r"truncate table \S* \S* \S*llm_trace_costs", 1, *build)
    server.dbt(*build)
    server.woken(process)
    server.dbt(*build)
    assert server.value("select count() from llm_traces") == 5
    assert server.value("select count() from llm_trace_costs") == 5


def test_an_erasure_that_was_passed_over_keeps_the_list_of_the_one_that_took_over(
    server: Project, tmp_path: Path
) -> None:
    landed(server, tmp_path, rows=6)
    asked = ("run-operation", "erase", "--args", "{organization: org-1}")
    process = server.dbt_stopped_before(r"insert into \S*erasures", 1, *asked)
    make_lock(server, 99, "11111111-2222-3333-4444-555555555555")
    assert "lost its lock to 11111111-2222" in server.woken(process)
    lists = "select count() from system.tables where startsWith(name, 'erase_list_')"
    assert server.value(lists) == 2
    operation(server, "erase", "{organization: org-1}")
    assert server.value(lists) == 0


def test_what_only_asks_needs_no_lock(server: Project, tmp_path: Path) -> None:
    landed(server, tmp_path, rows=2)
    make_lock(server, 99, "11111111-2222-3333-4444-555555555555")
    server.dbt("test", "--store-failures", "--select", "llm_traces,test_type:generic")
    asked = ("source", "freshness", "--vars", "run_lock_wait_seconds: 0")
    assert "another run holds the store" not in server.dbt(*asked, expect=None).stdout


def test_a_run_that_was_passed_over_swaps_in_nothing(server: Project, tmp_path: Path) -> None:
    server.loader(str(write(tmp_path / "a.ndjson", [record(n) for n in range(5)])))
    server.dbt("run", "--select", "+costed_batches")
    anew = ("run", "--full-refresh", "--select", "llm_trace_costs")
    process = server.dbt_stopped_before(r"rename table \S*llm_trace_costs__dbt_", 1, *anew)
    server.dbt("run", "--select", "stg_billing__accounts")
    which = "select toString(uuid) from system.tables where name = 'llm_trace_costs'"
    table = server.value(which)
    server.woken(process)
    assert server.value(which) == table
    assert server.value("select count() from llm_trace_costs") == 5


def test_what_only_compiles_takes_no_lock(server: Project) -> None:
    server.loader("init")
    make_lock(server, 7, "11111111-2222-3333-4444-555555555555")
    server.dbt("compile", "--vars", "run_lock_wait_seconds: 3")
    ((lock),) = server.query(LOCKS)
    assert lock["comment"] == "11111111-2222-3333-4444-555555555555 made"


def test_a_lock_is_not_freed_while_a_statement_of_the_run_goes_on(server: Project) -> None:
    """An insert whose connection was lost, as the server sees it: another run must not look yet."""
    server.dbt("run")
    process = server.start_dbt("run")
    while not (held := [row for row in server.query(LOCKS) if row["name"] == "run_lock_2"]):
        time.sleep(0.2)
    owner = held[0]["comment"].split()[0]
    slow = "select count() from numbers(1000000) where not ignore(sleepEachRow(0.5))"
    left = server.start(sys.executable, "-m", "tests.support.ask", stdin=subprocess.PIPE)
    assert left.stdin is not None
    left.stdin.write(
        json.dumps(
            {
                "sql": [
                    f"/* tokenledger run {owner} */ {slow} settings max_block_size = 1,"
                    " max_execution_time = 60"
                ],
                "parameters": {},
            }
        )
    )
    left.stdin.close()
    stdout, _ = process.communicate()
    assert process.returncode == 0
    assert "still runs on the server" in stdout
    assert server.query(LOCKS)[-1]["comment"].startswith(owner)
    refused = server.dbt(
        "run", "--vars", "{run_lock_wait_seconds: 6, run_lock_stale_seconds: 1}", expect=2
    )
    assert "another run holds the store" in refused.stdout
    left.kill()


def test_two_runs_at_once_double_nothing(server: Project, tmp_path: Path) -> None:
    server.dbt("run")
    server.loader(str(write(tmp_path / "a.ndjson", [record(n) for n in range(3000)])))
    other = Project(tmp_path / "other", {})
    other.env = server.env | {
        name: other.env[name] for name in other.env if name.startswith("DBT_")
    }
    runs = [server.start_dbt("run"), other.start_dbt("run")]
    said = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert any("waiting up to" in text for text in said)
    assert server.value("select count() from llm_traces") == 3000
    assert server.value("select uniqExact(id) from llm_traces") == 3000


def test_a_killed_run_leaves_a_lock_that_the_next_takes_over(
    server: Project, tmp_path: Path
) -> None:
    server.dbt("run")
    server.loader(str(write(tmp_path / "a.ndjson", [record(n) for n in range(500)])))
    process = server.start_dbt("run")
    while not any(row["name"] == "run_lock_2" for row in server.query(LOCKS)):
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    server.dbt("run", "--vars", "run_lock_stale_seconds: 5")
    assert server.value("select count() from llm_traces") == 500
    assert server.value("select uniqExact(id) from llm_traces") == 500


def test_two_first_runs_at_once_undo_nothing(server: Project, tmp_path: Path) -> None:
    """The second has looked at what there is before it waits."""
    server.loader("prices")
    server.loader(str(write(tmp_path / "a.ndjson", [record(n) for n in range(9)])))
    runs = [server.start_dbt("run", "--select", "+costed_batches") for _ in range(2)]
    said = [run.communicate()[0] for run in runs]
    assert sorted(run.returncode for run in runs) == [0, 1]
    assert sum("another run has made llm_traces since this one began" in one for one in said) == 1
    for table in ("llm_traces", "llm_trace_costs"):
        assert server.value(f"select count() from {table}") == 9
    assert server.value("select count() from costed_batches") == 1
