"""Run the benchmarks and write benchmarks/RESULTS.md: `make bench`, or these by name.

BENCH_SCALE (default 1.0) makes every input so many times as large.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.report import Section

BENCHMARKS = ("landing", "transforming", "costing", "writing")
RESULTS = Path(__file__).with_name("RESULTS.md")


def machine() -> str:
    """Describe the machine: processor, cores, memory, system, engine."""
    import chdb

    processor = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    cores = os.cpu_count()
    return (
        f"{processor}, {cores} cores, {memory:.0f} GiB; {system}, ClickHouse {chdb.engine_version}"
    )


def main(names: list[str]) -> int:
    """Run the named benchmarks, all by default, and write what they gave."""
    sections: list[Section] = []
    for name in names or BENCHMARKS:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            for section in importlib.import_module(f"benchmarks.{name}").run(Path(folder)):
                print(section.text(), flush=True)
                sections.append(section)
    if not names:
        head = (
            "# Benchmark results\n\n"
            "Written by `make bench`. Two things compared in one run; the ratio is what counts, "
            "the seconds are this machine's.\n\n"
            f"{datetime.now(UTC):%Y-%m-%d}. {machine()}.\n"
        )
        RESULTS.write_text(head + "".join(f"\n{section.text()}" for section in sections))
        print(f"written: {RESULTS}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
