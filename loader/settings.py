"""What the environment says, read once into a frozen value.

Owns names, defaults and checks of every setting. Refuses to keep a password where it could be
printed: it is left out of `repr`, and no message quotes it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from loader.errors import UsageError

__all__ = ["MEBIBYTE", "Settings"]

MEBIBYTE = 1024 * 1024
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


@dataclass(frozen=True)
class Settings:
    """Where the store is, how to reach it, and the limits of landing.

    Attributes
    ----------
    endpoint : str or None
        URL of a ClickHouse server (`CLICKHOUSE_ENDPOINT`); None means the embedded engine.
    username, password : str
        `CLICKHOUSE_USERNAME`; `CLICKHOUSE_PASSWORD` or the file `CLICKHOUSE_PASSWORD_FILE`.
    database : str
        `CLICKHOUSE_DATABASE`, an identifier.
    cluster : str or None
        `CLICKHOUSE_CLUSTER`: raw tables are made ON CLUSTER and replicated.
    chdb_path : pathlib.Path
        `CHDB_PATH`, the folder of the embedded engine.
    ca_cert, client_cert, client_key : str or None
        `CLICKHOUSE_CA_CERT`, `CLICKHOUSE_CLIENT_CERT`, `CLICKHOUSE_CLIENT_KEY`: PEM files. The
        server's certificate is always verified.
    lock_timeout : float
        Seconds to wait for another process to leave the embedded store
        (`TOKENLEDGER_LOCK_TIMEOUT`), or a file that another loader lands.
    max_record_bytes : int
        A longer line is rejected (`TOKENLEDGER_MAX_RECORD_BYTES`).
    batch_lines, batch_bytes : int
        A batch is cut at so many non-blank lines or so many bytes
        (`TOKENLEDGER_BATCH_LINES`, `TOKENLEDGER_BATCH_BYTES`).
    redaction : str or None
        `TOKENLEDGER_REDACTION`, a file of rules by which records are redacted; None: not at all.
    max_expansion_ratio, expansion_grace_bytes : int
        A compressed stream may expand to so many times the bytes read of it, plus the grace
        (`TOKENLEDGER_MAX_EXPANSION_RATIO`, `TOKENLEDGER_EXPANSION_GRACE_BYTES`).
    """

    endpoint: str | None = None
    username: str = "default"
    password: str = field(default="", repr=False)
    database: str = "llm"
    cluster: str | None = None
    chdb_path: Path = Path("warehouse")
    ca_cert: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    lock_timeout: float = 60.0
    max_record_bytes: int = 64 * MEBIBYTE
    batch_lines: int = 5_000
    batch_bytes: int = 64 * MEBIBYTE
    max_expansion_ratio: int = 200
    expansion_grace_bytes: int = 1024 * MEBIBYTE
    redaction: str | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read the settings, and check each.

        Parameters
        ----------
        environment : mapping, optional
            Names to values; the process's own by default. An empty value counts as unset.

        Raises
        ------
        UsageError
            If a value cannot be; the message names the variable.
        """
        given = os.environ if environment is None else environment
        values = {name: value for name, value in given.items() if value != ""}
        endpoint = values.get("CLICKHOUSE_ENDPOINT")
        return cls(
            endpoint=_checked_endpoint(endpoint) if endpoint else None,
            username=values.get("CLICKHOUSE_USERNAME", cls.username),
            password=_password(values),
            database=_identifier(values, "CLICKHOUSE_DATABASE", cls.database),
            cluster=_identifier(values, "CLICKHOUSE_CLUSTER", "") or None,
            chdb_path=_folder(values, "CHDB_PATH", cls.chdb_path),
            ca_cert=_file(values, "CLICKHOUSE_CA_CERT"),
            client_cert=_file(values, "CLICKHOUSE_CLIENT_CERT"),
            client_key=_file(values, "CLICKHOUSE_CLIENT_KEY"),
            lock_timeout=_seconds(values, "TOKENLEDGER_LOCK_TIMEOUT", cls.lock_timeout),
            max_record_bytes=_count(values, "TOKENLEDGER_MAX_RECORD_BYTES", cls.max_record_bytes),
            batch_lines=_count(values, "TOKENLEDGER_BATCH_LINES", cls.batch_lines),
            batch_bytes=_count(values, "TOKENLEDGER_BATCH_BYTES", cls.batch_bytes),
            max_expansion_ratio=_count(
                values, "TOKENLEDGER_MAX_EXPANSION_RATIO", cls.max_expansion_ratio
            ),
            expansion_grace_bytes=_count(
                values, "TOKENLEDGER_EXPANSION_GRACE_BYTES", cls.expansion_grace_bytes
            ),
            redaction=values.get("TOKENLEDGER_REDACTION"),
        )

    def __post_init__(self) -> None:
        if (self.endpoint or "").startswith("http:"):
            for name in ("ca_cert", "client_cert", "client_key"):
                if getattr(self, name) is not None:
                    raise UsageError(
                        f"CLICKHOUSE_{name.upper()} is set, and CLICKHOUSE_ENDPOINT is not "
                        "encrypted: write it with https://, or unset the other."
                    )

    @property
    def store_name(self) -> str:
        """Where the store is, for messages: the endpoint or the folder, never a password."""
        return self.endpoint or str(self.chdb_path)


