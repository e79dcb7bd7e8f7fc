"""Reparse: history read again from stored payloads, looked at first, applied month by month."""

from __future__ import annotations

import random
import re
import signal
import time
from pathlib import Path

import pytest

from tests.support.project import Project
from tests.test_pipeline import record, write

KEPT = "id, request_json, response_json, organization_id, batch_id, position, created_at"
FRESH = "select * except (transformed_at) from llm_traces order by id"
COSTS = "select id, toString(total_cost_usd) as cost from llm_trace_costs order by id"


def landed(project: Project, folder: Path, rows: int = 60) -> list[dict[str, object]]:
    """Land and transform traces of two months; return them as the rules of now read them."""
    project.loader(
        str(
            write(
                folder / "a.ndjson",
                [
                    record(number, created_at=f"2026-{9 + number % 2:02d}-15T12:00:00Z")
                    for number in range(1, rows + 1)
                ],
            )
        )
    )
    project.dbt("run")
    return project.query(FRESH)


def spoil(project: Project, where: str = "1") -> None:
    """Leave rows as older rules would have read them: other tokens, another version."""
    project.query(
        "alter table llm_traces update prompt_tokens = 0, usage_dialect = 'older',"
        f" parser_version = 'older' where {where} settings mutations_sync = 2"
    )


def operation(
    project: Project, name: str, args: str = "{}", expect: int = 0, **vars: object
) -> str:
    """Run a dbt operation and return what it printed."""
    given = ["--vars", repr(vars).replace("True", "true")] if vars else []
    done = project.dbt("run-operation", name, "--args", args, *given, expect=expect)
    return done.stdout + done.stderr


def test_all_of_history_is_that_of_strange_clocks_too(embedded: Project, tmp_path: Path) -> None:
    times = [
        *("1899-12-31T23:59:59Z", "1900-01-01T00:00:00Z", "1969-12-31T22:00:00Z"),
        *("2270-05-05T00:00:00Z", "9999-12-31T23:59:59.999999Z"),
    ]
    records = [record(n, created_at=time) for n, time in enumerate(times)]
    embedded.loader(str(write(tmp_path / "a.ndjson", records)))
    embedded.dbt("run", "--select", "+transformed_batches")
    fresh = embedded.query(FRESH)
    spoil(embedded)
    operation(embedded, "reparse")
    operation(embedded, "reparse", "{apply: true}")
    assert embedded.query(FRESH) == fresh


def test_it_reports_first_then_applies(project: Project, tmp_path: Path) -> None:
    fresh = landed(project, tmp_path)
    spoil(project, "id != '000002'")
    before = project.query(FRESH)
    stamp = "select id, transformed_at from llm_traces order by id"
    stamps = project.query(stamp)

    refused = operation(project, "reparse", "{apply: true}", expect=1)
    assert "Look first" in refused
    printed = operation(project, "reparse")
    assert "older" in printed
    assert project.query(FRESH) == before, "a report changes nothing"
    changed = project.query(
        "select id, changed_columns, before.prompt_tokens as b, after.prompt_tokens as a"
        " from llm_traces_reparsed order by id"
    )
    assert len(changed) == 59
    assert changed[0]["b"] == 0
    assert changed[0]["a"] == 1
    assert "prompt_tokens" in changed[0]["changed_columns"]

    operation(project, "reparse", "{apply: true}")
    assert project.query(FRESH) == fresh
    now = project.query(stamp)
    same = [row["id"] for row, was in zip(now, stamps, strict=True) if row == was]
    assert same == ["000002"], "only what changed says so"
    assert "nothing to do" in operation(project, "reparse", "{apply: true}")
    project.dbt("build")


def test_a_range_is_a_range(project: Project, tmp_path: Path) -> None:
    landed(project, tmp_path)
    spoil(project)
    for apply in ("false", "true"):
        operation(project, "reparse", f"{{from: 2026-10-01, to: 2026-11-01, apply: {apply}}}")
    assert project.query(
        "select toMonth(created_at) as month, countIf(parser_version = 'older') as old"
        " from llm_traces group by month order by month"
    ) == [{"month": 9, "old": 30}, {"month": 10, "old": 0}]
    assert "is no time" in operation(project, "reparse", '{from: "\' or 1"}', expect=1)


def test_it_refuses_what_was_retired(project: Project, tmp_path: Path) -> None:
    landed(project, tmp_path)
    spoil(project)
    operation(project, "retire", retain_payload_days=1)
    assert "30 traces" not in operation(project, "reparse", expect=1)
    said = operation(project, "reparse", expect=1)
    assert "have been retired" in said
    assert "60 traces" in said
    assert "rules of now" in operation(project, "reparse", "{skip_retired: true}")
    assert project.value("select countIf(parser_version = 'older') from llm_traces") == 60


def test_costs_come_back_after_raw_rows_were_retired_and_more_has_landed(
    project: Project, tmp_path: Path
) -> None:
    project.loader("prices")
    landed(project, tmp_path, rows=5)
    costs = project.query(COSTS)
    spoil(project)
    project.query(
        "alter table raw_batches update landed_at = landed_at - interval 100 day where 1"
        " settings mutations_sync = 2"
    )
    operation(project, "retire", retain_raw_days=30)
    operation(project, "reparse")
    operation(project, "reparse", "{apply: true}")
    project.loader(str(write(tmp_path / "b.ndjson", [record(6)])))
    project.dbt("run")
    assert project.query(COSTS)[:5] == costs
    assert project.value("select count() from llm_trace_costs") == 6
    project.dbt("build")


