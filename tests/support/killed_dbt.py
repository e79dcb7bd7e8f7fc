"""dbt, killed or stopped right before a statement.

    python -m tests.support.killed_dbt SIGKILL PATTERN NUMBER run-operation mend …

The process gets the signal before the `NUMBER`-th statement that matches (from 1). Where there are
fewer, it ends as dbt does.
"""

from __future__ import annotations

import re
import signal
import sys
import threading
from typing import Any

from dbt.adapters.clickhouse.httpclient import ChHttpClient


def signal_before(number_of_signal: int, pattern: str, number: int) -> None:
    """Send this process a signal before a statement that its client sends, to whatever engine."""
    left = number

    def wrapped(name: str) -> None:
        send = getattr(ChHttpClient, name)

        def sent(client: ChHttpClient, sql: str, **options: Any) -> Any:
            nonlocal left
            if re.search(pattern, sql, re.IGNORECASE | re.DOTALL):
                left -= 1
                if left == 0:
                    # To this thread: another one's signal would let the statement go out first.
                    signal.pthread_kill(threading.get_ident(), number_of_signal)
            return send(client, sql, **options)

        setattr(ChHttpClient, name, sent)

    for name in ("query", "command"):
        wrapped(name)


if __name__ == "__main__":
    signal_name, pattern, number, *arguments = sys.argv[1:]
    signal_before(signal.Signals[signal_name], pattern, int(number))
    from dbt.cli.main import cli

    sys.argv = ["dbt", *arguments]
    cli()
