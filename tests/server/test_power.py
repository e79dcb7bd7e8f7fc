"""Power failure, as far as it can be played: files hold what was synced, and nothing else.

At each cut the spool is taken as a disk would give it back: of each file the bytes that were there
when its last finished sync began, and only files whose name had reached the disk.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loader import writer as writer_module
from loader.spool import Frame, read_frames
from loader.writer import Writer, WriterOptions
from tests.support.project import Project

WINDOW_MS = 100
THREADS = 4


class Disk:
    """What has reached the disk: bytes by inode, and the inodes that have a name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, spool: Path) -> None:
        self.spool = spool
        self.lock = threading.Lock()
        self.sizes: dict[int, int] = {}
        self.named: set[int] = set()
        self.longest_sync = 0.0
        real: Callable[[int], None] = writer_module._fdatasync

        def sync(descriptor: int) -> None:
            found, begun = os.fstat(descriptor), time.monotonic()
            real(descriptor)
            with self.lock:
                self.longest_sync = max(self.longest_sync, time.monotonic() - begun)
                self.sizes[found.st_ino] = found.st_size

        def sync_directory(path: Path) -> None:
            there = {entry.inode() for entry in os.scandir(path)}
            with self.lock:
                self.named |= there

        monkeypatch.setattr(writer_module, "_fdatasync", sync)
        monkeypatch.setattr(writer_module, "sync_directory", sync_directory)

    def records(self, sizes: dict[int, int], named: set[int]) -> set[str]:
        """Read what a cut left: a torn end is no record."""
        return {
            json.loads(bytes(item.payload))["id"]
            for path in self.spool.iterdir()
            if (inode := path.stat().st_ino) in named
            for item in read_frames(path.read_bytes()[: sizes.get(inode, 0)])
            if isinstance(item, Frame)
        }


@pytest.mark.parametrize("policy", ["each", "interval"])
def test_a_power_failure_loses_what_was_stated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    spool = tmp_path / "spool"
    disk = Disk(monkeypatch, spool)
    # Finishing a segment syncs it too: under `interval` the window alone is to do it.
    seconds = 0.2 if policy == "each" else 60
    options = WriterOptions(fsync=policy, fsync_interval_ms=WINDOW_MS, segment_seconds=seconds)
    said: list[tuple[str, float]] = []
    is_over = threading.Event()
    cuts: list[tuple[float, list[tuple[str, float]], dict[int, int], set[int]]] = []
    with Writer(spool, options) as writer:

        def write(thread: int) -> None:
            number = 0
            while not is_over.wait(0.001):
                name = f"{thread}-{number}"
                writer.write({"id": name, "text": "x" * 2000})
                said.append((name, time.monotonic()))
                number += 1

        threads = [threading.Thread(target=write, args=(each,)) for each in range(THREADS)]
        for each in threads:
            each.start()
        for _ in range(20):
            time.sleep(0.09)
            with disk.lock:  # no sync ends now: what is said was synced before, or was not
                cuts.append((time.monotonic(), [*said], {**disk.sizes}, {*disk.named}))
        is_over.set()
        for each in threads:
            each.join()
    assert len(said) > 100
    allowed = 0.0
    if policy == "interval":
        # A sync begins a window after the last, and ends when the disk says so.
        allowed = WINDOW_MS / 1000 + 2 * disk.longest_sync + 0.25
    for moment, acknowledged, sizes, named in cuts:
        there = disk.records(sizes, named)
        lost = [moment - at for name, at in acknowledged if name not in there]
        assert max(lost, default=0.0) <= allowed, f"lost what was said {max(lost):.3f} s before"


def test_what_is_landed_is_on_the_disk(embedded: Project) -> None:
    """The spool forgets what the ledger has: then the raw tables hold the only copy."""
    embedded.loader("init")
    tables: list[dict[str, Any]] = embedded.query(
        "select name, create_table_query as ddl from system.tables"
        " where database = currentDatabase()"
        " and name in ('raw_traces', 'raw_rejects', 'raw_batches')"
    )
    assert len(tables) == 3
    for table in tables:
        assert "fsync_after_insert = 1, fsync_part_directory = 1" in table["ddl"], table["name"]
