"""One parse of the dbt project for all tests, each of which has a store and a target of its own.

dbt keeps what it parsed in `partial_parse.msgpack` and takes it up again unless the hash of its
connection, of `--vars` or of `dbt_project.yml` has changed. A store of its own is a connection of
its own, so that each test would parse anew, for seven seconds. Nothing in the project reads the
store's address while it is parsed: here one parse is kept a kind of connection and set of vars,
under target/parsed and the hash of everything that is parsed, and is given to a project with the
hash of that project's own connection. When the hash should be wrong, dbt parses by itself.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.metadata
import os
import pprint
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from dbt.adapters.chdb.credentials import ChdbCredentials
from dbt.adapters.clickhouse.credentials import ClickHouseCredentials
from jinja2.nativetypes import NativeEnvironment

CREDENTIALS: dict[str, Any] = {"chdb": ChdbCredentials, "clickhouse": ClickHouseCredentials}
# What tells one store from another of its kind.
ADDRESS = ("chdb_path", "host", "port")
PARSED = ("dbt_project.yml", "profiles.example.yml", "models", "macros", "seeds", "tests")


def parsed_for(
    root: Path, dbt: Path, arguments: Sequence[str], env: Mapping[str, str]
) -> Path | None:
    """Return a parse that dbt takes up when it is run with these arguments in this environment.

    Parameters
    ----------
    root
        Where `dbt_project.yml` is.
    dbt
        The command.
    env
        Steers the profile; the copy goes to `DBT_PROFILES_DIR`, a folder of the project's own.

    Returns
    -------
    pathlib.Path or None
        What `DBT_PARTIAL_PARSE_FILE_PATH` is to name; None when the project cannot be parsed.
    """
    own = Path(env["DBT_PROFILES_DIR"])
    connection = _connection(yaml.safe_load((own / "profiles.yml").read_text()), env)
    given = [arguments[at + 1] for at, word in enumerate(arguments) if word == "--vars"]
    kind = _sha256(
        repr([pair for pair in connection if pair[0] not in ADDRESS]) + "\0".join(given)
    )[:16]
    copy = own / f"{kind}.msgpack"
    if copy.exists():
        return copy
    kept = _kept(root, dbt, kind, given, env)
    if kept is None:
        return None
    data = kept.read_bytes()
    before = kept.with_suffix(".hash").read_bytes()
    data = data.replace(before, _sha256(pprint.pformat(connection)).encode())
    copy.write_bytes(data)
    return copy


def _kept(
    root: Path, dbt: Path, kind: str, given: Sequence[str], env: Mapping[str, str]
) -> Path | None:
    """Parse once a kind; other processes wait for it."""
    folder = root / "target" / "parsed" / _content(root)
    folder.mkdir(parents=True, exist_ok=True)
    for other in folder.parent.iterdir():
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    kept = folder / f"{kind}.msgpack"
    with (folder / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if kept.exists():
            return kept
        with tempfile.TemporaryDirectory(dir=folder) as target:
            vars_ = [word for text in given for word in ("--vars", text)]
            done = subprocess.run(
                [dbt, "parse", *vars_],
                cwd=root,
                env={**env, "DBT_TARGET_PATH": target},
                capture_output=True,
                check=False,
            )
            parsed = Path(target) / "partial_parse.msgpack"
            if done.returncode or not parsed.exists():
                return None
            profile = yaml.safe_load((Path(env["DBT_PROFILES_DIR"]) / "profiles.yml").read_text())
            connection = pprint.pformat(_connection(profile, env))
            kept.with_suffix(".hash").write_text(_sha256(connection))
            parsed.rename(kept)
    return kept


def _connection(profiles: Mapping[str, Any], env: Mapping[str, str]) -> list[tuple[str, Any]]:
    """Return the connection as dbt hashes it: the profile's target, rendered, with its defaults."""
    jinja = NativeEnvironment()
    jinja.filters.update(dict.fromkeys(("as_number", "as_bool", "as_native"), lambda value: value))
    jinja.globals["env_var"] = lambda name, default="": env.get(name, default)
    jinja.globals["modules"] = {"re": re}

    def rendered(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: rendered(inner) for key, inner in value.items()}
        if isinstance(value, str) and "{" in value:
            return jinja.from_string(value).render()
        return value

    profile = profiles["tokenledger"]
    output = dict(profile["outputs"][jinja.from_string(profile["target"]).render()])
    for name in ("threads", "driver" if output["type"] == "chdb" else ""):
        output.pop(name, None)
    type_ = CREDENTIALS[output.pop("type")]
    # A port that a template makes is a number only after it was rendered.
    credentials = type_.from_dict(type_.translate_aliases(rendered(output)))
    return sorted(credentials.connection_info())


@functools.cache
def _content(root: Path) -> str:
    """Hash all that a parse depends on, whenever it was written."""
    digest = hashlib.sha256()
    for package in ("dbt-core", "dbt-clickhouse", "dbt-adapters"):
        digest.update(importlib.metadata.version(package).encode())
    for path in sorted(_files(root)):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _files(root: Path) -> Iterator[Path]:
    for name in PARSED:
        path = root / name
        if path.is_file():
            yield path
        for folder, _, names in os.walk(path):
            for one in names:
                if one.endswith((".sql", ".yml", ".yaml", ".csv", ".md")):
                    yield Path(folder, one)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
