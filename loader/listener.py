"""Receive records on a unix socket and put them into a spool.

Owns the socket file, cutting what peers send into records, and the memory that takes. It refuses
to look into a record (a drainer's landing says what is one), to answer (the protocol has no
answers), and to hold more than its budget: a peer beyond it is simply not read, and waits.

The protocol is that of existing servers' socket backends: JSON objects, one a line, one connection
a record or many on one. A last record without its line feed is taken if it is whole JSON;
else it is half a record, and goes to the rejects as it came.

At a stop no peer is cancelled: it is cut for sending, what it had sent is read to the end, and each
record of that is in the spool or counted as refused.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import errno
import fcntl
import json
import logging
import os
import resource
import select
import signal
import socket
import stat
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from loader.errors import LoaderError, UsageError
from loader.settings import MEBIBYTE, Settings
from loader.spool import MAX_RECORD_BYTES, SpoolError, is_of_another_user, is_open_to_all
from loader.writer import Writer, WriterOptions

__all__ = ["Listener", "ListenerCounts", "ListenerOptions", "SocketError", "add_arguments", "run"]

EXAMPLES = """\
examples:
  python -m loader listen --socket /run/tokenledger/traces.sock --spool /var/spool/tokenledger
  kill -USR1 PID        print the counters on standard error
"""

_CHUNK = 256 * 1024
_KEPT_OF_TOO_LARGE = MEBIBYTE
_LINGER_SECONDS = 0.2
# After a stop records share an fsync: so many are on their way at once.
_AT_ONCE = 256
_log = logging.getLogger("tokenledger.listener")


class SocketError(LoaderError):
    """The socket cannot be made: what is in the way, and what to do."""

    exit_code = 3


@dataclass(frozen=True)
class ListenerOptions:
    """Limits of a listener.

    Attributes
    ----------
    max_record_bytes : int
        A longer record is rejected: its head and its length are kept.
    own_bytes : int
        What each connection may hold without asking.
    shared_bytes : int
        What all connections together may hold beyond that. One may pass it, to finish its record.
    idle_seconds : float
        A connection with half a record and no progress for so long is cut.
    crowded_seconds, crowded_bytes : float, int
        The same while others wait for the shared memory that it holds; there so many bytes are
        progress for so long, and fewer for less.
    grace_seconds : float
        How long connections may go on after SIGTERM; and how long storing what they had sent may
        take after that.
    """

    max_record_bytes: int = MAX_RECORD_BYTES
    own_bytes: int = 256 * 1024
    shared_bytes: int = 256 * MEBIBYTE
    idle_seconds: float = 60.0
    crowded_seconds: float = 5.0
    crowded_bytes: int = 512 * 1024
    grace_seconds: float = 5.0


@dataclass
class ListenerCounts:
    """What a listener did.

    Attributes
    ----------
    connections, open : int
        Accepted so far; there now.
    records, bytes : int
        Put into the spool, without line feeds.
    half_records, too_large : int
        Put into the spool as rejects: cut off before their end; above the limit.
    refused : int
        Not taken by the spool (full, not writable, too slow at the end): lost.
    timed_out, broken : int
        Connections cut for making no or too little progress; connections that failed.
    """

    connections: int = 0
    open: int = 0
    records: int = 0
    bytes: int = 0
    half_records: int = 0
    too_large: int = 0
    refused: int = 0
    timed_out: int = 0
    broken: int = 0


class _Budget:
    """Shared memory, given out first come, first served."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.over: object | None = None
        self._waiting: deque[tuple[object, int, asyncio.Future[None]]] = deque()

    @property
    def is_crowded(self) -> bool:
        return bool(self._waiting)

    async def take(self, who: object, size: int) -> None:
        """Wait until `size` more bytes may be held by `who`.

        When all memory is held by half records, the first in line may pass the limit and finish
        its own, or nobody ever would.
        """
        if self.over is who:
            self.used += size
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((who, size, future))
        self._grant()
        try:
            await future
        except asyncio.CancelledError:
            if not future.cancelled():
                self.give_back(who, size)  # it was given, and nobody came to take it
            raise

    def give_back(self, who: object, size: int) -> None:
        """Return memory; whoever waits and may have it now gets it."""
        self.used -= size
        if self.over is who:
            self.over = None
        self._grant()

    def _grant(self) -> None:
        while self._waiting:
            who, size, future = self._waiting[0]
            if not future.done():
                if self.used + size > self.limit:
                    if self.over is not None:
                        return
                    self.over = who
                self.used += size
                future.set_result(None)
            self._waiting.popleft()


