"""The writer: takes a trace, appends it to the spool, returns. For threads and asyncio alike.

This module owns turning a trace into a record, this process's segment file, the fsync policy and
the limits. It refuses to talk to a database (``loader.drain`` does, in another process), to look
into a payload, and to keep records in memory: when :meth:`Writer.write` returns, the record is in
the kernel's hands, so that the death of the process loses nothing.

=============  ======================================================  ==========================
fsync          when ``write()`` returns                                lost on power failure
=============  ======================================================  ==========================
``never``      the record is in the page cache                         what the kernel had not
                                                                       written yet (about 30 s)
``interval``   the same; a thread syncs every ``fsync_interval_ms``    at most that window
``each``       the record is on the disk (writers share one fsync)     nothing
=============  ======================================================  ==========================

Limits, and what happens at each: a spool directory holds at most ``max_spool_bytes``, the records
on their way to it at most ``max_memory_bytes`` (plus one a thread). At a limit, on a full disk, and
while too many files are open, ``on_full="block"`` waits up to ``block_seconds`` and then refuses;
``"refuse"`` refuses at once. A refused record raises :class:`~loader.spool.SpoolFull` and is
counted in :meth:`Writer.stats`.

A signal's handler may raise anywhere in here (a time limit, say). Such a write is stored or not;
what was acknowledged stays, and whoever writes or ends next makes good what was left halfway.
A handler that itself calls the writer whose write it interrupted is refused: nothing may be put
into a record that is half written, and waiting for its own thread would never end.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import dataclasses
import errno
import fcntl
import functools
import io
import json
import logging
import os
import queue
import re
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from loader.errors import UsageError
from loader.redaction import load_redactor
from loader.spool import (
    HEADER_BYTES,
    MAX_RECORD_BYTES,
    RECORD,
    REJECT,
    TOO_MANY_FILES,
    RecordTooLarge,
    SpoolClosed,
    SpoolError,
    SpoolFull,
    disk_bytes,
    encode_header,
    encode_reject,
    frame_head,
    new_stream,
    open_spool,
    sync_directory,
    try_lock,
)

MIB = 1024 * 1024
FSYNC_POLICIES = ("never", "interval", "each")
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG}) | TOO_MANY_FILES
_DAY_SECONDS = 86_400
_PAUSE_MIN, _PAUSE_MAX = 0.005, 0.25
# The directory is counted so often, and for a twentieth of the time at most: a spool that nobody
# drains holds a file a second and process.
_SCAN_EVERY = 0.5
_SCAN_SHARE = 20
# An event loop's tasks write for so long, and so many wait for the next turn, before others run.
_TURN_SECONDS = 0.002
_TURN_WRITES = 32
_log = logging.getLogger("tokenledger.spool")


@dataclass(frozen=True)
class WriterOptions:
    """How a writer behaves.

    Attributes
    ----------
    fsync : {"interval", "never", "each"}
        See the module.
    fsync_interval_ms : int
        The window of ``interval``, in milliseconds.
    segment_bytes, segment_records, segment_seconds : int, int, float
        A segment is finished, and may be landed, at whichever of these it reaches first; the
        age counts from its first record.
    max_spool_bytes : int
        Bytes of the whole directory, all its writers together. The others' share is looked at
        every half a second, so that the limit may be passed by what they write meanwhile.
    max_memory_bytes : int
        Bytes of the records that are encoded and not written yet.
    max_record_bytes : int
        A larger record raises :class:`~loader.spool.RecordTooLarge`.
    on_full : {"block", "refuse"}
        What to do at a limit.
    block_seconds : float
        How long ``block`` waits.
    """

    fsync: str = "interval"
    fsync_interval_ms: int = 100
    segment_bytes: int = 64 * MIB
    segment_records: int = 5_000
    segment_seconds: float = 1.0
    max_spool_bytes: int = 10 * 1024 * MIB
    max_memory_bytes: int = 256 * MIB
    max_record_bytes: int = MAX_RECORD_BYTES
    on_full: str = "block"
    block_seconds: float = 5.0

    def __post_init__(self) -> None:
        if self.fsync not in FSYNC_POLICIES:
            raise UsageError(f"fsync is {self.fsync!r}: use one of {', '.join(FSYNC_POLICIES)}")
        if self.on_full not in ("block", "refuse"):
            raise UsageError(f"on_full is {self.on_full!r}: use block or refuse")
        for name in (
            "fsync_interval_ms",
            "segment_bytes",
            "segment_records",
            "segment_seconds",
            "max_spool_bytes",
            "max_memory_bytes",
            "max_record_bytes",
        ):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}: it must be above 0")
        for name, most in {
            "fsync_interval_ms": 1000 * _DAY_SECONDS,
            "segment_seconds": _DAY_SECONDS,
            "block_seconds": _DAY_SECONDS,
        }.items():
            if not getattr(self, name) <= most:
                raise UsageError(f"{name} is {getattr(self, name)}: a day is the most, {most}")
        if self.max_record_bytes > MAX_RECORD_BYTES:
            raise UsageError(
                f"max_record_bytes is {self.max_record_bytes}: {MAX_RECORD_BYTES} is the most"
            )

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> WriterOptions:
        """Read ``TOKENLEDGER_SPOOL_<NAME>``, for each attribute by its name in capitals.

        Raises
        ------
        UsageError
            If a value cannot be used; the message names the variable.
        """
        environ = os.environ if environ is None else environ
        given: dict[str, Any] = {}
        for option in dataclasses.fields(cls):
            variable = f"TOKENLEDGER_SPOOL_{option.name.upper()}"
            text = environ.get(variable, "").strip()
            if not text:
                continue
            kind = {"str": str, "int": int, "float": float}[str(option.type)]
            try:
                given[option.name] = kind(text)
            except ValueError:
                raise UsageError(f"{variable}={text!r} is not a number: write one") from None
        return cls(**given)


@dataclass
class WriterStats:
    """What a writer did since it was made (in this process).

    Attributes
    ----------
    written, written_bytes : int
        Records appended to the spool, and their bytes with frames.
    waited : int
        Writes that had to wait at a limit.
    refused : int
        Writes refused at a limit, after waiting or at once: these traces are lost to the ledger.
    failed : int
        Writes that failed otherwise (unusable directory, failed fsync, record too large).
    removed : int
        Records whose file somebody removed before it was finished: lost.
    fsyncs, fsync_failures, segments : int
        Calls of fsync that went well, and that did not; segments finished.
    """

    written: int = 0
    written_bytes: int = 0
    waited: int = 0
    refused: int = 0
    failed: int = 0
    removed: int = 0
    fsyncs: int = 0
    fsync_failures: int = 0
    segments: int = 0


class _NoRoom(Exception):
    """A limit is reached: wait or refuse."""

    remedy = "see that a drainer runs"

    @classmethod
    def of(cls, error: OSError) -> _NoRoom:
        found = cls(os.strerror(error.errno or errno.ENOSPC).lower())
        if error.errno in TOO_MANY_FILES:
            found.remedy = "let this process open more (ulimit -n), or see what holds them"
        return found


@dataclass(eq=False)
class _Segment:
    """The file this process appends to.

    Each step of its life is one assignment, so that an interruption finds it before or behind it.

    Attributes
    ----------
    file : io.FileIO
        Owns the descriptor: it may be closed again, and what nobody holds any more is closed.
    written : int
        The file's size, as long as `is_whole`.
    is_whole : bool
        All that was begun to be appended is there, or cut off again.
    is_over : bool
        Nothing is appended any more: it is to be finished.
    is_handed_over : bool
        Its renaming was begun.
    """

    path: Path
    file: io.FileIO
    started: float = field(default_factory=time.monotonic)
    written: int = 0
    records: int = 0
    synced: int = 0
    is_named: bool = False
    is_whole: bool = False
    is_over: bool = False
    is_handed_over: bool = False
    failure: OSError | None = None
    sync_lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def descriptor(self) -> int:
        try:
            return self.file.fileno()
        except ValueError:  # a handler forked within a write, and this is the child's
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None


class _Group:
    """Tasks of one event loop that wait for the same fsync."""

    def __init__(self) -> None:
        self.waiting: list[tuple[_Segment, int, asyncio.Future[None]]] = []
        self.is_running = False
        self.task: asyncio.Task[None] | None = None


class _Turn:
    """How long the tasks of one event loop may write before others get their turn.

    Ten thousand tasks that all write at once would hold the loop until the last is done; so who
    comes when this turn's time is spent waits for a later one, in order.
    """

    def __init__(self) -> None:
        self._spent = 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_scheduled = False

    async def begin(self) -> float:
        """Wait for a turn; return the time now."""
        if self._waiting or self._spent > _TURN_SECONDS:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            self._schedule()
            await future
        return time.perf_counter()

    def end(self, begun: float) -> None:
        """Count what was spent since `begun`."""
        self._spent += time.perf_counter() - begun
        self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self._is_scheduled = False
        self._spent = 0.0
        for _ in range(_TURN_WRITES):
            if not self._waiting:
                return
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
        self._schedule()


# --------------------------------------------------------------------------- a trace as a record

_SCALARS = frozenset({str, int, float, bool, type(None)})
_NESTED = frozenset({dict, list, tuple})
_encode_plain = msgspec.json.Encoder().encode


def _is_plain(value: Any) -> bool:
    """Tell whether a value is made of JSON's own types alone, so that msgspec writes it as json."""
    todo = [value]
    for each in todo:
        if type(each) is dict:
            for key in each:
                if type(key) is not str:
                    return False
            each = each.values()
        for inner in each:
            kind = type(inner)
            if kind not in _SCALARS:
                if kind not in _NESTED:
                    return False
                todo.append(inner)
                if len(todo) > 200_000:  # perhaps a structure that holds itself: json finds out
                    return False
    return True


