"""The soak: everything at once, killed at random, then compared with what was sent.

    python -m tests.soak --minutes 10
    python -m tests.soak --kills 1000 --seed 42
    python -m tests.soak --kills 300 --server
    python -m tests.soak --kills 300 --server --rules

Side by side on one store: loaders of files and of standard input, servers that write into a spool,
a drainer, dbt runs, and readers that look for doubled ids at any moment. Each is killed at random
moments and started again. With `--server` the store is behind ClickHouse's HTTP, which is killed
too, and drops answers to inserts that took effect and to some that did not. With `--rules` every
other loader has rules of redaction, and removes what those without them left of a batch. At the end
what was left is completed without kills, and ids, bytes, rejects, ledgers, costs and days are
compared with the truth. The seed is printed; it repeats what is sent and when kills are tried, not
what the machine was doing then.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from loader.spool import spool_status
from loader.writer import Writer
from tests.server.traffic import trace
from tests.soak.truth import (
    Truth,
    differences_of_days,
    differences_of_landing,
    differences_of_traces,
)
from tests.support.http_front import Front
from tests.support.project import ROOT, Project

_READ = "select count() as rows, uniqExact(id) as ids from llm_traces"


class Soak:
    """The store, what was sent to it, and those who work on it.

    Parameters
    ----------
    folder : pathlib.Path
        Scratch.
    seed : int
        Of all chances.
    front : Front, optional
        The server that holds the store, and fails too; without it the store is embedded.
    with_rules : bool
        Whether every other loader has rules of redaction.
    """

    def __init__(
        self, folder: Path, seed: int, front: Front | None = None, with_rules: bool = False
    ) -> None:
        self.folder = folder
        self.seed = seed
        self.front = front
        variables = {
            **(front.env() if front else {"CHDB_PATH": str(folder / "warehouse")}),
            "TOKENLEDGER_BATCH_LINES": "100",
            "TOKENLEDGER_LOCK_TIMEOUT": "600",
        }
        self.project = Project(folder / "project", variables)
        self.loaders = [self.project]
        if with_rules:
            rules = {"TOKENLEDGER_REDACTION": str(ROOT / "loader" / "redaction.example.yml")}
            self.loaders.append(Project(folder / "rules", variables | rules))
        self.truth = Truth()
        self.spool = folder / "spool"
        self.started: Counter[str] = Counter()
        self.killed: Counter[str] = Counter()
        self.faults: list[str] = []
        self.acknowledged: list[str] = []
        self.in_flight = 0
        self.unfinished: dict[str, bool] = {}
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._kills = 0
        self._longest = {"dbt": 20.0}

    def run(self, minutes: float | None, kills: int | None) -> list[str]:
        """Soak until the time is up or the kills are done; return what is wrong."""
        self.project.loader("prices")
        self.project.dbt("run")
        Writer(self.spool).close()
        until = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
        actors = [self._files, self._stdin, self._drain, self._server, self._dbt, self._reader]
        if self.front:
            actors.append(self._store)
        threads = [threading.Thread(target=self._guard, args=(actor,)) for actor in actors]
        for thread in threads:
            thread.start()
        while time.monotonic() < until and (kills is None or self._kills < kills):
            if self._end.wait(0.2):
                break
        self._end.set()
        for thread in threads:
            thread.join()
        return self.faults + self._settle()

    def _guard(self, actor: Callable[[random.Random], None]) -> None:
        """Let an actor work until the end; what it trips over ends the soak."""
        chance = random.Random(f"{self.seed} {actor.__name__}")
        try:
            while not self._end.is_set():
                actor(chance)
        except Exception as error:
            self.faults.append(f"{actor.__name__}: {type(error).__name__}: {str(error)[:500]}")
            self._end.set()

    def _let_live(
        self, what: str, process: subprocess.Popen[str], chance: random.Random, longest: float
    ) -> tuple[bool, str, str]:
        """Wait for a process, or kill it first; return whether it was killed, and its outputs."""
        self.started[what] += 1
        patience = chance.uniform(0.05, longest) if chance.random() < 0.8 else 900.0
        try:
            outputs = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            outputs = process.communicate()
        if process.returncode == -signal.SIGKILL:
            with self._lock:
                self.killed[what] += 1
                self._kills += 1
        return process.returncode == -signal.SIGKILL, *outputs

    def _is_landed(self, what: str, process: subprocess.Popen[str], chance: random.Random) -> bool:
        """Wait for a loader, or kill it; a store that fails is told by exit code 3 alone."""
        was_killed, _, error = self._let_live(what, process, chance, 4.0)
        if not was_killed:
            assert process.returncode in ((0, 1, 3) if self.front else (0, 1)), error
        return process.returncode in (0, 1)

    def _files(self, chance: random.Random) -> None:
        with self._lock:
            path = self.folder / f"file{self.started['files']}.ndjson"
            self.truth.write(path, chance.randrange(20, 400), chance)
            self.unfinished[str(path)] = False
        while not self._end.is_set():
            process = chance.choice(self.loaders).start_loader(str(path))
            if self._is_landed("files", process, chance):
                del self.unfinished[str(path)]
                return

    def _stdin(self, chance: random.Random) -> None:
        """A killed stream is sent again from its first byte, as its sender would."""
        with self._lock:
            path = self.folder / f"stream{self.started['stdin']}.ndjson"
            self.truth.write(path, chance.randrange(20, 400), chance)
            self.unfinished[str(path)] = True
        while not self._end.is_set():
            with path.open() as stream:
                process = chance.choice(self.loaders).start_loader("-", stdin=stream)
                is_landed = self._is_landed("stdin", process, chance)
            if is_landed:
                del self.unfinished[str(path)]
                return

    def _server(self, chance: random.Random) -> None:
        name = f"s{self.started['server']}"
        options = ["--fsync", chance.choice(["never", "interval", "each"]), "--threads", "2"]
        traffic = [sys.executable, "-m", "tests.server.traffic", str(self.spool), "--name", name]
        process = subprocess.Popen(
            [*traffic, *options, "--pause", "0.05"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.started["server"] += 1
        self._end.wait(chance.uniform(0.5, 4.0))
        process.kill()
        self.acknowledged += process.communicate()[0].split()
        with self._lock:
            self.in_flight += 2
            self.killed["server"] += 1
            self._kills += 1

    def _drain(self, chance: random.Random) -> None:
        process = chance.choice(self.loaders).start_loader("drain", str(self.spool))
        self._is_landed("drain", process, chance)
        self._end.wait(chance.uniform(0, 0.5))

    def _dbt(self, chance: random.Random) -> None:
        begun = time.monotonic()
        process = self.project.start_dbt("run")
        was_killed, out, error = self._let_live("dbt", process, chance, self._longest["dbt"])
        is_done = process.returncode == 0
        assert was_killed or is_done or self.front, out[-800:] + error[-200:]
        if is_done:
            self._longest["dbt"] = max(5.0, 0.9 * (time.monotonic() - begun))

    def _reader(self, chance: random.Random) -> None:
        process = self.project.start(
            sys.executable, "-m", "tests.support.ask", stdin=subprocess.PIPE
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps({"sql": [_READ], "parameters": {}}))
        process.stdin.close()
        process.stdin = None
        was_killed, out, error = self._let_live("reader", process, chance, 8.0)
        if not was_killed:
            assert process.returncode == 0 or self.front, error
        if process.returncode == 0:
            row = json.loads(out)
            assert row["rows"] == row["ids"], f"a reader saw {row}"
        self._end.wait(chance.uniform(0, 2))

    def _store(self, chance: random.Random) -> None:
        """Kill the store and start it again, or let it drop answers."""
        assert self.front
        self._end.wait(chance.uniform(1, 8))
        if chance.random() < 0.3:
            self.started["store"] += 1
            self.front.kill()
            self._end.wait(chance.uniform(0, 2))
            self.front.start()
            with self._lock:
                self.killed["store"] += 1
                self._kills += 1
        else:
            effect = chance.choice(["done", "none"])
            self.front.misbehave("drop", effect=effect, inserts=True, count=chance.randrange(1, 4))

    def _settle(self) -> list[str]:
        """Complete what was left, without kills, and compare."""
        if self.front:
            self.front.behave()
        for path, is_stream in list(self.unfinished.items()):
            if is_stream:
                self.project.loader("-", stdin=Path(path).read_text(), expect=None)
            else:
                self.project.loader(path, expect=None)
        self.project.loader("drain", str(self.spool), expect=None)
        found = []
        if spool_status(self.spool)["records"]:
            found.append("the spool is not empty after a drain")
        self.project.dbt("run")

        spooled = self.project.query(
            "select distinct substring(JSONExtractString(envelope_json, 'id'), 16) as id"
            " from raw_traces where batch_id in"
            " (select batch_id from raw_batches where startsWith(source, 'spool/'))"
        )
        ids = {row["id"] for row in spooled}
        if missing := set(self.acknowledged) - ids:
            found.append(f"{len(missing)} acknowledged records of the spool are lost")
        if len(ids) - len(self.acknowledged) > self.in_flight:
            found.append("the spool gave more than was on its way")
        for id_ in ids:
            self.truth.add(trace(id_))
        found += differences_of_landing(self.project, self.truth, ignore_torn=True)
        found += differences_of_traces(self.project, self.truth)
        return found + differences_of_days(self.project, self.truth)

    def table(self) -> str:
        """Say how often each was started and killed, and what landed."""
        lines = [f"{'':8} {'started':>8} {'killed':>8}"]
        for what in sorted(self.started):
            lines.append(f"{what:8} {self.started[what]:>8,} {self.killed[what]:>8,}")
        total = f"{'all':8} {self.started.total():>8,} {self.killed.total():>8,}"
        return "\n".join([*lines, total])


def main() -> int:
    """Soak, print the table, and return 1 if anything is lost, doubled or changed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, help="stop after so many minutes (default 10)")
    parser.add_argument("--kills", type=int, help="stop after so many kills")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--folder", type=Path, help="where to keep the store (default: removed)")
    parser.add_argument("--server", action="store_true", help="behind HTTP, which fails too")
    parser.add_argument("--rules", action="store_true", help="every other loader redacts")
    args = parser.parse_args()
    minutes = 10.0 if args.minutes is None and args.kills is None else args.minutes
    print(f"soak: seed {args.seed}", flush=True)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tokenledger-soak-") as scratch:
        folder = args.folder or Path(scratch)
        with Front(folder / "server") if args.server else contextlib.nullcontext() as front:
            soak = Soak(folder, args.seed, front, args.rules)
            found = soak.run(minutes, args.kills)
        print(soak.table())
        print(
            f"{len(soak.truth.traces):,} traces, {soak.truth.rejects.total():,} rejects sent, "
            f"{len(soak.acknowledged):,} of them acknowledged by a spool; "
            f"{time.monotonic() - begun:.0f} s"
        )
    print("\n".join(found) or "nothing lost, nothing doubled, nothing changed")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
