"""Transforming: against a plain copy of the same columns, and as the table grows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from benchmarks.report import Section, scaled, seconds
from benchmarks.traces import write_traces
from loader.settings import Settings
from loader.store import open_store
from tests.support.project import Project

# Those of the model llm_traces, and the engine's own where the loader's session has others.
MODEL_SETTINGS = (
    "max_insert_threads = 2, preferred_block_size_bytes = 16777216,"
    " merge_tree_min_rows_for_concurrent_read = 1000,"
    " merge_tree_min_bytes_for_concurrent_read = 16777216,"
    " min_insert_block_size_rows = 1048449, min_insert_block_size_bytes = 268402944"
)


def run(folder: Path) -> Iterator[Section]:
    """Yield the sections on transforming."""
    yield _against_a_copy(folder)
    yield _as_the_table_grows(folder)


def _project(folder: Path) -> Project:
    # What a model took stands in dbt's run results, which tests do without.
    variables = {"CHDB_PATH": str(folder / "warehouse"), "DBT_WRITE_JSON": "true"}
    return Project(folder, variables)


def _land(project: Project, count: int, size: int, prefix: str) -> None:
    file = project.folder / f"{prefix}.ndjson"
    write_traces(file, count, size, prefix=prefix)
    project.loader(str(file))
    file.unlink()


def _model_seconds(project: Project, *models: str) -> float:
    """Run these models and return the seconds that dbt counted for them."""
    project.dbt("run", *(["--select", *models] if models else []))
    results = json.loads((project.folder / "target" / "run_results.json").read_text())["results"]
    return sum(result["execution_time"] for result in results)


def _against_a_copy(folder: Path) -> Section:
    section = Section(
        "Transforming against a plain copy",
        ["traces", "copy s", "llm_traces s", "ratio", "rows/s", "scan rows/s", "extraction rows/s"],
        note=(
            "Copy: `insert into … select *` from llm_traces into a table of the same definition, "
            "under the same settings. "
            "llm_traces: the model's own statement, from raw rows. Scan: reading every byte of the "
            "response column; extraction: reading every parsed column through int_traces__parsed. "
            "Bounded by compressing the payload columns, which both share."
        ),
    )
    for size, count in ((12_000, scaled(100_000)), (100_000, scaled(10_000))):
        project = _project(folder / f"copy{size}")
        project.dbt("run")
        _land(project, count, size, "t")
        model = _model_seconds(project, "llm_traces")
        with open_store(Settings(chdb_path=folder / f"copy{size}" / "warehouse")) as store:
            store.command("create table llm.plain as llm.llm_traces")
            copied = f"insert into llm.plain select * from llm.llm_traces settings {MODEL_SETTINGS}"
            copy = seconds(lambda store=store, copied=copied: store.command(copied))
            scan = seconds(
                lambda store=store: store.query(
                    "select max(sipHash64(response_json)) from llm.raw_traces"
                )
            )
            parsed = (
                "select max(sipHash64(prompt_tokens, completion_tokens, total_tokens,"
                " cached_input_tokens, cache_write_tokens, reasoning_tokens, is_error, error_type,"
                " error_message, usage_dialect, usage_status, response_model, service_tier,"
                " provider_reported_cost_usd, error_class, finish_reason))"
                " from llm.int_traces__parsed"
            )
            extraction = seconds(lambda store=store, parsed=parsed: store.query(parsed))
        section.add(
            f"{count} x {size // 1000} KB",
            f"{copy:.2f}",
            f"{model:.2f}",
            f"{copy / model:.2f}",
            f"{count / model:.0f}",
            f"{count / scan:.0f}",
            f"{count / extraction:.0f}",
        )
        shutil.rmtree(folder / f"copy{size}")
    return section


def _as_the_table_grows(folder: Path) -> Section:
    section = Section(
        "A run of 10,000 new traces as the table grows",
        ["rows before", "all models s", "against an empty table"],
        note="Small traces of about 1 KB; the seconds that dbt counts for all models of the run.",
    )
    empty = 0.0
    for before in (0, scaled(1_000_000)):
        project = _project(folder / f"grown{before}")
        project.dbt("run")
        if before:
            _land(project, before, 1_000, "old")
            project.dbt("run")
        best = []
        for round_ in range(3):
            _land(project, 10_000, 1_000, f"new{round_}")
            best.append(_model_seconds(project))
        took = min(best)
        empty = empty or took
        section.add(f"{before:,}", f"{took:.2f}", f"{took / empty:.2f}")
        shutil.rmtree(folder / f"grown{before}")
    return section
