"""Transforming: against a plain copy of the same columns, and as the table grows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from benchmarks.report import Section, scaled, seconds, seconds_by_model
from benchmarks.traces import DAYS, write_traces
from loader.settings import Settings
from loader.store import open_store
from tests.support.project import Project

# The engine's own, where the loader's session has others.
ENGINE_SETTINGS = {
    "min_insert_block_size_rows": 1_048_449,
    "min_insert_block_size_bytes": 268_402_944,
}
# What a batch goes through until it counts as transformed.
TRANSFORMING = ("llm_traces", "transformed_batches")


def run(folder: Path) -> Iterator[Section]:
    """Yield the sections on transforming."""
    yield _against_a_copy(folder)
    yield _as_the_table_grows(folder)


def _project(folder: Path) -> Project:
    # What a model took stands in dbt's run results, which tests do without.
    variables = {"CHDB_PATH": str(folder / "warehouse"), "DBT_WRITE_JSON": "true"}
    return Project(folder, variables)


def _land(project: Project, count: int, size: int, prefix: str, day: int | None = None) -> None:
    file = project.folder / f"{prefix}.ndjson"
    write_traces(file, count, size, prefix=prefix, day=day)
    project.loader(str(file))
    file.unlink()


def _settings_of_the_model(project: Project) -> str:
    """Write the settings under which the model llm_traces runs."""
    manifest = json.loads((project.folder / "target" / "manifest.json").read_text())
    config = manifest["nodes"]["model.tokenledger.llm_traces"]["config"]
    settings = ENGINE_SETTINGS | config["query_settings"]
    return ", ".join(f"{name} = {value}" for name, value in settings.items())


def _against_a_copy(folder: Path) -> Section:
    section = Section(
        "Transforming against a plain copy",
        ["traces", "copy s", "llm_traces s", "ratio", "rows/s", "scan rows/s", "extraction rows/s"],
        note=(
            "Copy: `insert into … select *` from llm_traces into a table of the same definition, "
            "under the same settings. "
            "llm_traces: the model's own statement, from raw rows. Scan: reading every byte of the "
            "response column; extraction: reading every parsed column through int_traces__parsed. "
            "Bounded by compressing the payload columns, which both share, by the parsing, and by "
            "what a run takes however few its rows: about half a second of compiling and a second "
            "of planning."
        ),
    )
    sizes = ((12_000, 100_000), (12_000, 250_000), (100_000, 10_000))
    for size, count in ((size, scaled(count)) for size, count in sizes):
        project = _project(folder / f"copy{size}")
        project.dbt("run")
        _land(project, count, size, "t")
        model = seconds_by_model(project, "--select", "llm_traces")["llm_traces"]
        settings = _settings_of_the_model(project)
        with open_store(Settings(chdb_path=folder / f"copy{size}" / "warehouse")) as store:
            store.command("create table llm.plain as llm.llm_traces")
            copied = f"insert into llm.plain select * from llm.llm_traces settings {settings}"
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
        [
            *("rows before", "transforming s", "against an empty table"),
            *("all models s", "against an empty table"),
        ],
        note=(
            "Small traces of about 1 KB: those before spread over 28 days, the new ones on a day "
            "of their own, as they come; the best of 3 runs. Transforming: what dbt counts for "
            f"{' and '.join(TRANSFORMING)}; all models: with costs and reports. New traces on days "
            "that have been reported have those days reported anew, which takes as long as the "
            "days are large."
        ),
    )
    empty: tuple[float, float] | None = None
    for before in (0, scaled(1_000_000)):
        project = _project(folder / f"grown{before}")
        project.loader("prices")
        project.dbt("seed")
        project.dbt("run")
        if before:
            _land(project, before, 1_000, "old")
            project.dbt("run")
        transforming, everything = [], []
        for round_ in range(3):
            _land(project, 10_000, 1_000, f"new{round_}", day=DAYS + round_)
            took = seconds_by_model(project)
            transforming.append(sum(took[name] for name in TRANSFORMING))
            everything.append(sum(took.values()))
        best = (min(transforming), min(everything))
        empty = empty or best
        section.add(
            f"{before:,}",
            f"{best[0]:.2f}",
            f"{best[0] / empty[0]:.2f}",
            f"{best[1]:.2f}",
            f"{best[1] / empty[1]:.2f}",
        )
        shutil.rmtree(folder / f"grown{before}")
    return section
