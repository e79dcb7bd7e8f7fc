"""The socket: records in, whatever the peers do; the file's life; the counters."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loader.listener import Listener, ListenerOptions, SocketError, _Budget
from loader.spool import REJECT, Frame, decode_reject, read_frames
from loader.writer import Writer, WriterOptions
from tests.support.project import ROOT

LISTEN = [sys.executable, "-m", "loader", "listen"]


def record(name: str, size: int = 10) -> bytes:
    return json.dumps(
        {
            "protocol_version": 3,
            "provider_trace_id": name,
            "request": {"text": "x" * size},
            "response": {},
        }
    ).encode()


def contents(spool: Path) -> tuple[list[bytes], list[tuple[str, bytes]]]:
    """Return the records and the rejects (reason, bytes) of a spool."""
    records, rejects = [], []
    for path in sorted(spool.iterdir()):
        for frame in read_frames(path.read_bytes()):
            assert isinstance(frame, Frame)
            if frame.kind == REJECT:
                reason, _, raw = decode_reject(frame.payload)
                rejects.append((reason, raw))
            else:
                records.append(bytes(frame.payload))
    return records, rejects


Peers = Callable[[Listener], Awaitable[None]]


def listen(
    tmp_path: Path, peers: Peers, writer_type: type[Writer] = Writer, **options: Any
) -> Listener:
    """Run a listener in this process while `peers` speak to it."""

    async def main() -> Listener:
        with writer_type(tmp_path / "spool", WriterOptions(segment_seconds=60)) as writer:
            listener = Listener(tmp_path / "s.sock", writer, ListenerOptions(**options))
            ready = asyncio.Event()
            task = asyncio.create_task(listener.serve(ready.set))
            await asyncio.wait(
                {task, asyncio.create_task(ready.wait())}, return_when="FIRST_COMPLETED"
            )
            try:
                if not task.done():
                    await asyncio.wait_for(peers(listener), 60)
            finally:
                listener.stop()
                await task
            return listener

    return asyncio.run(main())


async def send(listener: Listener, *pieces: bytes, pause: float = 0.0) -> None:
    """Speak as one peer, and end."""
    _, writer = await asyncio.open_unix_connection(str(listener.path))
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        if pause:
            await asyncio.sleep(pause)
    writer.close()
    await writer.wait_closed()


def test_one_record_a_connection_or_many(tmp_path: Path) -> None:
    async def peers(listener: Listener) -> None:
        await send(listener, record("a") + b"\n")
        await send(listener, record("b") + b"\n" + record("c") + b"\n")
        await send(listener, record("d")[:20], record("d")[20:] + b"\n", pause=0.01)
        await send(listener, record("e") + b"\r\n\n  \n" + record("f"))
        await send(listener)

    listener = listen(tmp_path, peers)
    records, rejects = contents(tmp_path / "spool")
    assert [json.loads(each)["provider_trace_id"] for each in records] == list("abcdef")
    assert rejects == []
    assert (listener.counts.connections, listener.counts.records) == (5, 6)
    assert listener.counts.open == 0


DEEP = b"[" * 200_000


@pytest.mark.parametrize("half", [record("a")[:-5] + b"\xff", DEEP, b'{"a":NaN,"b":' + DEEP])
def test_half_a_record_is_kept_as_it_came(tmp_path: Path, half: bytes) -> None:

    async def peers(listener: Listener) -> None:
        await send(listener, record("b") + b"\n" + half)

    listener = listen(tmp_path, peers)
    records, rejects = contents(tmp_path / "spool")
    assert records == [record("b")]
    assert rejects == [("half_record", half)]
    assert listener.counts.half_records == 1


def test_what_json_has_besides_json_is_whole(tmp_path: Path) -> None:
    odd = b'{"protocol_version":3,"request":{"x":NaN},"response":{"y":"\\ud800"}}'

    async def peers(listener: Listener) -> None:
        await send(listener, odd)

    listen(tmp_path, peers)
    assert contents(tmp_path / "spool") == ([odd], [])


def test_a_record_above_the_limit_keeps_its_head(tmp_path: Path) -> None:
    async def peers(listener: Listener) -> None:
        await send(listener, b"x" * 30_000 + b"\n" + record("next") + b"\n")

    listener = listen(tmp_path, peers, max_record_bytes=20_000)
    records, ((reason, raw),) = contents(tmp_path / "spool")
    assert records == [record("next")]
    assert reason == "too_large"
    assert raw == b"x" * len(raw)
    assert listener.counts.too_large == 1


def test_a_large_record_is_taken_whole(tmp_path: Path) -> None:
    large = record("large", 20_000_000)

    async def peers(listener: Listener) -> None:
        await send(listener, large + b"\n")

    listen(tmp_path, peers)
    assert contents(tmp_path / "spool") == ([large], [])


def test_two_hundred_peers_with_slow_ones_among_them(tmp_path: Path) -> None:
    async def peers(listener: Listener) -> None:
        slow = [
            asyncio.create_task(
                send(
                    listener,
                    *(record(f"slow-{n}")[at : at + 9] for at in range(0, 200, 9)),
                    b"\n",
                    pause=0.01,
                )
            )
            for n in range(20)
        ]
        stuck = [await asyncio.open_unix_connection(str(listener.path)) for _ in range(20)]
        for _, writer in stuck:
            writer.write(b'{"half')
        await asyncio.gather(*(send(listener, record(f"fast-{n}") + b"\n") for n in range(160)))
        await asyncio.gather(*slow)
        for _, writer in stuck:
            writer.close()

    listener = listen(tmp_path, peers)
    records, rejects = contents(tmp_path / "spool")
    names = [json.loads(each)["provider_trace_id"] for each in records]
    assert sorted(names) == sorted(
        [f"slow-{n}" for n in range(20)] + [f"fast-{n}" for n in range(160)]
    )
    assert rejects == [("half_record", b'{"half')] * 20
    assert listener.counts.connections == 200


def test_memory_is_shared_out_and_all_get_through(tmp_path: Path) -> None:
    budgets: list[int] = []

    async def peers(listener: Listener) -> None:
        async def watch() -> None:
            while True:
                budgets.append(listener._budget.used)
                await asyncio.sleep(0)

        watcher = asyncio.create_task(watch())
        await asyncio.gather(
            *(send(listener, record(f"{n}", 900_000) + b"\n") for n in range(12)),
            *(send(listener, record(f"small-{n}") + b"\n") for n in range(20)),
        )
        while listener.counts.records < 32:
            await asyncio.sleep(0.01)
        watcher.cancel()

    listener = listen(tmp_path, peers, own_bytes=10_000, shared_bytes=2_000_000)
    records, rejects = contents(tmp_path / "spool")
    assert (len(records), rejects) == (32, [])
    assert max(budgets) < 3_500_000, "the limit, and one record beyond"
    assert max(budgets) > 900_000
    assert listener._budget.used == 0


def test_memory_that_is_free_is_given_to_all_it_is_enough_for() -> None:
    """One large holder leaves, and all small ones go on: none waits for the next to leave."""

    async def main() -> None:
        budget = _Budget(100)
        await budget.take("large", 90)
        await budget.take("over", 50)
        assert budget.over == "over"
        small = [asyncio.create_task(budget.take(each, 10)) for each in "abcde"]
        gone = asyncio.create_task(budget.take("gone", 10))
        await asyncio.sleep(0)
        assert budget.is_crowded
        gone.cancel()
        budget.give_back("large", 90)
        await asyncio.wait_for(asyncio.gather(*small), 5)
        assert (budget.used, budget.is_crowded) == (100, False)
        waiting = asyncio.create_task(budget.take("late", 10))
        await asyncio.sleep(0)
        budget.give_back("over", 50)
        waiting.cancel()  # it was given its share, and is cut before it knows
        await asyncio.wait({waiting, gone})
        assert (budget.used, budget.over) == (50, None)

    asyncio.run(main())


def test_who_stands_still_in_the_way_of_others_is_cut(tmp_path: Path) -> None:
    async def peers(listener: Listener) -> None:
        _, writer = await asyncio.open_unix_connection(str(listener.path))
        writer.write(b"x" * 90_000)
        await writer.drain()
        while listener._budget.used < 80_000:
            await asyncio.sleep(0.01)
        _, over = await asyncio.open_unix_connection(str(listener.path))
        over.write(b"y" * 90_000)
        while listener._budget.over is None:
            await asyncio.sleep(0.01)
        await send(listener, record("waits", 50_000) + b"\n")
        while listener.counts.records < 1:
            await asyncio.sleep(0.01)
        writer.close()
        over.close()

    listener = listen(tmp_path, peers, own_bytes=1_000, shared_bytes=100_000, crowded_seconds=0.1)
    records, rejects = contents(tmp_path / "spool")
    assert records == [record("waits", 50_000)]
    assert {raw[:1] for _, raw in rejects} == {b"x", b"y"}
    assert listener.counts.timed_out >= 1


async def borrow(listener: Listener, data: bytes) -> asyncio.StreamWriter:
    """Connect, and send a record's beginning, until it holds shared memory."""
    used = listener._budget.used
    _, writer = await asyncio.open_unix_connection(str(listener.path))
    writer.write(data)
    while listener._budget.used < used + len(data) - listener.options.own_bytes:
        await asyncio.sleep(0.01)
    return writer


