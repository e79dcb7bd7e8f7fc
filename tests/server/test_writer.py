"""The writer: what becomes of a trace, the fsync policies, the limits, forks and threads."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import decimal
import enum
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import types
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loader import writer as writer_module
from loader.errors import UsageError
from loader.spool import (
    RecordTooLarge,
    SpoolClosed,
    SpoolError,
    SpoolFull,
    read_frames,
    spool_status,
)
from loader.writer import Writer, WriterOptions, encode_trace
from tests.support.project import ROOT

CREATED = {"created_at": "2026-10-05T12:00:00Z"}


def records(spool: Path) -> list[Any]:
    """Read all records of a spool, in the order of the files' names."""
    return [
        json.loads(bytes(frame.payload))
        for path in sorted(spool.iterdir())
        for frame in read_frames(path.read_bytes())
    ]


class Colour(enum.Enum):
    RED = 1


class Kind(str, enum.Enum):  # noqa: UP042 (what servers have)
    STEP = "agent_step"


@dataclasses.dataclass
class Billing:
    plan_type: str
    cost_source: str | None = None


@dataclasses.dataclass
class Trace:
    id: str
    billing_context: Billing
    request_json: dict[str, Any]
    created_at: datetime.datetime


class Odd:
    def __str__(self) -> str:
        return "odd one"


PAYLOADS: list[Any] = [
    {"a": [1, 2.5, True, None, "é"], "b": {"c": {}}},
    {"when": datetime.datetime(2026, 1, 2, 3, 4, 5)},
    {"day": datetime.date(2026, 1, 2), "id": uuid.UUID(int=7), "cost": decimal.Decimal("1.10")},
    {"bytes": b"\x00ab", "set": {1}, "colour": Colour.RED, "kind": Kind.STEP, "odd": Odd()},
    {"tuple": (1, (2,)), "ordered": OrderedDict(a=1), "model": Billing("pro")},
    {7: "int", 2.5: "float", True: "bool", None: "none"},
    {"big": 2**80, "path": Path("/a"), "deep": [[{"x": Odd()}]]},
]


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_values_become_what_json_dumps_with_default_str_makes(payload: Any) -> None:
    found = json.loads(encode_trace({"request_json": payload} | CREATED))
    assert found["request_json"] == json.loads(json.dumps(payload, default=str))


def test_keys_and_surrogates_that_json_cannot_hold() -> None:
    found = json.loads(encode_trace({"request_json": {(1, 2): "\ud800"}} | CREATED))
    assert found["request_json"] == {"(1, 2)": "\ud800"}
    encoded = encode_trace({"request_json": ["\ud800é", 10**4000, 1e400, {1: 2, "1": 3}]} | CREATED)
    request = b'["\\ud800\xc3\xa9",1' + b"0" * 4000 + b',Infinity,{"1":2,"1":3}]'
    assert b'"request_json":' + request in encoded


@pytest.mark.parametrize("blank", ["", " \n", b"", b"\t\r\n ", bytearray(b"  ")])
def test_a_blank_record_is_refused(blank: Any) -> None:
    """It would be acknowledged, and land as neither row nor reject."""
    with pytest.raises(SpoolError, match="blank"):
        encode_trace(blank)


def test_what_holds_itself_is_refused_by_name() -> None:
    circle: dict[str, Any] = {}
    circle["self"] = circle
    with pytest.raises(SpoolError, match="cannot be written as JSON"):
        encode_trace({"request_json": circle})
    with pytest.raises(SpoolError, match="no fields"):
        encode_trace(42)


def test_objects_are_taken_by_their_fields() -> None:
    created = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    want = {
        "id": "x",
        "billing_context": {"plan_type": "pro", "cost_source": None},
        "request_json": {"n": 1},
        "created_at": created.isoformat(),
    }
    trace = Trace("x", Billing("pro"), {"n": 1}, created)
    assert json.loads(encode_trace(trace)) == want
    assert json.loads(encode_trace(types.SimpleNamespace(**vars(trace)))) == want
    assert json.loads(encode_trace(types.MappingProxyType(vars(trace)))) == want

    class Model:
        def model_dump(self) -> dict[str, Any]:
            return vars(trace)

    assert json.loads(encode_trace(Model())) == want


def test_a_clients_response_keeps_what_is_inside_it() -> None:
    class Model:
        def __init__(self, **fields: Any) -> None:
            self.__dict__ = fields

        def model_dump(self) -> dict[str, Any]:
            return {
                name: each.model_dump() if isinstance(each, Model) else each
                for name, each in self.__dict__.items()
            }

    response = Model(id="c1", usage=Model(prompt_tokens=3, details=Model(cached_tokens=1)))
    found = json.loads(encode_trace({"response_json": response, "request_json": {}}))
    usage = {"prompt_tokens": 3, "details": {"cached_tokens": 1}}
    assert found["response_json"] == {"id": "c1", "usage": usage}

    @dataclasses.dataclass
    class Outer:
        billing: Billing
        lock: Any = None

    found = json.loads(encode_trace({"response_json": Outer(Billing("pro"))}))
    assert found["response_json"]["billing"] == {"plan_type": "pro", "cost_source": None}
    found = json.loads(encode_trace({"response_json": Outer(Billing("pro"), threading.Lock())}))
    assert found["response_json"]["billing"].startswith("Billing("), "cannot be copied: its fields"


def test_records_in_bytes_stay_as_they_are_and_times_are_added(tmp_path: Path) -> None:
    assert encode_trace(b'{"a": 1.0,\n"b":1}') == b'{"a": 1.0,\n"b":1}'
    found = json.loads(encode_trace({"id": "x"}))
    stamp = datetime.datetime.fromisoformat(found["created_at"])
    assert abs(stamp - datetime.datetime.now(datetime.UTC)) < datetime.timedelta(minutes=5)


