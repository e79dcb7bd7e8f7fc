"""Read traces back, always within one organization.

Owns the queries on `llm_traces_live`, which holds a trace as soon as its batch is landed, and
turning payload text into objects. Refuses to read without an organization; values are bound.
"""

from __future__ import annotations

import json
from typing import Any

from loader.errors import StoreError, UsageError
from loader.store import Store

__all__ = ["ID_PREFIX", "get_provider_trace_by_step_id", "payload_object"]

ID_PREFIX = "provider_trace-"
_UNKNOWN_TABLE = 60
_UNKNOWN_DATABASE = 81

_COLUMNS = (
    "id",
    "organization_id",
    "project_id",
    "agent_id",
    "agent_tags",
    "run_id",
    "step_id",
    "trace_id",
    "call_type",
    "provider",
    "model",
    "created_at",
    "request_json",
    "response_json",
)


def get_provider_trace_by_step_id(
    store: Store, step_id: str, organization_id: str
) -> dict[str, Any] | None:
    """Return the newest trace of a step in an organization.

    Parameters
    ----------
    store : Store
        Where dbt has made llm_traces_live.
    step_id, organization_id : str
        Compared exactly.

    Returns
    -------
    dict or None
        The trace's names and payloads: `id` with its prefix, `created_at` an aware time,
        `request_json` and `response_json` as objects (see `payload_object`). None if the
        organization has no such step.

    Raises
    ------
    UsageError
        If the view does not exist yet.
    StoreError
        If the store fails.
    """
    try:
        rows = store.query(
            f"select {', '.join(_COLUMNS)}"
            f" from {store.table('llm_traces_live')}"
            " where step_id = {step_id:String} and organization_id = {organization_id:String}"
            " order by created_at desc, landed_at desc, id desc"
            " limit 1",
            {"step_id": step_id, "organization_id": organization_id},
        )
    except StoreError as error:
        if error.code in (_UNKNOWN_TABLE, _UNKNOWN_DATABASE):
            raise UsageError(
                f"{store.database}.llm_traces_live does not exist in {store.settings.store_name}: "
                "run `dbt build` first; it makes the tables to read from."
            ) from None
        raise
    if not rows:
        return None
    trace = dict(zip(_COLUMNS, rows[0], strict=True))
    trace["id"] = ID_PREFIX + trace["id"]
    trace["request_json"] = payload_object(trace["request_json"])
    trace["response_json"] = payload_object(trace["response_json"])
    return trace


def payload_object(text: str | bytes) -> dict[str, Any]:
    """Turn a stored payload into an object.

    Returns
    -------
    dict
        The object itself; `{"_value": x}` for JSON that is no object; `{"_raw": text}` for text
        that is no JSON.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {"_raw": text}
    return value if isinstance(value, dict) else {"_value": value}
