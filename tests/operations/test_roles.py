"""Roles: the statements are ClickHouse's, say who may do what, and quote what they are given."""

from __future__ import annotations

import json
import re
import sys
from hashlib import md5
from pathlib import Path

from tests.operations.test_reparse import operation
from tests.support.project import DBT, Project
from tests.test_pipeline import record, write

ORG = "org-1"
ODD = r"o'x\;; drop"


def test_roles_are_printed_and_parse(embedded: Project) -> None:
    embedded.loader("init")
    args = f'{{dry_run: true, organizations: [{ORG}, "{ODD.replace(chr(92), chr(92) * 2)}"]}}'
    printed = embedded.dbt("--quiet", "run-operation", "create_roles", "--args", args).stdout
    statements = [line.rstrip(";") for line in printed.splitlines() if line]
    assert embedded.query(*("explain ast " + statement for statement in statements))

    writer = [text for text in statements if text.endswith("tokenledger_writer")]
    assert writer == [
        "grant insert, select(batch_id, position) on `llm`.raw_traces to tokenledger_writer",
        "grant insert, select(batch_id, position) on `llm`.raw_rejects to tokenledger_writer",
        "grant insert, select on `llm`.raw_batches to tokenledger_writer",
        "grant select on `llm`.raw_lost_batches to tokenledger_writer",
        "grant select(batch_id, raw_table, reason, is_whole, positions, retired_at)"
        " on `llm`.retired_batches to tokenledger_writer",
        "grant select(query_id) on system.processes to tokenledger_writer",
        "grant select(database, `table`, command, is_done) on system.mutations"
        " to tokenledger_writer",
    ]
    without_cache = {text.split()[2] for text in statements if text.endswith("cache = 0")}
    assert without_cache == {
        text.split()[-1] for text in statements if text.startswith("grant") and "_reader" in text
    }
    of_system = {
        text.split()[3]
        for text in statements
        if text.endswith("tokenledger_transformer") and " system." in text
    }
    names = ("parts", "detached_parts", "processes", "mutations")
    assert of_system == {f"system.{name}" for name in names}
    assert not any("cluster" in text for text in statements)
    policies = [text for text in statements if "policy or replace" in text]
    assert any(
        "on `llm`.llm_traces for select using organization_id = 'org-1'" in text
        for text in policies
    )
    assert any(r"'o\'x\\;; drop'" in text for text in policies)
    granted = {
        text.split(" on ")[1].split()[0]
        for text in statements
        if "_reader_" in text and text.startswith("grant")
    }
    guarded = {text.split(" on ")[1].split()[0] for text in policies}
    assert granted == guarded, "a reader of one organization reads nothing without a policy"
    assert not any("raw_" in table for table in granted)
    reader = "tokenledger_reader_" + md5(ORG.encode()).hexdigest()
    places = [text for text in statements if "trace_conflicts" in text and text.endswith(reader)]
    assert [text.split(" on ")[0] for text in places if "policy" not in text] == [
        "grant select(id, organization_id, batch_id, position, differs_in, landed_at)",
        "revoke select(kept_batch_id, kept_position)",
    ], "the kept arrival may be another organization's"
    for role in {text.split()[-1] for text in statements if text.startswith("grant")}:
        own = [text for text in statements if text.split(" to ")[-1].split(", ").count(role)]
        kinds = [text.split()[0] for text in own]
        assert kinds == sorted(kinds), f"{role} is granted something before all of its policies"
    names = {text.split()[-1] for text in policies}
    assert names == {"tokenledger_reader_" + md5(name.encode()).hexdigest() for name in (ORG, ODD)}


