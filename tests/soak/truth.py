"""What the store has to hold, reckoned from what was sent, and how it differs from what it holds.

Owns the records that the soak and the sweep send, and the comparison. Refuses to ask the project
for any of it: counts, bytes, days and money are reckoned here, from the records alone.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from genai_prices import Usage, calc_price

from tests.support.project import Project
from tests.test_pipeline import record

_MODEL = {"model_ref": "gpt-4o", "provider_id": "openai"}
_PROMPT_USD = Decimal(calc_price(Usage(input_tokens=1_000_000), **_MODEL).total_price) / 1_000_000
_COMPLETION_USD = (
    Decimal(calc_price(Usage(output_tokens=1_000_000), **_MODEL).total_price) / 1_000_000
)


@dataclass(frozen=True)
class Sent:
    """A trace as it was sent: its texts, and what they mean."""

    organization: str
    date: str
    request: str
    response: str
    prompt_tokens: int

    @classmethod
    def of(cls, sent: dict[str, Any], is_compact: bool = False) -> Sent:
        """Take a record of `record()` or `trace()` apart; the spool writes it compact."""

        def text(value: object) -> str:
            if is_compact:
                return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
            return json.dumps(value)

        return cls(
            sent["org_id"],
            sent["created_at"][:10],
            text(sent["request_json"]),
            text(sent["response_json"]),
            sent["response_json"]["usage"]["prompt_tokens"],
        )

    @property
    def cost(self) -> Decimal:
        """List price in USD: each record has one completion token."""
        return self.prompt_tokens * _PROMPT_USD + _COMPLETION_USD


@dataclass
class Truth:
    """All that was sent.

    Attributes
    ----------
    traces : dict
        By id, without the prefix.
    rejects : Counter
        Lines that are no record, and how often they were sent.
    lines : int
        Non-blank lines sent, repeated ids among them.
    """

    traces: dict[str, Sent] = field(default_factory=dict)
    rejects: Counter[str] = field(default_factory=Counter)
    lines: int = 0
    _number: int = 0

    def write(self, path: Path, count: int, chance: random.Random) -> Path:
        """Write a file of new records, one that was sent in it before, and one that is none."""
        lines = []
        for _ in range(count):
            self._number += 1
            one = record(self._number)
            self.traces[f"{self._number:06d}"] = Sent.of(one)
            lines.append(json.dumps(one))
        lines.append(chance.choice(lines))
        bad = f'{{"cut": {self._number}'
        self.rejects[bad] += 1
        lines.insert(chance.randrange(len(lines)), bad)
        self.lines += len(lines)
        path.write_text("\n".join(lines) + "\n")
        return path

    def add(self, sent: dict[str, Any]) -> None:
        """Count one record that went through the spool."""
        self.traces[sent["id"].removeprefix("provider_trace-")] = Sent.of(sent, is_compact=True)
        self.lines += 1


_WITHHELD = re.compile(r"\[redacted: (\d+) bytes that are no JSON\]")
_LANDED = """
    select
        (select count() from raw_traces) as raw_rows,
        (select uniqExact(batch_id, position) from raw_traces) as raw_places,
        (select groupArray(raw) from raw_rejects) as rejects,
        (select count() from raw_batches) as batches,
        (select uniqExact(batch_id) from raw_batches) as batch_ids,
        (select sum(lines) from raw_batches) as ledger_lines,
        (select sum(`rows` + rejects) from raw_batches) as ledger_kept
"""
_MADE = """
    select
        (select count() from int_batches__pending) as pending,
        (select count() from transformed_batches) as transformed,
        (select uniqExact(batch_id) from transformed_batches) as transformed_ids,
        (select uniqExact(batch_id) from costed_batches) as costed_ids,
        (select count() from costed_batches) as costed,
        (select uniqExact(batch_id) from raw_batches) as landed_ids,
        (select groupUniqArray(batch_id) from llm_traces
            where batch_id not in (select batch_id from costed_batches)) as not_costed,
        (select groupUniqArray(batch_id) from transformed_batches
            where (new_traces > 0) != (batch_id in (select batch_id from llm_traces))) as miscounted
