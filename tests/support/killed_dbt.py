"""dbt on the embedded engine, killed right before or behind a statement.

    python -m tests.support.killed_dbt PATTERN NUMBER before|after run-operation mend …

The process ends by SIGKILL at the `NUMBER`-th statement that matches (from 1). Where there are
fewer, it ends as dbt does.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from typing import Any

from dbt.adapters.chdb.client import ChdbClient


def kill_at(pattern: str, number: int, when: str) -> None:
    """Let this process die at a statement that its client sends."""
    left = number

    def wrapped(name: str) -> None:
        send = getattr(ChdbClient, name)

        def sent(client: ChdbClient, sql: str, **options: Any) -> Any:
            nonlocal left
            is_hit = re.search(pattern, sql, re.IGNORECASE | re.DOTALL) is not None
            left -= is_hit
            if is_hit and left == 0 and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            answer = send(client, sql, **options)
            if is_hit and left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        setattr(ChdbClient, name, sent)

    for name in ("query", "command"):
        wrapped(name)


if __name__ == "__main__":
    pattern, number, when, *arguments = sys.argv[1:]
    kill_at(pattern, int(number), when)
    from dbt.cli.main import cli

    sys.argv = ["dbt", *arguments]
    cli()
