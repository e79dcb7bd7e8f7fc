"""The project as its users run it: loader and dbt as processes, against one store.

A `Project` is a store (an embedded path or a server) with the environment that leads there, a
dbt profile and target folder of its own, and ways to run the two commands and to ask the store.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.support.parsed import parsed_for

ROOT = Path(__file__).resolve().parents[2]
DBT = Path(sys.executable).with_name("dbt")
STEERING = (
    "CHDB_PATH",
    "CLICKHOUSE_ENDPOINT",
    "CLICKHOUSE_USERNAME",
    "CLICKHOUSE_PASSWORD",
    "CLICKHOUSE_DATABASE",
    "CLICKHOUSE_CLUSTER",
)
# What a test kills leaves its lock on a server; the next run need not wait two minutes for it.
STALE_SECONDS = 15


class Project:
    """One store and the commands that work on it.

    Parameters
    ----------
    folder
        A scratch folder of its own; profile, dbt's target and logs go there.
    variables
        The environment variables that lead to the store.
    """

    def __init__(self, folder: Path, variables: Mapping[str, str]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "profiles.example.yml", folder / "profiles.yml")
        self.env = {name: value for name, value in os.environ.items() if name not in STEERING} | {
            "DBT_PROFILES_DIR": str(folder),
            "DBT_TARGET_PATH": str(folder / "target"),
            "DBT_LOG_PATH": str(folder / "logs"),
            "DBT_USE_COLORS": "false",
            # Files that no test reads, a second a call.
            "DBT_WRITE_JSON": "false",
            "DBT_LOG_LEVEL_FILE": "none",
            **variables,
        }

    def start(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command in the project's root and return its process."""
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        env = self.env
        is_parsing = str(DBT) in command and "debug" not in command
        if is_parsing and (parsed := parsed_for(ROOT, DBT, command, env)):
            env = env | {"DBT_PARTIAL_PARSE_FILE_PATH": str(parsed)}
        return subprocess.Popen(command, cwd=ROOT, env=env, text=True, **(pipes | options))

    def start_loader(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start `python -m loader` with these arguments."""
        return self.start(sys.executable, "-m", "loader", *arguments, **options)

    def start_dbt(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start dbt with these arguments."""
        if "CLICKHOUSE_ENDPOINT" in self.env and arguments[0] in ("run", "build", "run-operation"):
            arguments = _with_var(arguments, "run_lock_stale_seconds", STALE_SECONDS)
        return self.start(str(DBT), *arguments, **options)

    def dbt_killed_before(self, pattern: str, number: int, *arguments: str) -> bool:
        """Run dbt until a statement (`tests.support.killed_dbt`).

        Returns
        -------
        bool
            Whether there was such a statement.
        """
        done = self._finish(self._start_until("SIGKILL", pattern, number, arguments), None, None)
        assert done.returncode in (0, -signal.SIGKILL), f"{done.stdout}\n{done.stderr}"
        return done.returncode != 0

    def dbt_stopped_before(
        self, pattern: str, number: int, *arguments: str
    ) -> subprocess.Popen[str]:
        """Run dbt until a statement, where it sleeps (SIGSTOP), and return its process."""
        process = self._start_until("SIGSTOP", pattern, number, arguments)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert process.poll() is None, "\n".join(process.communicate())
        return process

    def woken(self, process: subprocess.Popen[str]) -> str:
        """Let a dbt that was passed over while it slept end, by exit code 1; return its words."""
        process.send_signal(signal.SIGCONT)
        return self._finish(process, 1, None).stdout

    def _start_until(
        self, name: str, pattern: str, number: int, arguments: Sequence[str]
    ) -> subprocess.Popen[str]:
        module = (sys.executable, "-m", "tests.support.killed_dbt", name, pattern, str(number))
        return self.start(*module, *arguments)

    def loader(
        self, *arguments: str, expect: int | None = 0, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `python -m loader` to its end; `expect` is its exit code, None for any."""
        process = self.start_loader(*arguments, stdin=subprocess.PIPE)
        return self._finish(process, expect, stdin)

    def dbt(self, *arguments: str, expect: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run dbt to its end; `expect` is its exit code, None for any.

        A build leaves the unit tests out: they say nothing of the store.
        """
        if arguments[0] == "build":
            arguments = (*arguments, "--exclude-resource-type", "unit_test")
        return self._finish(self.start_dbt(*arguments), expect, None)

    def query(self, *sql: str, **parameters: Any) -> list[dict[str, Any]]:
        """Run statements in a process of its own; return the last one's rows as mappings."""
        asked = self.start(sys.executable, "-m", "tests.support.ask", stdin=subprocess.PIPE)
        done = self._finish(asked, 0, json.dumps({"sql": sql, "parameters": parameters}))
        return [json.loads(line) for line in done.stdout.splitlines()]

    def value(self, sql: str, **parameters: Any) -> Any:
        """Ask for one value."""
        ((value,),) = (row.values() for row in self.query(sql, **parameters))
        return value

    @staticmethod
    def _finish(
        process: subprocess.Popen[str], expect: int | None, stdin: str | None
    ) -> subprocess.CompletedProcess[str]:
        try:
            stdout, stderr = process.communicate(stdin, timeout=600)
        except BaseException:
            process.kill()
            raise
        done = subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
        if expect is not None:
            assert done.returncode == expect, f"exit {done.returncode}\n{stdout}\n{stderr}"
        return done


def _with_var(arguments: tuple[str, ...], name: str, value: object) -> tuple[str, ...]:
    """Give dbt one var more, unless it is given already."""
    if "--vars" not in arguments:
        return (*arguments, "--vars", json.dumps({name: value}))
    at = arguments.index("--vars") + 1
    given = {name: value} | yaml.safe_load(arguments[at])
    return (*arguments[:at], json.dumps(given), *arguments[at + 1 :])
