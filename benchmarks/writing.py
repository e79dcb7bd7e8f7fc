"""What a server pays to hand a trace over, and what becomes of it: the writer against json.dumps.

BENCH_AWAY_SECONDS (default 20; 600 for the ten minutes of the docs) is how long the database stays
away while memory is watched.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.report import Section, scaled, seconds
from benchmarks.traces import traces, write_traces
from loader.backend import ProviderTraceBackend
from loader.spool import spool_status
from loader.writer import FSYNC_POLICIES, Writer, WriterOptions

THREADS = 8
RATE = 1_000
SIZE = 12_000
AWAY_SECONDS = float(os.environ.get("BENCH_AWAY_SECONDS", "20"))
ROOT = Path(__file__).resolve().parents[1]


def run(folder: Path) -> Iterator[Section]:
    """Yield the sections on writing, storms, memory, draining and a cold start."""
    sample = [json.loads(line) for line in traces(200, SIZE)]
    yield _writing(folder, sample)
    yield _storm(folder, sample)
    yield _memory(folder, sample)
    yield _draining(folder)
    yield _cold_start(folder)


def _percentiles(times: list[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(times, n=100)
    return cuts[49] * 1e6, cuts[98] * 1e6


def _writing(folder: Path, sample: list[Any]) -> Section:
    section = Section(
        "Handing a trace over",
        ["fsync", "write p50 µs", "p99", "json.dumps p50 µs", "p99", "ratio p50", "ratio p99"],
        note=(
            f"Traces of {SIZE // 1000} KB at {RATE} a second from {THREADS} threads; each thread "
            "times `json.dumps(trace)` and `write(trace)` in turn. Bounded by: one walk over the "
            "trace's containers, encoding, a checksum, one writev; with `each`, the disk's sync."
        ),
    )
    for policy in FSYNC_POLICIES:
        dumps: list[float] = []
        writes: list[float] = []
        with Writer(folder / f"spool-{policy}", WriterOptions(fsync=policy)) as writer:

            def work(thread: int, writer: Writer = writer) -> None:
                due = time.perf_counter() + thread * 0.001
                for number in range(scaled(600)):
                    trace = sample[(thread * 31 + number) % len(sample)]
                    due += THREADS / RATE
                    time.sleep(max(0.0, due - time.perf_counter()))
                    begun = time.perf_counter()
                    json.dumps(trace)
                    between = time.perf_counter()
                    writer.write(trace)
                    ended = time.perf_counter()
                    dumps.append(between - begun)  # noqa: B023
                    writes.append(ended - between)  # noqa: B023

            threads = [threading.Thread(target=work, args=(each,)) for each in range(THREADS)]
            for each in threads:
                each.start()
            for each in threads:
                each.join()
        (w50, w99), (d50, d99) = _percentiles(writes), _percentiles(dumps)
        cells = (w50, w99, d50, d99)
        ratios = (f"{w50 / d50:.2f}", f"{w99 / d99:.2f}")
        section.add(policy, *(f"{each:.0f}" for each in cells), *ratios)
    return section


def _storm(folder: Path, sample: list[Any]) -> Section:
    section = Section(
        "A storm of tasks",
        ["fsync", "tasks", "seconds", "json.dumps alone", "ratio", "loop lag p50 ms", "max ms"],
        note=(
            "`create_async` of all tasks at once in one event loop. Lag: how much later than asked "
            "a task that sleeps 1 ms wakes up. The longest is the loop starting all tasks in one "
            "turn; after that the writer gives each turn of the loop about 2 ms of writing."
        ),
    )
    count = scaled(10_000)
    alone = seconds(lambda: [json.dumps(sample[each % len(sample)]) for each in range(count)])
    for policy in FSYNC_POLICIES:
        backend = ProviderTraceBackend(folder / f"storm-{policy}", WriterOptions(fsync=policy))
        lags: list[float] = []

        async def storm(backend: ProviderTraceBackend = backend, lags: list[float] = lags) -> None:
            async def watch() -> None:
                while True:
                    begun = time.perf_counter()
                    await asyncio.sleep(0.001)
                    lags.append(time.perf_counter() - begun - 0.001)

            watcher = asyncio.create_task(watch())
            await asyncio.sleep(0.01)
            actor = {"organization_id": "org-1"}
            await asyncio.gather(
                *(backend.create_async(actor, sample[n % len(sample)]) for n in range(count))
            )
            await asyncio.sleep(0.002)
            watcher.cancel()

        took = seconds(lambda: asyncio.run(storm()))
        backend.close()
        assert backend.failures == 0
        lag = f"{statistics.median(lags) * 1e3:.1f}", f"{max(lags) * 1e3:.0f}"
        section.add(policy, count, f"{took:.2f}", f"{alone:.2f}", f"{took / alone:.2f}", *lag)
    return section


def _resident_mb(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def _memory(folder: Path, sample: list[Any]) -> Section:
    section = Section(
        "Memory while the database is away",
        ["process", "seconds", "stored", "refused", "MB early", "most", "at the end", "ratio"],
        note=(
            f"A server writes {RATE} traces of {SIZE // 1000} KB a second, a drainer follows and "
            "finds no database. The spool holds half of what comes; the rest is refused and "
            "counted. What is stored is what the segments hold at the end, counted from outside. "
            "Early is at a tenth of the time, or 6 s: the drainer holds its first batch then."
        ),
    )
    limit = int(AWAY_SECONDS * RATE * SIZE / 2)
    options = WriterOptions(max_spool_bytes=limit, on_full="refuse")
    backend = ProviderTraceBackend(folder / "away", options)
    backend.create_sync(None, sample[0])
    drainer = subprocess.Popen(
        [sys.executable, "-m", "loader", "drain", str(folder / "away"), "--follow"],
        env=os.environ | {"CLICKHOUSE_ENDPOINT": "http://127.0.0.1:9"},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    processes = {"server": os.getpid(), "drainer": drainer.pid}
    seen: dict[str, list[float]] = {name: [] for name in processes}
    logging.getLogger("tokenledger.backend").setLevel(logging.CRITICAL)
    early = max(AWAY_SECONDS / 10, min(6, AWAY_SECONDS / 2))
    written, begun = 1, time.perf_counter()
    try:
        while (passed := time.perf_counter() - begun) < AWAY_SECONDS:
            if passed > early and written % (RATE // 4) == 0:
                for name, process in processes.items():
                    seen[name].append(_resident_mb(process))
            backend.create_sync(None, sample[written % len(sample)])
            written += 1
            time.sleep(max(0.0, begun + written / RATE - time.perf_counter()))
        backend.close()
        assert drainer.poll() is None, "the drainer ended"
    finally:
        drainer.terminate()
        drainer.wait()
    stored = written - backend.failures
    there = spool_status(folder / "away")["records"]
    assert there == stored, f"{stored} acknowledged, {there} in the spool"
    for name, sizes in seen.items():
        counts = (stored, backend.failures) if name == "server" else ("", "")
        sizes_ = (sizes[0], max(sizes), sizes[-1])
        section.add(
            name,
            f"{AWAY_SECONDS:.0f}",
            *counts,
            *(f"{size:.0f}" for size in sizes_),
            f"{sizes[-1] / sizes[0]:.2f}",
        )
    return section


def _draining(folder: Path) -> Section:
    section = Section(
        "Draining",
        ["traces", "MB", "landing a file MB/s", "draining MB/s", "ratio"],
        note=(
            "The same traces from a file and from a spool of finished segments, each by one "
            "process into an empty embedded store. A file is read one batch ahead; a drainer "
            "reads, lands and removes in turn."
        ),
    )
    count = scaled(20_000)
    file = folder / "drain.ndjson"
    total = write_traces(file, count, SIZE) / 1e6
    with Writer(folder / "drain-spool", WriterOptions(fsync="never")) as writer:
        for line in file.read_bytes().splitlines():
            writer.write(line)

    def loader(name: str, *arguments: str) -> float:
        env = os.environ | {"CHDB_PATH": str(folder / name)}
        command = [sys.executable, "-m", "loader", *arguments]
        subprocess.run(
            [sys.executable, "-m", "loader", "init"],
            env=env,
            check=True,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )
        return seconds(
            lambda: subprocess.run(
                command, env=env, check=True, cwd=ROOT, stdout=subprocess.DEVNULL
            )
        )

    landing = loader("landed", str(file))
    draining = loader("drained", "drain", str(folder / "drain-spool"))
    section.add(
        f"{count} x {SIZE // 1000} KB",
        f"{total:.0f}",
        f"{total / landing:.0f}",
        f"{total / draining:.0f}",
        f"{landing / draining:.2f}",
    )
    return section


_STEPS = """
import sys, time
begun = time.time()
marks = [("python", begun - float(sys.argv[1]))]
def mark(name):
    global begun
    now = time.time()
    marks.append((name, now - begun))
    begun = now
