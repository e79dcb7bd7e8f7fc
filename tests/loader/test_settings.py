"""What the environment may say."""

from __future__ import annotations

from pathlib import Path

import pytest
from chdb_lock import find_holder
from dbt.adapters.chdb.credentials import ChdbCredentials

from loader.errors import UsageError
from loader.settings import Settings
from loader.store import open_store


def test_defaults_lead_to_the_embedded_store() -> None:
    settings = Settings.from_environment({"CLICKHOUSE_DATABASE": ""})
    assert settings.endpoint is None
    assert (settings.database, settings.chdb_path) == ("llm", Path("warehouse"))
    assert settings.max_record_bytes == 64 * 1024 * 1024


def test_a_password_may_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("geheim \n")
    settings = Settings.from_environment({"CLICKHOUSE_PASSWORD_FILE": str(tmp_path / "password")})
    assert settings.password == "geheim "


def test_a_password_that_cannot_be_read_is_not_quoted(tmp_path: Path) -> None:
    (tmp_path / "password").write_bytes(b"pa\xe9ss")
    with pytest.raises(UsageError, match=r"cannot be read: it is no UTF-8\.") as raised:
        Settings.from_environment({"CLICKHOUSE_PASSWORD_FILE": str(tmp_path / "password")})
    assert "0x" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CLICKHOUSE_DATABASE", "llm; drop"),
        ("CLICKHOUSE_DATABASE", "a`b"),
        ("CLICKHOUSE_DATABASE", "1a"),
        ("CLICKHOUSE_CLUSTER", "a'b"),
        ("CLICKHOUSE_ENDPOINT", "localhost:8123"),
        ("CLICKHOUSE_ENDPOINT", "ftp://localhost"),
        ("CLICKHOUSE_ENDPOINT", "http://localhost:99999"),
        ("CLICKHOUSE_ENDPOINT", "http://"),
        ("CLICKHOUSE_PASSWORD_FILE", "/nowhere"),
        ("CLICKHOUSE_CA_CERT", "/nowhere"),
        ("CLICKHOUSE_CLIENT_CERT", "/nowhere"),
        ("CLICKHOUSE_CLIENT_KEY", "/nowhere"),
        ("TOKENLEDGER_MAX_RECORD_BYTES", "0"),
        ("TOKENLEDGER_MAX_RECORD_BYTES", "1e6"),
        ("TOKENLEDGER_BATCH_LINES", "-1"),
        ("TOKENLEDGER_BATCH_BYTES", "²"),
        ("TOKENLEDGER_LOCK_TIMEOUT", "soon"),
        ("TOKENLEDGER_LOCK_TIMEOUT", "nan"),
    ],
)
def test_a_value_that_cannot_be_names_its_variable(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=name):
        Settings.from_environment({name: value})


@pytest.mark.parametrize("name", ["CA_CERT", "CLIENT_CERT", "CLIENT_KEY"])
def test_what_is_meant_for_tls_goes_nowhere_in_the_clear(tmp_path: Path, name: str) -> None:
    pem = tmp_path / "a.pem"
    pem.touch()
    given = {f"CLICKHOUSE_{name}": str(pem), "CLICKHOUSE_ENDPOINT": "https://localhost:8443"}
    Settings.from_environment(given)
    given["CLICKHOUSE_ENDPOINT"] = "HTTP://localhost:8123"
    with pytest.raises(UsageError, match=f"CLICKHOUSE_{name} is set, and .* is not encrypted"):
        Settings.from_environment(given)


@pytest.mark.parametrize(
    "endpoint",
    [
        *(
            "https://me:hunter2@example.org",
            "me:hunter2@example.org",
            "https://example.org/@hunter2",
        ),
        *("https://example.org?user=me&password=hunter2", "https://example.org/x?password=hunter2"),
        *("https://example.org#hunter2", "https://[hunter2@", "https://example.org:hunter2"),
    ],
)
def test_more_than_a_place_in_the_endpoint_is_refused_and_not_quoted(endpoint: str) -> None:
    with pytest.raises(UsageError, match="CLICKHOUSE_ENDPOINT") as caught:
        Settings.from_environment({"CLICKHOUSE_ENDPOINT": endpoint})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "endpoint", [" http://a", "http://a ", "http://a\n", "http://a b", "http://a\t", " "]
)
def test_space_in_the_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(UsageError, match="no URL of a server"):
        Settings.from_environment({"CLICKHOUSE_ENDPOINT": endpoint})


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("HTTPS://Example.org:8443/", "https://Example.org:8443/"),
        ("http://localhost", "http://localhost"),
    ],
)
def test_an_endpoint_is_kept_with_its_scheme_in_lower_case(given: str, kept: str) -> None:
    assert Settings.from_environment({"CLICKHOUSE_ENDPOINT": given}).endpoint == kept


@pytest.mark.parametrize("path", ["/tenant-a", "/hunter2/", "//", "/;a"])
def test_a_path_in_the_endpoint_is_refused_and_not_quoted(path: str) -> None:
    """dbt's client does not send it: behind a proxy, two servers would be meant."""
    with pytest.raises(UsageError, match="CLICKHOUSE_ENDPOINT has a path") as caught:
        Settings.from_environment({"CLICKHOUSE_ENDPOINT": f"http://localhost:8123{path}"})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("path", ["~/warehouse", "~", "~nobody-here/warehouse", "a~b", "/a/~"])
def test_a_home_in_the_path_leads_the_loader_where_it_leads_dbt(path: str) -> None:
    found = Settings.from_environment({"CHDB_PATH": path}).chdb_path
    assert str(found.absolute()) == ChdbCredentials(schema="llm", chdb_path=path).chdb_path


def test_a_store_that_was_opened_by_a_relative_path_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store(Settings(chdb_path=Path("warehouse")))
    monkeypatch.chdir("/")
    assert find_holder(tmp_path / "warehouse") is not None
    store.close()
    assert find_holder(tmp_path / "warehouse") is None
