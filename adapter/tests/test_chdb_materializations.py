"""What dbt builds on the embedded engine: each kind of node, and what lands on disk."""

import json
import stat
from decimal import Decimal

import pytest
import yaml
from chdb_project import Project
from dbt.contracts.results import RunExecutionResult

GOOD = {"success", "pass"}


def test_builds_every_kind_of_node_twice_in_one_process(project: Project) -> None:
    first = project.build()
    assert set(first.values()) <= GOOD, first
    assert {"as_table", "as_view", "as_append", "as_delete_insert", "fruits"} <= set(first)
    assert stat.S_IMODE(project.store.stat().st_mode) == 0o700
    assert project.rows("select engine from system.databases where name = 'tiny'") == [("Atomic",)]

    second = project.build("--vars", "{mark: second}")
    assert set(second.values()) <= GOOD, second
    largest = 2**64 - 1
    assert project.rows("select id, name, price from tiny.as_table order by id") == [
        (1, "apple", Decimal("0.000000000001")),
        (2, 'pear, "green"', Decimal("2.5")),
        (largest, "fig", None),
    ]
    assert project.rows("select id from tiny.as_view order by id") == [(2,), (largest,)]
    assert project.rows("select mark, count() from tiny.as_append group by mark order by mark") == [
        ("first", 3),
        ("second", 3),
    ]
    assert project.rows("select id, mark from tiny.as_delete_insert order by id") == [
        (1, "second"),
        (2, "second"),
        (largest, "first"),
    ]


def test_physical_options_reach_the_table(project: Project) -> None:
    assert project.build("--select", "fruits", "as_table")["as_table"] == "success"
    ((ddl,),) = project.rows("select create_table_query from system.tables where name = 'as_table'")
    for part in (
        "`name` LowCardinality(String) CODEC(ZSTD(3))",
        "INDEX by_name name TYPE bloom_filter GRANULARITY 1",
        "PROJECTION by_name_order",
        "PARTITION BY (id % 2)",
        "ORDER BY (id)",
        "index_granularity = 1024",
    ):
        assert part in ddl, ddl


def test_table_is_swapped_in_one_exchange_and_the_old_one_leaves_the_disk(project: Project) -> None:
    selection = ("--select", "fruits", "as_table", "as_delete_insert")
    project.build(*selection)
    (project.root / "logs" / "dbt.log").unlink()
    project.build(*selection)
    log = (project.root / "logs" / "dbt.log").read_text()
    assert "EXCHANGE TABLES `tiny`.`as_table__dbt_backup` AND `tiny`.`as_table`" in log
    assert project.rows("select count() from system.tables where name like '%dbt_%'") == [(0,)]
    assert [
        file for file in (project.store / "metadata_dropped").rglob("*") if file.is_file()
    ] == []


def test_a_broken_contract_is_refused(project: Project) -> None:
    file = project.root / "models" / "_models.yml"
    models = yaml.safe_load(file.read_text())
    models["models"][0]["columns"][0]["data_type"] = "String"
    file.write_text(yaml.safe_dump(models))
    result = project.dbt("build", "--select", "+as_table")
    assert isinstance(result.result, RunExecutionResult)
    (run,) = [run for run in result.result if run.node.name == "as_table"]
    assert run.status == "error"
    assert "contract" in str(run.message)


def test_a_unit_test_that_should_fail_fails_with_and_without_rows(project: Project) -> None:
    file = project.root / "models" / "_models.yml"
    models = yaml.safe_load(file.read_text())
    rows, none_expected, _ = models["unit_tests"]
    rows["expect"]["rows"] = []
    none_expected["expect"]["rows"] = [{"id": 2, "name": "pear"}]
    file.write_text(yaml.safe_dump(models))
    project.build("--select", "+as_view", "--exclude", "test_type:unit")
    statuses = project.statuses("test", "--select", "as_view")
    assert statuses["rows_are_kept"] == "fail"
    assert statuses["no_rows_are_expected"] == "fail"
    assert statuses["no_rows_are_given"] == "pass"


@pytest.mark.parametrize(("join_use_nulls", "partner"), [(0, ""), (1, None)])
def test_custom_settings_reach_every_session(
    project: Project, join_use_nulls: int, partner: str | None
) -> None:
    model = project.root / "models" / "join_sees_null.sql"
    model.write_text("{{ config(materialized='table') }}\n" + model.read_text())
    project.configure(custom_settings={"join_use_nulls": join_use_nulls})
    assert project.build("--select", "+join_sees_null")["join_sees_null"] == "success"
    assert project.rows("select partner from tiny.join_sees_null where id = 2") == [(partner,)]


def test_four_threads_build_side_by_side(project: Project) -> None:
    names = [f"part_{number}" for number in range(12)]
    for name in names:
        (project.root / "models" / f"{name}.sql").write_text(
            "{{ config(materialized='table') }}\n"
            "select uniqExact(number) as n from numbers(1000000)\n"
        )
    statuses = project.build("--select", "part_*")
    assert statuses == dict.fromkeys(names, "success")
    union = " union all ".join(f"select n from tiny.{name}" for name in names)
    assert project.rows(f"select count(), sum(n) from ({union})") == [(12, 12_000_000)]


def test_docs_are_generated(project: Project) -> None:
    project.build("--select", "fruits", "as_table", "as_view")
    assert project.dbt("docs", "generate").success
    catalog = json.loads((project.root / "target" / "catalog.json").read_text())
    columns = catalog["nodes"]["model.tiny.as_table"]["columns"]
    assert {name: column["type"] for name, column in columns.items()} == {
        "id": "UInt64",
        "name": "LowCardinality(String)",
        "price": "Nullable(Decimal(18, 12))",
    }
    assert not catalog["errors"]