from loader.formats import Framer
from loader.landing import Summary, land_source
from loader.settings import Settings
from loader.sources import find_sources
from loader.store import open_store
mark("imports")
settings = Settings.from_environment()
framer = Framer.from_file()
sources, _ = find_sources([sys.argv[2]])
mark("settings and formats")
store = open_store(settings)
mark("opening the store")
store.ensure_raw_tables()
mark("looking for the tables")
land_source(store, sources[0], framer, settings, Summary())
mark("landing")
store.close()
mark("closing the store")
for name, took in marks:
    print(f"{name}\\t{took}")
"""


def _cold_start(folder: Path) -> Section:
    section = Section(
        "A cold start to one landed trace",
        ["step", "ms", "share"],
        note=(
            "`python -m loader FILE` with one trace and a store that exists, the median of 5, and "
            "its steps one by one."
        ),
    )
    env = os.environ | {"CHDB_PATH": str(folder / "cold")}
    subprocess.run(
        [sys.executable, "-m", "loader", "init"],
        env=env,
        check=True,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    whole: list[float] = []
    steps: dict[str, list[float]] = {}
    for round_ in range(5):
        file = folder / f"one-{round_}.ndjson"
        write_traces(file, 1, SIZE, seed=round_)
        command = [sys.executable, "-m", "loader", str(file)]
        whole.append(
            seconds(
                lambda command=command: subprocess.run(  # type: ignore[misc]
                    command, env=env, check=True, cwd=ROOT, stdout=subprocess.DEVNULL
                )
            )
        )
        write_traces(file, 1, SIZE, seed=100 + round_)
        done = subprocess.run(
            [sys.executable, "-c", _STEPS, str(time.time()), str(file)],
            env=env,
            check=True,
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        for line in done.stdout.splitlines():
            name, took = line.split("\t")
            steps.setdefault(name, []).append(float(took))
    total = statistics.median(whole)
    section.add("the whole command", f"{total * 1e3:.0f}", "1.00")
    for name, times in steps.items():
        middle = statistics.median(times)
        section.add(name, f"{middle * 1e3:.0f}", f"{middle / total:.2f}")
    rest = total - sum(statistics.median(times) for times in steps.values())
    section.add("the process's end, and the rest", f"{rest * 1e3:.0f}", f"{rest / total:.2f}")
    return section
