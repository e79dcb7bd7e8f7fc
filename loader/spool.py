"""The spool: a directory of segment files that carries records from a server to the drainer.

This module owns the bytes on disk (segment header, frames, names, damage) and the look at a spool
from outside (:func:`spool_status`). It refuses to write records (``loader.writer``), to land them
(``loader.drain``) and to know what a record means: a frame's payload is opaque here.

A segment's name is ``<host>-<pid>-<token>-<sequence>`` and its ending says where it stands::

    .open     one live process appends to it and holds flock on it; no flock: its owner is dead
    .ready    finished; nobody changes it any more

The token is random, made once by each writer, so that names never repeat, whatever the clock or
the process number does; the sequence orders the segments of one writer.

A segment is a 32-byte header and frames. A frame is a 16-byte head and the payload::

    head      ff 54 4c 31 | kind u8 | 0 u8 | 0 u16 | length u32 | crc32 u32     (little endian)

The checksum covers the head from ``kind`` to ``length`` and the payload. The first byte of the
mark never occurs in UTF-8, so that a reader finds the next frame after a damaged place.
Frames of kind :data:`REJECT` carry what is not a record (half a record from a broken connection):
one line of JSON with ``reason`` and ``detail``, a line feed, and the bytes as they came.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import socket
import stat
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from loader.errors import LoaderError

RECORD = 0
REJECT = 1

HEADER_MAGIC = b"TLSPOOL1"
FRAME_MARK = b"\xffTL1"
_HEADER = struct.Struct("<8sQ12sI")
_FRAME = struct.Struct("<4sBBHII")
_COVERED = struct.Struct("<BBHI")
HEADER_BYTES = _HEADER.size
FRAME_BYTES = _FRAME.size
# How often the bytes behind a damaged place are looked through for whole frames, twice over.
_LOOKED_THROUGH = 16

MAX_RECORD_BYTES = 128 * 1024 * 1024
"""The largest record the spool takes: what a server may send over the socket."""

TOO_MANY_FILES = frozenset({errno.EMFILE, errno.ENFILE})

SEGMENT_NAME = re.compile(r"^[A-Za-z0-9_.]{1,40}-\d{1,10}-[0-9a-f]{16}-\d{8,12}\.(open|ready)\Z")
BATCH_NAME = re.compile(
    r"^batch-[A-Za-z0-9_.]{1,40}-\d{1,10}-[0-9a-f]{16}-\d{8,12}\.(open|ready|landed)\Z"
)


class SpoolError(LoaderError):
    """The spool cannot be used: what, where and what to do are in the message."""

    exit_code = 3


class SpoolFull(SpoolError):
    """The spool holds as many bytes as it may, or the disk is full: the record was refused."""


class RecordTooLarge(SpoolError):
    """A record is above the limit of one frame."""


class SpoolClosed(SpoolError):
    """The writer was closed before this record came."""


@dataclass(frozen=True)
class Frame:
    """One whole frame of a segment.

    Attributes
    ----------
    offset : int
        Where the frame starts in the segment, in bytes.
    kind : int
        ``RECORD`` or ``REJECT``.
    payload : memoryview
        The frame's bytes, without its head.
    """

    offset: int
    kind: int
    payload: memoryview


@dataclass(frozen=True)
class Damage:
    """Bytes of a segment that are not a whole frame.

    Attributes
    ----------
    offset : int
        Where the damage starts in the segment, in bytes.
    reason : str
        ``torn`` when nothing whole follows (the tail of a killed writer), else ``corrupt``.
    payload : memoryview
        The damaged bytes, verbatim.
    """

    offset: int
    reason: str
    payload: memoryview


def encode_header(created_ns: int | None = None) -> bytes:
    """Make a segment's header; `created_ns` is wall-clock time, used only to tell its age."""
    body = _HEADER.pack(HEADER_MAGIC, created_ns or time.time_ns(), bytes(12), 0)[:-4]
    return body + zlib.crc32(body).to_bytes(4, "little")