def to_mapping(value: Any) -> dict[str, Any] | None:
    """Read the fields of a mapping, a pydantic model, a dataclass, an attrs or a plain object.

    Returns
    -------
    dict or None
        Field name to value, as it is (fields that are objects stay objects); None when `value`
        has no fields to speak of.
    """
    if isinstance(value, Mapping):
        return dict(value)
    kind = type(value)
    if isinstance(value, (type, Enum)):
        return None
    names: Iterable[str] | None = None
    if isinstance(fields := getattr(kind, "model_fields", None), dict):
        names = [*fields, *(getattr(value, "model_extra", None) or ())]
    elif callable(dump := getattr(value, "model_dump", None)):
        return dict(dump())
    elif dataclasses.is_dataclass(value):
        names = [each.name for each in dataclasses.fields(value)]
    elif attributes := getattr(kind, "__attrs_attrs__", None):
        names = [each.name for each in attributes]
    elif struct_fields := getattr(kind, "__struct_fields__", None):
        names = struct_fields
    elif isinstance(own := getattr(value, "__dict__", None), dict):
        names = [name for name in own if not name.startswith("_")]
    return {name: getattr(value, name) for name in names} if names else None


def _deep_mapping(value: Any) -> dict[str, Any] | None:
    """Read an object's fields as `to_mapping` does, those of the models inside it too.

    What a provider's client returns is such a model: given as a payload, its usage must stay one.
    """
    dump = getattr(value, "model_dump", None)
    try:
        if callable(dump) and not isinstance(value, (type, Mapping)):
            try:
                found = dump(warnings=False)
            except TypeError:
                found = dump()
            if isinstance(found, Mapping):
                return dict(found)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.asdict(value)
    except Exception:
        _log.debug("a %s cannot be dumped whole: its own fields are taken", type(value).__name__)
    return to_mapping(value)