class Listener:
    """Serves one socket.

    Parameters
    ----------
    path : path-like
        Where the socket file is made, with mode 0660; removed at the end.
    writer : Writer
        Takes the records. The caller closes it.
    options : ListenerOptions, optional
        Limits.

    Raises
    ------
    SocketError
        If a live listener has the path, or something is there that is no socket.
    """

    def __init__(
        self, path: str | os.PathLike[str], writer: Writer, options: ListenerOptions | None = None
    ) -> None:
        self.path = Path(path).absolute()
        self.writer = writer
        self.options = options or ListenerOptions()
        self.counts = ListenerCounts()
        self._budget = _Budget(self.options.shared_bytes)
        self._tasks: set[asyncio.Task[None]] = set()
        self._writes: set[asyncio.Task[None]] = set()
        self._peers: set[_Peer] = set()
        self._is_stopping = asyncio.Event()
        self._is_ending = False
        self._is_over = False
        self._has_told = False

    async def serve(self, on_ready: Callable[[], None] | None = None) -> ListenerCounts:
        """Listen until :meth:`stop`; then let peers finish for the grace time, and store the rest.

        Parameters
        ----------
        on_ready : callable, optional
            Called when the socket accepts connections.
        """
        guard = _guard(self.path)
        try:
            listening = _bind(self.path)
            made = self.path.lstat()
            server = await asyncio.start_unix_server(
                self._accept, sock=listening, limit=_CHUNK, backlog=1024
            )
            try:
                if on_ready is not None:
                    on_ready()
                await self._is_stopping.wait()
            finally:
                _remove(self.path, made)
                await self._let_finish(listening)
                server.close()
                await self._end()
        finally:
            os.close(guard)
        return self.counts

    def stop(self) -> None:
        """Take no more connections, and end; call it from the event loop."""
        self._is_stopping.set()

    async def _let_finish(self, listening: socket.socket) -> None:
        """Accept who has connected already, and read on while somebody is busy.

        Where there are no descriptors left to accept by, those who are not busy give theirs.
        """
        deadline = asyncio.get_running_loop().time() + self.options.grace_seconds
        await asyncio.sleep(min(_LINGER_SECONDS, self.options.grace_seconds))
        waiting = select.poll()
        waiting.register(listening, select.POLLIN)
        while (is_waiting := bool(waiting.poll(0))) or any(peer.is_busy for peer in self._peers):
            if asyncio.get_running_loop().time() > deadline:
                break
            for peer in self._peers:
                if is_waiting and not peer.is_busy:
                    peer.cut()
            await asyncio.sleep(_LINGER_SECONDS / 4)
        if is_waiting:
            self.counts.refused += 1
            _log.error(
                "connections that could not be accepted are lost (counted as one refused record): "
                "allow more open files"
            )

    async def _end(self) -> None:
        """Cut all peers, store what they had sent, and count what the spool does not take."""
        self._is_ending = True
        for peer in self._peers:
            peer.cut()
        await self._settle()
        if not self._tasks:
            return
        refused = self.counts.refused
        self._is_over = True
        for write in self._writes:
            write.cancel()
        await self._settle()
        for task in self._tasks:
            task.cancel()
        if lost := self.counts.refused - refused:
            _log.error(
                "%d records are lost: the spool did not take them in time after the stop: "
                "see that a drainer runs and the disk is well (counted as refused)",
                lost,
            )

    async def _settle(self) -> None:
        """Wait until all is done, for the grace time at most."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.options.grace_seconds
        while self._tasks and (left := deadline - loop.time()) > 0:
            await asyncio.wait(self._tasks, timeout=left)

    # ---------------------------------------------------------------------- one connection

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._start(self._converse(reader, writer))

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.counts.connections += 1
        self.counts.open += 1
        peer = _Peer(self, reader, writer)
        self._peers.add(peer)
        if self._is_ending:
            peer.cut()
        try:
            await peer.receive()
        finally:
            self._peers.discard(peer)
            self.counts.open -= 1
            peer.release()
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def store(self, record: bytes) -> None:
        """Put a record into the spool; what the spool refuses is counted and told once."""
        if record and not record.isspace():
            await self._put(self.writer.write_async(record), len(record))

    async def reject(self, reason: str, detail: str, raw: bytes) -> None:
        """Put what is no record into the spool, for the rejects."""
        await self._put(self.writer.write_reject_async(reason, detail, raw))

    async def _put(self, write: Coroutine[Any, Any, None], record_bytes: int = 0) -> None:
        """Wait for a write; a connection may be cut meanwhile, the write goes on."""
        if self._is_over:
            write.close()
            self.counts.refused += 1
            return
        task = self._start(write)
        self._writes.add(task)
        task.add_done_callback(lambda done: self._count(done, record_bytes))
        if not self._is_ending or len(self._writes) >= _AT_ONCE:
            await asyncio.wait({task})

    def _count(self, write: asyncio.Task[None], record_bytes: int) -> None:
        self._writes.discard(write)
        if write.cancelled():
            self.counts.refused += 1
        elif error := write.exception():  # whatever it was: a record that is lost is counted
            self._refused(error)
        elif record_bytes:
            self.counts.records += 1
            self.counts.bytes += record_bytes

    def _refused(self, error: BaseException) -> None:
        self.counts.refused += 1
        if not self._has_told:
            self._has_told = True
            what = error if isinstance(error, SpoolError) else type(error).__name__
            _log.error("a record is lost: %s (told once; counted as refused)", what)


class _Peer:
    """What one connection has sent and not ended yet."""

    def __init__(
        self, listener: Listener, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.listener = listener
        self.options = listener.options
        self.reader = reader
        self.socket = writer.get_extra_info("socket")
        self.is_taking = False
        self.is_cut = False
        self.pieces: list[bytes] = []
        self.size = 0
        self.borrowed = 0
        self.dropped = 0
        self.patience = self.options.crowded_seconds

    @property
    def is_busy(self) -> bool:
        """Whether it is within a record, or what it has sent is being stored."""
        return bool(self.size or self.dropped or self.is_taking)

    def cut(self) -> None:
        """Let the peer send no more: what it has sent is read, and then its end."""
        self.is_cut = True
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RD)

    async def receive(self) -> None:
        """Read until the peer ends, fails, stands still or is too slow for those who wait."""
        listener = self.listener
        how = ""
        try:
            while chunk := await self._read():
                self.is_taking = True
                await self._take(chunk)
                self.is_taking = False
        except TimeoutError:
            listener.counts.timed_out += 1
            how = "the peer stood still, or was too slow for others, in the middle of it"
        except OSError as error:
            listener.counts.broken += 1
            how = f"the connection broke ({errno.errorcode.get(error.errno or 0, 'error')})"
        except asyncio.CancelledError:
            how = "the listener was stopped in the middle of it"
        await self._end(how)

    async def _read(self) -> bytes:
        """Read some bytes; a peer with half a record may not stand still for ever.

        Where it is in the way of others, a byte now and then is no progress: their patience is
        earned by bytes.
        """
        if not self.size and not self.dropped:
            return await self.reader.read(_CHUNK)
        options = self.options
        loop = asyncio.get_running_loop()
        step = min(options.crowded_seconds, options.idle_seconds) / 4
        waited = 0.0
        read = asyncio.ensure_future(self.reader.read(_CHUNK))
        try:
            while waited < options.idle_seconds:
                if self.patience <= 0 and self.listener._budget.is_crowded:
                    break
                began = loop.time()
                done, _ = await asyncio.wait({read}, timeout=step)
                took = min(loop.time() - began, step)  # the rest this process stood still itself
                waited += took
                if self.borrowed and self.listener._budget.is_crowded:
                    self.patience -= took
                if done:
                    chunk = read.result()
                    earned = options.crowded_seconds * len(chunk) / options.crowded_bytes
                    self.patience = min(self.patience + earned, options.crowded_seconds)
                    return chunk
            raise TimeoutError
        finally:
            if not read.done():
                read.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await read

    async def _take(self, chunk: bytes) -> None:
        begin = 0
        while (end := chunk.find(b"\n", begin)) != -1:
            await self._keep(chunk[begin:end])
            await self._finish_record()
            begin = end + 1
        if begin < len(chunk):
            await self._keep(chunk[begin:])

    async def _keep(self, piece: bytes) -> None:
        """Add to the half record, if its memory may be had; of one too large keep the head."""
        if not piece:
            return
        if self.dropped or self.size + len(piece) > self.options.max_record_bytes:
            if not self.dropped:
                head = b"".join(self.pieces)[:_KEPT_OF_TOO_LARGE]
                self.dropped = self.size - len(head)
                self.pieces, self.size = [head], len(head)
                self._give_back()
            self.dropped += len(piece)
            return
        need = self.size + len(piece) - self.options.own_bytes - self.borrowed
        if need > 0:
            await self.listener._budget.take(self, need)
            self.borrowed += need
        self.pieces.append(piece)
        self.size += len(piece)

    async def _finish_record(self) -> None:
        """Hand a record over, and forget it."""
        if self.dropped:
            self.listener.counts.too_large += 1
            whole = self.size + self.dropped
            await self.listener.reject(
                "too_large",
                f"the record has {whole} bytes, more than the limit of "
                f"{self.options.max_record_bytes}; the first {self.size} are kept",
                b"".join(self.pieces),
            )
        elif self.size:
            record = self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)
            self.pieces, self.size = [], 0
            await self.listener.store(record)
        self.release()

    async def _end(self, how: str) -> None:
        """Deal with what has no line feed: whole JSON is a record, anything else half of one."""
        raw = b"".join(self.pieces)
        if self.dropped:
            await self._finish_record()
        elif raw.strip():
            if _is_whole(raw):
                await self.listener.store(raw)
            else:
                self.listener.counts.half_records += 1
                who = "the listener was stopped" if self.is_cut else "the peer ended"
                how = how or f"{who} in the middle of it"
                await self.listener.reject("half_record", f"{len(raw)} bytes: {how}", raw)
        self.release()

    def release(self) -> None:
        """Forget what is held."""
        self.pieces = []
        self.size = self.dropped = 0
        self._give_back()

    def _give_back(self) -> None:
        if self.borrowed:
            borrowed, self.borrowed = self.borrowed, 0
            self.patience = self.options.crowded_seconds
            self.listener._budget.give_back(self, borrowed)


def _is_whole(raw: bytes) -> bool:
    try:
        msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    except msgspec.MsgspecError:
        # What json has besides JSON (NaN, a lone surrogate) is for landing to judge.
        try:
            json.loads(raw)
        except (ValueError, RecursionError):
            return False
    except RecursionError:
        return False
    return True


# --------------------------------------------------------------------------- the socket file


def _guard(path: Path) -> int:
    """Take the lock beside the socket, so that of two listeners starting at once one gives way."""
    _check_directory(path)
    _check_is_socket(path)
    lock = path.with_name(path.name + ".lock")
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SocketError(
            f"{lock}: cannot be made ({error.strerror}): "
            "make the socket's directory, writable for this user"
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise SocketError(
            f"{path}: a listener is running there: stop it, or choose another path"
        ) from None
    return descriptor


def _check_directory(path: Path) -> None:
    """Refuse to listen where others may put a socket of theirs; what is missing shows later."""
    try:
        found = path.parent.stat()
    except OSError:
        return
    if is_of_another_user(found):
        raise SocketError(
            f"{path}: {path.parent} belongs to user {found.st_uid}, and this is user "
            f"{os.geteuid()}: name a socket in a directory of this user, or of root (one below it, "
            "say, with mode 0750)"
        )
    if is_open_to_all(found):
        raise SocketError(
            f"{path}: everybody may write to {path.parent}: name a socket in a directory that only "
            "the listener's user, or a group of the senders, may write to (one below it, say, with "
            "mode 0750)"
        )


def _check_is_socket(path: Path) -> bool:
    """Tell whether a socket is there; raise if anything else is."""
    try:
        found = path.lstat()
    except OSError:
        return False
    if not stat.S_ISSOCK(found.st_mode):
        raise SocketError(f"{path}: is there and no socket: remove it, or choose another path")
    return True


def _bind(path: Path) -> socket.socket:
    """Make the socket file, in place of a stale one."""
    if _check_is_socket(path):
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise SocketError(
                    f"{path}: the socket there cannot be tried ({error.strerror})"
                ) from None
        else:
            raise SocketError(
                f"{path}: another program listens there: stop it, or choose another path"
            )
        finally:
            probe.close()
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o117)
    try:
        listening.bind(str(path))
    except OSError as error:
        listening.close()
        raise SocketError(
            f"{path}: the socket cannot be made ({error.strerror or error}): "
            "its directory must exist and be writable, its path have at most 107 bytes"
        ) from None
    finally:
        os.umask(mask)
    listening.setblocking(False)
    return listening


def _remove(path: Path, made: os.stat_result) -> None:
    """Remove the socket file if it is still the one that was made."""
    with contextlib.suppress(OSError):
        there = path.lstat()
        if (there.st_dev, there.st_ino) == (made.st_dev, made.st_ino):
            path.unlink()


# --------------------------------------------------------------------------------- the verb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--socket",
        default=os.environ.get("TELEMETRY_SOCKET"),
        metavar="PATH",
        help="the socket file (default: TELEMETRY_SOCKET)",
    )
    parser.add_argument(
        "--spool",
        default=os.environ.get("TOKENLEDGER_SPOOL"),
        metavar="DIR",
        help="the spool directory (default: TOKENLEDGER_SPOOL)",
    )
    parser.add_argument(
        "--max-memory-mb",
        type=int,
        default=256,
        metavar="N",
        help="MiB that unfinished records of all peers may hold (default 256)",
    )


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Listen until SIGTERM or SIGINT, then print the counters; return 0, or 1 if one was lost."""
    if not args.socket:
        raise UsageError("no socket: name it with --socket, or set TELEMETRY_SOCKET.")
    if not args.spool:
        raise UsageError("no spool: name it with --spool, or set TOKENLEDGER_SPOOL.")
    if args.max_memory_mb < 1:
        raise UsageError("--max-memory-mb is to be above 0.")
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    _allow_many_files()
    options = ListenerOptions(shared_bytes=args.max_memory_mb * MEBIBYTE)
    with Writer(args.spool, WriterOptions.from_environment()) as writer:
        counts = asyncio.run(_listen(args.socket, writer, options))
    _print(counts)
    return 1 if counts.refused else 0


def _allow_many_files() -> None:
    """Raise this process's limit of open files to what it may be: each peer is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _listen(path: str, writer: Writer, options: ListenerOptions) -> ListenerCounts:
    listener = Listener(path, writer, options)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, listener.stop)
    loop.add_signal_handler(signal.SIGUSR1, lambda: _print(listener.counts))
    return await listener.serve(
        lambda: print(f"listening on {listener.path}", file=sys.stderr, flush=True)
    )


def _print(counts: ListenerCounts) -> None:
    print(json.dumps(dataclasses.asdict(counts)), file=sys.stderr, flush=True)