def test_who_goes_too_slowly_in_the_way_of_others_is_cut(tmp_path: Path) -> None:
    """A byte now and then is no progress: it would hold the memory for ever."""

    async def peers(listener: Listener) -> None:
        async def dribble(writer: asyncio.StreamWriter) -> None:
            while not writer.is_closing():
                writer.write(b"z")
                await asyncio.sleep(0.02)

        slow = [await borrow(listener, each * 90_000) for each in (b"x", b"y")]
        assert listener._budget.over is not None
        dribbling = [asyncio.create_task(dribble(writer)) for writer in slow]
        await send(listener, record("waits", 50_000) + b"\n")
        while listener.counts.records < 1:
            await asyncio.sleep(0.01)
        for writer, task in zip(slow, dribbling, strict=True):
            writer.close()
            await asyncio.wait({task})

    listener = listen(tmp_path, peers, own_bytes=1_000, shared_bytes=100_000, crowded_seconds=0.2)
    records, rejects = contents(tmp_path / "spool")
    assert records == [record("waits", 50_000)]
    assert [reason for reason, _ in rejects] == ["half_record"] * 2
    assert {(raw[:90_000], raw[90_000:].strip(b"z")) for _, raw in rejects} == {
        (b"x" * 90_000, b""),
        (b"y" * 90_000, b""),
    }
    assert listener.counts.timed_out >= 1