def test_what_a_reader_of_one_organization_may_read_tells_of_no_other(
    embedded: Project, tmp_path: Path
) -> None:
    """A row policy hides rows, and not what is counted over rows of all organizations."""

    def readable() -> dict[str, list[dict[str, object]]]:
        printed = embedded.dbt(
            *("--quiet", "run-operation", "create_roles", "--args"),
            "{dry_run: true, organizations: [mine]}",
        ).stdout
        role = "tokenledger_reader_" + md5(b"mine").hexdigest()
        found = re.findall(rf"grant select(?:\((.*)\))? on (\S+) to {role};", printed)
        return {
            table: embedded.query(
                f"select {columns or '*'} from {table} where organization_id = 'mine' order by all"
            )
            for columns, table in found
        }

    def run(*organizations: str) -> dict[str, list[dict[str, object]]]:
        for name in organizations:
            path = write(tmp_path / f"{name}.ndjson", [record(2, id=name, org_id=name)])
            embedded.loader(str(path))
        embedded.dbt("run")
        return readable()

    before = run("mine", "first")
    for table in ("llm_traces", "llm_costs_daily", "llm_errors_daily"):
        assert before[f"`llm`.{table}"], "the test shows nothing of this table"
    assert run("second", "third") == before


def test_the_embedded_engine_has_no_users(embedded: Project) -> None:
    assert "has no users" in operation(embedded, "create_roles", expect=1)
    assert "no identifier" in operation(
        embedded, "create_roles", "{dry_run: true, prefix: 'a b'}", expect=1
    )


# One process and one parse for many; the last of them has a model that is kept in shards.
OPERATIONS = """
import sys
from dbt.cli.main import dbtRunner
manifest = dbtRunner().invoke(["--quiet", "parse"]).result
*given, last = sys.argv[2:]
for args in (*given, last):
    if args == last:
        traces = manifest.nodes["model.tokenledger.llm_traces"]
        traces.config.materialized = "distributed_incremental"
        manifest.build_flat_graph()
    done = dbtRunner(manifest).invoke(["--quiet", "run-operation", "create_roles", "--args", args])
    print("ran" if done.success else "refused", flush=True)
"""


def test_what_would_make_other_roles_than_meant_is_refused(embedded: Project) -> None:
    refusals = {
        "{dry_run: true, organizations: []}": "",
        "{dry_run: true, organizations: org-1}": "list of strings",
        "{dry_run: true, organizations: }": "list of strings",
        "{dry_run: true, organizations: {org-1: 1}}": "list of strings",
        "{dry_run: true, organizations: [org-1, 0123]}": "list of strings",
        "{dry_run: true, organizations: [org-1, ]}": "",
        "{dry_run: true, organizations: [org-1, null]}": "list of strings",
        "{dry_run: true, organizations: [org-1, true]}": "list of strings",
        "{dry_run: true, organizations: [org-1, '']}": "is empty or holds a line break",
        "{dry_run: true, organizations: [' ']}": "is empty or holds a line break",
        '{dry_run: true, organizations: ["a\\nb"]}': "is empty or holds a line break",
        "{dry_run: true, organizations: [org-1, org-2, org-1]}": "name org-1 once",
        "{dry_run: true}": "one ledger a shard",
    }
    # The command's name has the project's parse taken up.
    process = embedded.start(sys.executable, "-c", OPERATIONS, str(DBT), *refusals)
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    at = 0
    for args, words in refusals.items():
        end = said.index("refused\n" if words else "ran\n", at)
        assert words in said[at:end], args
        assert ("create role" in said[at:end]) is not bool(words), args
        at = said.index("\n", end) + 1


def test_a_sharded_store_gets_no_roles(embedded: Project) -> None:
    said = operation(embedded, "create_roles", "{dry_run: true}", expect=1, sharded=True)
    assert "one ledger a shard" in said


def test_dbt_grants_the_marts_to_the_roles_that_are_named(embedded: Project) -> None:
    def grants() -> dict[str, object]:
        listed = embedded.dbt(
            *("--quiet", "ls", "--resource-type", "model", "--output", "json"),
            *("--output-keys", "name", "config"),
        ).stdout
        models = [json.loads(line) for line in listed.splitlines()]
        return {model["name"]: model["config"]["grants"] for model in models}

    assert set(map(str, grants().values())) == {"{}"}, "none by default"
    embedded.env["TOKENLEDGER_READERS"] = "bi,finance"
    found = grants()
    assert found["llm_traces"] == {"select": ["bi", "finance"]}
    assert found["int_traces__unioned"] == {}, "what reads raw payloads is granted to nobody"
