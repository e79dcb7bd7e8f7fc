"""A full disk under the store: a clear error, nothing torn, and all of it there once there is room.

The disk is a small one in memory, so that only root can run this.
"""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.soak.truth import Truth, differences_of_landing, differences_of_traces
from tests.support.project import Project

SIZE = 48 * 1024 * 1024


class Disk:
    """A file system of a fixed size, and a file that fills it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self, leave: int) -> None:
        """Leave so many bytes free."""
        self.make_room()
        with (self.path / "filler").open("wb") as file:
            free = int(subprocess.check_output(["stat", "-f", "-c", "%a %S", self.path]).split()[0])
            file.write(b"x" * max(free * 4096 - leave, 0))

    def make_room(self) -> None:
        (self.path / "filler").unlink(missing_ok=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(path)], capture_output=True
    )
    if made.returncode:
        pytest.skip("a small file system can be mounted by root only")
    yield Disk(path)
    subprocess.run(["umount", "-l", str(path)], check=True)


def is_there(disk: Disk, model: str) -> bool:
    return any(disk.path.glob(f"warehouse/store/*/*/{model}.sql"))


def test_nothing_is_lost_on_a_full_disk(disk: Disk, tmp_path: Path) -> None:
    truth, chance = Truth(), random.Random(5)
    project = Project(tmp_path / "project", {"CHDB_PATH": str(disk.path / "warehouse")})
    project.env["TOKENLEDGER_BATCH_LINES"] = "500"
    project.loader("prices")
    files = [str(truth.write(tmp_path / f"{n}.ndjson", 3000, chance)) for n in range(2)]
    project.loader(files[0], expect=1)
    models = ("--select", "+transformed_batches", "+costed_batches")

    disk.fill(leave=60_000)
    done = project.loader(files[1], expect=3)
    assert done.stderr.count("\n") == 1
    assert "space" in done.stderr.lower()
    done = project.dbt("run", *models, expect=None)
    assert done.returncode != 0
    assert "space" in done.stdout.lower(), done.stdout[-1500:]

    disk.make_room()
    project.loader(files[1], expect=1)
    assert differences_of_landing(project, truth) == []
    # The disk fills while models are built.
    process = project.start_dbt("run", *models)
    while process.poll() is None and not is_there(disk, "int_traces__billed"):
        time.sleep(0.05)
    disk.fill(leave=60_000)
    stdout, _ = process.communicate(timeout=300)
    assert process.returncode != 0, stdout
    disk.make_room()
    project.dbt("run", *models)
    assert differences_of_landing(project, truth) == []
    assert differences_of_traces(project, truth) == []
