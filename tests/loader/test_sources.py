"""Finding and opening what is to be landed."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import gzip
import io
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from loader.errors import BrokenError, ExpansionError, SourceError, SourceTakenError, UsageError
from loader.settings import Settings
from loader.sources import Source, Stream, find_sources, hold

SETTINGS = Settings()
TEXT = b"".join(b"%d\n" % number for number in range(300_000))


def read_all(data: bytes, settings: Settings = SETTINGS) -> bytes:
    stream = Stream(io.BytesIO(data), "s", settings)
    return b"".join(iter(stream.read, b""))


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def gzipped(data: bytes) -> bytes:
    """Compress without the time of day, which would be in the names of tests."""
    return gzip.compress(data, mtime=0)


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"", b""),
        (b"a", b"a"),
        (b"\x1f", b"\x1f"),
        (TEXT, TEXT),
        (gzipped(TEXT), TEXT),
        (gzipped(b""), b""),
        (gzipped(TEXT) + gzipped(b"b"), TEXT + b"b"),
        (gzipped(TEXT) + bytes(5000), TEXT),
        (gzipped(bytes(5_000_000)), bytes(5_000_000)),
        (zstd(TEXT), TEXT),
        (zstd(b""), b""),
        (zstd(TEXT) + zstd(b"b"), TEXT + b"b"),
        (b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc" + zstd(TEXT), TEXT),
        (zstd(bytes(5_000_000)), bytes(5_000_000)),
    ],
)
def test_reads_plain_gzip_and_zstd_whatever_the_name(data: bytes, wanted: bytes) -> None:
    assert read_all(data) == wanted


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_a_stream_that_ends_early_gives_what_it_has_and_an_error(pack) -> None:  # type: ignore[no-untyped-def]
    packed = pack(TEXT)
    stream = Stream(io.BytesIO(packed[: len(packed) // 2]), "file.gz", SETTINGS)
    got = b""
    with pytest.raises(SourceError, match=r"file\.gz: the .* stream ends early"):
        while True:
            got += stream.read()
    assert got
    assert TEXT.startswith(got)


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_a_damaged_stream_is_an_error(pack) -> None:  # type: ignore[no-untyped-def]
    packed = bytearray(pack(os.urandom(300_000)))
    packed[len(packed) // 2] ^= 255
    packed[-6] ^= 255
    with pytest.raises(SourceError, match="is damaged"):
        read_all(bytes(packed) + b"rubbish")


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_a_stream_that_expands_without_end_is_stopped(pack) -> None:  # type: ignore[no-untyped-def]
    limited = dataclasses.replace(SETTINGS, expansion_grace_bytes=1000, max_expansion_ratio=20)
    with pytest.raises(SourceError, match="TOKENLEDGER_MAX_EXPANSION_RATIO"):
        read_all(pack(bytes(50_000_000)), limited)
    assert read_all(pack(TEXT), limited) == TEXT


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_the_first_bytes_of_a_compressed_file_are_no_text(pack) -> None:  # type: ignore[no-untyped-def]
    for count in range(1, 4):
        stream = Stream(io.BytesIO(pack(TEXT)[:count]), "file.zst", SETTINGS)
        with pytest.raises(BrokenError, match="ends early"):
            stream.read()
    for name in ("file.zst", "file-\udcff.zst/"):  # pzstd begins with a frame to be skipped
        with pytest.raises(BrokenError, match="ends early"):
            Stream(io.BytesIO(b"\x50\x2a"), name, SETTINGS).read()
    assert read_all(b"(") == b"(", "by no name of a compressed file"
    assert Stream(io.BytesIO(b"{}\n"), "file.gz", SETTINGS).read() == b"{}\n"


def test_a_window_that_takes_too_much_memory_is_named() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    writer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = zstd(b"1\n") + writer.compress(TEXT) + writer.flush()
    with pytest.raises(ExpansionError, match="compress it anew without --long") as caught:
        read_all(packed)
    assert caught.value.intact_until == 2


def test_what_comes_late_is_waited_for(tmp_path: Path) -> None:
    """Whoever opened standard input may have made it return at once."""
    pieces = [b"{", b"}\n", TEXT[:70_000]]
    out, into = os.pipe()
    os.set_blocking(out, False)

    def send() -> None:
        with os.fdopen(into, "wb", buffering=0) as file:
            for piece in pieces:
                time.sleep(0.05)
                file.write(piece)

    sender = threading.Thread(target=send)
    sender.start()
    with os.fdopen(out, "rb") as file:
        stream = Stream(file, "s", SETTINGS)
        assert b"".join(iter(stream.read, b"")) == b"".join(pieces)
    sender.join()


def test_a_folder_gives_its_regular_files_by_name(tmp_path: Path) -> None:
    for name in ("b.ndjson", "a.jsonl.gz", "sub/c.ndjson.zst", "notes.txt", ".hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "link.ndjson").symlink_to(tmp_path / "notes.txt")
    (tmp_path / "dangling.ndjson").symlink_to("/nowhere")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.ndjson")
    (tmp_path / "folder.ndjson").mkdir()
    sources, skipped = find_sources([str(tmp_path)])
    names = [os.path.relpath(source.name, tmp_path) for source in sources]
    assert names == ["a.jsonl.gz", "b.ndjson", "sub/c.ndjson.zst"]
    assert sorted(Path(path).name for path in skipped) == [
        "dangling.ndjson",
        "link.ndjson",
        "loop",
        "pipe.ndjson",
    ]


@pytest.mark.parametrize("closed", ["closed", "closed/c.ndjson"])
def test_what_cannot_be_looked_at_in_a_folder_is_an_error_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    """A folder without the right to read, or to search: root, who may all, is told so here."""
    for name in ("a.ndjson", "closed/c.ndjson", "z.ndjson"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    refuse(monkeypatch, str(tmp_path / closed), PermissionError(errno.EACCES, "Permission denied"))
    sources, skipped = find_sources([str(tmp_path)])
    names = [os.path.relpath(source.name, tmp_path) for source in sources]
    assert (sorted(names), skipped) == (["a.ndjson", closed, "z.ndjson"], [])
    with pytest.raises(SourceError, match=f"{closed}: cannot be opened: Permission denied"):
        next(source for source in sources if source.name.endswith(closed)).open(SETTINGS)


@pytest.mark.parametrize("gone", ["gone", "gone/c.ndjson"])
def test_what_vanishes_from_a_folder_once_listed_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    for name in ("a.ndjson", "gone/c.ndjson"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    refuse(monkeypatch, str(tmp_path / gone), FileNotFoundError(errno.ENOENT, "No such file"))
    ((source,), skipped) = find_sources([str(tmp_path)])
    assert (Path(source.name).name, skipped) == ("a.ndjson", [])


def refuse(monkeypatch: pytest.MonkeyPatch, path: str, error: OSError) -> None:
    """Let a path not be listed, looked at or opened."""
    error.filename = path

    def refused(action: Callable[..., Any]) -> Callable[..., Any]:
        def run(place: Any, *rest: Any, **named: Any) -> Any:
            if str(place) == path:
                raise error
            return action(place, *rest, **named)

        return run

    for name in ("scandir", "stat", "open"):
        monkeypatch.setattr(os, name, refused(getattr(os, name)))
    monkeypatch.setattr(Path, "lstat", refused(Path.lstat))


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_takes_a_files_place_once_listed_is_not_read(tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.ndjson"
    path.write_text("x")
    (tmp_path / "private").write_text("secret")
    ((source,), _) = find_sources([str(tmp_path / "in")])
    path.unlink()
    if kind == "link":
        path.symlink_to(tmp_path / "private")
    else:
        os.mkfifo(path)
    said = "it is a link now" if kind == "link" else "it is no file any more"
    with pytest.raises(SourceError, match=f"a.ndjson: cannot be opened: {said}"):
        source.open(SETTINGS)
    with pytest.raises(SourceError, match=said), hold(source, 0):
        pass


def test_a_named_link_is_the_file_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "a.ndjson").write_text("x")
    (tmp_path / "link").symlink_to("a.ndjson")
    sources, _ = find_sources([str(tmp_path / "link")])
    assert sources[0].name == str(tmp_path / "a.ndjson")
    # It may lead elsewhere when its turn comes.
    assert sources[0].path == sources[0].name


@pytest.mark.parametrize("name", ["missing.ndjson", "empty", "a\0b", "socket"])
def test_what_cannot_be_landed_is_a_usage_error(tmp_path: Path, name: str) -> None:
    import socket

    (tmp_path / "empty").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        with pytest.raises(UsageError, match=r"Nothing was landed\."):
            find_sources([str(tmp_path / name)])


def test_a_name_that_is_not_utf8_still_has_a_name(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\\xff\xff.ndjson")
    path.write_bytes(b"{}\n")
    ((source,), _) = find_sources([str(path)])
    assert source.name.endswith("\\\\xff\\xff.ndjson/"), "no other path is called so"
    source.name.encode()


def test_a_file_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    path.write_bytes(b"x\n")
    path.chmod(0o444)
    source = Source(str(path), str(path), True)
    said: list[str] = []
    with hold(source, 60, said.append):
        refused = pytest.raises(SourceTakenError, match="TOKENLEDGER_LOCK_TIMEOUT")
        with refused, hold(source, 0.2, said.append):
            raise AssertionError
        assert len(said) == 1
        assert "waiting up to 0.2 s for the file" in said[0]
        assert str(path) in said[0]
    with hold(source, 0, said.append):
        assert len(said) == 1


def test_who_waited_for_a_file_holds_the_one_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    path.write_bytes(b"x\n")
    source = Source(str(path), str(path), True)
    new = tmp_path / "new"
    new.write_bytes(b"y\n")
    with contextlib.ExitStack() as first:
        first.enter_context(hold(source, 0))

        def replace(_: str) -> None:
            new.rename(path)
            first.close()

        with hold(source, 60, replace), pytest.raises(SourceTakenError), hold(source, 0):
            raise AssertionError


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF])
def test_a_file_that_cannot_be_locked_is_landed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """NFS has no lock without a server for it, and none of a file that is opened for reading."""

    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    path = tmp_path / "a.ndjson"
    path.write_bytes(b"x\n")
    monkeypatch.setattr(fcntl, "flock", flock)
    with hold(Source(str(path), str(path), True), 0):
        pass
    with pytest.raises(SourceError, match="cannot be opened"), hold(Source("no", "no", True), 0):
        raise AssertionError
