"""What a benchmark gives, and how it is measured and written down."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.support.project import Project

SCALE = float(os.environ.get("BENCH_SCALE", "1"))


@dataclass
class Section:
    """A titled table of results with a sentence on what bounds them."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    note: str = ""

    def add(self, *cells: object) -> None:
        """Add a row."""
        self.rows.append([str(cell) for cell in cells])

    def text(self) -> str:
        """Return it as Markdown."""
        table = [self.columns, ["---"] * len(self.columns), *self.rows]
        lines = [f"| {' | '.join(row)} |" for row in table]
        note = f"\n{self.note}\n" if self.note else ""
        return f"## {self.title}\n\n" + "\n".join(lines) + "\n" + note


def scaled(count: int) -> int:
    """Return a count of rows at this run's scale, at least one."""
    return max(1, round(count * SCALE))


def seconds(action: Callable[[], object]) -> float:
    """Return how long an action takes."""
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def seconds_by_model(project: Project, *arguments: str) -> dict[str, float]:
    """Run models, all by default, and return the seconds that dbt counted for each.

    The project's environment has DBT_WRITE_JSON: they stand in dbt's run results.
    """
    project.dbt("run", *arguments)
    results = json.loads((project.folder / "target" / "run_results.json").read_text())["results"]
    return {result["unique_id"].split(".")[-1]: result["execution_time"] for result in results}
