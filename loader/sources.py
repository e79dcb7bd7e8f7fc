"""Where bytes come from: files, folders, standard input; plain, gzip or zstd.

Owns finding, opening and decompressing, with offsets in the decompressed stream, and keeping other
loaders off a file. Refuses to know lines. In a folder it takes regular files of known names only:
no links, pipes or devices.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import zstandard

from loader.errors import (
    BrokenError,
    DamagedError,
    ExpansionError,
    SourceError,
    SourceTakenError,
    UsageError,
)
from loader.settings import Settings
from loader.spool import try_lock

__all__ = ["STDIN", "Source", "Stream", "find_sources", "hold", "keep"]

STDIN = "-"
SUFFIXES = tuple(
    name + packed for name in (".ndjson", ".jsonl") for packed in ("", ".gz", ".zst", ".zstd")
)
_CHUNK = 1024 * 1024
_LOOK_AGAIN_SECONDS = 0.1
# One zstd block of 4 bytes gives 128 KiB: what one step may expand to stays at some 64 MiB.
_ZSTD_STEP = 2048
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE_END = b"\x2a\x4d\x18"
_COMPRESSED_NAMES = (".gz", ".zst", ".zstd")


@dataclass(frozen=True)
class Source:
    """A file or stream to land.

    Attributes
    ----------
    name : str
        Its name in the ledger: the file's absolute path with links resolved, or `stdin`.
    path : str or None
        The path to open; None for standard input.
    is_file : bool
        A regular file: it can be opened again, and the ledger's chain of its batches followed.
    kept : binary file, optional
        The file as it was found, kept open: what stands at its path must be the same at each
        opening, as a batch is what one file holds.
    """

    name: str
    path: str | None
    is_file: bool
    kept: BinaryIO | None = None

    def open(self, settings: Settings, offset: int = 0) -> Stream:
        """Open the source at an offset of its decompressed bytes.

        Raises
        ------
        SourceError
            If it cannot be opened, ends before the offset, or is another file than the one kept.
        """
        if self.path is None:
            if sys.stdin is None:
                raise SourceError(f"{self.name}: is closed.")
            return Stream(sys.stdin.buffer, self.name, settings)
        file = _open(self.path, is_file=self.is_file)
        if self.kept is not None and not _is_same(self.kept, file):
            file.close()
            raise SourceError(f"{self.name}: was replaced while it was read; run it again.")
        stream = Stream(file, self.name, settings)
        try:
            stream.skip(offset)
        except BaseException:
            stream.close()
            raise
        return stream

    def find_damage(self, settings: Settings) -> DamagedError | None:
        """Read a compressed file to its end, where alone its check tells whether it is whole.

        Landed before that, lines that are damaged would be records, and all behind the first of
        them other batches than when the file is mended.
        """
        stream = self.open(settings)
        try:
            while not stream.is_plain and stream.read():
                pass
        except ExpansionError as error:
            return error
        except DamagedError as error:
            return DamagedError(
                f"{self.name}: is damaged behind byte {error.intact_until:,} of what it expands "
                "to. Nothing behind that was landed now: mend the file and run it again.",
                error.intact_until,
            )
        except BrokenError:
            pass  # it ends early: what comes before that is what it was
        finally:
            stream.close()
        return None


class Stream:
    """The decompressed bytes of a source, from front to back.

    Parameters
    ----------
    file : binary file
        Read from where it stands; its first bytes say whether it is compressed.
    name : str
        For messages.
    settings : Settings
        How far a compressed stream may expand.

    Attributes
    ----------
    offset : int
        Decompressed bytes handed out so far.
    is_plain : bool
        Whether it is not compressed.
    """

    def __init__(self, file: BinaryIO, name: str, settings: Settings) -> None:
        self.name = name
        self.offset = 0
        self._end: int | None = None
        self._failure: SourceError | None = None
        self._settings = settings
        self._file = file
        self._compressed_bytes = 0
        self._expanded_bytes = 0
        self._whole_bytes = 0
        self._ahead = b""
        first = self._read_file(4)
        while 0 < len(first) < 4 and (more := self._read_file(4 - len(first))):
            first += more
        self.is_plain = False
        if first.startswith(_GZIP_MAGIC):
            self._chunks = self._gunzip(first)
        elif first == _ZSTD_MAGIC or (first[1:] == _SKIPPABLE_END and first[0] & 0xF0 == 0x50):
            self._chunks = self._unzstd(first)
        elif self._is_begun_magic(first):
            self._chunks = self._cut_off()
        else:
            self.is_plain = True
            self._ahead = first
            self._chunks = iter(lambda: self._read_file(_CHUNK), b"")

    def read(self, size: int = _CHUNK) -> bytes:
        """Read up to `size` bytes; none means the end.

        Raises
        ------
        SourceError
            If the stream is broken, ends early, or expands beyond the limit. What came before has
            been handed out.
        """
        if self._end is not None:
            size = min(size, self._end - self.offset)
        if size <= 0:
            return b""
        if not self._ahead:
            self._ahead = self._next_chunk()
        if len(self._ahead) <= size:
            taken, self._ahead = self._ahead, b""
        else:
            taken, self._ahead = self._ahead[:size], self._ahead[size:]
        self.offset += len(taken)
        return taken

    def peek(self) -> bytes:
        """Look at the next byte; empty at the end."""
        if not self._ahead:
            self._ahead = self._next_chunk()
        return self._ahead[:1]

    def has_more(self) -> bool:
        """Say whether something is to be read yet, or an error to be met."""
        try:
            return bool(self.peek())
        except SourceError:
            return True

    def peek_past_blank(self) -> bytes:
        """Look at the first byte that is no space within a line, or its newline; empty at the end.

        Of more space than is kept in memory, a space.
        """
        while True:
            following = self._ahead.lstrip(b" \t\r\v\f")
            if following:
                return following[:1]
            if len(self._ahead) > _CHUNK:
                return b" "
            chunk = self._next_chunk()
            if not chunk:
                return b""
            self._ahead += chunk

    def read_line_part(self) -> bytes:
        """Read on to the end of the line, newline included, or as far as one chunk goes."""
        if not self._ahead:
            self._ahead = self._next_chunk()
        end = self._ahead.find(b"\n")
        return self.read(end + 1 if end >= 0 else len(self._ahead) or 1)

    def end_at(self, offset: int) -> None:
        """Let `read` and `read_line_part` end at an offset."""
        self._end = offset

    def skip(self, count: int) -> None:
        """Go forward by `count` bytes."""
        if self.is_plain and count > len(self._ahead) and self._file.seekable():
            self._file.seek(self.offset + count)
            self.offset += count
            self._ahead = b""
            return
        left = count
        while left > 0:
            taken = self.read(min(left, _CHUNK))
            if not taken:
                raise BrokenError(f"{self.name}: became shorter while it was read; run it again.")
            left -= len(taken)

    def close(self) -> None:
        """Close the file; standard input stays open."""
        if sys.stdin is None or self._file is not sys.stdin.buffer:
            self._file.close()

    def _read_file(self, size: int) -> bytes:
        try:
            # None: nothing has come yet, and whoever opened it made it return at once.
            while (data := self._file.read(size)) is None:
                select.select([self._file], [], [])
            return data
        except OSError as error:
            raise SourceError(f"{self.name}: cannot be read: {error.strerror}.") from None

    def _next_chunk(self) -> bytes:
        if self._failure is not None:
            raise self._failure  # as often as it is read: it has no end
        try:
            for chunk in self._chunks:
                if chunk:
                    return chunk
        except SourceError as error:
            self._failure = error
            raise
        return b""

    def _read_compressed(self, size: int) -> bytes:
        data = self._read_file(size)
        self._compressed_bytes += len(data)
        return data

    def _expand(self, data: bytes) -> None:
        """Count what came out, and stop a stream that expands without end."""
        self._expanded_bytes += len(data)
        limits = self._settings
        allowed = limits.expansion_grace_bytes + limits.max_expansion_ratio * self._compressed_bytes
        if self._expanded_bytes > allowed:
            raise ExpansionError(
                f"{self.name}: {self._compressed_bytes:,} compressed bytes expand to more than "
                f"{allowed:,}; stopped. If that is right, raise TOKENLEDGER_MAX_EXPANSION_RATIO "
                f"(now {limits.max_expansion_ratio}) and run it again.",
                self._whole_bytes,
            )

    def _early_end(self, kind: str) -> BrokenError:
        return BrokenError(
            f"{self.name}: the {kind} stream ends early, after {self._expanded_bytes:,} bytes. The "
            "lines before that are landed; run it again when the file is whole."
        )

    def _broken(self, kind: str) -> DamagedError:
        return DamagedError(
            f"{self.name}: the {kind} stream is damaged after {self._expanded_bytes:,} bytes. The "
            f"lines before that are landed, and may be others than were sent, behind byte "
            f"{self._whole_bytes:,}: land a file, which is read to its end first.",
            self._whole_bytes,
        )

    def _is_begun_magic(self, first: bytes) -> bool:
        """Say whether a file that is named as a compressed one has a part of the first bytes."""
        if first == b"" or not self.name.rstrip("/").endswith(_COMPRESSED_NAMES):
            return False
        is_skippable = first[0] & 0xF0 == 0x50 and _SKIPPABLE_END.startswith(first[1:])
        return is_skippable or any(magic.startswith(first) for magic in (_GZIP_MAGIC, _ZSTD_MAGIC))

    def _cut_off(self) -> Iterator[bytes]:
        raise self._early_end("compressed")
        yield  # a generator, as the others are

    def _gunzip(self, data: bytes) -> Iterator[bytes]:
        self._compressed_bytes += len(data)
        member = zlib.decompressobj(wbits=31)
        begun, at_end = True, False
        while True:
            if not data:
                data = self._read_compressed(_CHUNK)
                if not data and not begun:
                    return
                at_end = not data
            if not begun:
                # Between members: zeros may pad, anything else begins the next one.
                data = data.lstrip(b"\0")
                if not data:
                    continue
                member, begun = zlib.decompressobj(wbits=31), True
            try:
                out = member.decompress(data, _CHUNK)
            except zlib.error:
                raise self._broken("gzip") from None
            if at_end and not out and not member.eof:
                raise self._early_end("gzip")
            data = member.unconsumed_tail
            self._expand(out)
            if member.eof:
                data, begun = member.unused_data, False
                self._whole_bytes = self._expanded_bytes
            yield out

    def _unzstd(self, data: bytes) -> Iterator[bytes]:
        self._compressed_bytes += len(data)
        decompressor = zstandard.ZstdDecompressor()
        frame = decompressor.decompressobj()
        begun = True
        while True:
            if not data:
                data = self._read_compressed(_ZSTD_STEP)
                if not data:
                    if begun:
                        raise self._early_end("zstd")
                    return
            if not begun:
                frame, begun = decompressor.decompressobj(), True
            try:
                out = frame.decompress(data)
            except zstandard.ZstdError as error:
                if "too much memory" in str(error):
                    raise ExpansionError(
                        f"{self.name}: is damaged, or needs more memory to be expanded than zstd "
                        "takes without being told to (128 MiB): compress it anew without --long.",
                        self._whole_bytes,
                    ) from None
                raise self._broken("zstd") from None
            data = b""
            self._expand(out)
            if frame.eof:
                data, begun = frame.unused_data, False
                self._whole_bytes = self._expanded_bytes
            yield out


@contextlib.contextmanager
def keep(source: Source) -> Iterator[Source]:
    """Give a file's source such that it opens this file, and none that takes its place.

    Raises
    ------
    SourceError
        If it cannot be opened.
    """
    assert source.path is not None
    with _open(source.path, is_file=True) as file:
        yield replace(source, kept=file)


@contextlib.contextmanager
def hold(
    source: Source, seconds: float, on_wait: Callable[[str], None] | None = None
) -> Iterator[Source]:
    """Keep a file (see `keep`), and other loaders of this machine off it, while the context lasts.

    A file system without locks (NFS, for a file that is opened for reading) is no obstacle.

    Parameters
    ----------
    source : Source
        A file.
    seconds : float
        How long to wait for whoever holds it.
    on_wait : callable, optional
        Called once with a line of text when waiting begins.

    Raises
    ------
    SourceTakenError
        If another process holds it for longer.
    SourceError
        If it cannot be opened.
    """
    assert source.path is not None
    deadline = time.monotonic() + seconds
    while True:
        with _open(source.path, is_file=True) as file:
            while not _is_locked(file):
                if on_wait is not None:
                    on_wait(
                        f"waiting up to {seconds:g} s for the file {source.path}, "
                        "held by another process"
                    )
                    on_wait = None
                if time.monotonic() >= deadline:
                    raise SourceTakenError(
                        f"{source.path}: another process holds this file, a loader that lands it "
                        "perhaps: run it again when that is done, or wait longer "
                        f"(TOKENLEDGER_LOCK_TIMEOUT, now {seconds:g} s)."
                    )
                time.sleep(_LOOK_AGAIN_SECONDS)
            if _is_at(source.path, file):
                yield replace(source, kept=file)
                return


def _open(path: str, *, is_file: bool) -> BinaryIO:
    """Open a path; of a file, not what it has been replaced with since: a link, a pipe."""
    # Not to wait for whoever would write to a pipe. A file that has no name any more is read by its
    # descriptor, to which a link leads that nobody can put another in the place of.
    is_named = not path.startswith(("/dev/", "/proc/"))
    only_files = (os.O_NOFOLLOW if is_named else 0) | os.O_NONBLOCK if is_file else 0
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | only_files)
    except OSError as error:
        reason = "it is a link now" if error.errno == errno.ELOOP else error.strerror
        raise SourceError(f"{path}: cannot be opened: {reason}.") from None
    if is_file and not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SourceError(f"{path}: cannot be opened: it is no file any more.")
    return os.fdopen(descriptor, "rb")


def _is_locked(file: BinaryIO) -> bool:
    """Lock a file, where it can be locked at all; False if another process has it locked."""
    try:
        return try_lock(file.fileno())
    except OSError:
        return True


def _is_same(one: BinaryIO, other: BinaryIO) -> bool:
    return os.path.samestat(os.fstat(one.fileno()), os.fstat(other.fileno()))


def _is_at(path: str, file: BinaryIO) -> bool:
    """Say whether a file is still the one at its path: it may have been replaced meanwhile."""
    try:
        return os.path.samestat(Path(path).stat(), os.fstat(file.fileno()))
    except OSError:
        return False


def find_sources(arguments: Sequence[str]) -> tuple[list[Source], list[str]]:
    """Turn arguments into sources.

    Parameters
    ----------
    arguments : sequence of str
        Files, folders (searched through, in order of name) and `-` for standard input.

    Returns
    -------
    sources : list of Source
        What cannot be looked at in a folder too: opening it is an error, which keeps no other from
        being landed.
    skipped : list of str
        Paths in folders that have the right name but are links or no regular files, and links to
        folders.

    Raises
    ------
    UsageError
        If a path does not exist or cannot be read, or a folder holds nothing to land. Nothing has
        been landed then.
    """
    sources: list[Source] = []
    skipped: list[str] = []
    for argument in arguments:
        if argument == STDIN:
            sources.append(Source("stdin", None, False))
            continue
        try:
            mode = Path(argument).stat().st_mode
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UsageError(f"{argument}: {reason}. Nothing was landed.") from None
        if (stat.S_ISDIR(mode) or stat.S_ISREG(mode)) and not os.access(argument, os.R_OK):
            raise UsageError(f"{argument}: Permission denied. Nothing was landed.")
        if stat.S_ISDIR(mode):
            found = list(_walk(argument, skipped))
            if not found:
                raise UsageError(
                    f"{argument}: no files to land in this folder: they are to be named "
                    f"{', '.join('*' + suffix for suffix in SUFFIXES)}. Nothing was landed."
                )
            sources.extend(found)
        elif stat.S_ISREG(mode):
            sources.append(_file_source(argument))
        elif stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            sources.append(Source("stdin", argument, False))
        else:
            raise UsageError(f"{argument}: neither a file nor a folder. Nothing was landed.")
    return sources, skipped


def _walk(folder: str, skipped: list[str]) -> Iterator[Source]:
    """Give the files of a folder, and what cannot be looked at: landing that is an error then."""
    unreadable: list[OSError] = []
    for parent, folders, names in os.walk(folder, onerror=unreadable.append):
        folders.sort()
        for path in (Path(parent, name) for name in folders):
            if os.path.islink(path):  # noqa: PTH114 - is_symlink raises where it may not look
                skipped.append(str(path))
        for name in sorted(names):
            if not name.endswith(SUFFIXES):
                continue
            path = Path(parent, name)
            try:
                is_file = stat.S_ISREG(path.lstat().st_mode)
            except FileNotFoundError:
                continue  # it has gone since it was listed
            except OSError as error:
                unreadable.append(error)
                continue
            if is_file:
                yield _file_source(str(path))
            else:
                skipped.append(str(path))
    for each in unreadable:
        if not isinstance(each, FileNotFoundError):
            yield _file_source(str(each.filename))


def _file_source(path: str) -> Source:
    target = os.path.realpath(path)
    name = os.fsencode(target)
    if os.path.exists(target):  # noqa: PTH110 - Path.exists raises where it may not look
        path = target  # a link that moves on before its turn is another file's
    try:
        return Source(name.decode(), path, True)
    except UnicodeDecodeError:
        # Doubled, and ended as no file's path ends: none of another name is called the same.
        name = name.replace(b"\\", b"\\\\")
        return Source(name.decode("utf-8", "backslashreplace") + "/", path, True)
