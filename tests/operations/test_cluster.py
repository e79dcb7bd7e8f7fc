"""Cluster: with one in the profile, all that we create is replicated and created on it.

The statements are looked at, and run on a cluster of one, whose server has no Keeper: what several
servers do with them is not tested.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import jinja2
import pytest

from loader.settings import Settings
from loader.store import _CLUSTER_SETTINGS, render_statements
from tests.operations.test_reparse import operation
from tests.support.http_front import Front
from tests.support.project import ROOT, Project
from tests.test_pipeline import record, write


def ddl(file: str, macro: str, *arguments: object) -> list[str]:
    """Render a macro of the operations; return its statements."""
    source = (ROOT / "macros" / "operations" / file).read_text()
    template = jinja2.Environment(extensions=["jinja2.ext.do"], autoescape=False).from_string(
        source
    )
    text = str(getattr(template.module, macro)(*arguments))
    return [part.strip() for part in text.split(";;") if part.strip()]


@pytest.mark.parametrize("owner", ["raw", "operations"])
def test_our_tables_are_replicated_on_the_cluster(owner: str) -> None:
    for cluster in (None, "main"):
        statements = (
            render_statements("landing/raw_tables.sql", "raw_tables_ddl", "llm", cluster)
            if owner == "raw"
            else ddl("operations_tables.sql", "operations_tables_ddl", "llm", cluster)
        )
        tables = [text for text in statements if text.startswith("create table")]
        assert len(tables) >= 3
        for text in statements:
            assert ("on cluster `main`" in text) == bool(cluster), text
        for text in tables:
            assert ("engine = ReplicatedMergeTree" in text) == bool(cluster), text


def test_roles_are_made_on_the_cluster_and_dbts_may_say_so_too() -> None:
    statements = ddl("roles.sql", "roles_ddl", "llm", "ledger", [], ["llm_traces"], "main")
    assert all(" on cluster `main`" in text for text in statements)
    may_say_so = [text for text in statements if " cluster on *.*" in text]
    assert may_say_so == ["grant on cluster `main` cluster on *.* to ledger_transformer"]
    # As dbt does after each exchange of tables.
    assert any(" system sync replica on `llm`.* to ledger_transformer" in one for one in statements)


def configs(project: Project) -> dict[str, dict[str, object]]:
    """Return each model's and seed's config as dbt resolves it, without a connection."""
    done = project.dbt(
        "--quiet", "ls", "--resource-types", "model", "seed", "--output", "json",
        "--output-keys", "name", "config",
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["name"]: line["config"] for line in lines}


def test_every_model_is_replicated_with_a_cluster(tmp_path: Path) -> None:
    # Nothing listens there: listing needs no server.
    nowhere = {"CLICKHOUSE_ENDPOINT": "http://127.0.0.1:9", "CLICKHOUSE_PASSWORD": "x"}
    found = configs(Project(tmp_path / "project", nowhere | {"CLICKHOUSE_CLUSTER": "main"}))
    stored = {
        name: config["engine"]
        for name, config in found.items()
        if config["materialized"] not in ("view", "ephemeral")
    }
    assert "llm_traces" in stored
    assert stored == dict.fromkeys(stored, "ReplicatedMergeTree")


@pytest.mark.parametrize("is_sharded", [True, False], ids=["sharded", "whole"])
def test_the_whole_path_on_a_cluster_of_one(tmp_path: Path, is_sharded: bool) -> None:
    variables = {"sharded": is_sharded, "retain_payload_days": 1}
    given = ("--vars", json.dumps(variables))
    with Front(tmp_path / "server", user="ledger", password="secret", cluster="main") as front:
        project = Project(tmp_path / "project", front.env())
        project.loader("prices")
        project.loader(str(write(tmp_path / "a.ndjson", [record(n) for n in range(20)])))
        project.dbt("run", *given)
        project.loader(str(write(tmp_path / "b.ndjson", [record(n) for n in range(10, 30)])))
        project.dbt("run", *given)
        traces = "select count() as traces, uniqExact(id) as ids, sum(prompt_tokens) as tokens"
        stored = project.query(f"{traces} from llm_traces")
        assert stored == [{"traces": 30, "ids": 30, "tokens": sum(range(30))}]
        assert project.value("select count() from llm_trace_costs") == 30

        # What a killed run leaves.
        stored_in = "llm_traces_local" if is_sharded else "llm_traces"
        copy = f"create table {stored_in}__dbt_backup on cluster main as {stored_in}"
        for name, argument in (
            ("erase", "{organization: org-1}"),
            ("retire", "{}"),
            ("mend", "{}"),
        ):
            if name != "mend":
                project.query(copy, f"insert into {stored_in}__dbt_backup select * from llm_traces")
            operation(project, name, argument, **variables)
            assert named(project) == sorted({"llm_traces", stored_in})
        project.dbt("run", *given)
        left = [n for n in range(30) if n % 3 != 1]
        stored = project.query(f"{traces} from llm_traces")
        assert stored == [{"traces": 20, "ids": 20, "tokens": sum(left)}]
        days = "select sum(calls) as calls from llm_costs_daily"
        assert project.value(days) == 20
        kept = "select sum(length(request_json) + length(response_json)) from llm_traces"
        assert project.value(kept) == 0
        assert project.value("select count() from int_batches__pending") == 0

        engine = "select engine_full from system.tables where name = 'llm_traces'"
        spread = "Distributed('main', 'llm', 'llm_traces_local', cityHash64(id))"
        assert (project.value(engine) == spread) == is_sharded
        # What is left is said on one server and replicated by the table's own engine.
        apart = [
            " ".join(text.partition("*/")[2].split())
            for text in front.stats()["defined_apart"]
            if "__dbt_exchange_test" not in text  # dbt's own, in a moment made and dropped
        ]
        replicated = re.compile(r"(?i)alter table \S+ (replace partition|add projection)")
        assert [text for text in apart if not replicated.match(text)] == []


def named(project: Project) -> list[str]:
    """Return the tables that llm_traces consists of, and what is left of others."""
    rows = project.query(
        "select name from system.tables where name like 'llm_traces%' and engine != 'View'"
        " order by name"
    )
    return [row["name"] for row in rows]


SHARDED = {"sharded": True, "run_lock_stale_seconds": 5}
BUILD = ("run", "--select", "+transformed_batches", "--vars", json.dumps(SHARDED))
REBUILD = (
    *("run", "--select", "llm_traces", "--full-refresh"),
    *("--vars", json.dumps({**SHARDED, "rebuild_llm_traces": True})),
)
COUNTED = "select count() as traces, uniqExact(id) as ids from llm_traces"
SWAP = r"rename table \S*llm_traces_local__dbt_tmp\W* to"


@pytest.fixture
def sharded(tmp_path: Path) -> Iterator[Project]:
    """Give a cluster of one with twenty traces in a sharded llm_traces."""
    with Front(tmp_path / "server", user="ledger", password="secret", cluster="main") as front:
        project = Project(tmp_path / "project", front.env())
        project.loader(str(write(tmp_path / "a.ndjson", [record(n) for n in range(20)])))
        project.dbt(*BUILD)
        yield project


@pytest.mark.parametrize(
    ("killed_before", "number"),
    [
        pytest.param(r"rename table \S*llm_traces_local\W* to", 1, marks=pytest.mark.long),
        (SWAP, 1),
        pytest.param(r"rename table \S*llm_traces\W* to", 1, marks=pytest.mark.long),
        (r"rename table \S*llm_traces_temp\W* to", 1),
        # The first is one that another left; the second what it set aside itself.
        pytest.param(r"drop table .*llm_traces_local__dbt_backup", 2, marks=pytest.mark.long),
    ],
)
def test_a_sharded_rebuild_that_was_killed_leaves_one_whole_table(
    sharded: Project, killed_before: str, number: int
) -> None:
    assert sharded.dbt_killed_before(killed_before, number, *REBUILD)
    for command in (BUILD, REBUILD, BUILD):
        sharded.dbt(*command)
        assert sharded.query(COUNTED) == [{"traces": 20, "ids": 20}]
        assert sharded.value("select count() from int_batches__pending") == 0 or (
            command == REBUILD
        )
    assert named(sharded) == ["llm_traces", "llm_traces_local"]


@pytest.mark.long
def test_a_sharded_rebuild_that_was_passed_over_swaps_in_nothing(sharded: Project) -> None:
    process = sharded.dbt_stopped_before(SWAP, 1, *REBUILD)
    sharded.dbt(*BUILD)
    sharded.woken(process)
    assert sharded.query(COUNTED) == [{"traces": 20, "ids": 20}]
    sharded.dbt(*BUILD)
    assert named(sharded) == ["llm_traces", "llm_traces_local"]


def test_a_first_sharded_run_that_was_passed_over_drops_nothing(sharded: Project) -> None:
    sharded.query("drop table llm_traces", "drop table llm_traces_local")
    process = sharded.dbt_stopped_before(r"create \S* \S* view .*view_tmp", 1, *BUILD)
    sharded.dbt(*BUILD)
    sharded.woken(process)
    assert sharded.query(COUNTED) == [{"traces": 20, "ids": 20}]
    sharded.dbt(*BUILD)
    assert sharded.query(COUNTED) == [{"traces": 20, "ids": 20}]


def test_a_server_that_lacks_its_part_of_a_sharded_table_is_named(tmp_path: Path) -> None:
    """Built anew, the parts on other shards would be dropped."""
    sharded = ("--vars", "sharded: true")
    with Front(tmp_path / "server", user="ledger", password="secret", cluster="main") as front:
        project = Project(tmp_path / "project", front.env())
        project.loader(str(write(tmp_path / "a.ndjson", [record(1)])))
        project.dbt("run", "--select", "+transformed_batches", *sharded)
        project.query("rename table llm_traces_local to moved")
        refused = project.dbt("run", "--select", "+transformed_batches", *sharded, expect=2)
        assert "no `llm`.`llm_traces_local` here, which holds its rows" in refused.stdout
        project.query("rename table moved to llm_traces_local")
        project.dbt("run", "--select", "+transformed_batches", *sharded)
        assert project.value("select count() from llm_traces") == 1
        project.query("drop table llm_traces", "rename table llm_traces_local to llm_traces")
        refused = project.dbt("run", "--select", "+transformed_batches", *sharded, expect=2)
        assert "`llm`.`llm_traces` was built whole, and holds its rows itself" in refused.stdout


def test_the_loader_waits_for_a_quorum_and_reads_what_it_answered() -> None:
    assert Settings.from_environment({"CLICKHOUSE_CLUSTER": "main"}).cluster == "main"
    assert _CLUSTER_SETTINGS == {
        "insert_quorum": "auto",
        "insert_quorum_parallel": 0,
        "select_sequential_consistency": 1,
        "distributed_product_mode": "global",
        "prefer_global_in_and_join": 1,
    }