def test_who_makes_progress_in_the_way_of_others_is_not_cut(tmp_path: Path) -> None:
    slow = record("slow", 220_000)

    async def peers(listener: Listener) -> None:
        writer = await borrow(listener, slow[:120_000])
        assert listener._budget.over is not None
        waits = asyncio.create_task(send(listener, record("waits", 50_000) + b"\n"))
        while not listener._budget.is_crowded:
            await asyncio.sleep(0.01)
        for at in range(120_000, len(slow), 5_000):
            assert listener.counts.records == 0
            writer.write(slow[at : at + 5_000])
            await asyncio.sleep(0.1)
        writer.write(b"\n")
        while listener.counts.records < 2:
            await asyncio.sleep(0.01)
        writer.close()
        await waits

    listener = listen(
        *(tmp_path, peers),
        own_bytes=1_000,
        shared_bytes=100_000,
        crowded_seconds=1.0,
        crowded_bytes=20_000,
    )
    records, rejects = contents(tmp_path / "spool")
    assert records == [slow, record("waits", 50_000)]
    assert (rejects, listener.counts.timed_out) == ([], 0)


def test_a_peer_that_stands_still_for_too_long_is_cut(tmp_path: Path) -> None:
    async def peers(listener: Listener) -> None:
        reader, writer = await asyncio.open_unix_connection(str(listener.path))
        writer.write(b'{"half')
        assert await reader.read() == b"", "the listener hangs up"
        writer.close()

    listener = listen(tmp_path, peers, idle_seconds=0.1)
    assert contents(tmp_path / "spool")[1] == [("half_record", b'{"half')]
    assert listener.counts.timed_out == 1


