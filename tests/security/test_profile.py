"""The profile leads dbt where the endpoint leads the loader, or nowhere, and quotes no password."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from dbt.config.renderer import ProfileRenderer
from dbt.exceptions import DbtRuntimeError
from dbt_common.context import set_invocation_context

from loader.errors import UsageError
from loader.settings import Settings
from tests.support.project import ROOT, Project


def connection(endpoint: str) -> dict[str, Any]:
    """Render the profile's server as dbt does."""
    set_invocation_context({"CLICKHOUSE_ENDPOINT": endpoint})
    profile = yaml.safe_load((ROOT / "profiles.example.yml").read_text())["tokenledger"]
    renderer = ProfileRenderer({})
    assert renderer.render_value(profile["target"]) == "server"
    rendered: dict[str, Any] = renderer.render_data(profile["outputs"]["server"])
    return rendered


@pytest.mark.parametrize(
    ("endpoint", "host", "port", "is_secure"),
    [
        ("https://example.org:9443", "example.org", 9443, True),
        ("HTTPS://example.org:8443", "example.org", 8443, True),
        ("https://Example.org", "Example.org", 8443, True),
        ("Https://example.org/", "example.org", 8443, True),
        ("http://127.0.0.1:8123/", "127.0.0.1", 8123, False),
        ("HTTP://example.org", "example.org", 8123, False),
        ("http://https", "https", 8123, False),
    ],
)
def test_the_endpoint_leads_dbt_where_it_leads_the_loader(
    endpoint: str, host: str, port: int, is_secure: bool
) -> None:
    found = connection(endpoint)
    assert (found["host"], found["port"], found["secure"]) == (host, port, is_secure)
    settings = Settings.from_environment({"CLICKHOUSE_ENDPOINT": endpoint})
    assert str(settings.endpoint).startswith("https://" if is_secure else "http://")


@pytest.mark.parametrize(
    "endpoint",
    [
        *("example.org:8443", "//example.org", "ftp://example.org", "httpss://example.org"),
        *("http\u017f://example.org", "https//example.org", "https"),
        *(" https://example.org", "https://example.org\n", "https://exam\tple.org", " "),
        *("https://me:hunter2@example.org:8443", "https://example.org:8443@hunter2"),
        *("https://example.org?password=hunter2", "https://example.org/?password=hunter2"),
        *("https://example.org#hunter2", "https://example.org/x#hunter2", "https://example.org:"),
        *("https://:8443", "https://", "https:/example.org", "https://example.org:hunter2"),
        *("https://example.org/hunter2", "https://example.org:8443/a/", "https://example.org//"),
    ],
)
def test_an_endpoint_that_cannot_be_is_refused_by_both_and_not_quoted(endpoint: str) -> None:
    with pytest.raises(DbtRuntimeError, match="CLICKHOUSE_ENDPOINT, written like") as refused:
        connection(endpoint)
    assert "hunter2" not in str(refused.value)
    with pytest.raises(UsageError, match="CLICKHOUSE_ENDPOINT") as refused_too:
        Settings.from_environment({"CLICKHOUSE_ENDPOINT": endpoint})
    assert "hunter2" not in str(refused_too.value)


def test_dbt_says_what_is_wrong_with_an_endpoint_and_not_what_it_is(tmp_path: Path) -> None:
    project = Project(
        tmp_path / "project", {"CLICKHOUSE_ENDPOINT": "https://me:hunter2@127.0.0.1:8443"}
    )
    project.env["DBT_LOG_LEVEL_FILE"] = "debug"
    done = project.dbt("debug", "--connection", expect=None)
    assert done.returncode != 0
    logs = "".join(path.read_text() for path in (project.folder / "logs").glob("*"))
    assert "CLICKHOUSE_ENDPOINT, written like https://example.org:8443" in done.stdout
    assert "hunter2" not in done.stdout + done.stderr + logs