def test_what_is_rebuilt_is_priced_anew(project: Project, tmp_path: Path) -> None:
    project.loader("prices")
    landed(project, tmp_path, rows=5)
    costs = project.query(COSTS)
    spoil(project)
    project.dbt("run", "--full-refresh", "--select", "llm_trace_costs", "costed_batches")
    assert project.query(COSTS) != costs
    rebuild = ("--full-refresh", "--vars", "rebuild_llm_traces: true")
    project.dbt("run", "--select", "llm_traces+", *rebuild)
    assert project.query(COSTS) == costs


@pytest.mark.parametrize("is_dropped", [False, True])
def test_what_a_killed_one_asked_for_does_not_hold_up_the_next(
    project: Project, tmp_path: Path, is_dropped: bool
) -> None:
    """It asks for a table that the next one drops, or somebody has, and would fail for ever."""
    fresh = landed(project, tmp_path, rows=5)
    spoil(project)
    operation(project, "reparse")
    project.query(
        "create table llm_traces__reparse as llm_traces",
        "alter table llm_trace_costs delete where"
        " throwIf(id in (select id from llm_traces__reparse) or true) settings mutations_sync = 0",
        "create table notes (a Int32) engine = MergeTree order by a",
        "insert into notes values (1)",
        "alter table notes delete where throwIf(a = 1) settings mutations_sync = 0",
        *(["drop table llm_traces__reparse sync"] if is_dropped else []),
    )
    operation(project, "reparse", "{apply: true}")
    assert project.query(FRESH) == fresh
    unfinished = "select distinct table from system.mutations where not is_done"
    assert project.query(unfinished) == [{"table": "notes"}], "of somebody else"
    project.dbt("build")


@pytest.mark.parametrize("is_there", [False, True])
def test_what_a_whole_erasure_asked_for_is_ended_when_its_list_has_gone(
    embedded: Project, tmp_path: Path, is_there: bool
) -> None:
    """A server that starts again may take a delete for begun that had ended."""
    landed(embedded, tmp_path, rows=2)
    name = f"erase_list_{'0a' * 16}"
    embedded.query(
        f"create table {name} (id String) engine = MergeTree order by id",
        "alter table llm_trace_costs delete where"
        f" throwIf(id in (select id from {name}) or true) settings mutations_sync = 0",
        *([] if is_there else [f"drop table {name} sync"]),
    )
    said = embedded.dbt("run", "--select", "llm_trace_costs", expect=None)
    refused = "a delete of llm_trace_costs that was begun before cannot end" in said.stdout
    assert (refused, said.returncode != 0) == (is_there, is_there)
    assert embedded.value("select count() from llm_trace_costs") == 2


def test_a_delete_that_cannot_end_is_named(embedded: Project, tmp_path: Path) -> None:
    landed(embedded, tmp_path, rows=2)
    embedded.query(
        "alter table costed_batches delete where throwIf(batch_id != '')"
        " settings mutations_sync = 0"
    )
    for _ in range(2):
        said = embedded.dbt("run", "--select", "llm_trace_costs", expect=None)
        assert said.returncode != 0
        assert "a delete of costed_batches that was begun before cannot end" in said.stdout
    said = operation(embedded, "mend")
    end = re.search(r"kill mutation where .*'", said)
    assert end
    assert embedded.value("select count() from system.mutations where not is_done") == 1
    embedded.query(end[0])
    embedded.dbt("run", "--select", "+costed_batches")


def test_a_run_behind_a_killed_one_charges_every_trace(embedded: Project, tmp_path: Path) -> None:
    """Killed at each delete; the run prices by the tokens that stand there, the next by the new."""
    embedded.loader("prices")
    fresh = landed(embedded, tmp_path, rows=4)
    costs = embedded.query(COSTS)
    models = ("--select", "+costed_batches")
    number, were_killed = 0, True
    while were_killed:
        number += 1
        spoil(embedded)
        operation(embedded, "reparse")
        apply = ("run-operation", "reparse", "--args", "{apply: true}")
        were_killed = embedded.dbt_killed_before("alter table .* delete where", number, *apply)
        embedded.dbt("run", *models)
        assert [row["id"] for row in embedded.query(COSTS)] == [row["id"] for row in fresh]
        operation(embedded, "reparse", "{apply: true}")
        embedded.dbt("run", *models)
        assert embedded.query(FRESH) == fresh
        assert embedded.query(COSTS) == costs
    assert number > 2


def test_what_a_killed_one_still_deletes_is_not_counted_as_built(
    embedded: Project, tmp_path: Path
) -> None:
    """The engine goes on with it when it is opened again, beside the run."""
    embedded.loader("prices")
    landed(embedded, tmp_path, rows=4)
    costs = embedded.query(COSTS)
    embedded.query(
        "truncate table costed_batches",
        "alter table llm_trace_costs delete where not ignore(sleep(3)) settings mutations_sync = 0",
    )
    embedded.dbt("run", "--select", "+costed_batches")
    assert embedded.query(COSTS) == costs
    assert embedded.query("select 1 from system.mutations where not is_done") == []


@pytest.mark.parametrize("kills", [4])
def test_killed_at_any_moment_it_loses_nothing(
    project: Project, tmp_path: Path, kills: int
) -> None:
    fresh = landed(project, tmp_path, rows=2000)
    spoil(project)
    operation(project, "reparse")
    chance = random.Random(7)
    for _ in range(kills):
        process = project.start_dbt("run-operation", "reparse", "--args", "{apply: true}")
        time.sleep(chance.uniform(4, 9))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        rows = project.query(f"select {KEPT} from llm_traces order by id")
        assert rows == [{name: row[name] for name in rows[0]} for row in fresh]
    operation(project, "reparse", "{apply: true}")
    assert project.query(FRESH) == fresh
    assert project.query("show tables like 'llm_traces__reparse'") == []