def test_a_whole_record_of_a_peer_that_stands_still_is_stored(tmp_path: Path) -> None:
    """All that is missing is its line feed."""

    async def peers(listener: Listener) -> None:
        reader, writer = await asyncio.open_unix_connection(str(listener.path))
        writer.write(record("a"))
        assert await reader.read() == b""
        writer.close()

    listener = listen(tmp_path, peers, idle_seconds=0.1)
    assert contents(tmp_path / "spool") == ([record("a")], [])
    assert (listener.counts.timed_out, listener.counts.half_records) == (1, 0)


def test_a_connection_that_breaks_is_counted(tmp_path: Path) -> None:
    async def peers(listener: Listener) -> None:
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(str(listener.path))
        peer.sendall(record("a") + b"\n" + b'{"half')
        peer.shutdown(socket.SHUT_RDWR)
        peer.close()
        while not listener.counts.half_records:
            await asyncio.sleep(0.01)

    listen(tmp_path, peers)
    assert contents(tmp_path / "spool") == ([record("a")], [("half_record", b'{"half')])


def test_what_the_spool_refuses_is_counted_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def peers(listener: Listener) -> None:
        listener.writer.options = WriterOptions(max_spool_bytes=1, on_full="refuse")
        await send(listener, record("secret") + b"\n" + record("b") + b"\n")
        while listener.counts.refused < 2:
            await asyncio.sleep(0.01)

    listener = listen(tmp_path, peers)
    assert listener.counts.refused == 2
    assert len(caplog.records) == 1
    assert "secret" not in caplog.text


class Slow(Writer):
    """A writer each of whose records takes `seconds`, as on a disk that is slow to sync."""

    seconds = 0.02

    async def write_async(self, trace: Any) -> None:
        await super().write_async(trace)
        await asyncio.sleep(self.seconds)


class Stuck(Writer):
    """A writer that takes three records, and no more."""

    taken = 0

    async def write_async(self, trace: Any) -> None:
        self.taken += 1
        if self.taken > 3:
            await asyncio.Event().wait()
        await super().write_async(trace)


@pytest.mark.parametrize("grace", [60.0, 0.3])
def test_what_was_read_is_stored_after_a_stop(tmp_path: Path, grace: float) -> None:
    """A chunk whose records are being stored, with time to finish and without."""

    async def peers(listener: Listener) -> None:
        await send(listener, b"".join(record(f"n{n}") + b"\n" for n in range(200)))
        while not listener.counts.records:
            await asyncio.sleep(0)

    listener = listen(tmp_path, peers, Slow, grace_seconds=grace)
    records, rejects = contents(tmp_path / "spool")
    names = [json.loads(each)["provider_trace_id"] for each in records]
    assert (names, rejects) == ([f"n{n}" for n in range(200)], [])
    assert (listener.counts.records, listener.counts.refused) == (200, 0)


