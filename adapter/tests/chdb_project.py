"""A throw-away dbt project: how a test configures, runs and reads it."""

import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import clickhouse_connect
import yaml
from chdb_lock import find_holder
from dbt.cli.main import dbtRunner, dbtRunnerResult
from dbt.contracts.results import RunExecutionResult


@dataclass
class Project:
    """A copy of `project/`, its store, and the ways to run dbt on it."""

    root: Path
    store: Path

    def configure(self, **keys: Any) -> None:
        """Write profiles.yml with these keys over the defaults."""
        output = {"type": "chdb", "chdb_path": str(self.store), "schema": "tiny", "threads": 4}
        profile = {"tiny": {"target": "dev", "outputs": {"dev": output | keys}}}
        (self.root / "profiles.yml").write_text(yaml.safe_dump(profile))

    def arguments(self, *words: str) -> list[str]:
        """Complete a dbt command line with this project's folders."""
        return [*words, "--project-dir", str(self.root), "--profiles-dir", str(self.root)]

    def dbt(self, *words: str) -> dbtRunnerResult:
        """Run dbt in this process."""
        return dbtRunner().invoke(["--quiet", *self.arguments(*words)])

    def statuses(self, *words: str) -> dict[str, str]:
        """Run dbt in this process; return the status of each node by its name."""
        result = self.dbt(*words)
        assert result.exception is None, result.exception
        assert isinstance(result.result, RunExecutionResult)
        return {run.node.name: str(run.status) for run in result.result}

    def build(self, *words: str) -> dict[str, str]:
        """Run `dbt build` in this process; return the status of each node by its name."""
        return self.statuses("build", *words)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start dbt in a process of its own; its output is on `stdout`.

        An interrupt reaches it even where the tests run in the background of a shell, which
        has its processes ignore it.
        """
        command = [sys.executable, "-m", "dbt.cli.main", "--no-use-colors", *self.arguments(*words)]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Read the store directly; also shows that dbt has let go of it."""
        assert find_holder(self.store) is None
        client = clickhouse_connect.get_client(interface="chdb", path=str(self.store))
        try:
            return [tuple(row) for row in client.query(sql).result_rows]
        finally:
            client.close()