"""


def differences_of_landing(project: Project, truth: Truth, ignore_torn: bool = False) -> list[str]:
    """Compare the raw tables with what was sent; nothing found is an empty list.

    What is withheld by rules of redaction is known by its length.

    Parameters
    ----------
    ignore_torn : bool
        Pass over what the spool rejects as the torn end of a killed writer's segment: the record
        was never acknowledged.
    """
    held = project.query(_LANDED)[0]
    wanted = truth.lines - truth.rejects.total()
    if ignore_torn:
        torn = project.query("select raw from raw_rejects where reason = 'torn'")
        truth.rejects.update(row["raw"] for row in torn)
        truth.lines += len(torn)
    verbatim = Counter(raw for raw in held["rejects"] if not _WITHHELD.fullmatch(raw))
    withheld = Counter(map(_length, held["rejects"])) - Counter(map(_length, verbatim.elements()))
    missing = Counter(map(_length, (truth.rejects - verbatim).elements()))
    found = []
    for name, value, right in (
        ("rows in raw_traces", int(held["raw_rows"]), wanted),
        ("places in raw_traces", int(held["raw_places"]), wanted),
        ("rejects", (verbatim - truth.rejects, withheld), (Counter(), missing)),
        ("batches against their ids", held["batches"], held["batch_ids"]),
        ("lines of the ledger", int(held["ledger_lines"] or 0), truth.lines),
        ("rows and rejects of the ledger", int(held["ledger_kept"] or 0), truth.lines),
    ):
        if value != right:
            found.append(f"{name}: {_short(value)}, not {_short(right)}")
    sent = sorted((one.request, one.response) for one in truth.traces.values())
    texts = project.query(
        "select distinct JSONExtractString(envelope_json, 'id') as id,"
        " request_json as request, response_json as response from raw_traces"
    )
    if sorted((row["request"], row["response"]) for row in texts) != sent:
        found.append("bytes of raw_traces are not those that were sent")
    return found


def differences_of_traces(project: Project, truth: Truth) -> list[str]:
    """Compare llm_traces, its costs and its ledgers with what was sent."""
    rows = project.query(
        "select t.id as id, t.organization_id as organization,"
        " toString(toDate(t.created_at)) as date,"
        " t.request_json as request, t.response_json as response, t.prompt_tokens as prompt_tokens,"
        " toString(c.cost) as cost, c.count as costs"
        " from llm_traces as t left join"
        " (select id, sum(total_cost_usd) as cost, count() as count"
        " from llm_trace_costs group by id)"
        " as c on t.id = c.id"
    )
    found = []
    ids = Counter(row["id"] for row in rows)
    doubled = sum(ids.values()) - len(ids)
    lost, strange = truth.traces.keys() - ids.keys(), ids.keys() - truth.traces.keys()
    if doubled or lost or strange:
        found.append(f"llm_traces: {doubled} doubled, {len(lost)} lost, {len(strange)} not sent")
    for row in rows:
        sent = truth.traces.get(row["id"])
        if sent is None:
            continue
        cost, costs = Decimal(row.pop("cost")), row.pop("costs")
        if Sent(**{name: row[name] for name in row if name != "id"}) != sent:
            found.append(f"{row['id']} is not what was sent")
        if costs != 1 or cost != sent.cost:
            found.append(f"{row['id']} costs {cost} in {costs} rows, not {sent.cost}")
    held = project.query(_MADE)[0]
    if held["pending"]:
        found.append(f"{held['pending']} batches are pending")
    if held["transformed"] != held["transformed_ids"]:
        found.append("a batch stands twice in transformed_batches")
    if held["costed"] != held["costed_ids"]:
        found.append("a batch stands twice in costed_batches")
    if held["costed_ids"] != held["landed_ids"]:
        found.append(f"{held['landed_ids']} batches landed, {held['costed_ids']} are costed")
    if held["not_costed"]:
        found.append(f"batches that have traces and are not costed: {held['not_costed']}")
    # Of a batch that brings only what came before, or only rejects, there is no trace.
    if held["miscounted"]:
        found.append(f"batches that have traces and say none, or the reverse: {held['miscounted']}")
    return found[:20]


def differences_of_days(project: Project, truth: Truth) -> list[str]:
    """Compare the daily roll-up with sums over what was sent."""
    wanted: dict[tuple[str, str], list[Any]] = defaultdict(lambda: [0, 0, Decimal(0)])
    for sent in truth.traces.values():
        day = wanted[sent.date, sent.organization]
        day[0] += 1
        day[1] += sent.prompt_tokens
        day[2] += sent.cost
    rows = project.query(
        "select toString(usage_date) as date, organization_id as organization,"
        " sum(calls) as calls, sum(prompt_tokens) as prompt, toString(sum(total_cost_usd)) as cost"
        " from llm_costs_daily group by date, organization"
    )
    held = {
        (row["date"], row["organization"]): [
            int(row["calls"]),
            int(row["prompt"]),
            Decimal(row["cost"]),
        ]
        for row in rows
    }
    wrong = [day for day in wanted.keys() | held.keys() if held.get(day) != wanted.get(day)]
    return [f"llm_costs_daily: {len(wrong)} days of organizations differ"] if wrong else []


def _length(reject: str) -> int:
    """Give the length that a line had, withheld or not."""
    found = _WITHHELD.fullmatch(reject)
    return int(found[1]) if found else len(reject.encode())


def _short(value: object) -> str:
    return str(value)[:200]
