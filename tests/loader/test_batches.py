"""Cutting, naming and following batches, without a store."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import gzip
import hashlib
import io
import os
import tempfile
import zlib
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

import loader.batches
import loader.sources
from loader.batches import (
    Batch,
    Cut,
    LedgerEntry,
    cut_again,
    cut_stream,
    encode_batch,
    follow_chain,
)
from loader.errors import DamagedError, ExpansionError, SourceError
from loader.formats import Framer, Record, Rejection
from loader.landing import _read
from loader.settings import Settings
from loader.sources import Source, Stream

FRAMER = Framer.from_file()
SMALL = Settings(batch_lines=3, batch_bytes=200, max_record_bytes=100)
LINE = b'{"request_json":1}'


def cut(data: bytes, settings: Settings = SMALL) -> list[Cut]:
    return list(cut_stream(Stream(io.BytesIO(data), "s", settings), "s", settings))


def encode(data: bytes, settings: Settings = SMALL) -> list[Batch]:
    return [encode_batch(one, FRAMER, settings) for one in cut(data, settings)]


def ledger(batches: list[Batch]) -> list[LedgerEntry]:
    return [
        LedgerEntry(b.batch_id, b.start, b.end, b.first_line, b.rows, b.rejects, is_lost=False)
        for b in batches
    ]


class File:
    """A file that is landed again and again, with the ledger that this leaves."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.source = Source(str(path), str(path), True)
        self.entries: list[LedgerEntry] = []

    def land(self, data: bytes, settings: Settings = SMALL) -> list[Batch]:
        """Write the file's bytes and return the batches that are new."""
        self.path.write_bytes(data)
        new = []
        with contextlib.suppress(SourceError):  # what came before it was given
            for one in _read(self.source, self.entries, FRAMER, settings):
                if isinstance(one, Batch):
                    new.append(one)
        landed = {batch.batch_id for batch in new}
        self.entries = [entry for entry in self.entries if entry.batch_id not in landed]
        self.entries += ledger(new)
        return new

    def lose(self, index: int) -> None:
        """Let a batch be lost, and be known to be."""
        self.entries[index] = dataclasses.replace(self.entries[index], is_lost=True)

    @property
    def landed(self) -> list[tuple[int, int]]:
        return sorted((each.start, each.end) for each in self.entries if not each.is_lost)


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "a.ndjson")


def test_a_batch_ends_at_so_many_lines_blank_ones_not_counted() -> None:
    cuts = cut(b"a\n\n \nb\nc\nd\n\n\n")
    assert [(c.start, c.end, c.first_line, c.lines) for c in cuts] == [
        (0, 9, 1, [b"a", b"", b" ", b"b", b"c"]),
        (9, 13, 6, [b"d", b"", b""]),
    ]


def test_a_batch_ends_before_the_line_that_does_not_fit() -> None:
    cuts = cut(b"a" * 99 + b"\n" + b"b" * 99 + b"\n" + b"c\n")
    assert [(c.start, c.end) for c in cuts] == [(0, 200), (200, 202)]


def test_the_last_line_without_a_newline_is_a_batch_of_its_own() -> None:
    cuts = cut(b"a\nb")
    assert [(c.lines, c.is_terminated) for c in cuts] == [([b"a"], True), ([b"b"], False)]


@pytest.mark.parametrize("data", [b"", b"\n", b"\n \r\n\t\n", b"  "])
def test_nothing_but_space_is_no_batch(data: bytes) -> None:
    assert cut(data) == []


def test_ids_hash_source_offset_and_bytes() -> None:
    (one,) = cut(b"a\r\n\nb\n")
    wanted = hashlib.sha256(b"s\0" + bytes(8) + b"a\r\n\nb\n").hexdigest()[:32]
    assert one.batch_id == wanted
    same, other_place = cut(b"a\nb\nc\na\nb\nc\n")
    assert same.lines == other_place.lines
    assert same.batch_id != other_place.batch_id


