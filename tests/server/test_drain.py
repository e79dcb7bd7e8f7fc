"""Draining: what is claimed, in which order things happen, and what each death leaves."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import loader.drain
import loader.landing
import loader.spool
import loader.store
from loader.batches import Batch
from loader.drain import Drainer, DrainOptions
from loader.errors import StoreError, StoreLockedError
from loader.settings import Settings
from loader.spool import SpoolError, spool_status
from loader.writer import Writer, WriterOptions
from tests.server.traffic import trace
from tests.support.http_front import Front
from tests.support.project import ROOT, Project

TRAFFIC = [sys.executable, "-m", "tests.server.traffic"]


def fill(spool: Path, *names: str, per_segment: int = 5_000) -> None:
    """Write one trace a name."""
    options = WriterOptions(segment_seconds=60, segment_records=per_segment, fsync="never")
    with Writer(spool, options) as writer:
        for name in names:
            writer.write(trace(name, 100))


def raw(project: Project, table: str) -> str:
    return f"{project.env.get('CLICKHOUSE_DATABASE', 'llm')}.raw_{table}"


def landed_ids(project: Project) -> list[str]:
    """Return the ids of all landed records, one a batch and position, as every reader does."""
    rows = project.query(
        "select distinct batch_id, position, JSONExtractString(envelope_json, 'id') as id"
        f" from {raw(project, 'traces')}"
    )
    return sorted(row["id"].removeprefix("provider_trace-") for row in rows)


class FakeStore:
    """A ledger in memory, which can be away and can lose its answers."""

    is_embedded = True

    def __init__(self) -> None:
        self.ledger: dict[str, Batch] = {}
        self.opened = self.closed = 0
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None

    def ensure_raw_tables(self) -> None:
        pass

    def close(self) -> None:
        self.closed += 1

    def land(self, store: Any, batch: Batch, sleep: Any) -> bool:
        self.before()
        is_new = batch.batch_id not in self.ledger
        self.ledger[batch.batch_id] = batch
        self.after()
        return is_new

    @property
    def rows(self) -> int:
        return sum(batch.rows for batch in self.ledger.values())


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeStore:
    store = FakeStore()

    def opened(settings: Settings, on_wait: Any = None) -> FakeStore:
        store.opened += 1
        return store

    monkeypatch.setattr(loader.store, "open_store", opened)
    monkeypatch.setattr(loader.landing, "land_batch", store.land)
    return store


def drain(spool: Path, messages: list[str] | None = None, **options: Any) -> Drainer:
    told = messages.append if messages is not None else None
    drainer = Drainer(spool, Settings(), DrainOptions(**options), told)
    drainer.run()
    return drainer


def test_what_is_drained_is_landed_byte_for_byte_and_removed(
    project: Project, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    own = (
        '{"id":"provider_trace-own","request_json":{"n": 1.0,  "x":"\\u00e9"},"response_json":null}'
    )
    socket_record = (
        '{"protocol_version":3,"provider_trace_id":"s","request":{},"response":null,"error":"e"}'
    )
    with Writer(spool) as writer:
        writer.write(own)
        writer.write(socket_record.encode())
        writer.write(b"no record")
        writer.write_reject("half_record", "7 bytes: broken", b'\xff{"half')
    done = project.loader("drain", str(spool), "--json", expect=1)
    summary = json.loads(done.stdout)
    assert (summary["rows"], summary["rejects"]) == (2, 2)
    assert list(spool.iterdir()) == []
    rows = project.query(
        f"select format, request_json, response_json from {raw(project, 'traces')}"
    )
    assert sorted(rows, key=lambda row: row["format"]) == [
        {
            "format": "provider_trace",
            "request_json": '{"n": 1.0,  "x":"\\u00e9"}',
            "response_json": "null",
        },
        {"format": "provider_trace_socket_v3", "request_json": "{}", "response_json": "null"},
    ]
    rejects = project.query(f"select reason, hex(raw) as raw from {raw(project, 'rejects')}")
    assert {row["reason"]: bytes.fromhex(row["raw"]) for row in rejects} == {
        "not_json": b"no record",
        "half_record": b'\xff{"half',
    }
    ledger = project.query(f"select lines, rows, rejects from {raw(project, 'batches')}")
    assert ledger == [{"lines": 4, "rows": 2, "rejects": 2}]
    again = project.loader("drain", str(spool), "--json")
    assert json.loads(again.stdout)["rows"] == 0


def test_batches_are_bounded_and_segments_share_one(fake: FakeStore, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    fill(spool, *map(str, range(25)), per_segment=3)
    done = drain(spool, max_rows=10)
    assert [batch.rows for batch in fake.ledger.values()] == [9, 9, 7]
    assert done.summary.segments == 9
    fill(spool, *map(str, range(10)), per_segment=2)
    size = max(path.stat().st_size for path in spool.iterdir())
    drain(spool, max_bytes=2 * size)
    assert [batch.rows for batch in fake.ledger.values()][3:] == [4, 4, 2]


def test_a_segment_above_the_bounds_is_a_batch_of_its_own(fake: FakeStore, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    fill(spool, *map(str, range(20)), per_segment=10)
    drain(spool, max_rows=3, max_bytes=10)
    assert [batch.rows for batch in fake.ledger.values()] == [10, 10]


def test_a_live_writers_segment_is_left_and_a_dead_ones_taken(
    fake: FakeStore, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    live = Writer(spool, WriterOptions(segment_seconds=60))
    live.write(trace("live"))
    pid = os.fork()
    if pid == 0:
        live.write(trace("dead"))
        os._exit(0)
    os.waitpid(pid, 0)
    done = drain(spool)
    assert (fake.rows, done.summary.recovered) == (1, 1)
    live.write(trace("live 2"))
    live.close()
    drain(spool)
    assert fake.rows == 3


@pytest.mark.parametrize("is_copy", [True, False])
def test_an_older_copy_of_a_segment_does_not_take_its_place(
    fake: FakeStore, tmp_path: Path, is_copy: bool
) -> None:
    """A spool that is copied twice, while its server writes and after, has both."""
    spool, copied = tmp_path / "spool", tmp_path / "copied"
    live = Writer(spool, WriterOptions(segment_seconds=60))
    live.write(trace("a"))
    shutil.copytree(spool, copied)
    live.write(trace("b"))
    live.close()
    (older,) = copied.glob("*.open")
    if not is_copy:
        older.write_bytes(older.read_bytes()[:-1] + b"?")
    (newer,) = spool.glob("*.ready")
    shutil.copy2(newer, copied)
    done = drain(copied)
    # Another one, not a copy: its record is damaged.
    assert [(batch.rows, batch.rejects) for batch in fake.ledger.values()] == (
        [(2, 0)] if is_copy else [(2, 0), (0, 1)]
    )
    assert done.summary.recovered == (0 if is_copy else 1)
    assert list(copied.iterdir()) == []


@pytest.mark.parametrize("is_other", [True, False])
def test_a_segment_does_not_take_the_place_of_another_within_a_batch(
    fake: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_other: bool
) -> None:
    """The first is in the batch already, which still grows, when the second is looked at."""
    spool = tmp_path / "spool"
    fill(spool, "a", "b", "c")
    (first,) = spool.glob("*.ready")
    data = first.read_bytes()
    first.with_suffix(".open").write_bytes(data[:-1] + b"?" if is_other else data[:-1])
    other_spool = tmp_path / "other"
    if not is_other:  # an older copy, which comes when the first is in the batch
        other_spool.mkdir()
        first.with_suffix(".open").rename(other_spool / "copy")
    drainer = Drainer(spool, Settings(), DrainOptions(follow=True, max_wait=1))
    wait = drainer._stop.wait

    def waited(seconds: float) -> bool:
        for copy in other_spool.glob("copy"):
            copy.rename(first.with_suffix(".open"))
        return wait(seconds)

    monkeypatch.setattr(drainer._stop, "wait", waited)
    batches = 2 if is_other else 1
    fake.after = lambda: drainer.stop() if len(fake.ledger) == batches else None
    giving_up = threading.Timer(20, drainer.stop)
    giving_up.start()
    drainer.run()
    giving_up.cancel()
    assert [(batch.rows, batch.rejects) for batch in fake.ledger.values()] == (
        [(3, 0), (2, 1)] if is_other else [(3, 0)]
    )
    assert list(spool.iterdir()) == []


@pytest.mark.parametrize("follow", [False, True])
def test_where_no_directory_can_be_opened_none_are_made(
    fake: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, follow: bool
) -> None:
    spool = tmp_path / "spool"
    fill(spool, "a")
    real, tries = os.open, list[Any]()
    told: list[str] = []
    drainer = Drainer(spool, Settings(), DrainOptions(follow=follow), told.append)

    def scarce(path: Any, flags: int, *mode: Any, **options: Any) -> int:
        if flags & os.O_DIRECTORY and "batch-" in str(path):
            tries.append(path)
            assert len(tries) < 50, "it goes on for ever"
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path, flags, *mode, **options)

    monkeypatch.setattr(os, "open", scarce)
    monkeypatch.setattr(drainer._stop, "wait", lambda seconds: drainer.stop())
    if follow:
        drainer.run()
        assert "(Too many open files); trying again" in told[0]
    else:
        with pytest.raises(SpoolError, match="Too many open files"):
            drainer.run()
    assert tries
    assert [path.suffix for path in spool.iterdir()] == [".ready"]


def test_a_follower_whose_spool_has_gone_ends_when_it_is_stopped(
    fake: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = tmp_path / "spool"
    fill(spool, "a")
    told: list[str] = []
    drainer = Drainer(spool, Settings(), DrainOptions(follow=True, max_wait=0), told.append)

    def wait(seconds: float) -> None:
        if spool.exists():
            shutil.rmtree(spool)
        else:
            drainer.stop()

    monkeypatch.setattr(drainer._stop, "wait", wait)
    assert drainer.run().rows == 1
    assert told == [f"{spool}: cannot be drained (No such file or directory); trying again"]


def test_an_older_copy_of_a_batch_stops_nobody(fake: FakeStore, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    fill(spool, "a", "b", per_segment=1)
    first, second = sorted(spool.iterdir())
    for suffix, segments in ((".open", (first, second)), (".ready", (first,))):
        batch = spool / f"batch-host-1-{'0' * 16}-00000001{suffix}"
        batch.mkdir(mode=0o700)
        for segment in segments:
            shutil.copy2(segment, batch)
    first.unlink()
    second.unlink()
    fill(spool, "c")
    drain(spool)
    assert sum(batch.rows for batch in fake.ledger.values()) == 3
    assert list(spool.iterdir()) == []


def test_a_batch_whose_removal_fails_once_is_counted_once(
    fake: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = tmp_path / "spool"
    fill(spool, "a")
    drainer = Drainer(spool, Settings(), DrainOptions(follow=True, max_wait=0))
    remove, failed = drainer._remove, list[str]()

    def fails_once(claim: Any) -> None:
        if not failed and claim.segments:
            failed.append(claim.name)
            raise OSError(errno.EIO, "Input/output error")
        if failed:
            drainer.stop()
        remove(claim)

    monkeypatch.setattr(drainer, "_remove", fails_once)
    summary = drainer.run()
    assert failed
    assert (summary.rows, summary.batches, summary.batches_already) == (1, 1, 1)
    assert list(spool.iterdir()) == []


def test_an_empty_reject_is_kept_too(fake: FakeStore, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    with Writer(spool) as writer:
        writer.write_reject("half_record", "nothing came", b"")
    drain(spool)
    assert [batch.rejects for batch in fake.ledger.values()] == [1]


def test_damage_becomes_rejects_and_is_told(fake: FakeStore, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    fill(spool, "a", "b", "c", "secret payload")
    (path,) = spool.iterdir()
    data = bytearray(path.read_bytes())
    place = data.index(b"step-b")
    data[place] ^= 1
    path.write_bytes(data[:-30])
    messages: list[str] = []
    done = drain(spool, messages)
    (batch,) = fake.ledger.values()
    assert (batch.rows, batch.rejects) == (2, 2)
    assert (done.summary.torn, done.summary.corrupt) == (1, 1)
    assert len(messages) == 2
    assert not any("secret" in each for each in messages), "no payload is told"
    kept = b"".join(batch.rejected)
    assert bytes(data[place : place + 40]) in kept
    assert bytes(data[-80:-30]) in kept


@pytest.mark.parametrize("content", [b"", b"TLSPOOL1", b"\0" * 500, b"no segment at all"])
def test_files_of_odd_content_never_stop_a_drainer(
    fake: FakeStore, tmp_path: Path, content: bytes
) -> None:
    spool = tmp_path / "spool"
    fill(spool, "a")
    (path,) = spool.iterdir()
    odd = path.with_name(path.name.replace("00000001", "00000000"))
    odd.write_bytes(content)
    drain(spool)
    assert fake.rows == 1
    assert list(spool.iterdir()) == []
    kept = b"".join(b"".join(batch.rejected) for batch in fake.ledger.values())
    assert content in kept, "and what is in them is kept"


def test_foreign_entries_and_links_are_left_and_told_once(fake: FakeStore, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    fill(spool, "a")
    (segment,) = spool.iterdir()
    outside = tmp_path / "outside"
    outside.write_bytes(segment.read_bytes())
    link = spool / segment.name.replace("00000001", "00000002")
    link.symlink_to(outside)
    hidden = spool / f"batch-{segment.stem}.ready"
    hidden.symlink_to(tmp_path)
    (spool / "notes.txt").write_text("mine")
    messages: list[str] = []
    drain(spool, messages)
    assert fake.rows == 1
    assert {path.name for path in spool.iterdir()} == {link.name, hidden.name, "notes.txt"}
    assert outside.exists()
    assert sorted(each.rpartition(": left")[0].rpartition(": ")[2] for each in messages) == [
        "a symbolic link",
        "a symbolic link",
        "not a file of the spool",
    ]


def test_a_link_within_a_batch_is_not_followed(fake: FakeStore, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    fill(spool, "a")
    (segment,) = spool.iterdir()
    batch = spool / f"batch-{segment.stem}.ready"
    batch.mkdir()
    outside = tmp_path / "outside"
    segment.rename(outside)
    (batch / segment.name).symlink_to(outside)
    with pytest.raises(SpoolError, match="cannot be read"):
        drain(spool)
    assert fake.rows == 0
    assert outside.exists()


class Killed(BaseException):
    """The end of a process, as far as an exception can play it."""


STEPS = ["before landing", "after landing", "at the rename", "between two files", "at the folder"]


@pytest.mark.parametrize("step", STEPS)
def test_death_at_any_step_leaves_what_the_next_finishes(
    fake: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    spool = tmp_path / "spool"
    fill(spool, *map(str, range(6)), per_segment=2)

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if step == "before landing":
            fake.before = die
        elif step == "after landing":
            fake.after = die
        elif step == "at the rename":
            real = Path.rename

            def rename(path: Path, target: Path) -> Path:
                if target.suffix == ".landed":
                    die()
                return real(path, target)

            patch.setattr(Path, "rename", rename)
        elif step == "between two files":
            unlinked: list[Path] = []
            remove = Path.unlink

            def unlink(path: Path, missing_ok: bool = False) -> None:
                if unlinked:
                    die()
                unlinked.append(path)
                remove(path, missing_ok)

            patch.setattr(Path, "unlink", unlink)
        else:
            patch.setattr(Path, "rmdir", die)
        with pytest.raises(Killed):
            drain(spool)
    fake.before = fake.after = lambda: None
    assert spool_status(spool)["path"] == str(spool)
    fill(spool, "more")  # what comes later must not change the batch that was begun
    drain(spool)
    assert list(spool.iterdir()) == []
    assert fake.rows == 7, "nothing lost, nothing twice"


def test_a_batch_that_was_being_filled_is_taken_over(fake: FakeStore, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    fill(spool, "a", "b", per_segment=1)
    first, _ = sorted(spool.iterdir())
    half = spool / f"batch-{first.stem}.open"
    half.mkdir()
    first.rename(half / first.name)
    drain(spool)
    assert (fake.rows, list(spool.iterdir())) == (2, [])


def test_what_is_fixed_is_on_the_disk(
    fake: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power failure would cut it, and what is left would be another batch."""
    synced: list[str] = []
    monkeypatch.setattr(loader.drain, "sync_file", lambda path: synced.append(path.parent.suffix))
    fill(tmp_path / "spool", "a", "b", per_segment=1)
    drain(tmp_path / "spool")
    assert synced == [".open", ".open"]