def decode_header(data: bytes | memoryview) -> int | None:
    """Return a segment's creation time in ns, or None when these bytes are not a header."""
    if len(data) < HEADER_BYTES:
        return None
    magic, created_ns, _, crc = _HEADER.unpack_from(data)
    if magic != HEADER_MAGIC or zlib.crc32(data[: HEADER_BYTES - 4]) != crc:
        return None
    return int(created_ns)


def frame_head(payload: bytes | memoryview, kind: int = RECORD) -> bytes:
    """Make the head of a frame for `payload`."""
    length = len(payload)
    crc = zlib.crc32(payload, zlib.crc32(_COVERED.pack(kind, 0, 0, length)))
    return _FRAME.pack(FRAME_MARK, kind, 0, 0, length, crc)


def _frame_at(view: memoryview, offset: int) -> Frame | None:
    """Read the frame that starts at `offset`, or None if there is no whole one."""
    if offset + FRAME_BYTES > len(view):
        return None
    mark, kind, flags, reserved, length, crc = _FRAME.unpack_from(view, offset)
    if mark != FRAME_MARK:
        return None
    start = offset + FRAME_BYTES
    payload = view[start : start + length]
    if len(payload) != length:
        return None
    covered = _COVERED.pack(kind, flags, reserved, length)
    if zlib.crc32(payload, zlib.crc32(covered)) != crc:
        return None
    return Frame(offset, kind, payload)


def _next_frame(data: bytes, offset: int) -> int:
    """Find the next whole frame; -1 if there is none.

    A record may be made of heads of frames, and each head may claim all that is behind it: so much
    is looked through for them, then as much for those that end where another begins, and no more.
    """
    view = memoryview(data)
    most = _LOOKED_THROUGH * len(data)
    looked_through = 0
    while (offset := data.find(FRAME_MARK, offset)) != -1:
        end = offset + FRAME_BYTES
        if end <= len(data):
            end += _FRAME.unpack_from(data, offset)[4]
        is_likely = end == len(data) or data.startswith(FRAME_MARK, end)
        if end <= len(data) and (is_likely or looked_through < most):
            if _frame_at(view, offset) is not None:
                return offset
            looked_through += end - offset
            if looked_through > 2 * most:
                break
        offset += 1
    return -1


def read_frames(data: bytes) -> Iterator[Frame | Damage]:
    """Go through a segment's bytes: every whole frame, and every stretch that is none.

    Parameters
    ----------
    data : bytes
        The whole segment, header included.

    Yields
    ------
    Frame or Damage
        In the order of the file. All bytes behind the header are in exactly one of them (heads
        belong to their frame), so that nothing is passed over in silence.
    """
    view = memoryview(data)
    offset = HEADER_BYTES if decode_header(view) is not None else 0
    while offset < len(view):
        frame = _frame_at(view, offset)
        if frame is not None:
            yield frame
            offset += FRAME_BYTES + len(frame.payload)
            continue
        following = _next_frame(data, offset + 1)
        if following == -1:
            yield Damage(offset, "torn", view[offset:])
            return
        yield Damage(offset, "corrupt", view[offset:following])
        offset = following


def encode_reject(reason: str, detail: str, raw: bytes) -> bytes:
    """Make the payload of a REJECT frame."""
    return msgspec.json.encode({"reason": reason, "detail": detail}) + b"\n" + raw


def decode_reject(payload: bytes | memoryview) -> tuple[str, str, bytes]:
    """Take a REJECT frame's payload apart into reason, detail and the bytes as they came."""
    head, _, raw = bytes(payload).partition(b"\n")
    try:
        fields = msgspec.json.decode(head, type=dict[str, str])
    except msgspec.MsgspecError:
        return "reject", "", bytes(payload)
    return fields.get("reason", "reject"), fields.get("detail", ""), raw


def host_label() -> str:
    """Return this host's name as file names may hold it."""
    return re.sub(r"[^A-Za-z0-9_.]", "_", socket.gethostname())[:40] or "host"