def _stringify_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key if isinstance(key, (str, int, float, bool, type(None))) else str(key): (
                _stringify_keys(each)
            )
            for key, each in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_stringify_keys(each) for each in value]
    return value


_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def _dump(value: Any) -> bytes:
    """Serialise what msgspec should not or cannot: as ``json.dumps(value, default=str)`` does."""
    try:
        text = json.dumps(value, default=str, ensure_ascii=False, separators=(",", ":"))
    except TypeError:  # a key that JSON cannot hold
        text = json.dumps(
            _stringify_keys(value), default=str, ensure_ascii=False, separators=(",", ":")
        )
    try:
        return text.encode()
    except UnicodeEncodeError:  # keep it as an escape
        return _LONE_SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text).encode()


def encode_trace(trace: Any) -> bytes:
    """Turn a trace into the bytes of one record.

    Parameters
    ----------
    trace : mapping, object with fields, bytes or str
        Bytes and text are taken as a JSON record already, and kept as they are. Fields of other
        values become keys; times in them become ISO 8601; objects in them (a billing context, a
        client's response) become objects. Inside, values that JSON cannot hold become text as by
        ``json.dumps(default=str)``. Without a ``created_at`` the record gets the time of now.

    Returns
    -------
    bytes
        One JSON object, UTF-8.

    Raises
    ------
    SpoolError
        If it has no fields, is blank, or cannot be serialised at all (it holds itself, or nests too
        deep).
    """
    if isinstance(trace, str):
        trace = trace.encode("utf-8", "surrogatepass")
    if isinstance(trace, (bytes, bytearray, memoryview)):
        line = bytes(trace)
        if not line or line.isspace():  # it would be acknowledged, and land as nothing
            raise SpoolError("a blank record: give a mapping, a model or a JSON record")
        return line
    record = to_mapping(trace)
    if record is None:
        raise SpoolError(
            f"a {type(trace).__name__} has no fields to store: "
            "give a mapping, a model, a dataclass or a JSON record"
        )
    for name, value in record.items():
        kind = type(value)
        if kind in _SCALARS or kind in _NESTED:
            continue
        if isinstance(value, (datetime, date)):
            record[name] = value.isoformat()
        elif not isinstance(value, (str, int, float, list, tuple)):
            record[name] = _deep_mapping(value) or value
    if record.get("created_at") is None and "timestamp" not in record:
        record["created_at"] = datetime.now(UTC).isoformat()
    try:
        if _is_plain(record):
            try:
                return _encode_plain(record)
            except UnicodeEncodeError:
                pass
        return _dump(record)
    except (TypeError, ValueError, RecursionError) as error:
        raise SpoolError(f"the trace cannot be written as JSON: {type(error).__name__}") from None


# --------------------------------------------------------------------------------- the writer

