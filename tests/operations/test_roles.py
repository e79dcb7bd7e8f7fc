"""Roles: the statements are ClickHouse's, say who may do what, and quote what they are given."""

from __future__ import annotations

import json

from tests.operations.test_reparse import operation
from tests.support.project import Project

ODD = r"o'x\;; drop"


def test_roles_are_printed_and_parse(embedded: Project) -> None:
    embedded.loader("init")
    args = f'{{dry_run: true, organizations: [org-1, "{ODD.replace(chr(92), chr(92) * 2)}"]}}'
    printed = embedded.dbt("--quiet", "run-operation", "create_roles", "--args", args).stdout
    statements = [line.rstrip(";") for line in printed.splitlines() if line]
    assert embedded.query(*("explain ast " + statement for statement in statements))

    writer = [text for text in statements if text.endswith("tokenledger_writer")]
    assert writer == [
        "grant insert, select(batch_id, position) on `llm`.raw_traces to tokenledger_writer",
        "grant insert, select(batch_id, position) on `llm`.raw_rejects to tokenledger_writer",
        "grant insert, select on `llm`.raw_batches to tokenledger_writer",
    ]
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


def test_the_embedded_engine_has_no_users(embedded: Project) -> None:
    assert "has no users" in operation(embedded, "create_roles", expect=1)
    assert "no identifier" in operation(
        embedded, "create_roles", "{dry_run: true, prefix: 'a b'}", expect=1
    )


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
