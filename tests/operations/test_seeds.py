"""Seeds decide on money: loaded whole or not at all, and a run says when they are not loaded."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.operations.test_retire_and_erase import PLAIN
from tests.support.parsed import PARSED
from tests.support.project import DBT, ROOT, Project
from tests.test_pipeline import record, write

OVERRIDES = "select * from model_price_overrides order by override_id"


def own_project(folder: Path) -> Path:
    """Copy what dbt reads, so that a seed can be changed."""
    copy = folder / "copy"
    copy.mkdir()
    for name in PARSED:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / name)
    return copy


def test_a_seed_is_loaded_whole_or_stays_as_it_was(embedded: Project, tmp_path: Path) -> None:
    copy = own_project(tmp_path)
    path = copy / "seeds" / "model_price_overrides.csv"
    header, *rows = path.read_text().splitlines(keepends=True)

    def seed(text: str, expect: int) -> None:
        path.write_text(text)
        select = ("seed", "--select", path.stem)
        done = subprocess.run([DBT, *select], cwd=copy, env=embedded.env, capture_output=True)
        assert done.returncode == expect, done.stdout.decode()

    seed(header + "".join(rows), expect=0)
    loaded = embedded.query(OVERRIDES)
    assert len(loaded) == len(rows)
    price = rows[-1].split(",")[header.split(",").index("price_usd")]
    seed(header + "".join(rows) + rows[-1].replace(price, '"0,10"'), expect=1)
    assert embedded.query(OVERRIDES) == loaded
    seed(header, expect=0)
    assert embedded.query(OVERRIDES) == []


def test_a_run_says_what_is_not_loaded_and_follows_what_is(
    embedded: Project, tmp_path: Path
) -> None:
    own_server = {"model": "gpt-4o", "model_endpoint_type": "local_openai"}
    embedded.loader("prices")
    embedded.loader(str(write(tmp_path / "a.ndjson", [record(1, llm_config=own_server)])))
    said = embedded.dbt("run", *PLAIN).stdout
    assert "not in the store as they are here: seeds/bill_units.csv, seeds/budgets.csv" in said
    status = "select id, cost_status from llm_trace_costs order by id"
    assert embedded.query(status) == [{"id": "000001", "cost_status": "priced"}]

    embedded.dbt("seed")
    embedded.loader(str(write(tmp_path / "b.ndjson", [record(2, llm_config=own_server)])))
    said = embedded.dbt("run", *PLAIN).stdout
    assert "not in the store" not in said
    # History keeps its price; a match that was made without the aliases is not kept.
    assert embedded.query(status) == [
        {"id": "000001", "cost_status": "priced"},
        {"id": "000002", "cost_status": "unpriced"},
    ]
    matches = "select match_status, matched_at from llm_price_matches"
    (match,) = embedded.query(matches)
    embedded.query("alter table budgets delete where 1 settings mutations_sync = 2")
    embedded.query("alter table llm_traces drop column finish_reason_raw")
    said = embedded.dbt("run", "--select", "llm_price_matches").stdout
    assert embedded.query(matches) == [match]
    assert "not in the store as they are here: seeds/budgets.csv. This" in said
    said = embedded.dbt("run", "--select", "llm_traces", expect=1).stdout
    assert "llm_traces was made by an earlier version and has no column finish_reason_raw" in said


def test_a_run_that_would_empty_reports_is_refused(embedded: Project, tmp_path: Path) -> None:
    embedded.loader("prices")
    embedded.loader(str(write(tmp_path / "a.ndjson", [record(n) for n in range(6)])))
    embedded.dbt("run", "--select", "+llm_costs_daily", "+costed_batches")
    days = "select * from llm_costs_daily order by all"
    before = embedded.query(days)

    only = ("run", "--select", "llm_costs_daily", "--vars")
    for more in ((), ("--full-refresh",)):
        done = embedded.dbt(*only, "reporting_time_zone: Europe/Berlin", *more, expect=1)
        assert "run dbt run, or dbt run --select int_days__fingerprinted+" in done.stdout
    done = embedded.dbt(*only, "price_book_version: '0.2.3'", expect=2)
    assert "price_book_version is 0.2.3, and no such price book has landed. There are: " in (
        done.stdout
    )
    for table, some in (("raw_prices", "price_row > 9"), ("raw_price_rules", "rule_position > 9")):
        embedded.query(f"alter table {table} delete where {some} settings mutations_sync = 2")
        said = embedded.dbt(*only[:-1], expect=2).stdout
        assert " is not whole: " in said
        assert "Run python -m loader prices, which lands the installed one anew" in said
    embedded.loader("prices")
    embedded.dbt(*only[:-1])
    assert embedded.query(days) == before != []