@pytest.mark.parametrize("fails", ["spool", "batch", "kill"])
def test_what_was_fixed_by_halves_is_on_the_disk_before_it_is_landed(
    fake: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """Who renamed it was killed before it was synced, or could not sync."""
    spool = tmp_path / "spool"
    fill(spool, "a", "b", per_segment=1)
    real = loader.drain.sync_directory

    def failing(path: Path) -> None:
        if fails == "kill":
            raise KeyboardInterrupt
        if (path == spool) == (fails == "spool"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(path)

    with monkeypatch.context() as patch, pytest.raises((SpoolError, KeyboardInterrupt)):
        patch.setattr(loader.drain, "sync_directory", failing)
        drain(spool)
    assert fake.rows == 0
    done: list[str] = []
    monkeypatch.setattr(loader.drain, "sync_file", lambda path: done.append(path.suffix))
    monkeypatch.setattr(loader.drain, "sync_directory", lambda path: done.append(path.suffix))
    fake.before = lambda: done.append("landed")
    drain(spool)
    assert done[:5] == [".ready", ".ready", ".ready", "", "landed"]
    assert fake.rows == 2


def test_what_cannot_be_opened_to_be_synced_is_not_landed(
    fake: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = tmp_path / "spool"
    fill(spool, "a")

    def scarce(path: Path) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch, pytest.raises(SpoolError, match="Too many open files"):
        patch.setattr(loader.spool, "open_to_read", scarce)
        drain(spool)
    assert fake.rows == 0
    drain(spool)
    assert fake.rows == 1


def test_a_batch_that_could_not_be_taken_over_is_let_go(
    fake: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = tmp_path / "spool"
    fill(spool, "a")
    (first,) = spool.iterdir()
    half = spool / f"batch-{first.stem}.open"
    half.mkdir()
    first.rename(half / first.name)

    def refused(path: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patched, pytest.raises((OSError, SpoolError)):
        patched.setattr(loader.drain, "sync_file", refused)
        drain(spool)
    drain(spool)
    assert (fake.rows, list(spool.iterdir())) == (1, [])


def test_the_store_is_away_and_back(fake: FakeStore, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    fill(spool, "a")

    def away() -> None:
        raise StoreError("the store is away")

    fake.before = away
    with pytest.raises(StoreError):
        drain(spool)
    assert spool_status(spool)["records"] == 1, "kept"
    messages: list[str] = []
    drainer = Drainer(spool, Settings(), DrainOptions(follow=True, max_wait=0), messages.append)

    def away_once() -> None:
        if fake.opened < 4:
            raise StoreError("the store is away")

    fake.before = away_once
    fake.after = drainer.stop
    drainer.run()
    assert fake.rows == 1
    assert len(messages) == 2
    assert fake.opened == fake.closed, "the embedded store is left while there is nothing to land"


def test_who_never_leaves_the_store_is_told_of_once(fake: FakeStore, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    fill(spool, "a")
    tries = []

    def held() -> None:
        tries.append(1)
        if len(tries) < 4:
            raise StoreLockedError("the store is held by process 7")

    fake.before = held
    for patience, told in ((0.0, 1), (60.0, 0)):
        tries.clear()
        fill(spool, f"b{told}")
        messages: list[str] = []
        options = DrainOptions(follow=True, max_wait=0)
        drainer = Drainer(spool, Settings(lock_timeout=patience), options, messages.append)
        fake.after = drainer.stop
        drainer.run()
        assert len(messages) == told
        assert all("held by process 7" in message for message in messages)


def test_a_stop_while_a_worn_drainer_begins_anew_is_heard(
    embedded: Project, tmp_path: Path
) -> None:
    """Between two processes under one id, a signal waits for the second."""
    spool = tmp_path / "spool"
    Writer(spool).close()
    script = (
        "import os, signal, sys, loader.drain as drain\n"
        "if 'TOKENLEDGER_DRAIN_TOTALS' not in os.environ:\n"
        "    drain.Drainer.is_worn = True\n"
        "    begin = drain._begin_anew\n"
        "    def signalled(summary):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        begin(summary)\n"
        "    drain._begin_anew = signalled\n"
        "from loader.cli import main\n"
        "sys.exit(main(['drain', sys.argv[1], '--follow']))\n"
    )
    process = embedded.start(sys.executable, "-c", script, str(spool))
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "landed 0 traces" in stdout


def test_an_unreadable_file_does_not_end_following(
    fake: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = tmp_path / "spool"
    fill(spool, "a")
    failures = [OSError(errno.EIO, "Input/output error")]
    real = os.fdopen

    def fdopen(*arguments: Any, **options: Any) -> Any:
        if failures:
            os.close(arguments[0])
            raise failures.pop()
        return real(*arguments, **options)

    monkeypatch.setattr("loader.drain.os.fdopen", fdopen)
    messages: list[str] = []
    drainer = Drainer(spool, Settings(), DrainOptions(follow=True, max_wait=0), messages.append)
    fake.after = drainer.stop
    drainer.run()
    assert fake.rows == 1
    assert "Input/output error" in messages[0]


def test_a_missing_spool_is_one_line(project: Project, tmp_path: Path) -> None:
    done = project.loader("drain", str(tmp_path / "none"), expect=3)
    assert "no such spool" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    with pytest.raises(SpoolError):
        Drainer(tmp_path / "none", Settings())


def test_several_drainers_land_each_trace_once(project: Project, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    names = [f"n{number}" for number in range(200)]
    fill(spool, *names, per_segment=5)
    project.loader("init")
    drainers = [
        project.start_loader("drain", str(spool), "--json", "--max-rows", "10") for _ in range(3)
    ]
    summaries = [json.loads(each.communicate(timeout=120)[0]) for each in drainers]
    assert [each.returncode for each in drainers] == [0, 0, 0]
    assert landed_ids(project) == sorted(names)
    assert sum(each["rows"] for each in summaries) == 200
    assert list(spool.iterdir()) == []


def test_a_server_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    with Front(tmp_path / "server", user="ledger", password="secret") as front:
        server = Project(tmp_path / "project", front.env())
        server.loader("init")
        fill(spool, "before")
        drainer = server.start_loader("drain", str(spool), "--follow", "--max-wait", "0.1")
        try:
            wait_until(lambda: spool_status(spool)["records"] == 0)
            front.kill()
            fill(spool, *map(str, range(20)))
            assert drainer.stderr is not None
            line = drainer.stderr.readline()
            assert "trying again" in line, "the first word of it is ours, and says what happens"
            assert "secret" not in line
            front.restart()
            wait_until(lambda: spool_status(spool)["records"] == 0)
            drainer.send_signal(signal.SIGTERM)
            drainer.communicate(timeout=60)
            assert drainer.returncode == 0
        finally:
            drainer.kill()
        assert landed_ids(server) == sorted(["before", *map(str, range(20))])


def test_a_lost_answer_lands_once(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    with Front(tmp_path / "server", user="ledger", password="secret") as front:
        server = Project(tmp_path / "project", front.env())
        server.loader("init")
        fill(spool, *map(str, range(20)), per_segment=5)
        front.misbehave("drop", effect="done", inserts=True, count=2)
        server.loader("drain", str(spool), "--max-rows", "5")
        assert landed_ids(server) == sorted(map(str, range(20)))


def wait_until(is_done: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not is_done():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def test_following_leaves_the_embedded_store_to_others_and_ends_at_sigterm(
    embedded: Project, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    Writer(spool).close()
    embedded.loader("init")
    traffic = subprocess.Popen(
        [*TRAFFIC, str(spool), "--name", "t", "--threads", "1", "--pause", "0.005"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    drainer = embedded.start_loader("drain", str(spool), "--follow", "--max-wait", "0.2")
    try:
        wait_until(lambda: len(list(spool.glob("batch-*"))) > 0)
        counts = [embedded.value("select count() from raw_traces") for _ in range(3)]
        assert counts == sorted(counts)
        traffic.kill()
        acknowledged = traffic.communicate()[0].decode().split()
        wait_until(lambda: spool_status(spool)["records"] == 0)
        drainer.send_signal(signal.SIGTERM)
        stdout, stderr = drainer.communicate(timeout=60)
        assert drainer.returncode == 0, stderr
        assert "landed" in stdout
    finally:
        traffic.kill()
        drainer.kill()
    found = landed_ids(embedded)
    assert len(found) == len(set(found))
    assert set(acknowledged) <= set(found)