def test_the_callers_trace_is_not_changed() -> None:
    trace = {"id": "x", "billing_context": Billing("pro")}
    encode_trace(trace)
    assert trace == {"id": "x", "billing_context": Billing("pro")}


@pytest.mark.parametrize("policy", ["never", "interval", "each"])
def test_threads_and_tasks_store_each_trace_once(tmp_path: Path, policy: str) -> None:
    spool = tmp_path / "spool"
    writer = Writer(spool, WriterOptions(fsync=policy, segment_records=70))

    def write(thread: int) -> None:
        for number in range(50):
            writer.write({"id": f"t{thread}-{number}"})

    threads = [threading.Thread(target=write, args=(each,)) for each in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()

    async def storm() -> None:
        await asyncio.gather(*(writer.write_async({"id": f"a-{each}"}) for each in range(200)))

    asyncio.run(storm())
    asyncio.run(storm_named(writer, "b"))
    writer.close()
    ids = [each["id"] for each in records(spool)]
    want = {f"t{thread}-{number}" for thread in range(4) for number in range(50)}
    want |= {f"{name}-{number}" for name in "ab" for number in range(200)}
    assert len(ids) == len(want)
    assert set(ids) == want
    for thread in range(4):
        own = [each for each in ids if each.startswith(f"t{thread}-")]
        assert own == [f"t{thread}-{number}" for number in range(50)], "a caller's order is kept"
    assert writer.stats().written == len(want)
    assert not list(spool.glob("*.open"))


async def storm_named(writer: Writer, name: str) -> None:
    await asyncio.gather(*(writer.write_async({"id": f"{name}-{each}"}) for each in range(200)))


def test_each_returns_after_the_sync_and_shares_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real = writer_module._fdatasync

    def slow(descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        time.sleep(0.02)
        real(descriptor)
        synced.append(size)

    monkeypatch.setattr(writer_module, "_fdatasync", slow)
    writer = Writer(tmp_path / "spool", WriterOptions(fsync="each", segment_seconds=60))
    writer.write({"id": "first"})
    (path,) = (tmp_path / "spool").iterdir()
    assert synced == [path.stat().st_size]

    async def storm() -> None:
        await asyncio.gather(*(writer.write_async({"id": str(each)}) for each in range(100)))
        assert synced[-1] == path.stat().st_size

    asyncio.run(storm())
    threads = [threading.Thread(target=writer.write, args=({"id": "t"},)) for _ in range(20)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert synced[-1] == path.stat().st_size
    assert len(synced) < 30, "121 writes share their syncs"
    writer.close()


def test_a_sync_waits_for_no_thread_of_the_loop(tmp_path: Path) -> None:
    """Reads that wait for a store may hold all of them."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        release = threading.Event()
        for _ in range(100):
            loop.run_in_executor(None, release.wait, 30)
        try:
            async with asyncio.timeout(10):
                async with Writer(tmp_path / "spool", WriterOptions(fsync="each")) as writer:
                    await writer.write_async({"id": "x"})
                    release.set()
        finally:
            release.set()

    asyncio.run(main())
    assert [each["id"] for each in records(tmp_path / "spool")] == ["x"]


def test_a_loop_closed_within_a_sync_hangs_no_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new loop may even have the same address."""
    slow = threading.Event()
    monkeypatch.setattr(writer_module, "_fdatasync", lambda descriptor: slow.wait(0.05))
    writer = Writer(tmp_path / "spool", WriterOptions(fsync="each"))

    async def impatient(number: int) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(writer.write_async({"id": number}), 0.001)

    for number in range(5):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(impatient(number))
        loop.close()
    loop = asyncio.new_event_loop()
    loop.run_until_complete(asyncio.wait_for(writer.write_async({"id": 5}), 10))
    loop.close()
    writer.close()
    assert [each["id"] for each in records(tmp_path / "spool")] == list(range(6))
    assert len(writer._groups) <= 1


def test_counting_a_large_directory_holds_no_writer_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []

    def slowly(spool: Path) -> int:
        counted.append(threading.current_thread())
        if len(counted) > 1:
            time.sleep(0.5)
        return 0

    monkeypatch.setattr(writer_module, "disk_bytes", slowly)
    monkeypatch.setattr(writer_module, "_SCAN_EVERY", 0.01)
    worst = 0.0
    with Writer(tmp_path / "spool", WriterOptions(fsync_interval_ms=10)) as writer:
        end = time.monotonic() + 2
        while time.monotonic() < end:
            begun = time.monotonic()
            writer.write({"id": "x"})
            worst = max(worst, time.monotonic() - begun)
            time.sleep(0.002)
    assert threading.current_thread() not in counted[1:]
    assert 2 <= len(counted) <= 4, "a twentieth of the time at most"
    assert worst < 0.4


def test_a_write_while_the_interpreter_ends_is_stored(tmp_path: Path) -> None:
    script = (
        "import atexit, sys\n"
        "from loader.writer import Writer\n"
        "writer = Writer(sys.argv[1])\n"
        "atexit.register(writer.write, {'id': 'last'})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "spool")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert [each["id"] for each in records(tmp_path / "spool")] == ["last"]


def test_a_segment_that_was_removed_is_told_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = Writer(tmp_path / "spool", WriterOptions(segment_seconds=60))
    writer.write({"id": "x"})
    for path in (tmp_path / "spool").iterdir():
        path.unlink()
    writer.close()
    assert writer.stats().removed == 1
    assert "1 records are lost" in caplog.text


def test_interval_syncs_within_its_window_and_never_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = threading.Event()
    monkeypatch.setattr(writer_module, "_fdatasync", lambda descriptor: synced.set())
    options = WriterOptions(fsync="interval", fsync_interval_ms=20, segment_seconds=60)
    writer = Writer(tmp_path / "spool", options)
    writer.write({"id": "x"})
    assert synced.wait(10)
    writer.close()
    synced.clear()
    with Writer(tmp_path / "spool", WriterOptions(fsync="never", segment_seconds=0.01)) as writer:
        writer.write({"id": "x"})
    assert not synced.is_set()


def test_a_failed_sync_raises_for_each_and_the_next_segment_is_fresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    writer = Writer(tmp_path / "spool", WriterOptions(fsync="each", segment_seconds=60))
    with monkeypatch.context() as patch:
        patch.setattr(writer_module, "_fdatasync", broken)
        with pytest.raises(SpoolError, match="fsync failed"):
            writer.write({"id": "x"})
        with pytest.raises(SpoolError, match="fsync failed"):
            asyncio.run(writer.write_async({"id": "y"}))
    writer.write({"id": "z"})
    writer.close()
    assert writer.stats().fsync_failures == 2
    assert "z" in [each["id"] for each in records(tmp_path / "spool")]


def test_segments_are_finished_by_age_records_and_bytes(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    with Writer(spool, WriterOptions(segment_seconds=0.05)) as writer:
        writer.write({"id": "x"})
        deadline = time.monotonic() + 10
        while not list(spool.glob("*.ready")):
            assert time.monotonic() < deadline, "an idle writer's segment is finished too"
            time.sleep(0.01)
    with Writer(tmp_path / "b", WriterOptions(segment_seconds=60, segment_records=2)) as writer:
        for _ in range(4):
            writer.write({"id": "x"})
        assert len(list((tmp_path / "b").glob("*.ready"))) == 2
    with Writer(tmp_path / "c", WriterOptions(segment_seconds=60, segment_bytes=500)) as writer:
        writer.write({"id": "x" * 600})
        assert len(list((tmp_path / "c").glob("*.ready"))) == 1


def test_files_are_private(tmp_path: Path) -> None:
    with Writer(tmp_path / "spool") as writer:
        writer.write({"id": "x"})
        (path,) = (tmp_path / "spool").iterdir()
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_full_spool_refuses_and_counts(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    limit = 20_000
    writer = Writer(spool, WriterOptions(max_spool_bytes=limit, on_full="refuse"))
    with pytest.raises(SpoolFull, match="drainer"):
        for _ in range(100):
            writer.write({"id": "x" * 1000})
    with pytest.raises(SpoolFull):
        asyncio.run(writer.write_async({"id": "x" * 1000}))
    stats = writer.stats()
    assert stats.refused == 2
    assert 0 < stats.written < 20
    assert spool_status(spool)["bytes"] <= limit  # type: ignore[operator]
    writer.close()
    for path in spool.iterdir():
        path.unlink()
    writer = Writer(spool, WriterOptions(max_spool_bytes=limit, on_full="refuse"))
    writer.write({"id": "room again"})
    writer.close()


def test_block_waits_for_room_and_then_refuses(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    options = WriterOptions(max_spool_bytes=5_000, on_full="block", block_seconds=0.1)
    writer = Writer(spool, options)
    writer.write({"id": "x" * 4000})
    with pytest.raises(SpoolFull):
        writer.write({"id": "x" * 4000})
    writer.flush()
    writer.options = dataclasses.replace(options, block_seconds=30)
    done: list[str] = []

    def write() -> None:
        writer.write({"id": "x" * 4000})
        done.append("sync")

    async def write_async() -> None:
        async def tick() -> None:
            for _ in range(10):
                await asyncio.sleep(0.01)
            for path in spool.glob("*.ready"):
                path.unlink()

        await asyncio.gather(writer.write_async({"id": "y" * 4000}), tick())
        done.append("async")

    asyncio.run(write_async())
    thread = threading.Thread(target=write)
    thread.start()
    time.sleep(0.05)
    writer.flush()
    for path in spool.glob("*.ready"):
        path.unlink()
    thread.join(30)
    writer.close()
    assert done == ["async", "sync"]
    assert writer.stats().waited == 3


def test_memory_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, inside = threading.Event(), threading.Event()
    real = writer_module._write_all

    def stuck(segment: Any, head: bytes, payload: bytes) -> None:
        if payload:
            inside.set()
            gate.wait(30)
        real(segment, head, payload)

    writer = Writer(tmp_path / "spool", WriterOptions(max_memory_bytes=1000, on_full="refuse"))
    writer._in_flight[0] = 1000
    with pytest.raises(SpoolFull, match="in memory"):
        writer.write({"id": "x"})
    writer._in_flight.clear()
    monkeypatch.setattr(writer_module, "_write_all", stuck)
    thread = threading.Thread(target=writer.write, args=({"id": "x" * 2000},))
    thread.start()
    assert inside.wait(30)
    assert sum(writer._in_flight.values()) > 2000
    gate.set()
    thread.join()
    assert not writer._in_flight
    writer.close()


def test_a_record_too_large_is_refused(tmp_path: Path) -> None:
    with Writer(tmp_path / "spool", WriterOptions(max_record_bytes=100)) as writer:
        with pytest.raises(RecordTooLarge, match="100"):
            writer.write(b"x" * 101)
        assert writer.stats().failed == 1


def test_a_closed_writer_says_so(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "spool")
    writer.close()
    writer.close()
    with pytest.raises(SpoolClosed):
        writer.write({"id": "x"})


def test_a_forked_child_writes_a_stream_of_its_own(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    writer = Writer(spool, WriterOptions(segment_seconds=60, fsync="each"))
    stop = threading.Event()

    def background() -> None:
        while not stop.is_set():
            writer.write({"id": "background"})

    thread = threading.Thread(target=background)
    thread.start()
    children = []
    for number in range(6):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                for each in range(5):
                    writer.write({"id": f"child-{number}-{each}"})
                writer.close()
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    stop.set()
    thread.join()
    writer.write({"id": "parent"})
    writer.close()
    assert codes == [0] * 6
    ids = [each["id"] for each in records(spool)]
    assert sorted(each for each in ids if each.startswith("child")) == sorted(
        f"child-{number}-{each}" for number in range(6) for each in range(5)
    )
    assert ids.count("background") == writer.stats().written - 1
    assert ids.count("parent") == 1


def test_the_parents_segment_is_not_kept_alive_by_a_child(tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "from loader.writer import Writer, WriterOptions\n"
        "writer = Writer(sys.argv[1], WriterOptions(segment_seconds=60))\n"
        "writer.write({'id': 'parent'})\n"
        "if os.fork() == 0:\n"
        "    os.close(1)\n"
        "    sys.stdin.read()\n"
        "    os._exit(0)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    spool = tmp_path / "spool"
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(spool)], cwd=ROOT, stdin=subprocess.PIPE
    )
    try:
        assert process.wait(30) == -9
        # The child lets go as soon as it runs, which it need not have yet.
        deadline = time.monotonic() + 30
        while spool_status(spool)["segments_stale"] == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert spool_status(spool)["segments_stale"] == 1
    finally:
        assert process.stdin is not None
        process.stdin.close()


def test_process_exit_finishes_the_segment(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from loader.writer import Writer, WriterOptions\n"
        "writer = Writer(sys.argv[1], WriterOptions(segment_seconds=60))\n"
        "writer.write({'id': 'x'})\n"
    )
    spool = tmp_path / "spool"
    subprocess.run([sys.executable, "-c", script, str(spool)], cwd=ROOT, check=True)
    assert spool_status(spool)["segments_ready"] == 1


def test_four_processes_share_a_spool(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    command = [sys.executable, "-m", "tests.server.traffic", str(spool), "--count", "50"]
    processes = [
        subprocess.Popen([*command, "--name", str(each)], cwd=ROOT, stdout=subprocess.PIPE)
        for each in range(4)
    ]
    acknowledged = b"".join(each.communicate(timeout=60)[0] for each in processes).split()
    assert len(acknowledged) == 4 * 4 * 50
    assert sorted(each["id"] for each in records(spool)) == sorted(
        f"provider_trace-{each.decode()}" for each in acknowledged
    )


def test_a_clock_set_back_changes_neither_order_nor_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = tmp_path / "spool"
    writer = Writer(spool, WriterOptions(segment_records=1, segment_seconds=60))
    now = time.time_ns()
    for number in range(20):
        monkeypatch.setattr("loader.spool.time.time_ns", lambda at=now - number * 10**12: at)
        writer.write({"id": number})
    writer.close()
    assert len(list(spool.glob("*.ready"))) == 20
    assert [each["id"] for each in records(spool)] == list(range(20))


def test_a_read_only_spool_is_an_error_and_recovers(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere: the next test covers it by another error")
    spool = tmp_path / "spool"
    writer = Writer(spool)
    spool.chmod(0o500)
    with pytest.raises(SpoolError, match="may write"):
        writer.write({"id": "x"})
    with pytest.raises(SpoolError, match="may not be written"):
        Writer(spool)
    spool.chmod(0o700)
    writer.write({"id": "y"})
    writer.close()


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES, errno.ENOENT])
def test_an_unusable_spool_is_an_error_and_recovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    writer = Writer(tmp_path / "spool")
    real = os.open

    def refused(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(error, os.strerror(error))
        return real(path, flags, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(writer_module.os, "open", refused)
        with pytest.raises(SpoolError, match=os.strerror(error)):
            writer.write({"id": "x"})
    writer.write({"id": "y"})
    writer.close()
    assert writer.stats().failed == 1
    assert [each["id"] for each in records(tmp_path / "spool")] == ["y"]


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE])
@pytest.mark.parametrize("on_full", ["block", "refuse"])
def test_too_many_open_files_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, on_full: str
) -> None:
    """Whoever has them may close some."""
    real = os.open
    left = 3

    def refused(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        nonlocal left
        if flags & os.O_CREAT and left:
            left -= 1
            raise OSError(error, os.strerror(error))
        return real(path, flags, *rest, **more)

    writer = Writer(tmp_path / "spool", WriterOptions(on_full=on_full))
    monkeypatch.setattr(writer_module.os, "open", refused)
    if on_full == "refuse":
        with pytest.raises(SpoolFull, match=r"(?i)too many open files.*ulimit -n") as told:
            writer.write({"id": "refused"})
        assert "drainer" not in str(told.value)
        left = 0
    writer.write({"id": "x"})
    writer.close()
    assert [each["id"] for each in records(tmp_path / "spool")] == ["x"]
    stats = writer.stats()
    assert (stats.failed, stats.waited) == (0, 1 if on_full == "block" else 0)
    assert stats.refused == (1 if on_full == "refuse" else 0)


@pytest.mark.parametrize("on_full", ["block", "refuse"])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_sync_waits_for_a_descriptor_as_an_append_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_full: str, is_async: bool
) -> None:
    real = writer_module.sync_directory
    left = 3

    def scarce(path: Any) -> None:
        nonlocal left
        if left:
            left -= 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        real(path)

    def write(trace: dict[str, str]) -> None:
        if is_async:
            asyncio.run(writer.write_async(trace))
        else:
            writer.write(trace)

    monkeypatch.setattr(writer_module, "sync_directory", scarce)
    options = WriterOptions(fsync="each", segment_seconds=3600, on_full=on_full)
    writer = Writer(tmp_path / "spool", options)
    if on_full == "refuse":
        with pytest.raises(SpoolError, match=r"(?i)may be lost.*ulimit -n") as told:
            write({"id": "unsure"})
        assert "check the disk" not in str(told.value)
        left = 0
    write({"id": "x"})
    writer.close()
    assert records(tmp_path / "spool")[-1]["id"] == "x"
    stats = writer.stats()
    assert stats.fsync_failures == 0
    assert (stats.failed, stats.waited) == ((0, 1) if on_full == "block" else (1, 0))


@pytest.mark.parametrize("by", ["age", "count"])
def test_a_segment_that_is_over_waits_for_a_descriptor_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """Who waits for its sync is not told that the disk failed, and it is finished in the end."""
    real = writer_module.sync_directory
    ends = time.monotonic() + 1

    def scarce(path: Any) -> None:
        if time.monotonic() < ends:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        real(path)

    monkeypatch.setattr(writer_module, "sync_directory", scarce)
    options = WriterOptions(
        fsync="each",
        segment_seconds=0.1 if by == "age" else 0.5,
        segment_records=1 if by == "count" else 5000,
        block_seconds=60,
    )
    writer = Writer(tmp_path / "spool", options)
    writer.write({"id": "x"})
    deadline = time.monotonic() + 10
    while not list((tmp_path / "spool").glob("*.ready")):
        assert time.monotonic() < deadline, "nobody finishes it"
        time.sleep(0.01)
    assert writer._unfinished == set()
    writer.close()
    stats = writer.stats()
    assert (stats.failed, stats.fsync_failures, stats.segments) == (0, 0, 1)


def test_the_writers_thread_is_started_as_soon_as_one_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the machine had no room for one, nothing was finished by age, and nothing synced."""
    writer = Writer(tmp_path / "spool", WriterOptions(segment_seconds=0.2, fsync_interval_ms=10))

    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        for number in range(3):
            writer.write({"id": number})
    writer.write({"id": 3})
    deadline = time.monotonic() + 10
    while not list((tmp_path / "spool").glob("*.ready")):
        assert time.monotonic() < deadline, "what is written into is finished by its age"
        time.sleep(0.01)
    assert writer.stats().fsyncs
    writer.close()
    assert [each["id"] for each in records(tmp_path / "spool")] == [0, 1, 2, 3]


def test_a_spool_that_cannot_be_counted_is_not_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While too many files are open, what was counted before stands."""
    real = os.scandir
    is_scarce = True

    def scarce(path: Any) -> Any:
        if is_scarce:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path)

    spool = tmp_path / "spool"
    Writer(spool).close()
    (spool / "other").write_bytes(b"x" * 5000)
    monkeypatch.setattr(os, "scandir", scarce)
    writer = Writer(spool, WriterOptions(on_full="refuse", max_spool_bytes=4000))
    with pytest.raises(SpoolFull, match=r"(?i)too many open files"):
        writer.write({"id": "x"})
    is_scarce = False
    with pytest.raises(SpoolFull, match="5000 of at most 4000"):
        writer.write({"id": "x"})
    is_scarce = True
    writer._scan_aside()
    with pytest.raises(SpoolFull, match=r"5000 of at most|open files"):
        writer.write({"id": "x"})
    writer.close()


def test_the_spool_is_counted_again_where_counting_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the caller goes on that started it."""

    def start(action: Callable[[], None], name: str) -> threading.Thread:
        thread = threading.Thread(target=action, name=name)
        thread.start()
        thread.join()
        return thread

    counted: list[Path] = []
    monkeypatch.setattr(writer_module, "_start", start)
    monkeypatch.setattr(writer_module, "disk_bytes", lambda spool: counted.append(spool) or 0)
    monkeypatch.setattr(writer_module, "_SCAN_EVERY", 0)
    monkeypatch.setattr(writer_module, "_SCAN_SHARE", 0)
    writer = Writer(tmp_path / "spool")
    for _ in range(3):
        writer._scan_if_due()
    assert len(counted) == 3


def test_a_directory_that_cannot_be_opened_is_synced_in_the_next_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where too many files are open: no sync has failed, after which none may be asked again."""
    real = writer_module.sync_directory
    tried: list[bool] = []
    is_synced = threading.Event()

    def scarce(path: Any) -> None:
        tried.append(True)
        if len(tried) < 3:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        real(path)
        is_synced.set()

    monkeypatch.setattr(writer_module, "sync_directory", scarce)
    options = WriterOptions(fsync="interval", fsync_interval_ms=5, segment_seconds=3600)
    writer = Writer(tmp_path / "spool", options)
    writer.write({"id": "x"})
    assert is_synced.wait(10)
    writer.close()
    assert writer.stats().fsync_failures == 0
    assert [path.suffix for path in (tmp_path / "spool").iterdir()] == [".ready"]


@pytest.mark.parametrize("fails", ["ftruncate", "sync_directory"])
def test_who_waits_for_a_sync_is_told_when_the_segment_ends_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """A write before it has been interrupted, and cannot be cut off, or too many files are open."""

    def failed(*given: Any) -> None:
        error = errno.EIO if fails == "ftruncate" else errno.EMFILE
        raise OSError(error, os.strerror(error))

    writer = Writer(tmp_path / "spool", WriterOptions(fsync="each", segment_seconds=3600))
    segment, end = writer._try_append({"id": "waits"}, writer_module.RECORD)
    segment.is_whole = fails != "ftruncate"
    where = writer_module.os if fails == "ftruncate" else writer_module
    with monkeypatch.context() as patch:
        patch.setattr(where, fails, failed)
        writer.flush()
    with pytest.raises(OSError, match=r"output error|Too many"):
        writer._sync(segment, end)
    writer.write({"id": "next"})
    writer.close()
    assert [each["id"] for each in records(tmp_path / "spool")] == ["waits", "next"]


def test_a_full_disk_refuses_whole_records_and_recovers(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)], capture_output=True
    )
    if made.returncode != 0:
        pytest.skip("a small file system can be mounted by root only")
    try:
        spool = mount / "spool"
        writer = Writer(spool, WriterOptions(on_full="refuse", segment_seconds=60))
        stored = []
        with pytest.raises(SpoolFull, match="space"):
            for number in range(1000):
                writer.write({"id": number, "text": "x" * 3000})
                stored.append(number)
        with pytest.raises(SpoolFull):
            writer.write({"id": 0, "text": "x" * 9000})
        assert [each["id"] for each in records(spool)] == stored, "nothing torn, nothing lost"
        writer.flush()
        for path in spool.glob("*.ready"):
            path.unlink()
        writer.write({"id": "again", "text": "x" * 3000})
        writer.close()
        assert [each["id"] for each in records(spool)] == ["again"]
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


def test_a_file_that_may_not_grow_is_cut_back_and_followed_by_another(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    writer = Writer(spool, WriterOptions(on_full="refuse", segment_seconds=60))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, old[1]))
    try:
        for number in range(5):
            writer.write({"id": number, "text": "x" * 4000})
        with pytest.raises(SpoolFull):
            writer.write({"id": 5, "text": "x" * 20_000})
        writer.write({"id": 6, "text": "x" * 4000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    writer.close()
    assert [each["id"] for each in records(spool)] == [0, 1, 2, 3, 4, 6]


@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeoutError, RuntimeError])
def test_an_interrupted_write_makes_a_later_failure_cut_off_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """A signal's handler may raise as soon as the kernel has the bytes."""
    real = os.writev

    def interrupted(descriptor: int, parts: Any) -> int:
        real(descriptor, parts)
        raise error

    spool = tmp_path / "spool"
    writer = Writer(spool, WriterOptions(on_full="refuse", segment_seconds=3600))
    writer.write({"id": 0, "text": "x" * 2000})
    with monkeypatch.context() as patch:
        patch.setattr(writer_module.os, "writev", interrupted)
        with pytest.raises(error):
            writer.write({"id": 1, "text": "x" * 2000})
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, old[1]))
    try:
        for number in (2, 3):
            writer.write({"id": number, "text": "x" * 2000})
        for number in (4, 5):
            writer.write({"id": number, "text": "x" * 6000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    writer.close()
    found = [each["id"] for each in records(spool)]
    assert sorted({*found} - {1}) == [0, 2, 3, 4, 5]
    assert len(found) == len({*found})


class Interrupted(Exception):
    """What a signal's handler raises."""


class Interruptions:
    """Raises at the `step`-th line that the writer runs, as a signal's handler may."""

    def __init__(self, step: int, error: type[Exception]) -> None:
        self.left = step
        self.error = error
        self._lines = Path(writer_module.__file__).read_text().splitlines()

    def __call__(self, frame: types.FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename != writer_module.__file__:
            return None
        # At a with, the step may be the one out of it, within which no signal is looked at.
        is_with = self._lines[frame.f_lineno - 1].lstrip().startswith("with ")
        if event == "line" and not is_with:
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                self.interrupt()
        return self

    def interrupt(self) -> None:
        raise self.error

    @contextlib.contextmanager
    def armed(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self)
        try:
            yield
        finally:
            sys.settrace(before)


@pytest.mark.parametrize("error", [Interrupted, TimeoutError])
@pytest.mark.parametrize("policy", ["interval", "each"])
def test_a_write_interrupted_anywhere_loses_nothing_that_was_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, error: type[Exception]
) -> None:
    """The write behind it fails halfway; then all goes on, and nothing is left unfinished."""
    real = os.writev

    def fails_halfway(descriptor: int, parts: Any) -> int:
        if len(parts[0]) < 16:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, [parts[0][:10]])

    spool = tmp_path / "spool"
    descriptors = len([*Path("/proc/self/fd").iterdir()])
    options = WriterOptions(
        fsync=policy, on_full="refuse", segment_seconds=3600, segment_records=3, max_memory_bytes=1
    )
    writer = Writer(spool, options)
    acknowledged, is_over = [], False
    step = 0
    while not is_over:
        step += 1
        for number in range(4 if step % 2 else 3):
            name = f"{step}-{number}"
            if number == 1:
                try:
                    with Interruptions(step, error).armed():
                        writer.write({"id": name})
                        is_over = True
                except error:
                    continue
            elif number == 2:
                with monkeypatch.context() as patch:
                    patch.setattr(writer_module.os, "writev", fails_halfway)
                    with pytest.raises(SpoolFull, match="space"):
                        writer.write({"id": name})
                continue
            else:
                writer.write({"id": name})
            acknowledged.append(name)
    assert step > 60
    writer.close()
    assert {path.suffix for path in spool.iterdir()} == {".ready"}
    found = [each["id"] for each in records(spool)]
    assert len(found) == len({*found})
    assert {*acknowledged} <= {*found}
    assert {each.split("-")[1] for each in {*found} - {*acknowledged}} <= {"1"}
    assert len([*Path("/proc/self/fd").iterdir()]) <= descriptors


# A file that was being opened has nobody yet, and is closed as such.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_time_limits_within_writes_hang_no_thread(tmp_path: Path) -> None:
    """Real signals, which also come within what the writer calls."""

    def out_of_time(number: int, frame: Any) -> None:
        raise Interrupted

    def one(number: int) -> None:
        signal.setitimer(signal.ITIMER_REAL, 1e-6 + number % 100 * 3e-6, 10)
        try:
            writer.write({"id": number})
            acknowledged.append(number)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def end() -> None:
        writer.write({"id": -1})
        writer.close()

    options = WriterOptions(fsync="never", segment_seconds=3600, segment_records=2)
    writer = Writer(tmp_path / "spool", options)
    writer.write({"id": -2})
    acknowledged = [-1, -2]
    interruptions = 0
    before = signal.signal(signal.SIGALRM, out_of_time)
    try:
        for number in range(5_000):
            begun = time.monotonic()
            try:
                try:
                    one(number)
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupted:
                interruptions += 1
            assert time.monotonic() - begun < 9, "it waited for a lock that nobody frees"
    finally:
        signal.signal(signal.SIGALRM, before)
    other = threading.Thread(target=end, daemon=True)
    other.start()
    other.join(30)
    assert not other.is_alive()
    assert interruptions > 100
    found = [each["id"] for each in records(tmp_path / "spool")]
    assert len(found) == len({*found})
    assert {*acknowledged} <= {*found}


@pytest.mark.parametrize("error", [Interrupted, TimeoutError])
@pytest.mark.parametrize("ending", ["flush", "close"])
def test_an_interrupted_end_is_made_good(
    tmp_path: Path, ending: str, error: type[Exception]
) -> None:
    step, is_over = 0, False
    while not is_over:
        step += 1
        spool = tmp_path / str(step)
        writer = Writer(spool, WriterOptions(fsync="interval", segment_seconds=3600))
        writer.write({"id": "x"})
        try:
            with Interruptions(step, error).armed():
                getattr(writer, ending)()
            is_over = True
        except error:
            writer.close()
        assert [path.suffix for path in spool.iterdir()] == [".ready"], step
        assert [each["id"] for each in records(spool)] == ["x"]
        assert writer.stats().removed == 0, step
        writer.close()
    assert step > 10


@contextlib.contextmanager
def out_of_time_after(seconds: float) -> Iterator[None]:
    """Have a signal's handler raise; what swallows it may go on."""

    def out_of_time(number: int, frame: Any) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, out_of_time)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def exit_code(pid: int, seconds: float = 30) -> int | None:
    """Wait for a child; None, and its end, when it hangs."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (found := os.waitpid(pid, os.WNOHANG))[0] == pid:
            return os.waitstatus_to_exitcode(found[1])
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def fork_to(action: Callable[[], object]) -> int:
    """Fork a child that ends with 0 when the action succeeds; return its id."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            sys.settrace(None)
            action()
            status = 0
        finally:
            os._exit(status)
    return pid


