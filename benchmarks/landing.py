"""Landing against the engine's floor: the same bytes into one String column of the same codec."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.report import Section, scaled, seconds
from benchmarks.traces import traces, write_traces
from loader.settings import Settings
from loader.store import open_store

ROUNDS = 3


def run(folder: Path) -> Iterator[Section]:
    """Yield the section on landing."""
    section = Section(
        "Landing",
        ["traces", "MB", "floor MB/s", "landing MB/s", "ratio", "peak MB", "one an insert, MB/s"],
        note=(
            "Floor: `INSERT … FROM INFILE … FORMAT LineAsString` into one String column, ZSTD(1), "
            f"in a process of its own; landing: `python -m loader FILE`; the best of {ROUNDS} of "
            "each, by turns, start-up of the process included in both. Bounded by: compressing on "
            "the engine's side, which both share; the loader adds one validating pass, a hash of "
            "the bytes, and a copy of each batch through a file that the engine reads."
        ),
    )
    for size, count in ((12_000, scaled(40_000)), (100_000, scaled(5_000))):
        file = folder / f"{size}.ndjson"
        total = write_traces(file, count, size) / 1e6
        floors, landings, peak = [], [], 0
        for round_ in range(ROUNDS):
            floors.append(_floor(folder / f"floor{size}-{round_}", file))
            took, peak_now = _land(folder / f"land{size}-{round_}", file)
            landings.append(took)
            peak = max(peak, peak_now)
        single = _one_an_insert(folder / f"single{size}", size)
        section.add(
            f"{count} x {size // 1000} KB",
            f"{total:.0f}",
            f"{total / min(floors):.0f}",
            f"{total / min(landings):.0f}",
            f"{min(floors) / min(landings):.2f}",
            f"{peak // 1024}",
            f"{single:.1f}",
        )
        file.unlink()
    yield section


def _floor(path: Path, file: Path) -> float:
    code = (
        "import sys, clickhouse_connect\n"
        "client = clickhouse_connect.get_client(interface='chdb', path=sys.argv[1])\n"
        "client.command('create database llm')\n"
        "client.command('create table llm.floor (line String codec(ZSTD(1)))"
        " engine = MergeTree order by tuple()')\n"
        'client.command("insert into llm.floor from infile \'" + sys.argv[2] + "\''
        ' format LineAsString")\n'
        "client.close()\n"
    )
    return seconds(
        lambda: subprocess.run([sys.executable, "-c", code, str(path), str(file)], check=True)
    )


def _land(path: Path, file: Path) -> tuple[float, int]:
    """Return seconds and the peak of resident memory in KiB."""
    env = os.environ | {"CHDB_PATH": str(path)}
    child = 0

    def land() -> None:
        nonlocal child
        process = subprocess.Popen(
            [sys.executable, "-m", "loader", str(file)], env=env, stdout=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        child = usage.ru_maxrss

    took = seconds(land)
    return took, child


def _one_an_insert(path: Path, size: int) -> float:
    """Return MB/s of a row an insert, as the original writer did it."""
    lines = list(traces(100, size))
    with open_store(Settings(chdb_path=path)) as store:
        store.ensure_raw_tables()

        def insert() -> None:
            for position, line in enumerate(lines):
                row = ["b", position, "provider_trace", line.decode(), "", "{}"]
                names = ["batch_id", "position", "format", "request_json", "response_json"]
                store.insert_rows("raw_traces", [*names, "envelope_json"], [row])

        return sum(map(len, lines)) / 1e6 / seconds(insert)