@given(st.binary(max_size=400), st.integers(1, 50))
def test_the_cut_covers_all_bytes_and_does_not_depend_on_reads(data: bytes, size: int) -> None:
    data = data.replace(b"\x1f", b"\n").replace(b"\x28\xb5", b"\n\n")
    whole = cut(data)
    stream = Stream(io.BytesIO(data), "s", SMALL)
    full_read = stream.read
    stream.read = lambda count=size: full_read(min(count, size))  # type: ignore[method-assign]
    assert list(cut_stream(stream, "s", SMALL)) == whole
    position = 0
    for one in whole:
        assert not data[position : one.start].strip()
        text = b"\n".join(one.lines) + b"\n" * one.is_terminated
        assert data[one.start : one.end] == text
        assert one.first_line == 1 + data[: one.start].count(b"\n")
        position = one.end
    assert not data[position:].strip()


@given(
    st.lists(st.integers(0, 200), max_size=4),
    st.integers(1, 5),
    st.sampled_from([b"", b"\n", b"\n\n\n"]),
)
@example(breaks=[len(LINE) + 30], batch_lines=5, gap=b"")
@example(breaks=[len(LINE) + 7], batch_lines=1, gap=b"\n\n\n")
def test_a_stream_that_broke_off_and_is_sent_again_lands_each_line_once(
    breaks: list[int], batch_lines: int, gap: bytes
) -> None:
    """Each try breaks off later than the one before; the last one is whole."""
    lines = [LINE[:-1] + b' ,"id":"%d"} ' % number for number in range(5)]
    data = gap.join(line + b"\n" for line in lines)
    settings = dataclasses.replace(SMALL, batch_lines=batch_lines)
    entries: list[LedgerEntry] = []

    def landed(start: int, other_start: int, end: int) -> list[LedgerEntry]:
        return [e for e in entries if e.start in (start, other_start) and e.end <= end]

    rows: list[bytes] = []
    for length in [*sorted(breaks), len(data)]:
        stream = Stream(io.BytesIO(data[:length]), "s", settings)
        for one in cut_stream(stream, "s", settings, landed=landed):
            assert one.first_line == 1 + data[: one.start].count(b"\n")
            assert data[one.start : one.end] == b"\n".join(one.lines) + b"\n" * one.is_terminated
            batch = encode_batch(one, FRAMER, settings)
            if batch.batch_id in {entry.batch_id for entry in entries}:
                continue
            entries += ledger([batch])
            rows += [line.strip() for line in one.lines if line.strip().endswith(b"}")]
    assert sorted(rows) == [line.strip() for line in lines]


@pytest.mark.parametrize(("is_lost", "ends"), [(False, [3]), (True, [2, 3])])
def test_a_stream_follows_the_longest_batch_of_the_ledger_before_a_lost_one(
    is_lost: bool, ends: list[int]
) -> None:
    """The shorter one is of a try that broke off, and was landed beside the longer one."""
    longer, shorter = ((LINE + b"\n") * count for count in (3, 2))
    entries = ledger(encode(longer) + encode(shorter))
    entries[0] = dataclasses.replace(entries[0], is_lost=is_lost)
    stream = Stream(io.BytesIO(longer), "s", SMALL)
    cuts = cut_stream(stream, "s", SMALL, landed=lambda *_: entries)
    assert [one.end for one in cuts] == [count * (len(LINE) + 1) for count in ends]


def test_a_lost_batch_of_a_stream_is_cut_as_it_was_by_higher_limits() -> None:
    data = (LINE + b"\n") * 7
    entries = [dataclasses.replace(entry, is_lost=True) for entry in ledger(encode(data))]
    stream = Stream(io.BytesIO(data), "s", Settings())
    again = cut_stream(stream, "s", Settings(), landed=lambda *_: entries)
    assert [one.batch_id for one in again] == [entry.batch_id for entry in entries]


