"""Say what a trace cost, and why: its tokens, the prices taken, each charge and their sum.

Owns the words. Refuses to reckon: every number is read from what the models wrote, and a trace is
looked for in the one organization that is named.
"""

from __future__ import annotations

import argparse
import json
from decimal import Decimal
from typing import Any

from loader.documents import as_json_value
from loader.errors import UsageError
from loader.reader import require_organization
from loader.settings import Settings
from loader.store import Store, open_existing_store
from loader.verbs import printable

__all__ = ["add_arguments", "explain", "run"]

EXAMPLES = """\
examples:
  python -m loader explain 3c80411e-d3fd-52e0 --organization org-acme
  python -m loader explain 3c80411e-d3fd-52e0 --organization org-acme --json
"""

_TRACE_COLUMNS = (
    *("id", "organization_id", "created_at", "provider", "model", "response_model", "is_byok"),
    *("is_error", "usage_dialect", "usage_status", "service_tier"),
    *("prompt_tokens", "completion_tokens", "total_tokens", "cached_input_tokens"),
    *("cache_write_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "reasoning_tokens"),
    *("input_audio_tokens", "output_audio_tokens", "input_image_tokens", "output_image_tokens"),
    *("input_video_tokens", "output_video_tokens"),
    *("cached_audio_tokens", "cached_image_tokens", "cached_video_tokens"),
    *("billed_input_tokens", "billed_output_tokens"),
    *("side_prompt_tokens", "side_completion_tokens", "side_cached_input_tokens"),
    *("side_cache_write_tokens", "side_cache_write_1h_tokens", "other_model_tokens"),
    *("citation_tokens", "longest_prompt_tokens"),
    "web_search_requests",
)
_COST_COLUMNS = (
    *("cost_status", "total_cost_usd", "billable_cost_usd", "provider_reported_cost_usd"),
    *("charges", "unpriced_units", "price_ids", "price_book_version", "match_status"),
    *("price_provider", "price_model", "price_tier", "tier_start", "price_valid_from", "priced_at"),
)
_MATCH_COLUMNS = ("matched_on", "matched_name", "match_rule", "is_fallback")
_PRICE_COLUMNS = (
    *("unit", "unit_price_usd", "valid_from", "window_start", "window_end", "weekdays"),
    *("tier_start", "service_tier", "source"),
)
_OVERRIDE = "override:"

_STATUS_WORDS = {
    "priced": "every charge has a list price",
    "partly_priced": "some charges have no price: the total is a lower bound",
    "provider_reported": "no list price; the total is what the provider said",
    "unpriced": "used, and nobody says what it costs: the cost is unknown",
    "no_usage": "the response reports nothing that could be charged",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("trace_id", metavar="TRACE_ID", help="the trace's id, prefixed or not")
    parser.add_argument("--organization", required=True, metavar="ORG", help="whose trace it is")
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Explain one trace on standard output."""
    with open_existing_store(settings) as store:
        told = explain(store, args.trace_id, args.organization)
    print(json.dumps(told, default=as_json_value) if args.json else _as_text(told))
    return 0


def explain(store: Store, trace_id: str, organization_id: str) -> dict[str, Any]:
    """Collect all that is known about a trace's cost.

    Parameters
    ----------
    store : Store
        Where to look.
    trace_id : str
        With or without its `provider_trace-` prefix.
    organization_id : str
        The organization it must belong to.

    Returns
    -------
    dict
        `trace` (tokens and how they were read), `cost` (status, totals and why; None while it is
        not priced), `match` (the rule that found the model), `charges` (each with its price).
        Money is Decimal.

    Raises
    ------
    UsageError
        If no organization is named, it has no such trace, or nothing is transformed yet.
    """
    require_organization(organization_id)
    key = {"id": trace_id.removeprefix("provider_trace-"), "organization": organization_id}
    if not {"llm_traces", "llm_trace_costs", "llm_price_matches"} <= store.tables():
        raise UsageError("nothing is priced yet: run `dbt build` first.")
    where = "where id = {id:String} and organization_id = {organization:String} limit 1"
    trace = _row(store, "llm_traces", _TRACE_COLUMNS, where, key)
    if trace is None:
        raise UsageError(
            f"organization {organization_id!r} has no trace {trace_id!r} in llm_traces: check "
            "both, and whether `dbt run` has run since it landed."
        )
    told: dict[str, Any] = {"trace": trace, "cost": None, "match": None, "charges": []}
    cost = _row(store, "llm_trace_costs", _COST_COLUMNS, where, key)
    if cost is None:
        return told
    charges, price_ids = cost.pop("charges"), cost.pop("price_ids")
    told["cost"] = cost
    told["match"] = _row(
        store,
        "llm_price_matches",
        _MATCH_COLUMNS,
        "where price_book_version = {version:String} and provider = {provider:String}"
        " and model = {model:String} and response_model = {response_model:String} limit 1",
        {
            "version": cost["price_book_version"],
            "provider": trace["provider"],
            "model": trace["model"],
            "response_model": trace["response_model"] or "",
        },
    )
    for index, charge in enumerate(charges):
        entry = dict(charge)
        price_id = price_ids[index] if index < len(price_ids) else None
        entry["price_id"] = price_id
        entry["price"] = _price(store, cost, price_id) if price_id else None
        told["charges"].append(entry)
    return told


def _price(store: Store, cost: dict[str, Any], price_id: str) -> dict[str, Any] | None:
    if price_id.startswith(_OVERRIDE):
        return _row(
            store,
            "stg_prices__overrides",
            _PRICE_COLUMNS,
            "where price_id = {id:String} limit 1",
            {"id": price_id},
        )
    if not price_id.isdigit():
        return None
    return _row(
        store,
        "raw_prices",
        _PRICE_COLUMNS,
        "where price_book_version = {version:String} and provider = {provider:String}"
        " and model = {model:String} and price_row = {row:UInt32} limit 1",
        {
            "version": cost["price_book_version"],
            "provider": cost["price_provider"],
            "model": cost["price_model"],
            "row": int(price_id),
        },
    )


def _row(
    store: Store, table: str, columns: tuple[str, ...], where: str, parameters: dict[str, Any]
) -> dict[str, Any] | None:
    names = ", ".join(f"`{name}`" for name in columns)
    found = store.query(f"select {names} from {store.table(table)} {where}", parameters)
    return dict(zip(columns, found[0], strict=True)) if found else None


def _as_text(told: dict[str, Any]) -> str:
    # Ids and models are what a trace says they are.
    return "\n".join(map(printable, _lines(told)))


def _lines(told: dict[str, Any]) -> list[str]:
    trace, cost, match = told["trace"], told["cost"], told["match"]
    lines = [
        f"trace {trace['id']} of {trace['organization_id']}, {trace['created_at']} UTC",
        f"  {trace['provider']} {trace['model']}"
        + (f", answered by {trace['response_model']}" if trace["response_model"] else "")
        + (", with the customer's own key" if trace["is_byok"] else "")
        + (", failed" if trace["is_error"] else ""),
        f"tokens ({trace['usage_status']}, read by the {trace['usage_dialect']} dialect)",
    ]
    for name in _TRACE_COLUMNS:
        if name.endswith(("_tokens", "_requests")) and trace[name] is not None:
            lines.append(f"  {name:<26}{trace[name]:>12,}")
    if cost is None:
        return [*lines, "cost: not priced yet; run `dbt run`"]
    lines.append(f"cost: {cost['cost_status']} ({_STATUS_WORDS.get(cost['cost_status'], '')})")
    lines.append(f"  price book              {cost['price_book_version'] or 'none has landed'}")
    if cost["price_model"]:
        lines.append(f"  price model             {cost['price_provider']} {cost['price_model']}")
    if match and match["match_rule"]:
        lines.append(
            f"  matched by              {match['match_rule']} on '{match['matched_name']}' "
            f"(the {match['matched_on']})"
        )
    if cost["price_tier"]:
        lines.append(f"  service tier            {cost['price_tier']}")
    if cost["tier_start"]:
        lines.append(f"  prompt above            {cost['tier_start']:,} tokens")
    if told["charges"]:
        lines.append("charges, USD")
    for charge in told["charges"]:
        lines.append(
            f"  {charge['unit']:<24}{charge['quantity']:>14,} x {_money(charge['unit_price_usd'])}"
            f" = {_money(charge['amount_usd'])}  {_price_words(charge)}"
        )
    for unpriced in cost["unpriced_units"]:
        lines.append(f"  {unpriced['unit']:<24}{unpriced['quantity']:>14,} x no price")
    lines.append(f"  {'total':<24}{_money(cost['total_cost_usd'])}")
    lines.append(f"  {'billable':<24}{_money(cost['billable_cost_usd'])}")
    if cost["provider_reported_cost_usd"] is not None:
        lines.append(f"  {'the provider said':<24}{_money(cost['provider_reported_cost_usd'])}")
    return lines


def _price_words(charge: dict[str, Any]) -> str:
    price = charge["price"]
    if price is None:
        return "[free in the book]" if charge["price_id"] == "free" else ""
    parts = [f"price {charge['price_id']}", str(price["unit"])]
    if price["valid_from"] is not None and price["valid_from"].year > 1970:
        parts.append(f"from {price['valid_from']:%Y-%m-%d}")
    if price["window_start"]:
        parts.append(f"{price['window_start']}-{price['window_end']}")
    parts.append(str(price["source"]))
    return f"[{', '.join(parts)}]"


def _money(value: Decimal | None) -> str:
    return "unknown" if value is None else f"{value.normalize():f}"