_WRITERS: weakref.WeakSet[Writer] = weakref.WeakSet()


class Writer:
    """Appends traces to a spool that other processes may share.

    Parameters
    ----------
    spool : path-like
        The spool directory; made with mode 0700 when it is missing (its parent must exist).
    options : WriterOptions, optional
        Policy and limits; by default read from the environment.

    Raises
    ------
    SpoolError
        If the directory cannot be used or written to.

    Examples
    --------
    >>> with Writer("/var/spool/tokenledger") as writer:
    ...     writer.write({"org_id": "org-1", "request_json": {}, "response_json": {}})
    """

    def __init__(self, spool: str | os.PathLike[str], options: WriterOptions | None = None) -> None:
        self.options = options or WriterOptions.from_environment()
        self.spool = open_spool(spool, create=True)
        if not os.access(self.spool, os.W_OK | os.X_OK):
            raise SpoolError(
                f"{self.spool}: the spool may not be written: give this user the right to"
            )
        self._redactor = load_redactor(os.environ.get("TOKENLEDGER_REDACTION"))
        self._is_closed = False
        self._reset()
        _WRITERS.add(self)

    def _reset(self) -> None:
        """Begin anew: at first, and in a forked child, which has a stream of its own."""
        # A lock that tells who holds it, as those of the segments: see _enter.
        self._lock = threading.RLock()
        self._stream = new_stream()
        self._sequence = 0
        self._segment: _Segment | None = None
        self._unfinished: set[_Segment] = set()
        self._stats = WriterStats()
        self._in_flight: dict[int, int] = {}
        self._groups: dict[asyncio.AbstractEventLoop, _Group] = {}
        self._syncer: ThreadPoolExecutor | None = None
        self._turns: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Turn]
        self._turns = weakref.WeakKeyDictionary()
        self._thread: threading.Thread | None = None
        # No threading.Event: a signal's handler that raises within one may leave its lock held.
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._disk_bytes = 0
        self._disk_seen = float("-inf")
        self._scan_took = 0.0
        self._scanner: threading.Thread | None = None
        self._forks = len(_forks)  # last: what is interrupted before it is done again

    # ------------------------------------------------------------------ what a caller uses

    def write(self, trace: Any) -> None:
        """Store one trace; returns once it is as safe as the fsync policy says.

        Parameters
        ----------
        trace : mapping, object with fields, bytes or str
            See :func:`encode_trace`.

        Raises
        ------
        SpoolFull
            A limit was reached, or the disk is full.
        SpoolError
            The spool cannot be written, the trace cannot be serialised, or fsync failed; or a
            signal's handler calls this within a call of the same thread.
        """
        self._write(trace, RECORD)

    async def write_async(self, trace: Any) -> None:
        """Store one trace without blocking the event loop at a limit or for an fsync.

        Parameters and errors are those of :meth:`write`. Tasks that wait for an fsync share one.
        """
        await self._write_async(trace, RECORD)

    def write_reject(self, reason: str, detail: str, raw: bytes) -> None:
        """Store bytes that are no record, so that they land in the rejects with this reason."""
        self._write(encode_reject(reason, detail, self._redacted(raw)), REJECT)

    async def write_reject_async(self, reason: str, detail: str, raw: bytes) -> None:
        """Store bytes that are no record; see :meth:`write_reject`."""
        await self._write_async(encode_reject(reason, detail, self._redacted(raw)), REJECT)

    def stats(self) -> WriterStats:
        """Return a copy of the counters."""
        self._leave_to_parent()
        with self._lock:
            return dataclasses.replace(self._stats)

    def flush(self) -> None:
        """Make what was written durable, and finish the segment so that it can be landed."""
        self._enter()
        with self._lock:
            self._end_segments()
        self._finish_segments()

    def close(self) -> None:
        """Flush, and take no more records. Safe to call twice."""
        self._enter()
        with self._lock:
            self._end_segments()
            self._is_closed = True
        self._wake.put(None)
        self._finish_segments()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self.close)

    # ----------------------------------------------------------------------------- writing

    def _write(self, trace: Any, kind: int) -> None:
        deadline: float | None = None
        pause = _PAUSE_MIN
        while True:
            try:
                segment, end = self._try_append(trace, kind)
                break
            except _NoRoom as full:
                deadline = self._wait_until(deadline, full)
                time.sleep(pause)
                pause = min(pause * 2, _PAUSE_MAX)
        while self.options.fsync == "each":
            try:
                self._sync(segment, end)
                return
            except OSError as error:
                deadline = self._wait_to_sync(deadline, segment, error)
            time.sleep(pause)
            pause = min(pause * 2, _PAUSE_MAX)

    async def _write_async(self, trace: Any, kind: int) -> None:
        loop = asyncio.get_running_loop()
        turn = self._turns.get(loop)
        if turn is None:
            turn = self._turns[loop] = _Turn()
        deadline: float | None = None
        pause = _PAUSE_MIN
        while True:
            begun = await turn.begin()
            try:
                segment, end = self._try_append(trace, kind)
                break
            except _NoRoom as full:
                deadline = self._wait_until(deadline, full)
            finally:
                turn.end(begun)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _PAUSE_MAX)
        while self.options.fsync == "each":
            try:
                await self._sync_async(segment, end)
                return
            except OSError as error:
                deadline = self._wait_to_sync(deadline, segment, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _PAUSE_MAX)

    def _redacted(self, line: bytes) -> bytes:
        return line if self._redactor is None else self._redactor.redact(line)[0]

    def _wait_until(self, deadline: float | None, full: _NoRoom) -> float:
        """Count a wait, and return when it ends; raise when it has ended or is not wanted."""
        until = self._patience(deadline)
        if until is not None:
            return until
        with self._lock:
            self._stats.refused += 1
        raise SpoolFull(f"{self.spool}: {full}: the trace was refused; {full.remedy}")

    def _patience(self, deadline: float | None) -> float | None:
        """Return when a wait ends, counting it at first; None if it has ended or is not wanted."""
        if self.options.on_full != "block":
            return None
        now = time.monotonic()
        if deadline is None:
            with self._lock:
                self._stats.waited += 1
            return now + self.options.block_seconds
        return deadline if now < deadline else None

    def _wait_to_sync(self, deadline: float | None, segment: _Segment, error: OSError) -> float:
        """Return when a wait for another try ends; raise what the caller is told if none helps."""
        if _is_foreign(error):
            raise error
        # Without a descriptor for the directory nothing was synced: somebody may close another.
        if error.errno in TOO_MANY_FILES and segment.failure is None:
            until = self._patience(deadline)
            if until is not None:
                return until
        raise self._sync_failed(segment, error) from None

    def _enter(self) -> None:
        """Refuse who is within a call already: a signal's handler, say, may come at any time.

        Asked of the locks, for a handler that raises cannot leave them wrong.
        """
        self._leave_to_parent()
        is_within = _is_ours(self._lock)
        for segment in tuple(self._unfinished):
            is_within = is_within or _is_ours(segment.sync_lock)
        if is_within:
            raise SpoolError(
                f"{self.spool}: called from within a call of the same thread, by a signal's "
                "handler or a __del__: do it afterwards, or give it to another thread"
            )

    def _failed(self, error: SpoolError) -> SpoolError:
        with self._lock:
            self._stats.failed += 1
        return error

    def _try_append(self, trace: Any, kind: int) -> tuple[_Segment, int]:
        """Append one frame if there is room; return its segment and where it ends there."""
        try:
            self._enter()
        except SpoolError as error:
            raise self._failed(error) from None
        thread, forks = threading.get_ident(), self._forks
        with self._lock:
            if self._is_closed:
                raise SpoolClosed(f"{self.spool}: the writer is closed")
            self._in_flight.pop(thread, None)  # of a write of ours that was interrupted
            in_flight = sum(self._in_flight.values())
            if in_flight >= self.options.max_memory_bytes:
                raise _NoRoom(f"{in_flight} bytes in memory wait to be written")
        try:
            payload = trace if kind == REJECT else self._redacted(encode_trace(trace))
        except SpoolError as error:
            raise self._failed(error) from None
        limit = self.options.max_record_bytes + (4096 if kind == REJECT else 0)
        if len(payload) > limit:
            raise self._failed(
                RecordTooLarge(
                    f"{self.spool}: a record of {len(payload)} bytes: {limit} is the most"
                )
            )
        head = frame_head(payload, kind)
        with self._lock:
            self._in_flight[thread] = len(payload)
        finished: list[_Segment] = []
        try:
            with self._lock:
                if self._is_closed:
                    raise SpoolClosed(f"{self.spool}: the writer is closed")
                return self._append(head, payload, finished)
        except RuntimeError:
            if self._forks == forks:
                raise
            # In the child of a handler that forked: it holds no lock of this write any more.
            raise self._failed(
                SpoolError(f"{self.spool}: forked within this write: the parent stores it")
            ) from None
        except OSError as error:
            if _is_foreign(error):
                raise
            raise self._failed(
                SpoolError(
                    f"{self.spool}: cannot write to the spool ({error.strerror or error}): "
                    "see that the directory exists and this user may write to it"
                )
            ) from None
        finally:
            with self._lock:
                self._in_flight.pop(thread, None)
            for segment in finished:
                self._finish(segment, is_patient=True)

    def _append(
        self, head: bytes, payload: bytes, finished: list[_Segment]
    ) -> tuple[_Segment, int]:
        """Append under the lock; segments that are done are put into `finished`."""
        need = len(head) + len(payload)
        self._check_disk(need)
        while True:
            segment = self._segment
            if segment is not None and not segment.is_whole:
                segment.is_over = True  # a write was interrupted: who knows what is at its end
                finished.append(segment)
            is_fresh = segment is None or segment.is_over
            if segment is None or segment.is_over:
                segment = self._segment = self._open_segment()
            try:
                _write_all(segment, head, payload)
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    segment.is_over = True
                    finished.append(segment)
                    raise
                if error.errno == errno.EFBIG and not is_fresh:
                    segment.is_over = True  # this file may not grow, another one may
                    finished.append(segment)
                    continue
                if segment.records == 0:
                    segment.is_over = True
                    finished.append(segment)
                raise _NoRoom.of(error) from None
            break
        segment.records += 1
        self._disk_bytes += need
        self._stats.written += 1
        self._stats.written_bytes += need
        if self._thread is None:  # or there was no room for one before
            self._thread = _start(self._keep, "tokenledger-spool")
        if (
            segment.written >= self.options.segment_bytes
            or segment.records >= self.options.segment_records
        ):
            segment.is_over = True
            finished.append(segment)
        return segment, segment.written

    def _check_disk(self, need: int) -> None:
        """Refuse what would pass the limit; what others wrote is counted by the writer's thread."""
        limit = self.options.max_spool_bytes
        if self._disk_bytes + need <= limit and self._disk_seen != float("-inf"):
            return
        if time.monotonic() - self._disk_seen >= max(0.02, 4 * self._scan_took):
            try:
                self._disk_bytes = self._scan()
            except OSError as error:
                raise _NoRoom.of(error) from None
        if self._disk_bytes + need > limit:
            raise _NoRoom(f"the spool holds {self._disk_bytes} of at most {limit} bytes")

    def _scan(self) -> int:
        """Count the bytes of the directory, and note what that took."""
        begun = time.monotonic()
        total = disk_bytes(self.spool)
        self._disk_seen = time.monotonic()
        self._scan_took = self._disk_seen - begun
        return total

    def _scan_aside(self) -> None:
        """Count the directory while others write: what they write meanwhile counts on top."""
        try:
            before = self._disk_bytes
            total = self._scan()
            with self._lock:
                self._disk_bytes = total + max(0, self._disk_bytes - before)
        except OSError:
            return  # what was counted before stands, and what is written on top

    def _scan_if_due(self) -> None:
        """Start counting the directory, in a thread: a sync must not wait for it."""
        pause = max(_SCAN_EVERY, _SCAN_SHARE * self._scan_took)
        is_scanning = self._scanner is not None and self._scanner.is_alive()
        if is_scanning or time.monotonic() - self._disk_seen < pause:
            return
        self._scanner = _start(self._scan_aside, "tokenledger-spool-size")

    def _open_segment(self) -> _Segment:
        """Make and lock the next segment file. A drainer may take it before it is locked: again."""
        self._end_segments()  # one may be left of an opening that was interrupted
        while True:
            self._sequence += 1
            path = self.spool / f"{self._stream}-{self._sequence:08d}.open"
            # FileIO opens in one call, within which no signal is looked at: no descriptor is left
            # to nobody. Interrupted right behind it, an empty file is: a drainer removes it.
            opener = functools.partial(os.open, mode=0o600)
            opened = functools.partial(io.FileIO, path, "xb", opener=opener)
            try:
                with _fork_lock:
                    self._unfinished.add(segment := _Segment(path, opened()))
            except OSError as error:
                if error.errno in _NO_ROOM:
                    raise _NoRoom.of(error) from None
                raise
            try:
                if not try_lock(segment.descriptor) or os.fstat(segment.descriptor).st_nlink == 0:
                    self._abandon(segment)
                    continue
                fcntl.fcntl(segment.descriptor, fcntl.F_SETFL, os.O_APPEND)
                _write_all(segment, encode_header(), b"")
            except OSError as error:
                self._abandon(segment)
                if error.errno in _NO_ROOM:
                    raise _NoRoom.of(error) from None
                raise
            self._disk_bytes += HEADER_BYTES
            if self._wake.empty():
                self._wake.put(None)
            return segment

    def _abandon(self, segment: _Segment) -> None:
        with contextlib.suppress(OSError):
            segment.path.unlink()
        segment.file.close()
        self._unfinished.discard(segment)

    # ------------------------------------------------------------------- syncing, finishing

    def _sync(self, segment: _Segment, end: int) -> None:
        """Make a segment durable up to `end`; whoever comes first syncs for those behind."""
        if segment.synced >= end and segment.failure is None:
            return
        with segment.sync_lock:
            if segment.failure is not None:
                raise segment.failure
            if segment.synced >= end or segment.file.closed:
                return
            self._sync_locked(segment)

    def _sync_locked(self, segment: _Segment) -> None:
        target = segment.written
        try:
            _fdatasync(segment.descriptor)
            if not segment.is_named:
                sync_directory(self.spool)
                segment.is_named = True
        except OSError as error:
            # Without a descriptor for the directory nothing was synced: it may be asked again.
            if _is_foreign(error) or error.errno in TOO_MANY_FILES:
                raise
            # After a failed fsync the kernel may call the pages clean: nobody may ask again.
            segment.failure = error
            self._stats.fsync_failures += 1
            if self._stats.fsync_failures == 1:
                _log.error("%s: fsync failed (%s): check the disk", self.spool, error.strerror)
            raise
        segment.synced = target
        self._stats.fsyncs += 1

    async def _sync_async(self, segment: _Segment, end: int) -> None:
        if segment.synced >= end and segment.failure is None:
            return
        loop = asyncio.get_running_loop()
        group = self._groups.get(loop)
        if group is None:
            # A loop may have been closed in the middle of a sync: it never ends its group.
            for other in [each for each in list(self._groups) if each.is_closed()]:
                self._groups.pop(other, None)
            group = self._groups[loop] = _Group()
        future: asyncio.Future[None] = loop.create_future()
        group.waiting.append((segment, end, future))
        if not group.is_running:
            group.is_running = True
            group.task = loop.create_task(self._sync_group(loop, group))
        await future

    async def _sync_group(self, loop: asyncio.AbstractEventLoop, group: _Group) -> None:
        """Sync for all tasks that wait, again and again until none does."""
        waiting: list[tuple[_Segment, int, asyncio.Future[None]]] = []
        try:
            while group.waiting:
                waiting, group.waiting = group.waiting, []
                ends: dict[int, tuple[_Segment, int]] = {}
                for segment, end, _ in waiting:
                    ends[id(segment)] = (segment, max(end, ends.get(id(segment), (segment, 0))[1]))
                failures: dict[int, OSError] = {}
                for key, (segment, end) in ends.items():
                    try:
                        await self._sync_in_thread(loop, segment, end)
                    except OSError as error:
                        failures[key] = error
                for segment, _, future in waiting:
                    if future.done():
                        continue
                    failure = failures.get(id(segment))
                    if failure is None:
                        future.set_result(None)
                    else:
                        future.set_exception(failure)
        finally:
            group.is_running = False
            for _, _, future in [*waiting, *group.waiting]:
                future.cancel()
            self._groups.pop(loop, None)

    async def _sync_in_thread(
        self, loop: asyncio.AbstractEventLoop, segment: _Segment, end: int
    ) -> None:
        """Sync in a thread of the writer's own: the loop's may all be waiting for a store."""
        if self._syncer is None:
            self._syncer = ThreadPoolExecutor(1, "tokenledger-sync")
        try:
            done = loop.run_in_executor(self._syncer, self._sync, segment, end)
        except RuntimeError:  # the interpreter ends, and takes no more work for threads
            self._sync(segment, end)
        else:
            await done

    def _sync_failed(self, segment: _Segment, error: OSError) -> SpoolError:
        with self._lock:
            self._stats.failed += 1
            segment.is_over = True
        self._finish(segment)
        remedy = _NoRoom.of(error).remedy if error.errno in TOO_MANY_FILES else "check the disk"
        return SpoolError(
            f"{self.spool}: fsync failed ({error.strerror}): the trace may be lost; {remedy}"
        )

    def _end_segments(self) -> None:
        """Let nothing be appended any more to what is open; under the lock."""
        for segment in list(self._unfinished):
            segment.is_over = True

    def _finish_segments(self, *, is_patient: bool = False) -> bool:
        """Finish what is over, also what somebody was interrupted at or is still at.

        Returns whether nothing is left of that.
        """
        are_finished = True
        for segment in list(self._unfinished):
            if segment.is_over:
                are_finished &= self._finish(segment, is_patient=is_patient)
        return are_finished

    def _finish(self, segment: _Segment, *, is_patient: bool = False) -> bool:
        """Close a segment and give it to the drainers; what fails here a drainer makes good.

        Who is patient leaves one that no descriptor is free for to the writer's thread: others may
        wait for its sync.
        """
        with segment.sync_lock:
            if not segment.file.closed:
                if not self._hand_over(segment, is_patient=is_patient):
                    return False
                segment.file.close()
        self._unfinished.discard(segment)
        return True

    def _hand_over(self, segment: _Segment, *, is_patient: bool) -> bool:
        """Rename what is over; after an interruption, again. Returns whether it may be closed."""
        is_again = segment.is_handed_over
        try:
            if segment.records == 0:
                segment.path.unlink(missing_ok=True)
                return True
            if not segment.is_whole:  # of a write that was interrupted: all else is counted
                os.ftruncate(segment.descriptor, segment.written)
            if (
                self.options.fsync != "never"
                and segment.synced < segment.written
                and segment.failure is None
            ):
                self._sync_locked(segment)
            segment.is_handed_over = True
            segment.path.rename(segment.path.with_suffix(".ready"))
            self._stats.segments += 1
        except FileNotFoundError:
            if is_again:
                return True  # it was renamed, and then came the interruption
            self._stats.removed += segment.records
            _log.error(
                "%s: somebody removed it: its %d records are lost",
                segment.path,
                segment.records,
            )
        except OSError as error:
            if _is_foreign(error):
                raise
            if is_patient and error.errno in TOO_MANY_FILES:
                return False
            if segment.synced < segment.written and segment.failure is None:
                segment.failure = error  # who waits for a sync must not take the end for one
            _log.warning(
                "%s: not finished (%s): a drainer takes it over",
                segment.path,
                error.strerror,
            )
        return True

    def _keep(self) -> None:
        """Finish segments by age and, under ``interval``, sync: the writer's one thread."""
        options = self.options
        window = options.fsync_interval_ms / 1000
        while not self._is_closed:
            segment = self._segment
            if segment is None or segment.is_over:
                if not self._finish_segments(is_patient=True):
                    time.sleep(_PAUSE_MAX)
                    continue
                self._wake.get()
                with self._lock:  # until who opened a segment has named it the one to append to
                    continue
            left = segment.started + options.segment_seconds - time.monotonic()
            if left <= 0:
                with self._lock:
                    segment.is_over = True
                continue
            self._finish_segments(is_patient=True)
            self._scan_if_due()
            if options.fsync == "interval":
                left = min(left, window)
            time.sleep(left)
            if options.fsync == "interval":
                # A failure stays with the segment; its records are in the page cache still.
                with contextlib.suppress(OSError):
                    self._sync(segment, segment.written)
        self._finish_segments()

    # ------------------------------------------------------------------------------ fork

    def _leave_to_parent(self) -> None:
        """In a forked child: close the parent's segments here, begin a stream of our own."""
        if self._forks == len(_forks):
            return
        with _fork_lock:  # of the child's threads, one
            if self._forks == len(_forks):
                return
            segments = self._unfinished
            self._reset()
            for segment in segments:
                with contextlib.suppress(OSError):
                    segment.file.close()


