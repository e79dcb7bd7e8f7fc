"""Fixtures that lead to a store: the embedded engine, and a server behind ClickHouse's HTTP."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.http_front import Front
from tests.support.project import Project

SHARED_CORPUS = Path(__file__).resolve().parents[2] / "shared" / "corpus"


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
    names = ("CLICKHOUSE_ENDPOINT", "CLICKHOUSE_USERNAME", "CLICKHOUSE_PASSWORD")
    given = {name: os.environ[name] for name in names if name in os.environ}
    project = Project(tmp_path / "project", given | {"CLICKHOUSE_DATABASE": database})
    yield project
    project.query(f"drop database if exists {database}")


@pytest.fixture(params=["embedded", "server"])
def project(request: pytest.FixtureRequest) -> Project:
    """Give a project on each kind of store in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def corpus() -> Path:
    """Give the folder of recorded responses, where this checkout has it."""
    if not (SHARED_CORPUS / "traces.ndjson.gz").exists():
        pytest.skip("the recorded responses are not beside this checkout")
    return SHARED_CORPUS


# Of the long files, what `make test` runs all the same.
SHORT = (
    "test_nothing_is_lost_or_doubled_under_kills",
    "test_it_reports_first_then_applies[embedded]",
)

# Each runs dbt a dozen times over.
LONG = ("test_sweep.py", "test_soak.py", "test_read_back.py", "test_reparse.py", "test_kill.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as long what takes minutes, on the second kind of store if it runs on both."""
    for item in items:
        in_long_file = item.path.name in LONG and "loader" not in item.path.parts
        on_server = "operations" in item.path.parts and "[server]" in item.name
        if on_server or (in_long_file and item.name not in SHORT):
            item.add_marker("long")
