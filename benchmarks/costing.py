"""Costs and the reports by day: against a plain copy of what they read, and as the table grows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.report import Section, scaled, seconds, seconds_by_model
from loader.settings import Settings
from loader.store import open_store
from tests.support.project import Project

TRACES = 1_000_000
NEW = 10_000
DAYS = 100
ROUNDS = 2
ROLL_UPS = (
    *("int_days__fingerprinted", "int_costs__by_utc_day", "llm_costs_daily", "llm_errors_daily"),
    "llm_cache_savings_daily",
)

# Rows of raw_traces as the loader lands them, without the loader: small bodies of three dialects,
# batches of 10,000, so many traces on each of so many days.
_RAW_TRACES = """
insert into llm.raw_traces
with
    number % 4 as kind,
    1 + cityHash64(number, {salt:UInt64}) % 100000 as prompt,
    1 + cityHash64(number, {salt:UInt64}, 1) % 5000 as completion,
    ['openai', 'openai', 'anthropic', 'google_ai'][kind + 1] as provider,
    ['gpt-4.1', 'gpt-4.1-mini', 'claude-sonnet-4-5-20250929', 'gemini-2.5-flash'][kind + 1]
        as model,
    toDateTime('2026-01-01 00:00:00', 'UTC')
        + toIntervalDay({first_day:UInt32} + number % {days:UInt32})
        + toIntervalSecond(cityHash64(number) % 86400) as created_at
select
    lower(hex(sipHash128({salt:UInt64}, intDiv(number, 10000)))) as batch_id,
    number % 10000 as position,
    'provider_trace' as format,
    '{"messages":[{"role":"user","content":"hello"}]}' as request_json,
    multiIf(
        kind = 3,
        concat('{"usageMetadata":{"promptTokenCount":', toString(prompt),
            ',"candidatesTokenCount":', toString(completion),
            ',"totalTokenCount":', toString(prompt + completion), '}}'),
        kind = 2,
        concat('{"model":"', model, '","usage":{"input_tokens":', toString(prompt),
            ',"cache_read_input_tokens":', toString(prompt % 1000),
            ',"output_tokens":', toString(completion), '}}'),
        concat('{"model":"', model, '","usage":{"prompt_tokens":', toString(prompt),
            ',"completion_tokens":', toString(completion),
            ',"total_tokens":', toString(prompt + completion), '}}')
    ) as response_json,
    concat(
        '{"id":"', toString({salt:UInt64}), '-', toString(number),
        '","org_id":"org-', toString(number % 20),
        '","agent_id":"agent-', toString(number % 500),
        '","call_type":"agent_step","llm_config":{"model":"', model,
        '","model_endpoint_type":"', provider,
        '"},"created_at":"', formatDateTime(created_at, '%Y-%m-%dT%H:%i:%SZ', 'UTC'), '"}'
    ) as envelope_json,
    [] as repairs,
    now64(3, 'UTC') as landed_at
from numbers({traces:UInt64})
"""
_RAW_BATCHES = """
insert into llm.raw_batches
select
    batch_id, concat('generated-', batch_id), 0, 1, 1, count(), count(), 0, 1, 'benchmark',
    max(landed_at)
from llm.raw_traces
where batch_id not in (select batch_id from llm.raw_batches)
group by batch_id
"""


def run(folder: Path) -> Iterator[Section]:
    """Yield the sections on costs and on the reports by day."""
    costs = Section(
        "Costs against a plain copy",
        ["traces", "copy s", "llm_trace_costs s", "ratio", "rows/s"],
        note=(
            "Copy: `insert into … select` of the columns of llm_traces that a cost depends on. "
            "llm_trace_costs: all of history priced again, `--full-refresh`; the seconds that dbt "
            "counts. Bounded by: choosing the price of each bucket among all of its model's, by "
            "time, prompt and hour, row by row, on one core a thread; decimals of 256 bits."
        ),
    )
    growth = Section(
        "The reports by day as the table grows",
        [
            *("traces before", f"{NEW:,} new on a day, s", "against an empty store"),
            *("none new, s", "against an empty store"),
        ],
        note=(
            f"The seconds that dbt counts for {', '.join(ROLL_UPS)}; the best of {ROUNDS} runs, "
            f"each of a day of its own; the traces before are spread over {DAYS} days. Bounded by: "
            "five statements of dbt and their exchange of tables, whatever their size; and by "
            "fingerprinting all days, which reads four narrow columns of every trace."
        ),
    )
    empty: tuple[float, float] | None = None
    for before in (0, scaled(TRACES)):
        place = folder / f"{before}"
        project = Project(place, {"CHDB_PATH": str(place / "store"), "DBT_WRITE_JSON": "true"})
        project.loader("prices")
        project.dbt("seed")
        _fill(project, before, first_day=0, days=DAYS, salt=0)
        project.dbt("run")
        new, none = [], []
        for round_ in range(1, ROUNDS + 1):
            _fill(project, NEW, first_day=DAYS + round_, days=1, salt=round_)
            new.append(_run_seconds(project, ROLL_UPS))
            none.append(_run_seconds(project, ROLL_UPS, "--select", *ROLL_UPS))
        took = (min(new), min(none))
        empty = empty or took
        growth.add(
            f"{before:,}",
            f"{took[0]:.2f}",
            f"{took[0] / empty[0]:.2f}",
            f"{took[1]:.2f}",
            f"{took[1] / empty[1]:.2f}",
        )
        if before:
            _compare_with_a_copy(project, costs, before + ROUNDS * NEW)
    yield costs
    yield growth


def _fill(project: Project, traces: int, first_day: int, days: int, salt: int) -> None:
    """Put generated traces among the raw ones, and their batches into the ledger."""
    numbers = {"traces": traces, "first_day": first_day, "days": days, "salt": salt}
    with open_store(Settings(chdb_path=Path(project.env["CHDB_PATH"]))) as store:
        store.ensure_raw_tables()
        if traces:
            store.command(_RAW_TRACES, numbers)
            store.command(_RAW_BATCHES)


def _run_seconds(project: Project, counted: Sequence[str], *arguments: str) -> float:
    """Run all models, or those selected, and return the seconds that dbt counted for some."""
    took = seconds_by_model(project, *arguments)
    return sum(took[name] for name in counted)


def _compare_with_a_copy(project: Project, section: Section, traces: int) -> None:
    model = "llm_trace_costs"
    again = ("--select", model, "--full-refresh")
    took = min(_run_seconds(project, [model], *again) for _ in range(ROUNDS))
    with open_store(Settings(chdb_path=Path(project.env["CHDB_PATH"]))) as store:
        # The view of what is to be priced has the columns that pricing reads.
        names = ", ".join(
            name
            for (name,) in store.query(
                "select name from system.columns"
                " where database = 'llm' and table = 'int_costs__pending' order by position"
            )
        )
        store.command(
            "create table llm.narrow engine = MergeTree order by (organization_id, created_at, id)"
            f" as select {names} from llm.llm_traces limit 0"
        )
        copies = []
        for _ in range(ROUNDS):
            store.command("truncate table llm.narrow")
            copies.append(
                seconds(
                    lambda: store.command(
                        f"insert into llm.narrow select {names} from llm.llm_traces"
                    )
                )
            )
    copy = min(copies)
    section.add(
        f"{traces:,}", f"{copy:.2f}", f"{took:.2f}", f"{copy / took:.2f}", f"{traces / took:,.0f}"
    )
