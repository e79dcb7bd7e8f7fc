"""Mutated records and files through reading, cutting and framing: nothing lost, nothing changed.

`FUZZ_RECORDS` says how many lines (default 20,000; `make fuzz` runs a million), `FUZZ_SEED` repeats
a run. The seed is printed; a failing file is made again from the seed and number in its message.
With `FUZZ_STORE=1` a sample of the lines goes through the store and dbt.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import resource
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

import loader.batches
from loader.batches import Batch, Cut, cut_stream, encode_batch
from loader.errors import SourceError
from loader.formats import Framer
from loader.settings import Settings
from loader.sources import Stream
from tests.support.project import Project

MEBIBYTE = 1024 * 1024
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Seconds of the processor. No file takes so many but one that found a loop without end, or one
# that is quadratic.
HANG_SECONDS = 60
# What a run may grow by, whatever the files hold: some chunks and the largest line, several times.
GROWTH_BYTES = 512 * MEBIBYTE
USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
RECORDS: list[dict[str, Any]] = [
    {
        "id": "provider_trace-1",
        "org_id": "org",
        "agent_tags": ["a", "é"],
        "request_json": {"messages": [{"role": "user", "content": 'x" \\ \n'}], "n": 1.0},
        "response_json": {"id": "x", "model": "gpt-4o", "usage": USAGE},
        "llm_config": {"model": "gpt-4o", "model_endpoint_type": "openai"},
        "created_at": "2026-10-01T12:00:00Z",
    },
    {
        "protocol_version": 3,
        "provider_trace_id": "provider_trace-2",
        "request": {"stream": True},
        "response": None,
        "error": {"message": "no"},
        "error_type": "rate_limit",
        "timestamp": "2026-10-01T12:00:00Z",
        "llm_config": {"model": "claude", "model_endpoint_type": "anthropic"},
    },
    {"response_json": [1, 2.50, "3", None], "id": None, "created_at": 1790000000},
    {"id": "only", "request_json": "text", "latency_ms": 12},
]
TOKENS = [
    *(b"NaN", b"-Infinity", b"Infinity", b"\x00", b"\xff", b"\xed\xa0\x80", b"\\ud800", b"\\udc00"),
    *(
        b"\\u0000",
        b'"',
        b"\\",
        b'\\"',
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"1e99999",
        b"-0",
        b"01",
    ),
    *(b"1.", b"\r", b"\n", b"\r\n", b"\x0b", b"\x1e", b"\xc2\x85", b"\xe2\x80\xa8", b"\x7f"),
    *(BYTE_ORDER_MARK, b"null", b"true", b"\xf0\x9f\x98\x80", b"\xf4\x90\x80\x80", b"\xc0\x80"),
    *(b'"protocol_version":3,', b'"request_json":null,', b'"id":"",', b" ", b"\t"),
]
ENCODINGS = [
    "utf-16",
    "utf-16-le",
    "utf-32",
    "latin-1",
    "cp1252",
    "shift_jis",
    "utf-7",
    "utf-8-sig",
]


def line_of(chance: random.Random) -> bytes:
    """Give one line (seldom more: a mutation may put a newline in), mutated up to three times."""
    record = dict(chance.choice(RECORDS))
    if chance.random() < 0.3:
        record[chance.choice(list(record))] = chance.choice(
            [None, 3, "", [], {}, -1, "\ud800", 1e300]
        )
    if chance.random() < 0.1:
        del record[chance.choice(list(record))]
    separators = chance.choice([(",", ":"), (", ", ": "), (" ,\t", " : ")])
    line = json.dumps(record, ensure_ascii=chance.random() < 0.5, separators=separators)
    text = line.encode("utf-8", "surrogatepass" if chance.random() < 0.1 else "replace")
    for _ in range(chance.randrange(4)):
        text = chance.choice(MUTATIONS)(text, chance)
    return text


def _flip(text: bytes, chance: random.Random) -> bytes:
    changed = bytearray(text)
    for _ in range(chance.randrange(1, 4)):
        if changed:
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _cut(text: bytes, chance: random.Random) -> bytes:
    return text[: chance.randrange(len(text) + 1)]


def _drop(text: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(text) + 1)
    return text[:start] + text[start + chance.randrange(1, 20) :]


def _repeat(text: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(text) + 1)
    part = text[start : start + chance.randrange(1, 40)]
    return text[:start] + part * chance.choice([2, 2, 2, 50]) + text[start:]


def _insert(text: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(text) + 1)
    times = 5000 if chance.random() < 0.005 else 1
    return text[:start] + chance.choice(TOKENS) * times + text[start:]


def _replace_value(text: bytes, chance: random.Random) -> bytes:
    """Put something large or deep where a value stands."""
    found = text.find(b":", chance.randrange(len(text) + 1))
    if found < 0:
        return text
    size = chance.choice([10, 100, 500, 990, 1010, 10_000] if chance.random() < 0.1 else [3, 10])
    digits = b"%d" % chance.randrange(1, 10) * size
    value = chance.choice(
        [
            b"[" * size + b"]" * size,
            b'{"a":' * size + b"1" + b"}" * size,
            b"[" * size,
            digits,
            b"-0." + digits,
            b"1e" + digits,
            b'"' + b"x" * size,
            b"NaN",
            b"[NaN,-Infinity," * size,
            b'"' + b'\\"' * size,
        ]
    )
    return text[: found + 1] + value + chance.choice([b",", b""]) + text[found + 1 :]


def _repeat_key(text: bytes, chance: random.Random) -> bytes:
    key = chance.choice(
        [b"id", b"request_json", b"response", b"protocol_version", b"x", b"\\u0069d"]
    )
    return text.replace(
        b"{", b'{"' + key + b'":' + chance.choice([b"3", b"null", b'{"a":1 }']) + b",", 1
    )


def _encode_otherwise(text: bytes, chance: random.Random) -> bytes:
    return text.decode("utf-8", "replace").encode(chance.choice(ENCODINGS), "replace")


def _wrap(text: bytes, chance: random.Random) -> bytes:
    before, after = chance.choice(
        [
            (b"[", b"]"),
            (b" ", b" \t"),
            (b"", b"\r"),
            (BYTE_ORDER_MARK, b""),
            (b"", b","),
            (b"data: ", b""),
        ]
    )
    return before + text + after


def _double(text: bytes, chance: random.Random) -> bytes:
    return text + text


def _quote(text: bytes, chance: random.Random) -> bytes:
    return json.dumps(text.decode("utf-8", "replace")).encode()


MUTATIONS: list[Callable[[bytes, random.Random], bytes]] = [
    *(
        _flip,
        _flip,
        _cut,
        _drop,
        _repeat,
        _insert,
        _insert,
        _insert,
        _replace_value,
        _replace_value,
    ),
    *(_repeat_key, _encode_otherwise, _wrap, _double, _quote),
]


def data_of(chance: random.Random) -> bytes:
    """Give the bytes of one file, of some hundred lines."""
    ends = chance.choice(
        [[b"\n"], [b"\n"], [b"\r\n"], [b"\n", b"\r\n", b"\n\n", b"\r", b" \n\t\n"]]
    )
    lines = [line_of(chance) + chance.choice(ends) for _ in range(chance.randrange(1, 200))]
    data = b"".join(lines)
    if chance.random() < 0.1:
        data = BYTE_ORDER_MARK + data
    if chance.random() < 0.02:
        data = data.decode("utf-8", "replace").encode("utf-16")
    if chance.random() < 0.3:
        data = data[: chance.randrange(len(data) + 1)]
    return data + chance.choice([b"", b"", b"\n\n \n", b" "])


def packed(data: bytes, chance: random.Random) -> tuple[bytes, bool]:
    """Give a file with that data, compressed or not, and whether it was damaged."""
    kind = chance.choice(["plain", "plain", "gzip", "zstd"])
    if kind == "plain":
        return data, False
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(3)))
    parts = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    if kind == "gzip":
        file = b"".join(gzip.compress(part, chance.choice([0, 1, 6])) for part in parts)
        file += b"\0" * chance.choice([0, 0, 512])
    else:
        compressor = zstandard.ZstdCompressor(level=1, write_checksum=chance.random() < 0.5)
        file = b"".join(compressor.compress(part) for part in parts)
        if chance.random() < 0.2:
            file = b"\x53\x2a\x4d\x18" + struct.pack("<I", 3) + b"abc" + file
    if chance.random() < 0.7:
        return file, False
    return chance.choice([_cut, _flip, _drop])(file, chance), True


class Taps(Stream):
    """A stream that hands out pieces of odd sizes and remembers them."""

    def __init__(self, file: bytes, settings: Settings, chance: random.Random | None) -> None:
        super().__init__(io.BytesIO(file), "fuzz", settings)
        self.given: list[bytes] = []
        self._chance = chance

    def read(self, size: int = MEBIBYTE) -> bytes:
        """Read less than was asked for, as pipes do."""
        if self._chance is not None and size == MEBIBYTE:
            size = self._chance.choice([1, 7, 100, 5000, 65536])
        part = super().read(size)
        self.given.append(part)
        return part


def cuts_of(stream: Stream, settings: Settings) -> tuple[list[Cut], bool]:
    """Cut a stream, and say whether it broke."""
    cuts: list[Cut] = []
    try:
        for cut in cut_stream(stream, "fuzz", settings):
            cuts.append(cut)
    except SourceError:
        return cuts, True
    return cuts, False


def _number(data: bytes, index: int) -> tuple[int, int]:
    """Read a RowBinary length."""
    value = shift = 0
    while True:
        byte = data[index]
        index += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, index


def decoded(pieces: list[Any], layout: str) -> Iterator[list[Any]]:
    """Read RowBinary rows back: s a string, a an array of them, 4 and 8 integers of that size."""
    data = b"".join(bytes(piece) for piece in pieces)
    index = 0
    while index < len(data):
        row: list[Any] = []
        for kind in layout:
            if kind in "48":
                row.append(int.from_bytes(data[index : index + int(kind)], "little"))
                index += int(kind)
                continue
            count, index = _number(data, index) if kind == "a" else (1, index)
            texts = []
            for _ in range(count):
                length, index = _number(data, index)
                texts.append(data[index : index + length])
                index += length
            row.append(texts if kind == "a" else texts[0])
        yield row
    assert index == len(data)


def meaning(text: bytes, sizes: list[int] | None = None) -> Any:
    """Read JSON by another reader than the loader's; numbers stay the text that they are.

    How many members each object has goes to `sizes`, the outermost last.
    """

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if sizes is not None:
            sizes.append(len(pairs))
        return dict(pairs)

    return json.loads(
        text.decode().removeprefix("\ufeff"),
        parse_int=lambda digits: ("number", digits),
        parse_float=lambda digits: ("number", digits),
        parse_constant=lambda _: None,
        object_pairs_hook=members,
    )


def check_line(line: bytes, row: list[Any] | None, reason: bytes) -> None:
    """Hold a landed line against what another reader makes of it."""
    sizes: list[int] = []
    try:
        document = meaning(line, sizes)
        keys = document.keys() if isinstance(document, dict) else set()
        has_key_twice = isinstance(document, dict) and sizes[-1] > len(document)
        is_v3 = document.get("protocol_version") == ("number", "3") if keys else False
        is_record = is_v3 or "request_json" in keys or "response_json" in keys
    except RecursionError:
        return
    except ValueError:
        is_record, is_v3, has_key_twice = False, False, False
    if row is None:
        wanted = [b"duplicate_key"] if has_key_twice else []
        assert not is_record or reason in (b"too_large", b"too_deep", *wanted), (
            "a record was rejected"
        )
        return
    assert is_record, "what is no record was landed"
    assert not has_key_twice, "of a key that stands twice one value was lost"
    _, _, format_, request, response, envelope, repairs, _ = row
    names = ("request", "response") if is_v3 else ("request_json", "response_json")
    assert format_ == (b"provider_trace_socket_v3" if is_v3 else b"provider_trace")
    try:
        for name, text in zip(names, (request, response), strict=True):
            assert (name in document) == (text != b"")
            if text:
                assert repairs or text in line, "not verbatim"
                assert meaning(text) == document.pop(name), "another value"
        assert meaning(envelope) == document, "another envelope"
    except RecursionError:
        return


def check_file(number: int, seed: int) -> int:
    """Make one file, take it apart, and count its lines."""
    chance = random.Random(f"{seed} {number}")
    data = data_of(chance)
    file, is_damaged = packed(data, chance)
    settings = Settings(
        max_record_bytes=chance.choice([300, 5_000, 64 * MEBIBYTE]),
        batch_lines=chance.choice([1, 7, 5_000]),
        batch_bytes=chance.choice([200, 10_000, 64 * MEBIBYTE]),
    )
    stream = Taps(file, settings, chance if chance.random() < 0.5 else None)
    cuts, is_broken = cuts_of(stream, settings)
    given = b"".join(stream.given)
    if not is_damaged:
        assert not is_broken and given == data
    again, broke_again = cuts_of(Taps(file, settings, None), settings)
    assert broke_again == is_broken
    assert is_broken or [cut.batch_id for cut in again] == [cut.batch_id for cut in cuts]

    end = 0
    batches: list[Batch] = []
    framer = Framer.from_file() if number == 0 else FRAMER
    for cut in cuts:
        assert cut.start >= end and not given[end : cut.start].strip()
        assert given.count(b"\n", 0, cut.start) + 1 == cut.first_line
        end = cut.end
        batch = encode_batch(cut, framer, settings)
        batches.append(batch)
        check_batch(cut, batch, given)
    assert is_broken or not given[end:].strip(), "lines were left out"
    lines = sum(1 for line in given[: end or len(given)].split(b"\n") if line.strip())
    assert lines == sum(batch.rows + batch.rejects for batch in batches)
    return lines


def check_batch(cut: Cut, batch: Batch, given: bytes) -> None:
    """Hold a batch's rows against the bytes that they came from."""
    traces = {row[1]: row for row in decoded(batch.traces, "s4ssssa8")}
    rejects = {row[1]: row for row in decoded(batch.rejected, "s4s88sss8")}
    own = given[cut.start : cut.end].removesuffix(b"\n" if cut.is_terminated else b"").split(b"\n")
    offset, line_number, position = cut.start, cut.first_line, 0
    for line in own:
        if line.strip():
            row, reject = traces.pop(position, None), rejects.pop(position, None)
            assert (row is None) != (reject is None), "neither or both"
            if reject is not None:
                _, _, source, line_, offset_, reason, _, raw, _ = reject
                assert (source, line_, offset_) == (b"fuzz", line_number, offset)
                assert raw == line or (
                    cut.full_length == len(line) and line.startswith(raw) and raw
                )
                check_line(line, None, reason)
            else:
                check_line(line, row, b"")
            position += 1
        offset += len(line) + 1
        line_number += 1
    assert not traces and not rejects
    assert batch.lines == position == batch.rows + batch.rejects


