"""Land what servers left in a spool, exactly once, and remove it when the ledger has it.

Owns claiming segments, taking over from the dead, the order of landing and removing, and waiting
for the database. It refuses to write a spool (``loader.writer``) and to know what a record means
(``loader.formats`` frames it, SQL reads it).

What makes it exactly once: a batch is a directory. Segments are moved into it while its name ends
in ``.open``; from ``.ready`` on its content never changes, so that its batch id is the same
whoever lands it, after whatever death; it lands by the protocol of ``loader.landing``; only when
the ledger has it is it renamed to ``.landed``, and only then are its files removed. Moving a file
is the claim: of several drainers one gets it. A living drainer holds flock on its batch directory,
a living writer on its segment, so that what a dead one left is seen and taken over.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import random
import signal
import stat
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loader.errors import LoaderError, StoreLockedError, UsageError
from loader.formats import Framer, Record, Rejection
from loader.settings import MEBIBYTE, Settings
from loader.spool import (
    BATCH_NAME,
    HEADER_BYTES,
    MAX_RECORD_BYTES,
    REJECT,
    SEGMENT_NAME,
    TOO_MANY_FILES,
    Damage,
    SpoolError,
    count_frames,
    decode_reject,
    new_stream,
    open_spool,
    open_to_read,
    read_frames,
    sync_directory,
    sync_file,
    try_lock,
)
from loader.verbs import as_line

if TYPE_CHECKING:
    from loader.batches import Batch
    from loader.store import Store

__all__ = ["DrainOptions", "DrainSummary", "Drainer", "add_arguments", "run"]

EXAMPLES = """\
examples:
  python -m loader drain /var/spool/tokenledger            land what is there, then end
  python -m loader drain /var/spool/tokenledger --follow   go on until SIGTERM
  */5 * * * * cd /srv/tokenledger && python -m loader drain /var/spool/tokenledger   (cron)