def new_stream() -> str:
    """Return a name no other writer has: host, process and a random token."""
    return f"{host_label()}-{os.getpid()}-{secrets.token_hex(8)}"


def open_spool(path: str | os.PathLike[str], *, create: bool) -> Path:
    """Check that a directory may serve as a spool, and make it if asked.

    Parameters
    ----------
    path : path-like
        The spool directory.
    create : bool
        Make it (mode 0700) when it is missing. Its parent must exist.

    Returns
    -------
    pathlib.Path
        Its absolute path.

    Raises
    ------
    SpoolError
        If it is missing, a symbolic link, not a directory, of another user than this one or root,
        or open for everybody to write.
    """
    spool = Path(path).absolute()
    if create:
        try:
            spool.mkdir(mode=0o700)
            with contextlib.suppress(OSError):  # of a parent that may not be read
                sync_directory(spool.parent)
        except FileExistsError:
            pass
        except OSError as error:
            raise SpoolError(
                f"{spool}: cannot make the spool directory ({error.strerror}): "
                "create it, or name one in a directory that exists and may be written"
            ) from None
    try:
        found = os.lstat(spool)
    except OSError as error:
        raise SpoolError(
            f"{spool}: no such spool directory ({error.strerror}): name the one that the servers "
            "write to; the first of them makes it"
        ) from None
    if stat.S_ISLNK(found.st_mode):
        raise SpoolError(f"{spool}: is a symbolic link: name the directory itself")
    if not stat.S_ISDIR(found.st_mode):
        raise SpoolError(f"{spool}: is not a directory: name the spool directory")
    if is_of_another_user(found):
        raise SpoolError(
            f"{spool}: belongs to user {found.st_uid}, and this is user {os.geteuid()}: run as "
            "that user, or name a spool directory of your own"
        )
    if is_open_to_all(found):
        raise SpoolError(f"{spool}: everybody may write to it: chmod o-w {spool}")
    return spool


def is_of_another_user(found: os.stat_result) -> bool:
    """Tell whether a directory's owner, who may do with its files as they like, is another user.

    Root is not: it may anyway, and makes directories for services.
    """
    return found.st_uid not in (os.geteuid(), 0)


def is_open_to_all(found: os.stat_result) -> bool:
    """Tell whether everybody may put files into a directory; a sticky one (/tmp) is no exception.

    There others may take a name before its owner does, or while its owner is away.
    """
    return bool(found.st_mode & stat.S_IWOTH)


def try_lock(descriptor: int) -> bool:
    """Take the exclusive flock of an open file if nobody else has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def open_to_read(path: str | os.PathLike[str]) -> int:
    """Open what stands in a spool: no link is followed, and no pipe is waited for."""
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)


def sync_file(path: str | os.PathLike[str]) -> None:
    """Make a file's bytes durable; what is no file, or a link, is left alone."""
    try:
        descriptor = open_to_read(path)
    except OSError as error:
        if error.errno in TOO_MANY_FILES:
            raise
        return  # it is not read either
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_held(path: str | os.PathLike[str]) -> bool:
    """Tell whether a live process holds the flock of a segment or batch."""
    try:
        descriptor = open_to_read(path)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def disk_bytes(spool: Path) -> int:
    """Sum the sizes of all regular files of a spool, one level of batch directories included.

    Raises
    ------
    OSError
        While too many files are open: what cannot be counted is not nothing.
    """
    entries = _scan(spool)
    for batch in [entry for entry in entries if entry.is_dir(follow_symlinks=False)]:
        entries += _scan(batch.path)
    total = 0
    for entry in entries:
        with contextlib.suppress(OSError):
            if entry.is_file(follow_symlinks=False):
                total += entry.stat(follow_symlinks=False).st_size
    return total