FRAMER = Framer.from_file()


def _hang(*_: Any) -> None:
    raise TimeoutError(f"not done in {HANG_SECONDS} seconds of the processor")


@pytest.fixture
def seed() -> int:
    """Give the seed, and print it."""
    given = int(os.environ.get("FUZZ_SEED") or random.SystemRandom().randrange(2**32))
    print(f"FUZZ_SEED={given} FUZZ_RECORDS={count_of_records()}")
    return given


def count_of_records() -> int:
    """Give how many lines to try."""
    return int(os.environ.get("FUZZ_RECORDS", "20000"))


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail on what hangs; let lines of some kilobytes be too long to be kept."""
    monkeypatch.setattr(loader.batches, "KEPT_WHOLE_BYTES", 20_000)
    monkeypatch.setattr(loader.batches, "KEPT_HEAD_BYTES", 1_000)
    before = signal.signal(signal.SIGPROF, _hang)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)


def test_no_line_is_lost_or_changed(seed: int, guarded: None) -> None:
    """Each line of each file is one row or one reject, with its own bytes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    lines = number = 0
    while lines < count_of_records():
        signal.setitimer(signal.ITIMER_PROF, HANG_SECONDS)
        try:
            lines += check_file(number, seed)
        except Exception as error:
            raise AssertionError(f"FUZZ_SEED={seed}, file {number}: {error!r}") from error
        number += 1
    print(f"{lines:,} lines of {number:,} files")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < GROWTH_BYTES


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
@pytest.mark.parametrize("fill", [b"\0", b"\n", b"{}\n", b'{"id":"x"}\n'])
def test_a_bomb_is_stopped_in_bounded_memory(kind: str, fill: bytes, guarded: None) -> None:
    """Half a gigabyte in a small file: stopped where the settings say, without holding it."""
    part = fill * (16 * MEBIBYTE // len(fill))
    one = gzip.compress(part, 9) if kind == "gzip" else zstandard.compress(part, 3)
    settings = Settings(max_expansion_ratio=20, expansion_grace_bytes=8 * MEBIBYTE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    stream = Taps(one * 32, settings, None)
    signal.setitimer(signal.ITIMER_PROF, HANG_SECONDS)
    with pytest.raises(SourceError, match="expand to more than"):
        for cut in cut_stream(_Forgetful(stream), "fuzz", settings):
            assert len(cut.lines) <= 100 * settings.batch_lines, "a list of blank lines"
    assert stream.offset <= 8 * MEBIBYTE + 20 * len(one * 32)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < GROWTH_BYTES


class _Forgetful:
    """A stream whose pieces are not remembered."""

    def __init__(self, stream: Taps) -> None:
        self._stream = stream
        self.offset = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def read(self, size: int = MEBIBYTE) -> bytes:
        """Read on, and forget what was read before."""
        self._stream.given.clear()
        return self._stream.read(size)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"request_json":NaN,"x":"' + b'\\"' * 1_000_000, "not_json"),
        (b"NaN" + b'\\"' * 1_000_000, "not_json"),
        (b'{"request_json":' + b"[" * 1_000_000, None),
        (b'{"request_json":' + b"[" * 10_000 + b"]" * 10_000 + b"}", None),
        (b'{"request_json":"\\ud800",' + b'"a":1,' * 200_000 + b'"b":2}', "duplicate_key"),
        (b'{"request_json":1, ' + b'"a" : 1, ' * 200_000 + b'"b":2}', "duplicate_key"),
        (
            b'{"request_json":1' + b"".join(b', "%d": 1' % each for each in range(200_000)) + b"}",
            "",
        ),
        (b'{"request_json":' + b"7" * 1_000_000 + b"}", ""),
        (b'{"request_json":NaN,"n":' + b"7" * 1_000_000 + b"}", ""),
        (b'{"request_json":1,"' + b"\\u0061" * 200_000 + b'":2}', ""),
        (b"\xef\xbb\xbf" * 300_000, "not_json"),
    ],
)
def test_long_lines_are_read_in_one_pass(line: bytes, reason: str | None, guarded: None) -> None:
    """Lines that made, or could make, a reader go over them again and again."""
    signal.setitimer(signal.ITIMER_PROF, HANG_SECONDS)
    framed = FRAMER.frame(line)
    if reason is not None:
        assert getattr(framed, "reason", "") == reason


@pytest.mark.skipif("FUZZ_STORE" not in os.environ, reason="builds the project: set FUZZ_STORE=1")
def test_mutated_records_reach_llm_traces(project: Project, tmp_path: Path, seed: int) -> None:
    """A sample through the store and dbt: every line a row or a reject, every id there once."""
    chance = random.Random(seed)
    data = b"".join(line_of(chance) + b"\n" for _ in range(max(1_000, count_of_records() // 200)))
    (tmp_path / "hostile.ndjson").write_bytes(data)
    lines = [line for line in data.split(b"\n") if line.strip()]
    project.loader(str(tmp_path / "hostile.ndjson"), expect=1)
    project.dbt("build")
    landed, rejected = (
        project.value(f"select count() from raw_{t}") for t in ("traces", "rejects")
    )
    assert landed + rejected == len(lines)
    numbered = data.split(b"\n")
    for row in project.query("select line, hex(raw) as raw from raw_rejects"):
        assert bytes.fromhex(row["raw"]) == numbered[int(row["line"]) - 1], row["line"]
    assert project.value("select count() = uniqExact(id) from llm_traces") == 1
    assert project.value("select count() from int_batches__pending") == 0
