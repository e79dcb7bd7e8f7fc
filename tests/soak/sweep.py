"""SIGKILL behind each commit call in turn: rename, link, unlink, rmdir on the store's own files.

    python -m tests.soak.sweep --what loader
    python -m tests.soak.sweep --what dbt --every 3 --limit 20

Each point begins from the same store, is killed once, run again to its end, and compared with what
was sent. strace names each call as it returns and holds the thread that made it (`delay_exit`),
so that the kill comes before the next; its own `when=K` counts each thread apart and would leave
out the calls of all but the quickest. It owns these kills; other moments are the soak's.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.soak.truth import (
    Truth,
    differences_of_days,
    differences_of_landing,
    differences_of_traces,
)
from tests.support.project import DBT, Project

CALLS = "rename,renameat,renameat2,link,linkat,unlink,unlinkat,rmdir"
DBT_RUN = (str(DBT), "run", "--select", "+transformed_batches", "+costed_batches")
DBT_RUN_ALL = (str(DBT), "run")
_HOLD_MICROSECONDS = 60_000


def why_not() -> str | None:
    """Say why strace cannot be used here, or None."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(
        ["strace", "-f", "-qq", "-e", "trace=unlink", "-o", os.devnull, sys.executable, "-c", ""],
        capture_output=True,
        text=True,
    )
    return f"strace may not trace here: {tried.stderr.strip()[:100]}" if tried.returncode else None


@dataclass(frozen=True)
class Death:
    """How a run ended: after how many calls, at which, and whether it was killed."""

    calls: int
    call: str
    is_killed: bool


def run_until(project: Project, command: tuple[str, ...], store: Path, number: int) -> Death:
    """Run a command and kill it as its commit call `number` returns (0: never).

    Parameters
    ----------
    store : pathlib.Path
        Only calls that succeed on a path in here are counted.
    """
    pipe = project.folder / "calls"
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    process = project.start(
        *("strace", "-D", "-f", "--seccomp-bpf", "-qq", "-o", str(pipe), "-e", f"trace={CALLS}"),
        *("-e", "signal=none", "-e", f"inject={CALLS}:delay_exit={_HOLD_MICROSECONDS}"),
        *command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    calls, last, is_killed = 0, "", False
    begun: dict[str, str] = {}
    with pipe.open() as lines:
        for line in lines:
            thread = line.split()[0]
            if line.rstrip().endswith("<unfinished ...>"):
                begun[thread] = line
                continue
            if " resumed>" in line:
                line = begun.pop(thread, "") + line
            if str(store) not in line or not line.rstrip().endswith("= 0 (DELAYED)"):
                continue
            calls += 1
            last = line
            if calls == number:
                process.kill()
                is_killed = True
                break
        else:
            process.wait(60)
        process.wait(60)
    return Death(calls, _worded(last, store), is_killed and process.returncode < 0)


def _worded(line: str, store: Path) -> str:
    """Keep of a traced line the call and what kind of file it was on."""
    call = re.search(r"\b(\w+)\(", line)
    paths = [
        text.replace(str(store), "")
        for text in re.findall(r'"([^"]*)"', line)
        if str(store) in text
    ]
    names = [re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{12,}", "*", path) for path in paths]
    return f"{call.group(1) if call else '?'} {' -> '.join(names)}"[:160]


class Sweep:
    """A store to begin each point from, and the points.

    Parameters
    ----------
    folder : pathlib.Path
        Scratch.
    what : str
        `loader` (into a store that does not exist yet) or `dbt` (a second run, with new batches).
    is_whole : bool
        For dbt: the whole project with its roll-ups, not only traces and costs.
    """

    def __init__(self, folder: Path, what: str, is_whole: bool = False) -> None:
        self.what = what
        self.is_whole = is_whole
        self.store = folder / "warehouse"
        self.kept = folder / "kept"
        self.project = Project(folder / "project", {"CHDB_PATH": str(self.store)})
        self.project.env["TOKENLEDGER_BATCH_LINES"] = "60"
        self.truth = Truth()
        chance = random.Random(7)
        new = self.truth.write(folder / "new.ndjson", 130, chance)
        self.files = [str(new)]
        self.command: tuple[str, ...] = (sys.executable, "-m", "loader", *self.files)
        if what == "dbt":
            old = self.truth.write(folder / "old.ndjson", 130, chance)
            self.project.loader("prices")
            self.project.loader(str(old), expect=1)
            self.project.dbt("run")
            self.files.append(str(old))
            self.project.loader(str(new), expect=1)
            self.command = DBT_RUN_ALL if is_whole else DBT_RUN
            shutil.copytree(self.store, self.kept, symlinks=True)

    def count(self) -> Death:
        """Run to the end, only counting."""
        self._restore()
        return run_until(self.project, self.command, self.store, 0)

    def point(self, number: int) -> tuple[Death, list[str]]:
        """Kill at one call, run again, and compare."""
        self._restore()
        death = run_until(self.project, self.command, self.store, number)
        if self.what == "loader":
            self.project.loader(*self.files, expect=None)
            return death, differences_of_landing(self.project, self.truth)
        self.project._finish(self.project.start(*self.command), 0, None)
        found = differences_of_landing(self.project, self.truth)
        found += differences_of_traces(self.project, self.truth)
        if self.is_whole:
            found += differences_of_days(self.project, self.truth)
        return death, found

    def _restore(self) -> None:
        shutil.rmtree(self.store, ignore_errors=True)
        if self.kept.exists():
            shutil.copytree(self.kept, self.store, symlinks=True)


def main() -> int:
    """Sweep, print the totals, and return 1 if a point left a difference."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--what", choices=("loader", "dbt"), default="loader")
    parser.add_argument("--whole", action="store_true", help="dbt: all models, with the roll-ups")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="each N-th call")
    parser.add_argument("--first", type=int, default=1, metavar="K", help="begin at this call")
    parser.add_argument("--limit", type=int, default=10**6, metavar="N", help="at most N points")
    args = parser.parse_args()
    if reason := why_not():
        print(f"no sweep: {reason}", file=sys.stderr)
        return 2
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tokenledger-sweep-") as folder:
        sweep = Sweep(Path(folder), args.what, args.whole)
        calls = sweep.count().calls
        print(f"{args.what}: {calls} commit calls in a run that is not killed", flush=True)
        points = killed = wrong = 0
        kinds: Counter[str] = Counter()
        number = args.first
        while points < args.limit:
            try:
                death, found = sweep.point(number)
            except AssertionError as error:
                death, found = Death(number, "?", True), [f"did not recover: {str(error)[:300]}"]
            if not death.is_killed and death.calls < number:
                break
            points += 1
            killed += death.is_killed
            wrong += bool(found)
            kinds[death.call.split()[0]] += 1
            print(f"{number}: {death.call}: {'; '.join(found) or 'whole'}", flush=True)
            number += args.every
    print(
        f"{args.what}: {points} points, {killed} killed while running, {wrong} not whole after the"
        f" next run ({', '.join(f'{count} {name}' for name, count in kinds.most_common())});"
        f" {time.monotonic() - begun:.0f} s"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