# CPython swallows what a handler raises in a hook of the fork, and forks.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_fork_out_of_time_lets_no_two_threads_write_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.writev
    inside: list[int] = []
    most = 0

    def slow(descriptor: int, parts: Any) -> int:
        nonlocal most
        inside.append(descriptor)
        most = max(most, len(inside))
        time.sleep(0.3)
        try:
            return real(descriptor, parts)
        finally:
            inside.pop()

    writer = Writer(tmp_path / "spool", WriterOptions(segment_seconds=3600))
    writer.write({"id": 0})
    monkeypatch.setattr(writer_module.os, "writev", slow)
    threads = [threading.Thread(target=writer.write, args=({"id": each},)) for each in (1, 2, 3)]
    threads[0].start()
    while not inside:
        time.sleep(0.001)
    threads[1].start()
    with contextlib.suppress(Interrupted), out_of_time_after(0.1):
        assert exit_code(fork_to(lambda: None)) == 0
        time.sleep(0.2)
    threads[2].start()
    for each in threads:
        each.join()
    writer.close()
    assert most == 1
    assert sorted(each["id"] for each in records(tmp_path / "spool")) == [0, 1, 2, 3]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_fork_interrupted_anywhere_holds_no_writer(tmp_path: Path) -> None:
    """Neither in the parent nor in the child, which appends to no segment of the parent's."""
    spool = tmp_path / "spool"
    closed = Writer(spool)
    closed.close()
    writer = Writer(spool, WriterOptions(fsync="never", segment_seconds=3600))
    want = []

    def child(name: str) -> None:
        with pytest.raises(SpoolClosed):
            closed.write({"id": name})
        assert writer.stats().written == 0
        writer.write({"id": f"{name}-child"})
        os.kill(os.getpid(), signal.SIGKILL)

    for step in range(1, 100):
        writer.write({"id": f"{step}-before"})
        with contextlib.suppress(Interrupted), Interruptions(step, Interrupted).armed():
            pid = fork_to(lambda name=str(step): child(name))  # type: ignore[misc]
        assert exit_code(pid) == -signal.SIGKILL, step
        thread = threading.Thread(target=writer.write, args=({"id": f"{step}-after"},), daemon=True)
        thread.start()
        thread.join(10)
        assert not thread.is_alive(), f"step {step}: it waits for a lock that nobody frees"
        want += [f"{step}-{each}" for each in ("before", "child", "after")]
    writer.close()
    assert sorted(each["id"] for each in records(spool)) == sorted(want)
    assert len([*spool.glob("*.ready")]) == 1, "all of the parent's are in one segment"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("seconds", [0.1, 10], ids=["out of time", "in time"])