"""

_POLL_SECONDS = 0.2
_FIRST_BACKOFF_SECONDS = 0.5
_LONGEST_BACKOFF_SECONDS = 30.0
# The embedded store is held for so long at most, then left for so long: whoever waits for it looks
# ten times a second.
_HOLD_SECONDS = 2.0
_LEAVE_SECONDS = 0.5
_LOCK_SLICE_SECONDS = 2.0
# Each opening of the embedded engine leaves a dozen descriptors and some memory behind in its
# process (chDB 4.4); so a process that follows begins anew after so many.
_OPENINGS = 32
_TOTALS = "TOKENLEDGER_DRAIN_TOTALS"
_STOPPING = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class DrainOptions:
    """How a drainer behaves.

    Attributes
    ----------
    max_rows, max_bytes : int
        A batch is not added to beyond these; one segment alone may be larger.
    max_wait : float
        Seconds that `follow` lets a batch grow, from its first segment.
    follow : bool
        Go on until stopped.
    """

    max_rows: int = 5_000
    max_bytes: int = 64 * MEBIBYTE
    max_wait: float = 2.0
    follow: bool = False


@dataclass
class DrainSummary:
    """What a drainer did.

    Attributes
    ----------
    batches, rows, rejects, segments, bytes : int
        Landed now: batches, records, rejected records, files and the bytes of their records.
    batches_already : int
        Found landed before (a drainer died between landing and removing).
    recovered : int
        Segments of dead writers that were taken over.
    torn, corrupt : int
        Damaged places that became rejects: at the end of a segment, in its middle.
    reasons : Counter
        Rejected now, by reason.
    """

    batches: int = 0
    rows: int = 0
    rejects: int = 0
    segments: int = 0
    bytes: int = 0
    batches_already: int = 0
    recovered: int = 0
    torn: int = 0
    corrupt: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


class _Refused(bytes):
    """The bytes of a line that is known to be no record, with the reason."""

    reason: str
    detail: str

    def __new__(cls, raw: bytes, reason: str, detail: str) -> _Refused:
        line = super().__new__(cls, raw)
        line.reason = reason
        line.detail = detail
        return line


class _SpoolFramer(Framer):
    """Frames records as any loader does, and passes on what the spool itself rejects."""

    def frame(self, line: bytes) -> Record | Rejection:
        if isinstance(line, _Refused):
            return Rejection(line.reason, line.detail)
        return super().frame(line)


@dataclass
class _Claim:
    """A batch directory that this process holds."""

    path: Path
    descriptor: int
    segments: int = 0

    @property
    def name(self) -> str:
        return self.path.stem

    def rename(self, ending: str) -> None:
        target = self.path.with_suffix(ending)
        self.path.rename(target)
        self.path = target

    def release(self) -> None:
        os.close(self.descriptor)


class Drainer:
    """Lands a spool.

    Parameters
    ----------
    spool : path-like
        The spool directory.
    settings : Settings
        Where to land.
    options : DrainOptions, optional
        Limits of a batch; whether to go on.
    on_message : callable, optional
        Takes one line of text at each thing worth telling; no payload is ever in it.

    Raises
    ------
    SpoolError
        If the directory is no spool.
    """

    def __init__(
        self,
        spool: str | os.PathLike[str],
        settings: Settings,
        options: DrainOptions | None = None,
        on_message: Callable[[str], None] | None = None,
    ) -> None:
        self.spool = open_spool(spool, create=False)
        if not os.access(self.spool, os.R_OK | os.W_OK | os.X_OK):
            raise SpoolError(
                f"{self.spool}: this user may not read and remove what is in the spool: "
                "run the drainer as the user of the servers, or give it the rights"
            )
        self.options = options or DrainOptions()
        # The spool has limits of its own: whatever is in it lands, or is kept among the rejects.
        self.settings = dataclasses.replace(settings, max_record_bytes=4 * MAX_RECORD_BYTES)
        self.summary = DrainSummary()
        self._tell = on_message or (lambda text: None)
        self._told: set[str] = set()
        self._stop = threading.Event()
        self._framer = _SpoolFramer.from_file()
        self._stream = new_stream()
        self._sequence = 0
        self._store: Store | None = None
        self._opened_at = 0.0
        self._has_tables = False
        self._spare: _Claim | None = None
        self._openings = 0
        self.is_broken_off = False

    @property
    def is_worn(self) -> bool:
        """Whether this process has opened the embedded engine so often that it should end."""
        return self.settings.endpoint is None and self._openings >= _OPENINGS

    @property
    def is_stopped(self) -> bool:
        """Whether :meth:`stop` was called."""
        return self._stop.is_set()

    def stop(self) -> None:
        """End after the batch at hand; safe to call from a signal handler or another thread."""
        self._stop.set()

    def run(self) -> DrainSummary:
        """Land what is there; with `follow`, until :meth:`stop`, or until :attr:`is_worn`.

        Raises
        ------
        LoaderError
            If the store or the spool fails, without `follow`; with it, it is told and tried again.
        """
        try:
            while not self._stop.is_set():
                if self.options.follow:
                    if self.is_worn:
                        break
                    self._keep_spare()
                claim = self._next()
                if claim is None:
                    if not self.options.follow:
                        break
                    self._close_store()
                    self._stop.wait(_POLL_SECONDS)
                    continue
                try:
                    self._land(claim)
                finally:
                    claim.release()
            else:
                self.is_broken_off = not self.options.follow
        finally:
            self._close_store()
            if self._spare is not None:
                with contextlib.suppress(OSError):  # it is empty: the next drainer removes it
                    self._remove(self._spare)
                self._spare.release()
        return self.summary

    # ------------------------------------------------------------------------- claiming

    def _next(self) -> _Claim | None:
        """Claim a batch: one that a dead drainer left, else a new one of ready segments."""
        try:
            for entry in self._scan():
                if BATCH_NAME.match(entry.name):
                    claim = self._adopt(Path(entry.path))
                    if claim is not None:
                        return claim
            return self._gather()
        except OSError as error:
            failure = SpoolError(f"{self.spool}: cannot be drained ({error.strerror or error})")
            if not self.options.follow:
                raise failure from None
            self._tell(f"{failure}; trying again")
            self._stop.wait(_LONGEST_BACKOFF_SECONDS / 6)
            return None

    def _scan(self) -> Iterator[os.DirEntry[str]]:
        """Give the spool's own entries; tell once about each that is not, and leave it."""
        with os.scandir(self.spool) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            if SEGMENT_NAME.match(entry.name):
                is_ours = entry.is_file(follow_symlinks=False)
            else:
                is_ours = bool(BATCH_NAME.match(entry.name)) and entry.is_dir(follow_symlinks=False)
            if is_ours:
                yield entry
            elif entry.name not in self._told and len(self._told) < 10_000:
                self._told.add(entry.name)
                what = "a symbolic link" if entry.is_symlink() else "not a file of the spool"
                self._tell(f"{entry.path!r}: {what}: left alone")

    def _adopt(self, path: Path) -> _Claim | None:
        """Take over a batch directory if nobody living holds it."""
        try:
            claim = _hold(path)
        except OSError as error:
            if error.errno in TOO_MANY_FILES:
                raise
            return None  # another user's
        if claim is None:
            return None
        try:
            if path.suffix == ".open":
                _drop_copies(path, path.with_suffix(".ready"))
            claim.segments = len(_segments(path))
            if path.suffix == ".landed" or claim.segments == 0:
                self._remove(claim)
                claim.release()
                return None
            if path.suffix == ".open" and os.path.lexists(path.with_suffix(".ready")):
                claim.release()
                return None  # another one, which goes first
            self._seal(claim)
        except BaseException:
            claim.release()
            raise
        return claim

    def _gather(self) -> _Claim | None:
        """Move ready segments into a new batch until it is full, or has waited long enough."""
        claim: _Claim | None = None
        rows = size = 0
        deadline = 0.0
        is_full = False
        try:
            while True:
                for path in self._ready():
                    try:
                        segment_size = path.lstat().st_size
                    except FileNotFoundError:
                        continue
                    if claim is not None and _begins_with(claim.path / path.name, path):
                        path.unlink(missing_ok=True)  # an older copy
                        continue
                    segment_rows, _, _ = count_frames(path)
                    if claim is not None and (
                        rows + segment_rows > self.options.max_rows
                        or size + segment_size > self.options.max_bytes
                        or os.path.lexists(claim.path / path.name)  # another one: it goes next
                    ):
                        is_full = True
                        break
                    if claim is None:
                        claim = self._new_claim()
                        deadline = time.monotonic() + self.options.max_wait
                    try:
                        path.rename(claim.path / path.name)
                    except FileNotFoundError:
                        continue  # another drainer has it
                    claim.segments += 1
                    rows += segment_rows
                    size += segment_size
                    if rows >= self.options.max_rows or size >= self.options.max_bytes:
                        is_full = True
                        break
                if claim is None:
                    return None
                left = deadline - time.monotonic()
                if is_full or not self.options.follow or left <= 0 or self._stop.is_set():
                    break
                self._stop.wait(min(left, _POLL_SECONDS))
            if claim.segments == 0:
                self._remove(claim)
                claim.release()
                return None
            self._seal(claim)
            return claim
        except BaseException:
            if claim is not None:
                claim.release()
            raise

    def _ready(self) -> list[Path]:
        """List the finished segments, a writer's own in order, the longest waiting writer first."""
        streams: dict[str, list[tuple[int, Path]]] = {}
        first_seen: dict[str, float] = {}
        for entry in self._scan():
            if BATCH_NAME.match(entry.name):
                continue
            path: Path | None = Path(entry.path)
            if entry.name.endswith(".open"):
                path = self._recover(Path(entry.path))
            if path is None:
                continue
            try:
                modified = path.lstat().st_mtime
            except FileNotFoundError:
                continue
            stream, _, sequence = path.stem.rpartition("-")
            streams.setdefault(stream, []).append((int(sequence), path))
            first_seen[stream] = min(modified, first_seen.get(stream, modified))
        return [
            path
            for stream in sorted(streams, key=lambda name: (first_seen[name], name))
            for _, path in sorted(streams[stream])
        ]

    def _recover(self, path: Path) -> Path | None:
        """Finish the segment of a dead writer; None if its writer lives, or it holds nothing."""
        try:
            descriptor = open_to_read(path)
        except OSError:
            return None
        try:
            if not try_lock(descriptor):
                return None
            found = os.fstat(descriptor)
            if not _is_at(path, found):
                return None
            if found.st_size <= HEADER_BYTES:
                path.unlink()
                return None
            target = path.with_suffix(".ready")
            if os.path.lexists(target):
                # Copying a spool makes such a pair. Another one's place is not to be taken: it
                # goes first.
                if _begins_with(target, path):
                    path.unlink()  # an older copy
                return None
            path.rename(target)
            self.summary.recovered += 1
            return target
        finally:
            os.close(descriptor)

    def _keep_spare(self) -> None:
        """Have a directory in hand: on a full disk none can be made, and only draining helps."""
        if self._spare is None:
            with contextlib.suppress(OSError):
                self._spare = self._new_claim()

    def _new_claim(self) -> _Claim:
        """Make a batch directory. Another drainer may remove it before it is held: again."""
        if self._spare is not None:
            spare, self._spare = self._spare, None
            return spare
        while True:
            self._sequence += 1
            path = self.spool / f"batch-{self._stream}-{self._sequence:08d}.open"
            path.mkdir(mode=0o700)
            try:
                claim = _hold(path)
            except OSError:
                path.rmdir()
                raise
            if claim is not None:
                return claim

    def _seal(self, claim: _Claim) -> None:
        """Fix a batch's content, durably: what is landed must never be cut another way.

        Who sealed it before may have been killed, or failed, within this.
        """
        for path in _segments(claim.path):
            sync_file(path)
        if claim.path.suffix != ".ready":
            claim.rename(".ready")
        sync_directory(claim.path)
        sync_directory(self.spool)

    def _remove(self, claim: _Claim) -> None:
        """Remove a batch that is landed or empty. `.landed` first: it may end half-way."""
        if claim.path.suffix != ".landed":
            claim.rename(".landed")
            sync_directory(self.spool)
        for path in _segments(claim.path):
            path.unlink(missing_ok=True)
        try:
            claim.path.rmdir()
        except OSError as error:
            if claim.name not in self._told:
                self._told.add(claim.name)
                self._tell(f"{claim.path}: landed, but not removed ({error.strerror})")

    # -------------------------------------------------------------------------- landing

    def _land(self, claim: _Claim) -> None:
        """Land one batch; with `follow`, try until it is landed or the drainer is stopped."""
        backoff = _FIRST_BACKOFF_SECONDS
        patience_ends: float | None = time.monotonic() + self.settings.lock_timeout
        error: LoaderError | OSError
        batch: Batch | None = None
        while True:
            try:
                if batch is None:
                    batch = self._encode(claim)
                self._land_once(claim, batch)
                return
            except (LoaderError, OSError) as failure:
                error = failure
                if isinstance(failure, OSError):
                    error = SpoolError(f"{claim.path}: {failure.strerror or failure}")
                self._close_store()
                if not self.options.follow:
                    raise error from None
                if isinstance(error, StoreLockedError):
                    # Somebody else's turn, no failure: opening has waited for it already. But who
                    # never leaves is told of, once a batch.
                    if patience_ends is not None and time.monotonic() > patience_ends:
                        patience_ends = None
                        self._tell(f"{error} (waiting on, batch {claim.name} is kept)")
                    if self._stop.wait(_POLL_SECONDS):
                        return
                    continue
                self._tell(f"{error} (trying again, batch {claim.name} is kept)")
                if self._stop.wait(backoff * random.uniform(0.5, 1.5)):
                    return
                backoff = min(backoff * 2, _LONGEST_BACKOFF_SECONDS)

    def _land_once(self, claim: _Claim, batch: Batch) -> None:
        from loader.landing import land_batch

        store = self._open_store()
        is_new = land_batch(store, batch, self._sleep)
        summary = self.summary
        # Before it is removed: where that fails, the next try finds it landed already.
        if is_new:
            summary.batches += 1
            summary.rows += batch.rows
            summary.rejects += batch.rejects
            summary.bytes += batch.end
            summary.segments += claim.segments
            summary.reasons.update(batch.reasons)
            summary.torn += batch.reasons["torn"]
            summary.corrupt += batch.reasons["corrupt"]
        else:
            summary.batches_already += 1
        self._remove(claim)
        if store.is_embedded and time.monotonic() - self._opened_at > _HOLD_SECONDS:
            self._close_store()
            self._stop.wait(_LEAVE_SECONDS)

    def _sleep(self, seconds: float) -> None:
        """Wait between tries; after SIGTERM no longer, so that they are soon over."""
        self._stop.wait(seconds)

    def _encode(self, claim: _Claim) -> Batch:
        """Read a batch's segments and encode the rows; the same bytes give the same batch."""
        from loader.batches import Cut, batch_id_of, encode_batch, new_hash

        source = f"spool/{claim.name}"
        hash_ = new_hash(source, 0)
        lines: list[bytes] = []
        size = 0
        for path in _segments(claim.path):
            for line in self._lines(path):
                if isinstance(line, _Refused):
                    hash_.update(f"{line.reason}\n{line.detail}\n".encode())
                hash_.update(line)
                hash_.update(b"\n")
                lines.append(line)
                size += len(line) + 1
        cut = Cut(batch_id_of(hash_), source, 0, size, 1, lines, True)
        return encode_batch(cut, self._framer, self.settings)

    def _lines(self, path: Path) -> Iterator[bytes]:
        try:
            descriptor = open_to_read(path)
            with os.fdopen(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise SpoolError(f"{path}: is no regular file: move it away, then drain again")
                data = file.read()
        except OSError as error:
            raise SpoolError(f"{path}: cannot be read ({error.strerror})") from None
        for item in read_frames(data):
            if isinstance(item, Damage):
                what = (
                    "the end of a segment whose writer was killed"
                    if item.reason == "torn"
                    else "a damaged place in a segment"
                )
                place = f"{path.name}, {len(item.payload)} bytes at {item.offset}"
                self._tell(f"{place}: {what}; kept in raw_rejects as {item.reason}")
                yield _Refused(bytes(item.payload), item.reason, f"{what}: {place}")
            elif item.kind == REJECT:
                reason, detail, raw = decode_reject(item.payload)
                yield _Refused(raw, reason, detail)
            else:
                yield bytes(item.payload)

    # ---------------------------------------------------------------------------- store

    def _open_store(self) -> Store:
        """Open the store, or give the one that is open."""
        if self._store is None:
            from loader.store import open_store

            settings = self.settings
            if self.options.follow:
                # Short waits, so that SIGTERM is heard; following makes a long wait of them.
                settings = dataclasses.replace(
                    settings, lock_timeout=min(settings.lock_timeout, _LOCK_SLICE_SECONDS)
                )
            self._store = open_store(settings, None if self.options.follow else self._tell)
            self._opened_at = time.monotonic()
            self._openings += 1
            if not self._has_tables:
                self._store.ensure_raw_tables()
                self._has_tables = True
        return self._store

    def _close_store(self) -> None:
        """Close the store, so that dbt or a reader gets its turn at an embedded one."""
        if self._store is not None:
            with contextlib.suppress(Exception):
                self._store.close()
            self._store = None


def _is_at(path: Path, found: os.stat_result) -> bool:
    """Tell whether an open file is still the one at this path."""
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (found.st_dev, found.st_ino)


def _hold(path: Path) -> _Claim | None:
    """Open and lock a batch directory; None if somebody living has it, or it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if try_lock(descriptor) and _is_at(path, os.fstat(descriptor)):
        return _Claim(path, descriptor)
    os.close(descriptor)
    return None


def _drop_copies(batch: Path, finished: Path) -> None:
    """Remove what of a batch is there too in the finished batch of the same name."""
    for segment in _segments(batch):
        if _begins_with(finished / segment.name, segment):
            segment.unlink()


def _begins_with(path: Path, beginning: Path) -> bool:
    """Say whether a file is there and begins with all that another one holds."""
    with contextlib.ExitStack() as stack:
        try:
            whole, part = (
                stack.enter_context(os.fdopen(open_to_read(each), "rb"))
                for each in (path, beginning)
            )
        except OSError:
            return False
        while chunk := part.read(MEBIBYTE):
            if whole.read(len(chunk)) != chunk:
                return False
    return True


def _segments(batch: Path) -> list[Path]:
    """List a batch's segments in the order in which they land."""

    def order(path: Path) -> tuple[str, int]:
        stream, _, sequence = path.stem.rpartition("-")
        return stream, int(sequence)

    return sorted((path for path in batch.iterdir() if SEGMENT_NAME.match(path.name)), key=order)


# --------------------------------------------------------------------------------- the verb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "spool",
        nargs="?",
        default=os.environ.get("TOKENLEDGER_SPOOL"),
        metavar="SPOOL",
        help="the spool directory (default: TOKENLEDGER_SPOOL)",
    )
    parser.add_argument(
        "--follow", action="store_true", help="go on until SIGTERM, whatever the database does"
    )
    parser.add_argument(
        "--max-rows", type=int, default=5_000, metavar="N", help="rows of a batch (default 5000)"
    )
    parser.add_argument(
        "--max-mb", type=int, default=64, metavar="N", help="MiB of a batch (default 64)"
    )
    parser.add_argument(
        "--max-wait",
        type=float,
        default=2.0,
        metavar="S",
        help="seconds that --follow lets a batch grow (default 2)",
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Drain, print the summary, and return 0; 1 if records were rejected, 3 if it was stopped.

    With --follow being stopped is how it ends.
    """
    if not args.spool:
        raise UsageError("no spool: name its directory, or set TOKENLEDGER_SPOOL.")
    if args.max_rows < 1 or args.max_mb < 1 or args.max_wait < 0:
        raise UsageError("--max-rows and --max-mb are to be above 0, --max-wait not below 0.")
    options = DrainOptions(args.max_rows, args.max_mb * MEBIBYTE, args.max_wait, args.follow)

    def tell(text: str) -> None:
        print(as_line(text), file=sys.stderr, flush=True)

    drainer = Drainer(args.spool, settings, options, tell)
    _add_totals(drainer.summary)

    def on_signal(number: int, frame: Any) -> None:
        drainer.stop()

    # The driver would tell of each failure in words of its own, before ours.
    logging.getLogger("clickhouse_connect").setLevel(logging.CRITICAL)
    for number in _STOPPING:
        signal.signal(number, on_signal)
    # A process that this one replaces leaves them blocked, so that none is lost in between.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
    summary = drainer.run()
    if drainer.is_worn:
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
        if not drainer.is_stopped:
            _begin_anew(summary)
    print(_as_json(summary) if args.json else _as_text(summary))
    if drainer.is_broken_off:
        print(f"{args.spool}: stopped before all was landed: run it again", file=sys.stderr)
        return 3
    return 1 if summary.rejects else 0


def _begin_anew(summary: DrainSummary) -> None:
    """Replace this process by a fresh one under the same id, which goes on counting."""
    os.environ[_TOTALS] = _as_json(summary)
    sys.stdout.flush()
    sys.stderr.flush()
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _add_totals(summary: DrainSummary) -> None:
    """Take over the counts of the process that this one replaces."""
    for name, value in json.loads(os.environ.pop(_TOTALS, "{}")).items():
        setattr(summary, name, Counter(value) if name == "reasons" else value)


def _as_json(summary: DrainSummary) -> str:
    return json.dumps({**vars(summary), "reasons": dict(summary.reasons)})


def _as_text(summary: DrainSummary) -> str:
    parts = [
        f"landed {summary.rows:,} traces in {summary.batches:,} batches "
        f"of {summary.segments:,} segments",
        f"{summary.batches_already:,} batches already there",
        f"{summary.rejects:,} rejected",
    ]
    if summary.reasons:
        reasons = ", ".join(f"{count:,} {word}" for word, count in summary.reasons.most_common())
        parts[-1] += f" ({reasons}; see raw_rejects)"
    if summary.recovered:
        parts.append(f"{summary.recovered:,} segments of dead writers taken over")
    return ", ".join(parts)
