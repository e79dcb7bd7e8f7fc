"""Fixtures that lead to a store: the embedded engine, and a server behind ClickHouse's HTTP."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from loader.settings import Settings
from loader.store import Store, open_store
from tests.support.http_front import Front
from tests.support.project import Project

# A test says what is right, not how fast: machines are shared.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


SHARED_CORPUS = Path(__file__).resolve().parents[2] / "shared" / "corpus"


SERVER = ("CLICKHOUSE_ENDPOINT", "CLICKHOUSE_USERNAME", "CLICKHOUSE_PASSWORD")


@pytest.fixture
def embedded(tmp_path: Path) -> Project:
    """Give a project on an embedded store of its own."""
    return Project(tmp_path / "project", {"CHDB_PATH": str(tmp_path / "warehouse")})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Project]:
    """Give a project on a server: the one that is named, else a loopback front over chDB."""
    endpoint = os.environ.get("CLICKHOUSE_ENDPOINT")
    database = f"test_{uuid.uuid4().hex}" if endpoint else "llm"
    if not endpoint:
        with Front(tmp_path / "server", user="ledger", password="secret") as front:
            yield Project(tmp_path / "project", front.env(database))
        return
    given = {name: os.environ[name] for name in SERVER if name in os.environ}
    project = Project(tmp_path / "project", given | {"CLICKHOUSE_DATABASE": database})
    yield project
    project.query(f"drop database if exists {database}")


@pytest.fixture(params=["embedded", "server"])
def project(request: pytest.FixtureRequest) -> Project:
    """Give a project on each kind of store in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module", params=["embedded", "server"])
def opened_store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Store]:
    """Give an open store of each kind in turn, one for all tests of a module."""
    folder = tmp_path_factory.mktemp("store")
    if request.param == "embedded":
        with open_store(Settings(chdb_path=folder / "warehouse")) as store:
            yield store
        return
    if "CLICKHOUSE_ENDPOINT" in os.environ:
        given = {name: os.environ[name] for name in SERVER if name in os.environ}
        database = f"test_{uuid.uuid4().hex}"
        with open_store(
            Settings.from_environment(given | {"CLICKHOUSE_DATABASE": database})
        ) as store:
            yield store
            store.command(f"drop database if exists {database}")
        return
    with (
        Front(folder / "server", user="ledger", password="secret") as front,
        open_store(Settings.from_environment(front.env())) as store,
    ):
        yield store


@pytest.fixture
def corpus() -> Path:
    """Give the folder of recorded responses, where this checkout has it."""
    if not (SHARED_CORPUS / "traces.ndjson.gz").exists():
        pytest.skip("the recorded responses are not beside this checkout")
    return SHARED_CORPUS


# Each takes a minute and more: most run dbt several times over.
LONG = (
    *("test_sweep.py", "test_soak.py", "test_read_back.py", "test_reparse.py", "test_mend.py"),
    *("test_retire_and_erase.py", "test_run_lock.py", "test_side_by_side.py"),
    *("test_faults.py", "test_full_disk.py", "test_recorded_costs.py"),
)
# On a second kind of store: the whole path, and what runs dbt over it again and again.
LONG_ON_A_SERVER = (
    *("test_pipeline.py", "test_billing.py", "test_bills.py", "test_explain.py"),
    *("tests/test_kill.py", "test_server_kills.py", "test_integrate.py", "test_redaction.py"),
    "test_parsed.py",
)
# Of files that are short otherwise.
LONG_TESTS = (
    *("test_history_is_priced_again", "test_money_follows_late_traces"),
    *("test_a_day_that_was_cut_short", "test_neither_payload_nor_password_is_said[embedded"),
    *("test_a_book_that_lands_within_a_run", "test_the_whole_path_on_a_cluster_of_one[whole"),
    *("test_a_sharded_store_gets_no_roles", "test_dbt_grants_the_marts_to_the_roles"),
    *("test_a_run_that_would_empty_reports", "test_only_what_is_pending_is_read"),
    *("test_erasing_one_leaves_every_other[server-%", "test_the_bills_of_the_examples_differ"),
)
# Each read of an embedded store opens it.
SLOW_EMBEDDED = ("test_organizations.py", "test_reader.py")


# Of the short ones those that take longest: last, they would leave the other workers nothing to do.
FIRST = ("test_pipeline.py", "test_seeds.py", "test_cluster.py", "test_explain.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as long what takes minutes, and the whole path on a second kind of store."""
    items.sort(key=lambda item: not str(item.path).endswith(FIRST))
    for item in items:
        path = str(item.path)
        on_server = path.endswith(LONG_ON_A_SERVER) and "[server" in item.name
        is_slow = path.endswith(SLOW_EMBEDDED) and "[embedded" in item.name
        is_long = path.endswith(LONG) or item.name.startswith(LONG_TESTS)
        if on_server or is_slow or is_long:
            item.add_marker("long")


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    """Give a server that misbehaves when it is told to."""
    with Front(tmp_path / "server") as running:
        yield running
