"""Say what waits in the spool, what is landed, what waits for dbt, and what was rejected.

It works before dbt ever ran: then everything that is landed is pending.
"""

from __future__ import annotations

import argparse
import json
import os
from datetime import UTC, datetime
from typing import Any

from loader.errors import StoreError, UsageError
from loader.metrics import prometheus_text
from loader.replay import LINE, closed_batches, is_open, lost_batches
from loader.settings import Settings
from loader.spool import spool_status
from loader.store import RAW_TABLES, Store, open_existing_store
from loader.verbs import as_line

EXAMPLES = """\
examples:
  python -m loader status
  python -m loader status --json
  python -m loader status --spool /var/spool/tokenledger --prometheus
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--spool",
        default=os.environ.get("TOKENLEDGER_SPOOL"),
        metavar="DIR",
        help="look at this spool too (default: TOKENLEDGER_SPOOL)",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print it as JSON")
    form.add_argument("--prometheus", action="store_true", help="print it as Prometheus text")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print the status; what the spool holds also where the store is away."""
    spool = spool_status(args.spool) if args.spool else None
    if spool is not None and not (args.json or args.prometheus):
        age = spool["oldest_age_seconds"]
        print(
            f"spool        {spool['records']:,} records ({spool['bytes']:,} bytes) wait in "
            f"{spool['path']}" + (f", the oldest for {age} s" if age is not None else "")
        )
    try:
        with open_existing_store(settings) as store:
            status = collect_status(store)
    except (StoreError, UsageError) as error:
        # The spool fills while the store is away: that is when its depth is asked for.
        if args.prometheus:
            print(prometheus_text(None, spool, datetime.now(UTC)), end="")
        elif args.json:
            away = {"store": settings.store_name, "database": settings.database, "spool": spool}
            print(json.dumps(away | {"error": str(error)}))
        raise
    if args.prometheus:
        print(prometheus_text(status, spool, datetime.now(UTC)), end="")
        return 0
    status["spool"] = spool
    if args.json:
        print(json.dumps(status))
        return 0
    landed, pending, done = status["landed"], status["pending"], status["transformed"]
    print(f"store        {status['database']} at {status['store']}")
    print(
        f"landed       {landed['rows']:,} traces in {landed['batches']:,} batches, "
        f"{landed['rejects']:,} rejects; last {landed['last_landed_at'] or 'never'}"
    )
    print(
        f"pending      {pending['rows']:,} traces in {pending['batches']:,} batches wait for dbt"
        + (f", the oldest since {pending['oldest_landed_at']}" if pending["batches"] else "")
    )
    print(
        f"transformed  {done['rows']:,} traces in {done['batches']:,} batches; "
        f"last {done['last_transformed_at'] or 'never'}"
    )
    if status["unfinished_batches"]:
        print(
            f"unfinished   {status['unfinished_batches']:,} batches without a ledger row: "
            "a loader is at work, or was stopped; landing the same source again finishes them. "
            "dbt leaves them out. If they stay, see docs/spool.md#unfinished-batches"
        )
    if status["lost_batches"]:
        print(
            f"lost         {status['lost_batches']:,} batches of which raw rows are lost: "
            "land their sources again (docs/operate.md, A damaged file)"
        )
    for reason, count in status["rejected_by_reason"].items():
        print(as_line(f"rejected     {count:,} {reason}"))
    return 0


def collect_status(store: Store) -> dict[str, Any]:
    """Count what the store holds.

    Returns
    -------
    dict
        `landed`, `pending`, `transformed` (each with `batches` and `rows`), `rejected_by_reason`,
        `unfinished_batches`: those with rows but no ledger row; and `lost_batches`: those that
        `mend` took out of the ledger, and that have not landed again. Times are text in UTC, None
        where nothing happened yet.
    """
    tables = store.tables()
    status: dict[str, Any] = {
        "store": store.settings.store_name,
        "database": store.database,
        "landed": {"batches": 0, "rows": 0, "rejects": 0, "last_landed_at": None},
        "pending": {"batches": 0, "rows": 0, "oldest_landed_at": None},
        "transformed": {"batches": 0, "rows": 0, "last_transformed_at": None},
        "unfinished_batches": 0,
        "lost_batches": 0,
        "rejected_by_reason": {},
    }
    if not set(RAW_TABLES) <= tables:
        return status
    traces, rejects, ledger = (store.table(name) for name in RAW_TABLES)
    # What was replayed counts where it is now: each line is a row or a reject of one batch.
    # Two loaders that raced may both have written a batch's ledger row: it is one batch.
    batches = (
        "(select batch_id, any(rows) as batch_rows,"
        f" if(batch_id in ({closed_batches(store)}), 0, any(rejects)) as batch_rejects,"
        f" min(landed_at) as batch_landed_at from {ledger} group by batch_id)"
    )
    status["landed"] = _row(
        store,
        ("batches", "rows", "rejects", "last_landed_at"),
        f"select count(), sum(batch_rows), sum(batch_rejects), max(batch_landed_at) from {batches}",
    )
    is_pending = "1"
    if "transformed_batches" in tables:
        transformed = store.table("transformed_batches")
        is_pending = f"batch_id not in (select batch_id from {transformed})"
        status["transformed"] = _row(
            store,
            ("batches", "rows", "last_transformed_at"),
            "select count(), sum(batch_rows), max(batch_transformed_at) from"
            " (select batch_id, any(rows) as batch_rows,"
            f" max(transformed_at) as batch_transformed_at from {transformed} group by batch_id)",
        )
    status["pending"] = _row(
        store,
        ("batches", "rows", "oldest_landed_at"),
        f"select count(), sum(batch_rows), min(batch_landed_at) from {batches} where {is_pending}",
    )
    known = f"select batch_id from {ledger}"
    if "raw_lost_batches" in tables:
        known += f" union all select batch_id from {store.table('raw_lost_batches')}"
    status["unfinished_batches"] = store.query(
        "select uniqExact(batch_id) from"
        f" (select distinct batch_id from {traces}"
        f" union all select distinct batch_id from {rejects}) where batch_id not in ({known})"
    )[0][0]
    status["lost_batches"] = store.query(
        f"select uniqExact(batch_id) from ({lost_batches(store)})"
    )[0][0]
    status["rejected_by_reason"] = dict(
        store.query(
            f"select reason, uniqExact({LINE}) as count from {rejects}"
            f" where {is_open(store)}"
            " group by reason order by count desc, reason"
        )
    )
    return status


def _row(store: Store, names: tuple[str, ...], sql: str) -> dict[str, Any]:
    """Run a select of a count, sums and a time; the time is text, None when nothing was counted."""
    values = list(store.query(sql)[0])
    moment = values[-1]
    values[-1] = moment.strftime("%Y-%m-%dT%H:%M:%SZ") if values[0] else None
    return dict(zip(names, values, strict=True))
