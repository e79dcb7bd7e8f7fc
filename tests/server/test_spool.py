"""The spool's bytes: frames, damage, names, and the look from outside."""

from __future__ import annotations

import datetime
import errno
import json
import os
import stat
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import loader.spool
from loader.metrics import prometheus_text
from loader.spool import (
    HEADER_BYTES,
    REJECT,
    Damage,
    Frame,
    SpoolError,
    count_frames,
    decode_reject,
    encode_header,
    encode_reject,
    frame_head,
    is_held,
    new_stream,
    open_spool,
    read_frames,
    spool_status,
)
from loader.writer import Writer, WriterOptions
from tests.support.project import Project


def segment(*payloads: bytes) -> bytes:
    return encode_header() + b"".join(frame_head(each) + each for each in payloads)


def test_what_is_written_is_read() -> None:
    payloads = [b"{}", b"", "é\n\n".encode(), b"x" * 70_000]
    assert [bytes(item.payload) for item in read_frames(segment(*payloads))] == payloads


def test_a_reject_keeps_its_reason_and_its_bytes() -> None:
    raw = b'half\n\x00\xff{"'
    payload = encode_reject("half_record", "5 bytes", raw)
    (frame,) = read_frames(encode_header() + frame_head(payload, REJECT) + payload)
    assert isinstance(frame, Frame)
    assert frame.kind == REJECT
    assert decode_reject(frame.payload) == ("half_record", "5 bytes", raw)


@pytest.mark.parametrize("cut", [1, 15, 16, 17, 40])
def test_a_torn_tail_is_cut_and_kept(cut: int) -> None:
    data = segment(b"one", b"two", b"three" * 10)
    *whole, torn = read_frames(data[:-cut])
    assert [bytes(item.payload) for item in whole] == [b"one", b"two"]
    assert isinstance(torn, Damage)
    assert torn.reason == "torn"
    assert bytes(torn.payload) == data[torn.offset : -cut]


def test_a_corrupt_middle_costs_one_frame() -> None:
    data = bytearray(segment(b"one", b"twotwotwo", b"three"))
    data[data.index(b"twotwotwo") + 2] ^= 1
    one, damage, three = read_frames(bytes(data))
    assert (bytes(one.payload), bytes(three.payload)) == (b"one", b"three")
    assert isinstance(damage, Damage)
    assert damage.reason == "corrupt"
    assert b"twotwotwo"[4:] in bytes(damage.payload)


def test_a_length_that_lies_does_not_swallow_what_follows() -> None:
    data = bytearray(segment(b"one", b"two", b"three"))
    head = data.index(b"two") - 8
    data[head : head + 4] = (10**6).to_bytes(4, "little")
    one, damage, three = read_frames(bytes(data))
    assert (bytes(one.payload), bytes(three.payload)) == (b"one", b"three")
    assert isinstance(damage, Damage)