def _scan(path: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except OSError as error:
        if error.errno in TOO_MANY_FILES:
            raise
        return []


def count_frames(path: str | os.PathLike[str]) -> tuple[int, int | None, bool]:
    """Count a segment's frames by their heads alone, without reading payloads.

    Returns
    -------
    (int, int or None, bool)
        The frames up to the first damaged head; the header's creation time in ns; whether the
        file is damaged, as far as heads tell.
    """
    try:
        descriptor = open_to_read(path)
    except OSError:
        return 0, None, False
    try:
        size = os.fstat(descriptor).st_size
        created_ns = decode_header(os.pread(descriptor, HEADER_BYTES, 0))
        offset = HEADER_BYTES
        frames = 0
        while offset + FRAME_BYTES <= size:
            mark, _, _, _, length, _ = _FRAME.unpack(os.pread(descriptor, FRAME_BYTES, offset))
            if mark != FRAME_MARK or offset + FRAME_BYTES + length > size:
                break
            offset += FRAME_BYTES + length
            frames += 1
        return frames, created_ns, offset != size or created_ns is None
    except (OSError, struct.error):
        return 0, None, False
    finally:
        os.close(descriptor)


def spool_status(path: str | os.PathLike[str]) -> dict[str, int | float | str | None]:
    """Look at a spool from outside, without locking or changing anything.

    Parameters
    ----------
    path : path-like
        The spool directory.

    Returns
    -------
    dict
        ``path``; ``records`` (depth: records waiting to land) and ``bytes`` of all segments;
        ``segments_open`` (a live process writes them), ``segments_ready``, ``segments_stale``
        (their writer is dead; a drainer takes them); ``batches`` (claimed by a drainer, not landed
        yet); ``oldest_age_seconds`` (null when nothing waits; 0 at least, also when the clock was
        set back); ``damaged`` (finished or stale segments with a torn or corrupt place, as far as
        heads tell); ``foreign`` (entries that are not the spool's and are left alone).

    Raises
    ------
    SpoolError
        If the directory is no spool, or too many files are open.
    """
    spool = open_spool(path, create=False)
    try:
        return _status_of(spool)
    except OSError as error:
        raise SpoolError(f"{spool}: cannot be looked at ({error.strerror})") from None


def _status_of(spool: Path) -> dict[str, int | float | str | None]:
    counts = {"segments_open": 0, "segments_ready": 0, "segments_stale": 0, "batches": 0}
    records = total_bytes = foreign = damaged = 0
    oldest_ns: int | None = None

    def look(file: os.DirEntry[str], is_live: bool = False) -> None:
        nonlocal records, total_bytes, oldest_ns, damaged
        try:
            total_bytes += file.stat(follow_symlinks=False).st_size
        except OSError:
            return
        frames, created_ns, is_damaged = count_frames(file.path)
        records += frames
        damaged += is_damaged and not is_live
        if frames and created_ns is not None:
            oldest_ns = created_ns if oldest_ns is None else min(oldest_ns, created_ns)

    for entry in _scan(spool):
        if SEGMENT_NAME.match(entry.name) and entry.is_file(follow_symlinks=False):
            is_live = entry.name.endswith(".open") and is_held(entry.path)
            if entry.name.endswith(".ready"):
                counts["segments_ready"] += 1
            else:
                counts["segments_open" if is_live else "segments_stale"] += 1
            look(entry, is_live)
        elif BATCH_NAME.match(entry.name) and entry.is_dir(follow_symlinks=False):
            inner = [each for each in _scan(entry.path) if SEGMENT_NAME.match(each.name)]
            counts["batches"] += bool(inner) and not entry.name.endswith(".landed")
            if not entry.name.endswith(".landed"):
                for file in inner:
                    look(file)
        else:
            foreign += 1
    age = None if oldest_ns is None else max(0.0, (time.time_ns() - oldest_ns) / 1e9)
    return {
        "path": str(spool),
        "records": records,
        "bytes": total_bytes,
        **counts,
        "oldest_age_seconds": None if age is None else round(age, 3),
        "damaged": damaged,
        "foreign": foreign,
    }