def test_a_fork_waits_for_a_segment_that_is_being_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """A child that has it without knowing would keep its lock when the parent is dead."""
    real = os.open
    opening = threading.Event()

    def slow(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        descriptor = real(path, flags, *rest, **more)
        if flags & os.O_CREAT:
            opening.set()
            time.sleep(0.4)
        return descriptor

    def child() -> None:
        held = [each.resolve() for each in Path("/proc/self/fd").iterdir()]
        assert seconds < 1 or spool not in {each.parent for each in held}
        writer.write({"id": "child"})
        writer.close()

    spool = tmp_path / "spool"
    writer = Writer(spool, WriterOptions(segment_seconds=3600))
    monkeypatch.setattr(writer_module.os, "open", slow)
    thread = threading.Thread(target=writer.write, args=({"id": "parent"},), daemon=True)
    thread.start()
    assert opening.wait(10)
    with contextlib.suppress(Interrupted), out_of_time_after(seconds):
        assert exit_code(fork_to(child)) == 0
    thread.join(10)
    writer.close()
    assert sorted(each["id"] for each in records(spool)) == ["child", "parent"]


class Within(Interruptions):
    """Calls something at the `step`-th line that the writer runs, as a signal's handler may."""

    def __init__(self, step: int, action: Callable[[], object]) -> None:
        super().__init__(step, Interrupted)
        self._action = action

    def interrupt(self) -> None:
        self._action()


def ends(action: Callable[[], object], seconds: float = 20) -> bool:
    """Run in a thread; tell whether it ended."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


@pytest.mark.parametrize("call", ["write", "flush", "close", "stats", "fork"])
@pytest.mark.parametrize("policy", ["interval", "each"])
def test_a_call_from_within_a_write_of_the_same_thread_is_done_or_refused(
    tmp_path: Path, policy: str, call: str
) -> None:
    """A signal's handler, or what the collector runs, anywhere within the write."""
    spool = tmp_path / "spool"
    options = WriterOptions(fsync=policy, segment_seconds=3600, segment_records=2)
    acknowledged: list[str] = []
    told: list[str] = []
    is_over = False

    def write(name: str) -> None:
        writer.write({"id": name})
        acknowledged.append(name)

    def inner(step: int) -> None:
        try:
            if call == "write":
                write(f"{step}-inner")
            elif call == "fork":
                assert exit_code(fork_to(lambda: None)) == 0
            else:
                getattr(writer, call)()
        except SpoolError as error:
            told.append(str(error))

    def outer(step: int) -> None:
        nonlocal is_over
        write(f"{step}-before")
        try:
            with (within := Within(step, lambda: inner(step))).armed():
                write(f"{step}-outer")
        except SpoolClosed:
            assert call == "close"
        is_over = within.left > 0

    writer = Writer(spool, options)
    step = steps = 0
    while not is_over:
        step += 3 if call == "fork" else 1
        steps += 1
        assert ends(lambda step=step: outer(step)), f"step {step} hangs"  # type: ignore[misc]
        if call == "close":
            writer.close()
            writer = Writer(spool, options)
    assert step > 30
    writer.close()
    assert len([each for each in acknowledged if each.endswith("before")]) == steps
    assert sorted(each["id"] for each in records(spool)) == sorted(acknowledged)
    assert {path.suffix for path in spool.iterdir()} == {".ready"}
    assert (len(told) > 5) == (call in ("write", "flush", "close"))
    assert all("within" in each and "same thread" in each for each in told)


def test_a_handler_that_writes_hangs_nothing(tmp_path: Path) -> None:
    """Real signals, which also come within what the writer calls."""
    writer = Writer(tmp_path / "spool", WriterOptions(fsync="never", segment_records=5))
    stored: list[str] = []
    refused = 0
    deadline = time.monotonic() + 30

    def write(name: str) -> None:
        writer.write({"id": name, "text": "x" * 20_000})
        stored.append(name)

    def handler(number: int, frame: Any) -> None:
        nonlocal refused
        assert time.monotonic() < deadline, "it waits for a lock that it holds itself"
        try:
            write(f"handler-{len(stored)}")
        except SpoolError:
            refused += 1

    before = signal.signal(signal.SIGALRM, handler)
    try:
        for number in range(3_000):
            signal.setitimer(signal.ITIMER_REAL, 1e-6 + number % 100 * 3e-6, 10)
            write(f"main-{number}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    writer.close()
    assert len(stored) > 3_000
    assert refused
    assert sorted(each["id"] for each in records(tmp_path / "spool")) == sorted(stored)


@pytest.mark.parametrize("within", ["writev", "open"])
def test_a_child_forked_within_a_write_leaves_it_to_the_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, within: str
) -> None:
    """By a signal's handler; the child then returns into the write."""
    real = getattr(os, within)
    parent = os.getpid()
    pids: list[int] = []

    def forks(*given: Any, **named: Any) -> Any:
        if not pids:
            pids.append(os.fork())
        return real(*given, **named)

    spool = tmp_path / "spool"
    writer = Writer(spool, WriterOptions(segment_seconds=3600))
    writer.write({"id": 0})
    if within == "open":
        writer.flush()
    monkeypatch.setattr(writer_module.os, within, forks)
    status = 1
    try:
        try:
            writer.write({"id": 1})
        except SpoolError as error:
            assert os.getpid() != parent
            assert ("Bad file descriptor" in str(error)) or within == "open"
            writer.write({"id": 2})
            writer.close()
            status = 0
    finally:
        if os.getpid() != parent:
            os._exit(status)
    assert exit_code(pids[0]) == 0
    writer.close()
    assert sorted(each["id"] for each in records(spool)) == [0, 1, 2]


def test_options_come_from_the_environment() -> None:
    found = WriterOptions.from_environment(
        {
            "TOKENLEDGER_SPOOL_FSYNC": "each",
            "TOKENLEDGER_SPOOL_SEGMENT_SECONDS": "0.5",
            "TOKENLEDGER_SPOOL_MAX_SPOOL_BYTES": "1000",
        }
    )
    assert (found.fsync, found.segment_seconds, found.max_spool_bytes) == ("each", 0.5, 1000)
    for name, value in [
        ("FSYNC", "sometimes"),
        ("ON_FULL", "drop"),
        ("SEGMENT_BYTES", "many"),
        ("SEGMENT_BYTES", "0"),
        ("MAX_RECORD_BYTES", str(10**10)),
        ("SEGMENT_SECONDS", "nan"),
        ("SEGMENT_SECONDS", "inf"),
        ("BLOCK_SECONDS", "1e10"),
        ("FSYNC_INTERVAL_MS", str(10**12)),
    ]:
        with pytest.raises(UsageError, match=r"(?i)" + name):
            WriterOptions.from_environment({f"TOKENLEDGER_SPOOL_{name}": value})
