"""Every fault in turn, under load: what was acknowledged is in llm_traces once.

A server under fsync ``each`` and a peer of the socket write all the while, a drainer follows. In
turn the drainer, the server, the listener and dbt are killed, the database goes away and comes
back, the disk is full, the spool is read-only, and the clock is set back. The truth is what the
server said after each write() returned, and what the listener had counted before it was killed.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loader.spool import spool_status
from tests.support.http_front import Front
from tests.support.project import ROOT, Project

# A killed run leaves its lock, which is taken over after a while.
RUN = ("run", "--select", "+transformed_batches", "--vars", '{"run_lock_stale_seconds": 3}')
USAGE = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}


class Load:
    """The processes at work, and what they said."""

    def __init__(self, project: Project, folder: Path, spool: Path) -> None:
        self.project, self.folder, self.spool = project, folder, spool
        self.names = iter(range(10**6))
        self.said: list[Path] = []
        self.counted: list[str] = []
        self.log = (folder / "log").open("ab")
        self.clock: tuple[str, ...] = ()

    def python(self, module: str, *arguments: str, **options: Any) -> subprocess.Popen[Any]:
        command = [sys.executable, "-m", *self.clock, module, *arguments]
        options = {"stdout": self.log, "stderr": self.log} | options
        return subprocess.Popen(command, cwd=ROOT, env=self.project.env, **options)

    def start_server(self) -> None:
        said = self.folder / f"said-{next(self.names)}"
        self.said.append(said)
        with said.open("wb") as out:
            self.server = self.python(
                "tests.server.traffic",
                *(str(self.spool), "--name", said.name, "--threads", "2", "--pause", "0.004"),
                *("--fsync", "each", "--tolerant"),
                stdout=out,
            )

    def start_drainer(self) -> None:
        self.drainer = self.python(
            "loader", "drain", str(self.spool), "--follow", "--max-wait", "0.1"
        )

    def start_listener(self) -> None:
        path = self.folder / "socket"
        self.listener = self.python(
            *("loader", "listen", "--socket", str(path), "--spool", str(self.spool)),
            stderr=subprocess.PIPE,
        )
        assert self.listener.stderr is not None
        assert b"listening" in self.listener.stderr.readline()
        self.sent: list[str] = []
        self.peer = threading.Thread(target=self._send, args=(path, self.sent), daemon=True)
        self.peer.start()

    def _send(self, path: Path, sent: list[str]) -> None:
        """Send on one connection, in order, until it breaks."""
        stream = f"socket-{next(self.names)}"
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(path))
            while True:
                name = f"{stream}-{len(sent)}"
                record = {
                    "protocol_version": 3,
                    "provider_trace_id": f"provider_trace-{name}",
                    "org_id": "org-1",
                    "request": {"text": "x" * 1000},
                    "response": {"usage": USAGE},
                    "timestamp": "2026-10-05T12:00:00+00:00",
                }
                sent.append(name)
                try:
                    peer.sendall(json.dumps(record).encode() + b"\n")
                except OSError:
                    return
                time.sleep(0.005)

    def end_listener(self, number: int) -> None:
        """Note what it has counted, then end it."""
        assert self.listener.stderr is not None
        self.listener.send_signal(signal.SIGUSR1)
        while not (line := self.listener.stderr.readline()).startswith(b"{"):
            assert line, "the listener has ended"
        counts = json.loads(line)
        assert counts["records"] > 0
        # One peer, in order: what was refused (the disk was full) may be any of its records.
        if counts["refused"] == 0:
            self.counted += self.sent[: counts["records"]]
        self.listener.send_signal(number)
        self.listener.wait()
        self.listener.stderr.close()
        self.peer.join(10)

    def acknowledged(self) -> tuple[set[str], Counter[str]]:
        words = [word for path in self.said for word in path.read_text().split()]
        refused = Counter(word for word in words if word.startswith("!"))
        return {word for word in words if not word.startswith("!")} | set(self.counted), refused

    def kill(self, process: subprocess.Popen[Any]) -> None:
        process.send_signal(signal.SIGKILL)
        process.wait()


def mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0


def test_every_fault_in_turn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    may_mount = mount("-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk))
    spool = disk / "spool"
    spool.mkdir(mode=0o700)
    with Front(tmp_path / "store", user="ledger", password="secret") as front:
        project = Project(tmp_path / "project", front.env())
        project.loader("init")
        load = Load(project, tmp_path, spool)

        def once(fault: Callable[[], None]) -> None:
            fault()
            time.sleep(0.7)

        def kill_drainer() -> None:
            load.kill(load.drainer)
            load.start_drainer()

        def kill_server() -> None:
            load.kill(load.server)
            load.start_server()

        def kill_listener() -> None:
            load.end_listener(signal.SIGKILL)
            load.start_listener()

        def database_away_and_back() -> None:
            front.kill()
            time.sleep(0.7)
            front.restart()

        def full_disk() -> None:
            with (disk / "ballast").open("wb", buffering=0) as ballast:
                try:
                    while ballast.write(b"x" * 4096):
                        pass
                except OSError:
                    time.sleep(0.7)
            (disk / "ballast").unlink()

        def read_only() -> None:
            # What is opened for writing between the two keeps it from being read-only.
            for _ in range(100):
                assert mount("--bind", str(spool), str(spool))
                if mount("-o", "remount,bind,ro", str(spool)):
                    break
                subprocess.run(["umount", "-l", str(spool)], check=True)
            else:
                pytest.fail("the spool did not become read-only")
            time.sleep(1.0)
            subprocess.run(["umount", "-l", str(spool)], check=True)

        def clock_set_back() -> None:
            load.clock = ("tests.server.past", "86400")
            kill_server()
            kill_drainer()
            load.clock = ()

        def kill_dbt() -> None:
            dbt = project.start_dbt(*RUN)
            deadline = time.monotonic() + 60
            while b"int_traces__parsed" not in line_of(dbt) and time.monotonic() < deadline:
                pass
            dbt.kill()
            dbt.communicate()

        try:
            load.start_server()
            load.start_drainer()
            load.start_listener()
            time.sleep(1.5)
            for fault in (kill_drainer, kill_server, kill_listener, database_away_and_back):
                once(fault)
            if may_mount:
                once(full_disk)
                once(read_only)
                # Those that the faults did not end go on by themselves; now both ends are new.
                assert load.drainer.poll() is None, "a drainer that follows goes on"
                assert load.listener.poll() is None
                assert load.server.poll() is None
            for fault in (kill_listener, clock_set_back, kill_dbt, kill_drainer):
                once(fault)
            load.kill(load.server)
            load.end_listener(signal.SIGTERM)
            load.drainer.terminate()
            assert load.drainer.wait(60) in (0, 1)
            project.loader("drain", str(spool), expect=None)
            assert list(spool.iterdir()) == []
            assert spool_status(spool)["records"] == 0
        finally:
            for process in (load.server, load.drainer, load.listener):
                process.kill()
            load.log.close()
            if may_mount:
                subprocess.run(["umount", "-l", str(spool)], capture_output=True)
                subprocess.run(["umount", "-l", str(disk)], capture_output=True)
        project.dbt(*RUN)
        rows = Counter(row["id"] for row in project.query("select id from llm_traces"))
        reasons = {
            row["reason"] for row in project.query("select distinct reason from raw_rejects")
        }
    acknowledged, refused = load.acknowledged()
    with capsys.disabled():
        print(f"\nfaults: {len(acknowledged)} acknowledged, {len(rows)} rows, {dict(refused)}")
    assert len(load.counted) > 50
    assert len(acknowledged) > 500
    assert acknowledged - set(rows) == set(), "lost"
    assert set(rows.values()) == {1}, "doubled"
    assert reasons <= {"half_record", "torn"}
    if may_mount:
        assert refused["!SpoolFull"] > 0, "the full disk was felt, and told"
        assert refused["!SpoolError"] > 0, "so was the read-only spool"


def line_of(process: subprocess.Popen[str]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline().encode()
