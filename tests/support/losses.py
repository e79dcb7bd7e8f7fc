"""What the operation `mend` does to the ledger, without dbt, for tests of the loader alone."""

from __future__ import annotations

from typing import Any

from loader.store import Store

_COLUMNS = "batch_id, source, start_offset, end_offset, first_line, `rows`, rejects, continues"


def take_out_of_ledger(store: Store, condition: str, parameters: dict[str, Any]) -> None:
    """Move the batches of a condition on the ledger to those that are lost."""
    ledger, lost = store.table("raw_batches"), store.table("raw_lost_batches")
    store.command(
        f"insert into {lost} ({_COLUMNS}, lost_at)"
        f" select {_COLUMNS}, now64(3, 'UTC') from {ledger} where {condition}",
        parameters,
    )
    store.command(
        f"alter table {ledger} delete where {condition} settings mutations_sync = 2", parameters
    )