def test_a_record_made_of_heads_is_looked_through_a_few_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each head claims half of what there is, and for each it would be read to the end."""
    heads = frame_head(b"x" * 100_000) * 12_500
    looked_at = 0
    real = zlib.crc32

    def counted(data: bytes, *rest: int) -> int:
        nonlocal looked_at
        looked_at += len(data)
        return real(data, *rest)

    monkeypatch.setattr(loader.spool.zlib, "crc32", counted)
    data = segment(b"one") + segment(heads)[len(encode_header()) : -10]
    one, torn = read_frames(data)
    assert (bytes(one.payload), torn.reason) == (b"one", "torn")
    assert looked_at < 40 * len(data)


def test_heads_in_a_damaged_record_take_none_with_them() -> None:
    """What is behind them is whole, and each of them claims much of it."""
    others = [b"%d" % number * 100 for number in range(400)]
    head = frame_head(b"x" * 20_000)
    data = segment(b"one", b"evil" + head * 100, *others)
    place = data.index(b"evil")
    damaged = data[:place] + b"EVIL" + data[place + 4 :]
    found = [item for item in read_frames(damaged) if isinstance(item, Frame)]
    assert [bytes(frame.payload) for frame in found] == [b"one", *others]


def test_a_spool_that_cannot_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scarce(path: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    Writer(tmp_path / "spool").close()
    monkeypatch.setattr(os, "scandir", scarce)
    with pytest.raises(SpoolError, match=r"cannot be looked at \(Too many open files\)"):
        spool_status(tmp_path / "spool")


@settings(max_examples=200)
@given(
    st.lists(st.binary(max_size=200), max_size=8),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), max_size=4),
    st.integers(0, 10**6),
)
def test_no_byte_is_passed_over(
    payloads: list[bytes], flips: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(segment(*payloads))
    for place, mask in flips:
        data[place % len(data)] ^= mask
    data = data[: len(data) - cut % (len(data) + 1)]
    end = None
    for item in read_frames(bytes(data)):
        if end is None:
            assert item.offset in (0, HEADER_BYTES)
        else:
            assert item.offset == end
        end = item.offset + len(item.payload) + (16 if isinstance(item, Frame) else 0)
    assert end in (None, len(data))
    if end is None:
        assert len(data) in (0, HEADER_BYTES)


def test_a_name_with_a_line_feed_behind_it_is_not_the_spools(tmp_path: Path) -> None:
    stream = new_stream()
    (tmp_path / f"{stream}-00000000.ready\n").write_bytes(encode_header())
    (tmp_path / f"batch-{stream}-00000000.ready\n").mkdir()
    status = spool_status(tmp_path)
    assert (status["segments_ready"], status["batches"], status["foreign"]) == (0, 0, 2)


def test_a_spool_directory_is_private_and_no_link(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "spool", create=True)
    assert spool.stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(spool)
    with pytest.raises(SpoolError, match="symbolic link"):
        open_spool(tmp_path / "link", create=True)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(SpoolError, match="everybody"):
        open_spool(tmp_path / "open", create=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError, match="not a directory"):
        open_spool(tmp_path / "file", create=True)
    with pytest.raises(SpoolError, match="no such"):
        open_spool(tmp_path / "missing", create=False)
    with pytest.raises(SpoolError, match="cannot make"):
        open_spool(tmp_path / "missing" / "deeper", create=True)


@pytest.mark.parametrize("create", [True, False])
def test_a_spool_directory_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, create: bool
) -> None:
    spool = open_spool(tmp_path / "spool", create=True)
    uid, lstat = os.geteuid(), os.lstat

    def owned(owner: int) -> None:
        found = list(lstat(spool))
        found[stat.ST_UID] = owner
        monkeypatch.setattr("loader.spool.os.lstat", lambda path: os.stat_result(found))

    owned(uid + 1)
    with pytest.raises(SpoolError, match=f"belongs to user {uid + 1}, and this is user {uid}"):
        open_spool(spool, create=create)
    for owner in (uid, 0):
        owned(owner)
        assert open_spool(spool, create=create) == spool


def test_a_link_that_takes_a_files_place_once_listed_is_not_followed(
    tmp_path: Path,
) -> None:
    with Writer(tmp_path / "spool") as writer:
        writer.write({"id": "a"})
        (segment,) = (tmp_path / "spool").iterdir()
        link = tmp_path / "link"
        link.symlink_to(segment)
        assert is_held(segment)
        assert not is_held(link)
    (segment,) = (tmp_path / "spool").iterdir()
    link.unlink()
    link.symlink_to(segment)
    assert count_frames(segment)[0] == 1
    assert count_frames(link) == (0, None, False)


def test_status_tells_depth_and_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = tmp_path / "spool"
    with Writer(spool, WriterOptions(segment_seconds=60)) as writer:
        empty = spool_status(spool)
        assert (empty["records"], empty["oldest_age_seconds"]) == (0, None)
        writer.write({"id": "a"})
        writer.write({"id": "b"})
        live = spool_status(spool)
        assert (live["records"], live["segments_open"], live["segments_ready"]) == (2, 1, 0)
    (spool / "notes.txt").write_text("mine")
    done = spool_status(spool)
    assert (done["segments_open"], done["segments_ready"], done["foreign"]) == (0, 1, 1)
    assert done["bytes"] == sum(path.stat().st_size for path in spool.glob("*.ready"))
    monkeypatch.setattr("loader.spool.time.time_ns", lambda: 0)
    assert spool_status(spool)["oldest_age_seconds"] == 0, "a clock set back makes no age below 0"


def test_status_tells_the_dead_from_the_living(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    writer = Writer(spool, WriterOptions(segment_seconds=60))
    pid = os.fork()
    if pid == 0:
        writer.write({"id": "child"})
        os._exit(0)
    os.waitpid(pid, 0)
    status = spool_status(spool)
    writer.close()
    assert (status["segments_stale"], status["segments_open"]) == (1, 0)


def test_status_counts_damage_that_waits(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    with Writer(spool, WriterOptions(segment_seconds=60)) as writer:
        writer.write({"id": "a"})
        writer.write({"id": "b"})
        assert spool_status(spool)["damaged"] == 0
    (path,) = spool.iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    status = spool_status(spool)
    assert (status["records"], status["damaged"]) == (1, 1)


STATUS = {
    "landed": {"batches": 2, "rows": 7, "rejects": 1, "last_landed_at": "2026-10-01T00:00:30Z"},
    "pending": {"batches": 1, "rows": 3, "oldest_landed_at": "2026-10-01T00:00:00Z"},
    "transformed": {"batches": 1, "rows": 4, "last_transformed_at": None},
    "unfinished_batches": 0,
    "lost_batches": 0,
    "rejected_by_reason": {'odd "word"\n': 1},
}


def test_the_status_becomes_prometheus_text(tmp_path: Path) -> None:
    now = datetime.datetime(2026, 10, 1, 0, 1, tzinfo=datetime.UTC)
    Writer(tmp_path / "spool").close()
    text = prometheus_text(STATUS, spool_status(tmp_path / "spool"), now)
    lines = text.splitlines()
    samples = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert samples["tokenledger_store_up"] == "1"
    assert samples["tokenledger_landed_rows"] == "7"
    assert samples["tokenledger_lag_seconds"] == "60.0"
    assert samples['tokenledger_rejected{reason="odd \\"word\\"\\n"}'] == "1"
    assert samples[f'tokenledger_spool_records{{spool="{tmp_path}/spool"}}'] == "0"
    assert not any("last_transformed" in name for name in samples), "what never was has no line"
    for name in {name.partition("{")[0] for name in samples}:
        assert lines.count(f"# TYPE {name} gauge") == 1
    assert "tokenledger_store_up 0" in prometheus_text(None, None, now)


def test_the_status_verb_names_the_spool(project: Project, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    with Writer(spool) as writer:
        writer.write({"id": "a"})
    project.loader("init")
    told = project.loader("status", "--spool", str(spool)).stdout
    assert "1 records" in told
    found = json.loads(project.loader("status", "--spool", str(spool), "--json").stdout)
    assert found["spool"]["records"] == 1
    text = project.loader("status", "--spool", str(spool), "--prometheus").stdout
    assert f'tokenledger_spool_records{{spool="{spool}"}} 1' in text


def test_the_status_tells_the_spools_depth_while_the_store_is_away(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    with Writer(spool) as writer:
        writer.write({"id": "a"})
    away = Project(tmp_path / "away", {"CLICKHOUSE_ENDPOINT": "http://127.0.0.1:9"})
    none = Project(tmp_path / "none", {"CHDB_PATH": str(tmp_path / "warehouse")})
    for project, code in ((away, 3), (none, 2)):
        told = project.loader("status", "--spool", str(spool), expect=code)
        assert "1 records" in told.stdout
        assert len(told.stderr.splitlines()) == 1
        found = project.loader("status", "--spool", str(spool), "--json", expect=code)
        assert json.loads(found.stdout)["spool"]["records"] == 1
        assert json.loads(found.stdout)["error"] in found.stderr
        text = project.loader("status", "--spool", str(spool), "--prometheus", expect=code).stdout
        assert "tokenledger_store_up 0" in text
        assert f'tokenledger_spool_records{{spool="{spool}"}} 1' in text