def _checked_endpoint(text: str) -> str:
    """Return the URL of a server with its scheme in lower case; quote nothing of one refused."""
    if any(sign in text for sign in "@?#"):
        raise UsageError(
            "CLICKHOUSE_ENDPOINT holds more than the place of a server: put credentials into "
            "CLICKHOUSE_USERNAME and CLICKHOUSE_PASSWORD (or CLICKHOUSE_PASSWORD_FILE), and leave "
            "out whatever follows ? or #."
        )
    try:
        parts = urlsplit(text)
        is_fine = parts.port != 0 and not parts.netloc.endswith(":")
    except ValueError:
        parts, is_fine = urlsplit(""), False
    is_spaced = " " in text or not text.isprintable()
    if parts.scheme not in ("http", "https") or not parts.hostname or not is_fine or is_spaced:
        raise UsageError(
            "CLICKHOUSE_ENDPOINT is no URL of a server: write it like http://localhost:8123 or "
            "https://example.org:8443."
        )
    if parts.path not in ("", "/"):
        raise UsageError(
            "CLICKHOUSE_ENDPOINT has a path, which dbt would not send: it would work on another "
            "server than the loader. Give the server a name or a port of its own, and leave the "
            "path out."
        )
    return parts.geturl()


def _password(values: Mapping[str, str]) -> str:
    if "CLICKHOUSE_PASSWORD" in values:
        return values["CLICKHOUSE_PASSWORD"]
    path = values.get("CLICKHOUSE_PASSWORD_FILE")
    if path is None:
        return ""
    try:
        return Path(path).read_text().rstrip("\r\n")
    except OSError as error:
        reason = error.strerror
    except UnicodeDecodeError:
        reason = "it is no UTF-8"  # without its words, which quote the password
    raise UsageError(f"CLICKHOUSE_PASSWORD_FILE {path} cannot be read: {reason}.")


def _identifier(values: Mapping[str, str], name: str, default: str) -> str:
    value = values.get(name, default)
    if value and not _IDENTIFIER.fullmatch(value):
        raise UsageError(
            f"{name}={value!r} is no identifier: use letters, digits and underscores, "
            "and begin with a letter or underscore."
        )
    return value


def _folder(values: Mapping[str, str], name: str, default: Path) -> Path:
    # As dbt's profile has it: `~` of an unknown user stays, where `Path` raises an error.
    return Path(os.path.expanduser(values.get(name, default)))  # noqa: PTH111


def _file(values: Mapping[str, str], name: str) -> str | None:
    path = values.get(name)
    if path is not None and not Path(path).is_file():
        raise UsageError(f"{name}={path} is no file: give the path of a PEM file.")
    return path


def _count(values: Mapping[str, str], name: str, default: int) -> int:
    text = values.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()) or len(text) > 15 or int(text) < 1:
        raise UsageError(f"{name}={text!r} is no whole number above 0.")
    return int(text)


def _seconds(values: Mapping[str, str], name: str, default: float) -> float:
    text = values.get(name)
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 86_400:
        raise UsageError(f"{name}={text!r} is no number of seconds from 0 to 86400.")
    return value
