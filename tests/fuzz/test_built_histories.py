"""Histories as in test_histories, with `dbt run`, `mend` and `erase` between their steps.

Some records come again elsewhere, and some of what dbt does is killed at any instant. At the end
each trace that nobody erased is in `llm_traces` and has a cost, once, whatever was lost of raw
tables, of what was built of them and of the ledgers; and of those that were erased nothing is left,
though everything is landed again. `FUZZ_BUILT` says how many (default 1), `FUZZ_SEED` repeats a
run.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from subprocess import DEVNULL, TimeoutExpired

import pytest

from loader.formats import Framer
from loader.settings import Settings
from loader.store import Store, open_store
from loader.verbs.rejects import list_rejects
from tests.fuzz.test_histories import History
from tests.operations.test_retire_and_erase import PLAIN
from tests.support.project import Project
from tests.test_pipeline import record

HISTORIES = int(os.environ.get("FUZZ_BUILT", "1"))
SEED = int(os.environ.get("FUZZ_SEED", "0")) or random.randrange(1, 2**31)
BUILT = ("llm_traces", "llm_trace_costs", "transformed_batches", "costed_batches")


class BuiltHistory(History):
    """A history of a project; its store is open only while dbt is not at work."""

    batch_bytes = (300, 1500, 10**7)
    record_bytes = (100, 600, 10**6)

    def __init__(self, project: Project, folder: Path, seed: int) -> None:
        self.project = project
        self._store: Store | None = None
        super().__init__(self.store, folder, seed)
        builtin = Framer.from_file().formats
        self.framers = [Framer(list(builtin[:count])) for count in (0, 1, len(builtin))]
        self.erased: list[dict[str, str]] = []
        self.owners: list[dict[str, str]] = []
        self.same = set[int]()

    @property
    def store(self) -> Store:
        if self._store is None:
            self._store = open_store(Settings(chdb_path=Path(self.project.env["CHDB_PATH"])))
            self._store.ensure_raw_tables()
        return self._store

    @store.setter
    def store(self, store: Store) -> None:
        self._store = store

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def all_steps(self) -> list[Callable[[], None]]:
        return [*super().all_steps(), self.run, self.run, self.run_all, self.erase]

    def some_owner(self) -> dict[str, str]:
        return {
            "organization": f"org-{self.random.randrange(2)}",
            "user": f"user-{self.random.randrange(3)}",
        }

    def line(self, number: int) -> bytes:
        owner = self.some_owner()
        records = [n for n in range(number) if b'"id": "provider' in self.lines[n]]
        if records and self.random.random() < 0.15:
            again = self.random.choice(records)
            self.same.add(number)
            self.owners.append(self.owners[again])
            return self.lines[again]
        self.owners.append(owner)
        if self.random.random() < 0.2:
            text = json.dumps({"org_id": owner["organization"], "user_id": owner["user"]})
            return f"{number:06d} is no json {text}".encode()
        made = {"mark": f"{number:06d}"} | record(
            number, org_id=owner["organization"], user_id=owner["user"]
        )
        made["step_id"] = "y" * self.random.choice((1, 300))
        if self.random.random() < 0.5:
            del made["id"]
        return json.dumps(made).encode()

    def dbt(self, *arguments: str) -> bool:
        """Let dbt work, and kill it at times but at the end; say whether it was let be."""
        self.close()
        seconds = 0.0
        if self.steps[-1:] and "at last" not in self.steps and self.random.random() < 0.25:
            seconds = self.random.uniform(1, 8)
        self.steps.append((*arguments, seconds))
        if not seconds:
            self.project.dbt(*arguments)
            return True
        with self.project.start_dbt(*arguments, stdout=DEVNULL, stderr=DEVNULL) as process:
            with contextlib.suppress(TimeoutExpired):
                process.wait(seconds)
            process.kill()
        return False

    def run_all(self) -> None:
        self.dbt("run")

    def run(self) -> None:
        self.dbt("run", *PLAIN)

    def mend(self) -> None:
        self.is_mended = self.dbt("run-operation", "mend")

    def erase(self) -> None:
        owner = self.some_owner()
        if self.random.random() < 0.7:
            del owner["organization"]
        self.erased.append(owner)
        self.erase_again(owner)

    def erase_again(self, owner: dict[str, str]) -> None:
        self.dbt("run-operation", "erase", "--args", json.dumps(owner))

    def lose(self) -> None:
        if self.random.random() >= 0.4:
            super().lose()
            return
        table = self.random.choice(BUILT)
        ((batches,),) = self.store.query(
            f"select groupUniqArray(batch_id) from {self.store.table(table)}"
        )
        self.delete(self.random.sample(sorted(batches), min(len(batches), 2)), table)
        self.mend()

    def live(self) -> None:
        self.close()
        self.project.loader("prices")
        self.run()
        self.wander(8, 20)
        self.steps.append("at last")
        self.mend()
        for _ in range(2):
            self.land_all()
            self.run()
        for owner in self.erased:
            self.erase_again(owner)
        self.land_all()
        self.dbt("run")

    def is_erased(self, number: int) -> bool:
        return any(owner.items() <= self.owners[number].items() for owner in self.erased)

    def check(self) -> None:
        stay = {number for number in range(len(self.lines)) if not self.is_erased(number)}
        records = {number for number, line in enumerate(self.lines) if line[:1] == b"{"}
        traces, costs = (self.store.table(name) for name in ("llm_traces", "llm_trace_costs"))
        found = self.store.query(f"select prompt_tokens, id from {traces}")
        assert Counter(number for number, _ in found) == Counter(records & stay - self.same)
        charged = self.store.query(
            f"select id, organization_id, toDate32(created_at), total_cost_usd from {costs}"
        )
        assert Counter(row[0] for row in charged) == Counter(id_ for _, id_ in found)
        assert all(row[3] > 0 for row in charged)
        by_day = Counter[tuple[object, ...]]()
        for _, *day, cost in charged:
            by_day[tuple(day)] += cost
        rolled_up = self.store.query(
            "select organization_id, usage_date, sum(total_cost_usd), sum(calls)"
            f" from {self.store.table('llm_costs_daily')} group by organization_id, usage_date"
        )
        assert {(row[0], row[1]): row[2] for row in rolled_up} == by_day
        assert sum(row[3] for row in rolled_up) == len(found)
        listed = Counter(each["head"] for each in list_rejects(self.store, 10**6, True))
        assert listed == Counter(self.lines[number].decode() for number in stay - records)
        left = [
            text
            for table, column in (("raw_traces", "envelope_json"), ("raw_rejects", "raw"))
            for (text,) in self.store.query(
                f"select toValidUTF8({column}) from {self.store.table(table)}"
            )
        ]
        marks = [int(mark[0]) for text in left if (mark := re.findall(r"^\D{0,12}(\d{6})", text))]
        assert [mark for mark in marks if self.is_erased(mark)] == []


@pytest.mark.long
def test_each_trace_is_charged_once_and_what_is_erased_stays_away(tmp_path: Path) -> None:
    print(f"FUZZ_SEED={SEED} FUZZ_BUILT={HISTORIES}")
    for seed in range(SEED, SEED + HISTORIES):
        folder = tmp_path / str(seed)
        folder.mkdir()
        project = Project(folder / "project", {"CHDB_PATH": str(folder / "warehouse")})
        history = BuiltHistory(project, folder, seed)
        try:
            history.go("FUZZ_BUILT")
        finally:
            history.close()
