"""dbt on the embedded engine, killed right before a statement.

    python -m tests.support.killed_dbt PATTERN NUMBER run-operation mend …

The process ends by SIGKILL before the `NUMBER`-th statement that matches (from 1). Where there are
fewer, it ends as dbt does.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from typing import Any

from dbt.adapters.chdb.client import ChdbClient


def kill_before(pattern: str, number: int) -> None:
    """Let this process die before a statement that its client sends."""
    left = number

    def wrapped(name: str) -> None:
        send = getattr(ChdbClient, name)

        def sent(client: ChdbClient, sql: str, **options: Any) -> Any:
            nonlocal left
            left -= re.search(pattern, sql, re.IGNORECASE | re.DOTALL) is not None
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return send(client, sql, **options)

        setattr(ChdbClient, name, sent)

    for name in ("query", "command"):
        wrapped(name)


if __name__ == "__main__":
    pattern, number, *arguments = sys.argv[1:]
    kill_before(pattern, int(number))
    from dbt.cli.main import cli

    sys.argv = ["dbt", *arguments]
    cli()