@given(
    st.lists(st.sampled_from([LINE, b"", b" ", b"x", b"y" * 150])),
    st.booleans(),
    st.integers(1, 9),
    st.integers(1, 1000),
)
@example(lines=[b"y" * 150] * 3, is_terminated=True, batch_lines=9, batch_bytes=1000)
def test_a_batch_is_cut_again_as_it_was(
    lines: list[bytes], is_terminated: bool, batch_lines: int, batch_bytes: int
) -> None:
    settings = dataclasses.replace(SMALL, batch_lines=batch_lines, batch_bytes=batch_bytes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.ndjson"
        path.write_bytes(b"\n".join([*lines, b""] if is_terminated else lines))
        source = Source("s", str(path), True)
        for one in cut(path.read_bytes(), settings):
            if any(line.strip() for line in one.lines):
                (entry,) = ledger([encode_batch(one, FRAMER, settings)])
                assert cut_again(source, entry, SMALL) == [one]


def test_a_batch_with_a_line_above_todays_limit_is_cut_again(
    file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader.batches, "KEPT_WHOLE_BYTES", 100)
    higher = dataclasses.replace(SMALL, batch_bytes=10_000, max_record_bytes=10_000)
    (batch,) = file.land(b'{}\n"%s"\n{}\n' % (b"x" * 500), higher)
    file.lose(0)
    (again,) = file.land(file.path.read_bytes())
    assert again.batch_id == batch.batch_id


def test_the_rest_of_a_lost_batch_ends_where_the_ledger_goes_on(file: File) -> None:
    line = LINE + b"\n"
    by_six = dataclasses.replace(SMALL, batch_lines=6)
    file.land(line * 12, by_six)
    file.lose(0)
    file.land(line * 2)
    (rest,) = file.land(line * 12, by_six)
    assert (rest.start, rest.end, rest.first_line) == (len(line) * 2, len(line) * 6, 3)

    # A ledger with a gap, as no loader leaves it.
    pieces = File(file.path)
    for count in (2, 3, 4):
        pieces.land(line * count)
    file.entries = [each for each in file.entries if each.is_lost]
    file.entries += [pieces.entries[0], pieces.entries[2]]
    file.land(line * 12, by_six)
    assert [end // len(line) for _, end in file.landed] == [2, 3, 4, 6, 12]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 7), st.integers(0, 30)), max_size=9))
@example(steps=[(3, 3, 0), (2, 1, 1)])
def test_what_is_lost_lands_once_however_the_file_comes_back(
    steps: list[tuple[int, int, int]],
) -> None:
    """Whole or piece by piece, by whatever limits: each byte is in one batch of the ledger."""
    lines = [b'{"request_json":%d}\n' % number for number in range(40)]
    with tempfile.TemporaryDirectory() as folder:
        file = File(Path(folder) / "a.ndjson")
        for more, batch_lines, lost in [*steps, (40, 3, 99)]:
            furthest = max((end for _, end in file.landed), default=0)
            data = b"".join(lines[: b"".join(lines)[:furthest].count(b"\n") + more])
            file.land(data, dataclasses.replace(SMALL, batch_lines=batch_lines))
            if lost < len(file.entries):
                file.lose(lost)
        file.land(b"".join(lines))
        covered = file.landed
        assert covered[0][0] == 0
        assert [end for _, end in covered] == [*(start for start, _ in covered[1:]), len(data)]


def test_the_ledger_of_a_file_that_stood_there_before_cuts_no_lost_batch(file: File) -> None:
    file.land(b"".join(b'{"request_json":%d}\n' % number for number in range(9)))
    data = b"".join(b'{"request_json":%d.000}\n' % number for number in range(9))
    batches = file.land(data)
    old_starts = [each.start for each in file.entries[:3]]
    assert any(batches[1].start < start < batches[1].end for start in old_starts)
    file.lose(file.entries.index(ledger(batches)[1]))
    assert [batch.batch_id for batch in file.land(data)] == [batches[1].batch_id]


def test_a_gap_of_blank_lines_is_no_end_of_the_chain(file: File) -> None:
    data = LINE + b"\n\n\n" + LINE
    file.land(LINE + b"\n")
    file.land(data)
    (new,) = file.land(data + b"\n" + LINE + b"\n")
    assert (new.start, new.rows) == (len(data), 1)
    assert file.land(data + b"\n" + LINE + b"\n") == []


def test_a_compressed_file_that_ended_early_goes_on_by_other_limits(file: File) -> None:
    packer = zlib.compressobj(wbits=31)
    packed = packer.compress((LINE + b"\n") * 20_000) + packer.flush(zlib.Z_SYNC_FLUSH)
    long = dataclasses.replace(
        SMALL, batch_lines=50, batch_bytes=10_000, max_expansion_ratio=10_000
    )
    first = file.land(packed, long)
    assert sum(batch.rows for batch in first) == 20_000
    short = dataclasses.replace(long, batch_lines=3)
    assert file.land(packed, short) == [], "it ends early, just behind a line"
    packed += packer.compress((LINE + b"\n") * 10) + packer.flush()
    assert sum(batch.rows for batch in file.land(packed, short)) == 10


@given(st.lists(st.sampled_from([LINE, b"", b" ", b"x", b"[]", b"\xff", b"{}", b"y" * 150])))
def test_lines_are_rows_and_rejects(lines: list[bytes]) -> None:
    batches = encode(b"".join(line + b"\n" for line in lines))
    wanted = [line for line in lines if line.strip()]
    assert sum(b.lines for b in batches) == len(wanted)
    assert sum(b.rows for b in batches) == wanted.count(LINE)
    assert all(b.lines == b.rows + b.rejects for b in batches)


def test_a_torn_last_line_is_rejected_as_unfinished() -> None:
    whole, torn = encode(LINE + b"\n" + LINE[:9])
    assert (whole.rows, whole.reasons) == (1, {})
    assert (torn.rows, torn.reasons) == (0, {"unfinished": 1})
    (within,) = encode('{"request_json":"é'.encode()[:-1])
    assert within.reasons == {"unfinished": 1}, "torn within a character"
    (bad,) = encode(b'{"request_json":"\xff"}')
    assert bad.reasons == {"not_utf8": 1}


@pytest.fixture(scope="module")
def redacting(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    path = tmp_path_factory.mktemp("rules") / "rules.yml"
    path.write_text("keys: ['**.api_key']")
    return dataclasses.replace(SMALL, redaction=str(path))


@pytest.mark.parametrize("end", [b"", b"\n"])
@pytest.mark.parametrize(
    "line",
    [
        b"s3cr3t",
        b"[s3cr3t]",
        b'{"api_key":"s3cr3t',
        b'{"request_json":"s3cr3t"}{}',
        b'{"request_json":"s3cr3t\xff"}',
        b'{"request_json":"s3cr3t\xc3',
        b'{"api_key":"s3cr3t","s":' + b"[" * 100_000,
        b"[1]",
        b'{"api_key":"s3cr3t"}',
        b"s3cr3t" * 20,
    ],
)
def test_a_line_has_the_reason_that_it_has_unredacted(
    line: bytes, end: bytes, redacting: Settings
) -> None:
    long = max(100, len(line)) if line.startswith(b"{") else 100
    plain, redacted = (
        encode(line + end, dataclasses.replace(settings, max_record_bytes=long))[0]
        for settings in (SMALL, redacting)
    )
    assert redacted.reasons == plain.reasons
    assert (redacted.rows, redacted.rejects) == (0, 1)
    assert b"s3cr3t" not in b"".join(redacted.rejected)


def test_no_record_is_made_of_a_line_that_is_withheld(redacting: Settings) -> None:
    class Lax(Framer):
        def frame(self, line: bytes) -> Record | Rejection:
            is_record = line.startswith(b"x")
            return Record("x", line, b"", b"", (), False) if is_record else super().frame(line)

    (batch,) = (encode_batch(one, Lax(FRAMER.formats), redacting) for one in cut(b"x s3cr3t\n"))
    assert (batch.rows, batch.reasons) == (0, {"not_json": 1})


def test_a_whole_last_line_without_newline_is_a_row() -> None:
    assert [b.rows for b in encode(LINE + b"\n" + LINE)] == [1, 1]


def test_a_record_above_the_limit_is_rejected_and_kept() -> None:
    long = b'{"request_json":"' + b"a" * 100 + b'"}'
    (batch,) = encode(long + b"\n")
    assert batch.reasons == {"too_large": 1}
    assert long in b"".join(batch.rejected)
    exact = b'{"request_json":"' + b"a" * (100 - 19) + b'"}'
    assert len(exact) == 100
    assert encode(exact + b"\n")[0].rows == 1


@pytest.mark.parametrize("end", [b"\n", b""])
def test_of_a_giant_line_head_length_and_hash_are_kept(
    monkeypatch: pytest.MonkeyPatch, end: bytes
) -> None:
    monkeypatch.setattr(loader.batches, "KEPT_WHOLE_BYTES", 1000)
    monkeypatch.setattr(loader.batches, "KEPT_HEAD_BYTES", 10)
    giant = b"0123456789" * 500_000
    settings = dataclasses.replace(SMALL, batch_bytes=10_000_000)
    batches = encode(LINE + b"\n" + giant + end + (LINE + b"\n" if end else b""), settings)
    assert [b.rows for b in batches] == ([1, 0, 1] if end else [1, 0])
    rejected = b"".join(batches[1].rejected)
    assert rejected.count(b"0123456789") == 1
    assert b"5000000 bytes, more than the limit of 100" in rejected
    assert hashlib.sha256(giant).hexdigest().encode() in rejected
    assert batches[1].end - batches[1].start == len(giant) + len(end)


def test_a_giant_line_is_a_reject_whatever_its_head_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader.batches, "KEPT_WHOLE_BYTES", 1000)
    monkeypatch.setattr(loader.batches, "KEPT_HEAD_BYTES", 10)
    batches = encode(LINE + b"\n" + b" " * 2000 + LINE + b"\n" + LINE + b"\n")
    assert [(b.lines, b.rows, b.reasons) for b in batches] == [
        (1, 1, {}),
        (1, 0, {"too_large": 1}),
        (1, 1, {}),
    ]


@pytest.mark.parametrize("fails_at", range(1, 25))
def test_what_cannot_be_read_for_once_is_not_taken_for_something_else(
    file: File, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    """A network file system that is away, or no descriptor, within the chain or behind it."""
    line = LINE + b"\n"
    file.land(line * 12)
    for count in (14, 16):  # batches below the limits, which would be cut otherwise now
        file.land(line * count)
    file.lose(1)
    pieces = File(file.path)
    for count in (4, 5):
        pieces.land(line * count)
    file.entries.append(pieces.entries[-1])
    left = fails_at

    def is_failing() -> bool:
        nonlocal left
        left -= 1
        return left == 0

    real = loader.sources._open

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if is_failing():
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().read(size)

    def opened(path: str, *, is_file: bool) -> io.BytesIO:
        if is_failing():
            raise SourceError(f"{path}: cannot be opened: Too many open files.")
        with real(path, is_file=is_file) as readable:
            return Failing(readable.read())

    with monkeypatch.context() as patch:
        patch.setattr(loader.sources, "_open", opened)
        file.land(line * 16)
    file.land(line * 16)
    covered = file.landed
    assert covered[0][0] == 0
    assert [end for _, end in covered] == [*(start for start, _ in covered[1:]), len(line) * 16]


@pytest.mark.parametrize("pack", ["gzip", "zstd"])
def test_a_broken_copy_of_what_is_landed_lands_nothing_of_it(file: File, pack: str) -> None:
    long = dataclasses.replace(SMALL, batch_lines=5000, batch_bytes=10_000_000)
    data = b"".join(b'{"request_json":%d}\n' % number for number in range(4000))
    packed = gzip.compress(data) if pack == "gzip" else zstandard.compress(data)
    (batch,) = file.land(packed, long)
    assert batch.rows == 4000
    half = packed[: len(packed) // 2]
    assert file.land(half, long) == []
    with pytest.raises(
        SourceError, match=r"breaks off within.*Nothing behind byte 0 was landed now"
    ):
        list(_read(file.source, file.entries, FRAMER, long))
    assert file.land(packed, long) == []


@pytest.mark.parametrize("pack", ["gzip", "zstd"])
@pytest.mark.parametrize("place", [0.02, 0.3, 0.5, 0.999])
def test_a_damaged_file_that_is_mended_lands_once(file: File, pack: str, place: float) -> None:
    """Its check is at the end: before it, a damaged line looks like any other."""
    long = dataclasses.replace(SMALL, batch_lines=500, batch_bytes=10_000_000)
    noise = hashlib.shake_128(b"noise").hexdigest(200_000)
    lines = [
        b'{"request_json":"%d%s"}\n' % (n, noise[n * 40 : n * 40 + 40].encode())
        for n in range(5000)
    ]
    whole, other = b"".join(lines[:2000]), b"".join(lines[2000:])
    write = (
        gzip.compress if pack == "gzip" else zstandard.ZstdCompressor(write_checksum=True).compress
    )
    packed = write(other)
    damaged = bytearray(packed)
    damaged[int(len(packed) * place) - (place > 0.9)] ^= 0x10
    new = file.land(write(whole) + bytes(damaged), long)
    assert sum(batch.rows for batch in new) == 2000, "the member before is whole"
    assert file.land(write(whole) + bytes(damaged), long) == []
    with pytest.raises(DamagedError, match=f"damaged behind byte {len(whole):,} of what.*mend"):
        list(_read(file.source, file.entries, FRAMER, long))
    new = file.land(write(whole) + packed, long)
    assert sum(batch.rows for batch in new) == 3000
    assert file.landed[-1][1] == len(whole) + len(other)
    assert [end for _, end in file.landed[:-1]] == [start for start, _ in file.landed[1:]]


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_of_what_expands_too_far_the_members_before_it_land(file: File, pack: Any) -> None:
    """It is not read to its check: what it begins with may be damaged."""
    limited = dataclasses.replace(SMALL, expansion_grace_bytes=1_000_000, max_expansion_ratio=1)
    first = LINE + b"\n"
    noise = hashlib.shake_128(b"noise").hexdigest(100_000).encode()
    other = b'{"request_json":"%s"}\n' % noise + b"x" * 5_000_000 + b"\n"
    packed = pack(first) + pack(other)
    new = file.land(packed, limited)
    assert [batch.end for batch in new] == [len(first)]
    with pytest.raises(ExpansionError, match="raise TOKENLEDGER_MAX_EXPANSION_RATIO"):
        list(_read(file.source, file.entries, FRAMER, limited))
    file.land(packed)
    assert file.landed[-1][1] == len(first) + len(other)


def test_the_same_file_again_has_nothing_new(file: File) -> None:
    data = LINE + b"\n\n" + b"x\n" * 5 + LINE
    assert sum(b.lines for b in file.land(data)) == 7
    assert file.land(data) == []


@pytest.mark.parametrize("packed", ["plain", "gzip", "zstd"])
def test_of_a_grown_file_only_what_is_new(file: File, packed: str) -> None:
    import gzip

    import zstandard

    pack = {
        "plain": bytes,
        "gzip": gzip.compress,
        "zstd": zstandard.ZstdCompressor().compress,
    }[packed]
    first = (LINE + b"\n") * 7
    file.land(pack(first))
    (new,) = file.land(pack(first) + pack(LINE + b"\n"))
    assert (new.rows, new.start, new.first_line) == (1, len(first), 8)


def test_a_chain_holds_when_the_batch_size_changes(file: File) -> None:
    data = (LINE + b"\n") * 8
    file.land(data)
    assert file.land(data, dataclasses.replace(SMALL, batch_lines=5)) == []


def test_a_torn_line_is_landed_when_it_is_whole(file: File) -> None:
    file.land(LINE + b"\n" + LINE[:9])
    (whole,) = file.land(LINE + b"\n" + LINE + b"\n")
    assert (whole.rows, whole.start, whole.first_line) == (1, len(LINE) + 1, 2)
    assert file.land(LINE + b"\n" + LINE + b"\n") == []


@pytest.mark.parametrize("line", [LINE, b"[]", b"y" * 150])
@pytest.mark.parametrize("rest", [b"\n", b"\r\n", b" \n", b" " * 150 + b"\n"])
def test_a_line_is_not_landed_twice_when_its_newline_comes(
    file: File, line: bytes, rest: bytes
) -> None:
    file.land(line)
    assert file.land(line + rest[:-1]) == []
    (new,) = file.land(line + rest + LINE + b"\n")
    assert (new.rows, new.rejects) == (1, 0)
    assert new.start == len(line)


def test_a_rejected_line_is_listed_once_while_a_compressed_file_ends_early(file: File) -> None:
    """Only space comes behind it, and then the file breaks off, once more and still not whole."""
    line = b'{"of":"no format"}'
    packed = gzip.compress(line + b" " * 9 + b"\n" + LINE + b"\n", 0)
    begin = packed.index(line)
    landed = []
    for length in (begin + len(line), begin + len(line) + 5):
        landed += file.land(packed[:length])
        with pytest.raises(SourceError, match="ends early"):
            list(_read(file.source, file.entries, FRAMER, SMALL))
    landed += file.land(packed)
    assert [(batch.rows, batch.rejects) for batch in landed] == [(0, 1), (1, 0)]


def test_a_batch_does_not_go_on_with_itself(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compressed file has grown, and breaks off within a line too long to be kept whole again."""
    monkeypatch.setattr(loader.batches, "KEPT_WHOLE_BYTES", 100)
    monkeypatch.setattr(loader.sources, "_CHUNK", 20)
    member = zlib.compressobj(0, wbits=31)
    packed = b"".join(member.compress(b"abcd") + member.flush(zlib.Z_SYNC_FLUSH) for _ in range(30))
    are_cut_again = False
    for size in range(len(packed)):
        file.entries = []
        landed = file.land(packed[:size])
        if landed and landed[0].end > 100:
            file.lose(0)
            again = file.land(packed[: size + 9])
            assert all(batch.batch_id not in batch.continues for batch in again)
            are_cut_again |= [batch.batch_id for batch in again] == [landed[0].batch_id]
    assert are_cut_again


def test_a_torn_line_that_ends_in_space_is_read_again(file: File) -> None:
    file.land(b'{"request_json":')
    (whole,) = file.land(b'{"request_json": 1}\n')
    assert (whole.rows, whole.start) == (1, 0)


def test_of_a_rewritten_file_the_differing_part_is_new(file: File) -> None:
    lines = [b'{"request_json":%d}' % number for number in range(9)]
    file.land(b"".join(line + b"\n" for line in lines))
    lines[4] = b'{"request_json":null}'
    new = file.land(b"".join(line + b"\n" for line in lines))
    assert [b.rows for b in new] == [3, 3]
    assert new[0].start == file.entries[1].start


def test_a_file_that_became_shorter_is_new_where_it_differs(file: File) -> None:
    file.land((LINE + b"\n") * 9)
    (new,) = file.land((LINE + b"\n") * 4)
    assert (new.rows, new.start) == (1, 3 * (len(LINE) + 1))


@given(st.lists(st.integers(0, 400), min_size=1, max_size=5), st.binary(min_size=400, max_size=400))
def test_however_a_file_grows_each_line_lands_once(sizes: list[int], noise: bytes) -> None:
    table = {0: b"\n", 1: LINE + b"\n", 2: b"x\n", 3: b" ", 4: b"[\n", 5: b"\r\n"}
    data = b"".join(table[byte % 6] for byte in noise)
    with tempfile.TemporaryDirectory() as folder:
        file = File(Path(folder, "a"))
        for size in [*sorted(sizes), len(data)]:
            file.land(data[:size])
        assert file.land(data) == []
        chain = follow_chain(file.source, file.entries, SMALL)
        chain.stream.close()
        wanted = [line for line in data.split(b"\n") if line.strip()]
        rows = sum(line.strip() == LINE for line in wanted)
        assert sum(entry.rows for entry in chain.entries) == rows
        assert sum(entry.rejects for entry in chain.entries) == len(wanted) - rows