def test_what_the_socket_holds_is_stored_after_a_stop(tmp_path: Path) -> None:
    """More than a chunk, from a peer that has ended: some of it nobody has read yet."""
    count = 1200

    async def peers(listener: Listener) -> None:
        lines = b"".join(record(f"n{n}", 1000) + b"\n" for n in range(count)) + record("last")
        shouting = asyncio.create_task(asyncio.to_thread(shout, listener.path, lines))
        while not shouting.done():
            await asyncio.sleep(0.01)
        assert listener.counts.records < count

    Slow.seconds, before = 0.001, Slow.seconds
    try:
        listener = listen(tmp_path, peers, Slow, grace_seconds=0.3)
    finally:
        Slow.seconds = before
    assert len(contents(tmp_path / "spool")[0]) == count + 1
    assert (listener.counts.records, listener.counts.refused) == (count + 1, 0)


def test_what_cannot_be_stored_after_a_stop_is_counted_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def peers(listener: Listener) -> None:
        lines = b"".join(record(f"n{n}") + b"\n" for n in range(2000))
        await send(listener, lines + b'{"half')
        await send(listener, record("one"))

    listener = listen(tmp_path, peers, Stuck, grace_seconds=0.2)
    counts = listener.counts
    assert len(contents(tmp_path / "spool")[0]) == counts.records == 3
    assert counts.records + counts.refused == 2002
    assert [entry.getMessage() for entry in caplog.records] == [
        "1999 records are lost: the spool did not take them in time after the stop: "
        "see that a drainer runs and the disk is well (counted as refused)"
    ]


def test_a_stop_in_the_middle_of_a_record(tmp_path: Path) -> None:
    """Half a record goes to the rejects; a whole one that lacks its line feed is one."""

    async def peers(listener: Listener) -> None:
        for data in (b'{"half', record("whole"), record("a") + b"\n"):
            _, writer = await asyncio.open_unix_connection(str(listener.path))
            writer.write(data)
            stay.append(writer)
        while not listener.counts.records:
            await asyncio.sleep(0.01)

    stay: list[asyncio.StreamWriter] = []
    listener = listen(tmp_path, peers, grace_seconds=0.2)
    records, rejects = contents(tmp_path / "spool")
    assert sorted(records) == sorted([record("a"), record("whole")])
    assert rejects == [("half_record", b'{"half')]
    assert (listener.counts.open, listener.counts.refused) == (0, 0)


def test_the_socket_file_has_its_mode_and_goes_at_the_end(tmp_path: Path) -> None:
    modes: list[int] = []

    async def peers(listener: Listener) -> None:
        modes.append(listener.path.stat().st_mode)

    listen(tmp_path, peers)
    assert stat.S_ISSOCK(modes[0])
    assert stat.S_IMODE(modes[0]) == 0o660
    assert not (tmp_path / "s.sock").exists()


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    old = socket.socket(socket.AF_UNIX)
    old.bind(str(tmp_path / "s.sock"))
    old.close()

    async def peers(listener: Listener) -> None:
        await send(listener, record("a") + b"\n")

    assert listen(tmp_path, peers).counts.records == 1