def _write_all(segment: _Segment, head: bytes, payload: bytes) -> None:
    """Append head and payload, or nothing: what was written in part is cut off again.

    Where that fails, or is interrupted, the segment is not whole any more. What was counted of a
    write is not relied on then: a signal's handler may raise before it is counted, OSError too.
    """
    total = len(head) + len(payload)
    done = 0
    segment.is_whole = False
    try:
        while done < total:
            if done < len(head):
                done += os.writev(segment.descriptor, [head[done:], payload])
            else:
                done += os.write(segment.descriptor, memoryview(payload)[done - len(head) :])
    except OSError:
        with contextlib.suppress(OSError):
            if os.fstat(segment.descriptor).st_size != segment.written:
                os.ftruncate(segment.descriptor, segment.written)
            segment.is_whole = True
        raise
    segment.written += total
    segment.is_whole = True


def _is_ours(lock: threading.RLock) -> bool:
    """Tell whether this thread holds a lock; :class:`threading.Condition` asks this way too."""
    return bool(lock._is_owned())  # type: ignore[attr-defined]


def _is_foreign(error: OSError) -> bool:
    """Tell whether no call of the system failed: a signal's handler raised, TimeoutError say."""
    return error.errno is None


def _start(action: Callable[[], None], name: str) -> threading.Thread | None:
    """Start a thread; None while the interpreter ends: `close()` does its work then."""
    thread = threading.Thread(target=action, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return None
    return thread


_fdatasync = getattr(os, "fdatasync", os.fsync)


# What a signal's handler raises in a hook of a fork is swallowed, and the process forks all the
# same. So the hooks that matter are functions of C, which a handler ends before they did anything
# or not at all; and a lock of this kind, unlike a plain one, is freed by nobody but its holder.
#
# A fork waits only for a segment that is being opened: a child closes those that it knows of, so
# that the death of the parent is seen. All else it begins anew, wherever the parent's threads are.
_fork_lock = threading.RLock()
_forks: list[None] = []  # one for each fork between the first process and this one


def _after_fork_in_child() -> None:
    """Leave the parent's segments at once; a writer that this does not get to does when used."""
    for writer in list(_WRITERS):
        writer._leave_to_parent()


def _close_all() -> None:
    for writer in list(_WRITERS):
        with contextlib.suppress(OSError, SpoolError):
            writer.close()


atexit.register(_close_all)
os.register_at_fork(
    before=_fork_lock.acquire,
    after_in_parent=_fork_lock.release,
    after_in_child=_fork_lock._at_fork_reinit,  # type: ignore[attr-defined]
)
os.register_at_fork(after_in_child=functools.partial(_forks.append, None))
os.register_at_fork(after_in_child=_after_fork_in_child)
