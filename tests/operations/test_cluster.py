"""Cluster: with one in the profile, all that we create is replicated and created on it.

What needs servers is not tested: nothing here speaks to any.
"""

from __future__ import annotations

import json
from pathlib import Path

import jinja2
import pytest

from loader.settings import Settings
from loader.store import _CLUSTER_SETTINGS, render_statements
from tests.support.project import ROOT, Project


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
    for cluster, engine in (("main", "ReplicatedMergeTree"), ("", "MergeTree")):
        project = Project(tmp_path / (cluster or "none"), nowhere | {"CLICKHOUSE_CLUSTER": cluster})
        found = configs(project)
        stored = {
            name: config["engine"]
            for name, config in found.items()
            if config["materialized"] not in ("view", "ephemeral")
        }
        assert "llm_traces" in stored
        assert stored == dict.fromkeys(stored, engine)


def test_the_loader_waits_for_a_quorum_and_reads_what_it_answered() -> None:
    assert Settings.from_environment({"CLICKHOUSE_CLUSTER": "main"}).cluster == "main"
    assert _CLUSTER_SETTINGS == {
        "insert_quorum": "auto",
        "insert_quorum_parallel": 0,
        "select_sequential_consistency": 1,
    }