def test_a_live_socket_and_other_files_are_refused(tmp_path: Path) -> None:
    async def nobody(listener: Listener) -> None:
        raise AssertionError

    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "s.sock"))
        other.listen()
        with pytest.raises(SocketError, match="another program"):
            listen(tmp_path, nobody)
        assert (tmp_path / "s.sock").exists()
    (tmp_path / "s.sock").unlink()
    (tmp_path / "s.sock.lock").unlink()
    (tmp_path / "s.sock").write_text("mine")
    with pytest.raises(SocketError, match="no socket"):
        listen(tmp_path, nobody)
    assert not (tmp_path / "s.sock.lock").exists(), "nothing is left beside another's file"
    (tmp_path / "s.sock").unlink()
    (tmp_path / "s.sock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SocketError, match="no socket"):
        listen(tmp_path, nobody)

    async def second(listener: Listener) -> None:
        with pytest.raises(SocketError, match="a listener is running"):
            await Listener(listener.path, listener.writer).serve()
        await send(listener, record("a") + b"\n")

    (tmp_path / "s.sock").unlink()
    (tmp_path / "s.sock.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SocketError, match="cannot be made"):
        listen(tmp_path, nobody)
    assert not (tmp_path / "elsewhere").exists()
    (tmp_path / "s.sock.lock").unlink()
    assert listen(tmp_path, second).counts.records == 1


@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_a_directory_that_everybody_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    """As the spool does, sticky or not: others could put a socket of theirs there."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(mode)

    async def serve(directory: Path) -> None:
        with Writer(tmp_path / "spool") as writer:
            await asyncio.wait_for(Listener(directory / "s.sock", writer).serve(), 10)

    link = tmp_path / "link"
    link.symlink_to(shared)
    for directory in (shared, link):
        with pytest.raises(SocketError, match=f"everybody may write to {directory}: name"):
            asyncio.run(serve(directory))
    assert list(shared.iterdir()) == []


def test_a_directory_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the spool does: its owner could put a socket in place of this one. Root is no other."""
    uid, look = os.geteuid(), os.stat

    def owned(owner: int) -> None:
        found = list(look(tmp_path))
        found[stat.ST_UID] = owner

        def stat_of(path: Any, **how: Any) -> os.stat_result:
            is_it = os.fspath(path) == str(tmp_path)
            return os.stat_result(found) if is_it else look(path, **how)

        monkeypatch.setattr(os, "stat", stat_of)

    async def peers(listener: Listener) -> None:
        await send(listener, record("a") + b"\n")

    owned(uid + 1)
    with pytest.raises(SocketError, match=f"{tmp_path} belongs to user {uid + 1}, and this is"):
        listen(tmp_path, peers)
    assert {path.name for path in tmp_path.iterdir()} == {"spool"}
    for owner in (uid, 0):
        owned(owner)
        assert listen(tmp_path, peers).counts.records == 1


@contextlib.contextmanager
def process(
    tmp_path: Path, open_files: tuple[int, int] | None = None, **variables: str
) -> Iterator[subprocess.Popen[str]]:
    """Run `python -m loader listen`, with a soft and a hard limit of open files or ours."""

    def limit() -> None:
        if open_files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, open_files)

    started = subprocess.Popen(
        [*LISTEN, "--socket", str(tmp_path / "p.sock"), "--spool", str(tmp_path / "spool")],
        cwd=ROOT,
        env=os.environ | variables,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,
    )
    try:
        assert started.stderr is not None
        assert "listening" in started.stderr.readline()
        yield started
    finally:
        started.kill()
        started.wait()
        if started.stderr is not None:
            started.stderr.close()


def shout(path: Path, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(path))
        peer.sendall(data)


def test_the_verb_counts_on_a_signal_and_keeps_all_at_sigterm(tmp_path: Path) -> None:
    with process(tmp_path) as listener:
        assert listener.stderr is not None
        shout(tmp_path / "p.sock", record("a") + b"\n")
        deadline = time.monotonic() + 30
        while True:
            listener.send_signal(signal.SIGUSR1)
            if json.loads(listener.stderr.readline())["records"] == 1:
                break
            assert time.monotonic() < deadline
        names = [f"n{n}" for n in range(200)]
        threads = [
            threading.Thread(target=shout, args=(tmp_path / "p.sock", record(name) + b"\n"))
            for name in names
        ]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        listener.send_signal(signal.SIGTERM)
        _, stderr = listener.communicate(timeout=60)
        assert listener.returncode == 0
        assert json.loads(stderr.splitlines()[-1])["records"] == 201
    records, rejects = contents(tmp_path / "spool")
    assert len(records) == 201
    assert rejects == []
    assert not (tmp_path / "p.sock").exists()
    assert not list((tmp_path / "spool").glob("*.open"))


def test_sigterm_in_the_middle_of_a_chunk_loses_none(tmp_path: Path) -> None:
    with process(tmp_path, TOKENLEDGER_SPOOL_FSYNC="each") as listener:
        shout(tmp_path / "p.sock", b"".join(record(f"n{n}") + b"\n" for n in range(2000)))
        listener.send_signal(signal.SIGTERM)
        _, stderr = listener.communicate(timeout=60)
        assert listener.returncode == 0, stderr
        assert json.loads(stderr.splitlines()[-1])["records"] == 2000
    assert len(contents(tmp_path / "spool")[0]) == 2000


def test_sigterm_while_the_spool_is_full_says_what_is_lost(tmp_path: Path) -> None:
    limits = {"MAX_SPOOL_BYTES": "1000", "BLOCK_SECONDS": "600"}
    variables = {f"TOKENLEDGER_SPOOL_{name}": value for name, value in limits.items()}
    with process(tmp_path, **variables) as listener:
        shout(tmp_path / "p.sock", b"".join(record(f"n{n}") + b"\n" for n in range(2000)))
        listener.send_signal(signal.SIGTERM)
        _, stderr = listener.communicate(timeout=60)
        assert listener.returncode == 1
        told, counted = stderr.splitlines()
    counts = json.loads(counted)
    assert counts["records"] == len(contents(tmp_path / "spool")[0]) > 0
    assert counts["records"] + counts["refused"] == 2000
    assert told.startswith(f"{counts['refused']} records are lost: ")


def test_more_peers_than_a_shell_allows_files(tmp_path: Path) -> None:
    """Half of the peers stay, and say nothing."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(process(tmp_path, open_files=(64, 1024)))
        peers = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(200)]
        for peer in peers:
            peer.connect(str(tmp_path / "p.sock"))
        for number, peer in enumerate(peers[100:]):
            peer.sendall(record(f"n{number}") + b"\n")
        deadline = time.monotonic() + 30
        while len(contents(tmp_path / "spool")[0]) < 100:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_who_waits_for_a_descriptor_at_sigterm_is_accepted(tmp_path: Path) -> None:
    """Idle peers have all of them: what others sent before would be neither stored nor counted."""
    path = tmp_path / "p.sock"
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(process(tmp_path, open_files=(48, 48)))
        for _ in range(60):
            idle = stack.enter_context(socket.socket(socket.AF_UNIX))
            idle.connect(str(path))
        for number in range(10):
            shout(path, record(f"n{number}") + b"\n")
        listener.send_signal(signal.SIGTERM)
        _, stderr = listener.communicate(timeout=60)
    assert listener.returncode == 0, stderr
    assert len(contents(tmp_path / "spool")[0]) == 10


def test_a_killed_listener_loses_nothing_it_counted_and_is_replaced(tmp_path: Path) -> None:
    with process(tmp_path) as listener:
        shout(tmp_path / "p.sock", b"\n".join(record(f"n{n}") for n in range(500)) + b"\n")
        deadline = time.monotonic() + 30
        assert listener.stderr is not None
        seen = 0
        while seen < 500:
            listener.send_signal(signal.SIGUSR1)
            seen = json.loads(listener.stderr.readline())["records"]
            assert time.monotonic() < deadline
        os.kill(listener.pid, signal.SIGKILL)
        listener.wait()
    assert (tmp_path / "p.sock").exists()
    with process(tmp_path):
        shout(tmp_path / "p.sock", record("again") + b"\n")
        while len(contents(tmp_path / "spool")[0]) < 501:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_bad_arguments_are_one_line(tmp_path: Path) -> None:
    for arguments, code, word in [
        (["--spool", str(tmp_path / "s")], 2, "--socket"),
        (["--socket", "x.sock"], 2, "--spool"),
        (["--socket", str(tmp_path / "no" / "x.sock"), "--spool", str(tmp_path / "s")], 3, "made"),
        (["--socket", str(tmp_path / ("x" * 120)), "--spool", str(tmp_path / "s")], 3, "107"),
    ]:
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("TELEMETRY_SOCKET", "TOKENLEDGER_SPOOL")
        }
        done = subprocess.run(
            [*LISTEN, *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stderr
        assert word in done.stderr
        assert len(done.stderr.splitlines()) == 1
