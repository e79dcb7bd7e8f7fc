"""Batches: where a source is cut, what a batch is called, and its rows as the store wants them.

Owns the cut (the same bytes at the same place give the same batches), the batch's id, the ledger's
chain through a file, and encoding. Refuses to talk to the store.
"""

from __future__ import annotations

import bisect
import codecs
import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from loader.errors import BrokenError, SourceError
from loader.formats import Buffer, Framer, Record, Rejection
from loader.redaction import REDACTED, is_withheld, load_redactor
from loader.rowbinary import (
    encode_milliseconds,
    encode_string,
    encode_strings,
    encode_uint32,
    encode_uint64,
    varint,
)
from loader.settings import MEBIBYTE, Settings
from loader.sources import Source, Stream

__all__ = [
    "FIRST_BATCH",
    "REJECT_COLUMNS",
    "REPLAYED",
    "REPLAY_PREFIX",
    "TRACE_COLUMNS",
    "Batch",
    "Chain",
    "Cut",
    "Landed",
    "LedgerEntry",
    "cut_again",
    "cut_stream",
    "encode_batch",
    "follow_chain",
]

TRACE_COLUMNS = (
    "batch_id",
    "position",
    "format",
    "request_json",
    "response_json",
    "envelope_json",
    "repairs",
    "landed_at",
)
REJECT_COLUMNS = (
    "batch_id",
    "position",
    "source",
    "line",
    "byte_offset",
    "reason",
    "detail",
    "raw",
    "landed_at",
)

# What a batch that takes the place of another's rejects has for a source, before the other's id.
REPLAY_PREFIX = "replay/"
# The batch that a line first came with, in SQL; with the position it names the line wherever it is.
FIRST_BATCH = "substring(batch_id, 1, 32)"
# What a record is rejected for that is landed again with its batch, and stands in a replay since.
REPLAYED = "replayed"
# A rejected line is kept whole up to this size (or the record limit, if that is larger). Of a
# longer one the head is kept, with its length and hash.
KEPT_WHOLE_BYTES = 128 * MEBIBYTE
KEPT_HEAD_BYTES = MEBIBYTE
# Blank lines cost memory too: a batch has at most so many lines for each that is not blank.
BLANK_LINES_A_LINE = 100

_NOWHERE = 2**64


@dataclass(frozen=True, slots=True)
class Cut:
    """The lines of one batch, as they stood in the source.

    Attributes
    ----------
    batch_id : str
        32 hex digits: the head of SHA-256 over source, offset and bytes. Of a replay, behind the
        id of the batch that the lines first came with and a hyphen.
    start, end : int
        Its place in the decompressed source.
    first_line : int
        The line number of its first byte, from 1.
    lines : list of bytes
        Every line without its newline, blank ones too.
    is_terminated : bool
        Whether the last line ends with a newline.
    full_length, full_hash : int, str
        Of a line too long to be kept whole, whose head is then the only line; else 0 and ''.
    """

    batch_id: str
    source: str
    start: int
    end: int
    first_line: int
    lines: list[bytes]
    is_terminated: bool
    full_length: int = 0
    full_hash: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch ready to be landed.

    Attributes
    ----------
    lines, rows, rejects : int
        Non-blank lines; records; rejected lines. The first is the sum of the others.
    traces, rejected : list of bytes-like
        The rows of raw_traces and raw_rejects in RowBinary, in pieces: most are views into the
        lines, which nobody has to copy.
    without_id, repaired, redacted : int
        Records that do not name themselves, that had to be changed to be accepted, and that rules
        of redaction changed.
    reasons : Counter
        Rejected lines by reason.
    positions : collection of int
        The places of all lines: 0, 1, 2, … but in a replay.
    rejected_at : frozenset of int
        The places of the rejected ones.
    by_rules : bool
        Whether rules of redaction were asked, so that other rows of these lines may hold more.
    continues : sequence of str
        The batches that hold the beginning of its first line, which had no end yet.
    """

    batch_id: str
    source: str
    start: int
    end: int
    first_line: int
    lines: int
    rows: int
    rejects: int
    traces: list[Buffer] = field(repr=False)
    rejected: list[Buffer] = field(repr=False)
    positions: Collection[int] = field(repr=False)
    rejected_at: frozenset[int] = field(repr=False)
    without_id: int = 0
    repaired: int = 0
    redacted: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    by_rules: bool = False
    continues: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """A ledger row, as far as the chain needs it.

    Attributes
    ----------
    batch_id : str
        '' of a rest: the part of a lost batch behind what was landed of it since, cut otherwise.
    is_lost : bool
        Its rows were lost: it is no longer in the ledger, and to be landed again as it was cut.
    continues : sequence of str
        See `Batch`.
    has_more : bool
        Whether `continues` has more than the ledger knows.
    rejected : frozenset of int, optional
        Of a lost batch that was replayed since: the positions of its rejects, as far as they are
        kept, which are to stay rejects. None of others.
    """

    batch_id: str
    start: int
    end: int
    first_line: int
    rows: int
    rejects: int
    is_lost: bool
    continues: Sequence[str] = ()
    has_more: bool = False
    rejected: frozenset[int] | None = None


@dataclass(frozen=True, slots=True)
class Chain:
    """How far the ledger already covers a file.

    Attributes
    ----------
    offset, line : int
        Where the first byte that is not covered stands.
    entries : list of LedgerEntry
        The batches that cover what is before it.
    begun : list of str
        Those that hold the beginning of the line there, which had no end when they were landed.
    stream : Stream
        The file, opened at `offset`.
    """

    offset: int
    line: int
    entries: list[LedgerEntry]
    begun: list[str]
    stream: Stream


def new_hash(source: str, start: int) -> hashlib._Hash:
    """Begin a batch's hash; the batch's bytes are still to be added."""
    # SHA-256 because processors have it: twice as fast here as BLAKE2b.
    return hashlib.sha256(source.encode() + b"\0" + start.to_bytes(8, "little"))


def batch_id_of(hash_: hashlib._Hash) -> str:
    """Give the id that a finished hash stands for: 128 bits in hex."""
    return hash_.hexdigest()[:32]


# Gives a source's batches that begin at one of two offsets and end at a third, or before it.
Landed = Callable[[int, int, int], Sequence[LedgerEntry]]


def cut_stream(
    stream: Stream,
    source: str,
    settings: Settings,
    first_line: int = 1,
    landed: Landed | None = None,
) -> Iterator[Cut]:
    """Cut what is left of a stream into batches.

    A batch ends after `batch_lines` non-blank lines (or a hundred times as many, blank ones
    counted), or before the line that would bring it above `batch_bytes`. A last line without a
    newline, and a line too long to be kept whole, are batches of their own. Blank lines at the
    very end are left out. What was landed before is cut as it was then, as long as nothing new
    came before it.

    Parameters
    ----------
    stream : Stream
        Read from where it stands.
    source : str
        The source's name in the ledger.
    settings : Settings
        The limits.
    first_line : int
        The line number of the stream's next byte.
    landed : callable, optional
        Gives the ledger's batches of this source, and the lost ones, that begin at one of two
        offsets and end at a third, or before it. They may be of other streams.

    Raises
    ------
    SourceError
        If the stream breaks off; all complete lines before that, and what there is of the next,
        have been given.
    """
    keep_bytes = max(settings.max_record_bytes, KEPT_WHOLE_BYTES)
    most_lines = BLANK_LINES_A_LINE * settings.batch_lines
    cutter = _Cutter(source, stream.offset, first_line, landed)
    pieces: list[bytes] = []
    pieces_bytes = 0
    broken: SourceError | None = None
    while True:
        try:
            chunk = stream.read()
        except SourceError as error:
            broken, chunk = error, b""
        if not chunk:
            break
        lines = chunk.split(b"\n")
        rest = lines.pop()
        if lines and pieces:
            pieces.append(lines[0])
            lines[0] = b"".join(pieces)
            pieces, pieces_bytes = [], 0
        for line in lines:
            size = len(line) + 1
            while cutter.size + size > settings.batch_bytes and cutter.lines:
                yield cutter.take()
            if len(line) > keep_bytes:
                while cutter.lines:
                    yield cutter.take()
                yield cutter.take_giant([line, b"\n"], None)
                continue
            cutter.add(line)
            if cutter.filled >= settings.batch_lines or len(cutter.lines) >= most_lines:
                yield cutter.take()
        if rest:
            pieces.append(rest)
            pieces_bytes += len(rest)
        while cutter.lines and cutter.size + pieces_bytes >= settings.batch_bytes:
            # Whatever the rest of this line is, it does not fit: free the memory.
            yield cutter.take()
        if pieces_bytes > keep_bytes:
            while cutter.lines:
                yield cutter.take()
            try:
                cut = cutter.take_giant(pieces, stream)
            except SourceError as error:
                broken = error
                break
            pieces, pieces_bytes = [], 0
            yield cut
    while cutter.filled:
        yield cutter.take()
    if pieces:
        tail = b"".join(pieces)
        if tail.strip():
            cutter.drop_blank()
            cutter.add(tail, is_terminated=False)
            yield cutter.take(is_terminated=False)
    if broken is not None:
        raise broken


def cut_again(source: Source, entry: LedgerEntry, settings: Settings) -> list[Cut]:
    """Cut a lost batch as it was cut before, whatever the limits are now.

    A rest (see `LedgerEntry`) is cut by today's limits.

    Raises
    ------
    SourceError
        If the source breaks off, or is another than the chain was followed through.
    """
    size = entry.end - entry.start
    whole = dataclasses.replace(settings, batch_lines=size, batch_bytes=size)
    # A line above the limit of a record is a batch of its own, unless the limit was higher then.
    limits = (whole, dataclasses.replace(whole, max_record_bytes=size))
    for each in limits if entry.batch_id else (settings,):
        stream = source.open(settings, entry.start)
        try:
            stream.end_at(entry.end)
            cuts = list(cut_stream(stream, source.name, each, entry.first_line))
        finally:
            stream.close()
        if not entry.batch_id or [cut.batch_id for cut in cuts] == [entry.batch_id]:
            return cuts
    raise SourceError(f"{source.name}: changed while it was read; run it again.")


class _Cutter:
    """The batch that is being filled."""

    def __init__(
        self, source: str, offset: int, first_line: int, landed: Landed | None = None
    ) -> None:
        self.source = source
        self.start = offset
        self.first_line = first_line
        self._landed = landed
        self._clear()

    def _clear(self) -> None:
        self.lines: list[bytes] = []
        self.size = 0
        self.filled = 0

    def add(self, line: bytes, is_terminated: bool = True) -> None:
        self.lines.append(line)
        self.size += len(line) + is_terminated
        self.filled += not _is_blank(line)

    def drop_blank(self) -> None:
        """Leave out blank lines, which are all that there is."""
        self.start += self.size
        self.first_line += len(self.lines)
        self._clear()

    def take(self, is_terminated: bool = True) -> Cut:
        """Give the batch, and begin the next one behind it.

        If the ledger has a batch of the first of these lines, that is the one.
        """
        lines, rest, is_whole = self.lines, list[bytes](), is_terminated
        known = self._find_known(is_terminated)
        if known is None:
            self._landed = None  # what follows is new too
        else:
            first, behind, part = known
            self.start += sum(len(line) + 1 for line in lines[:first])
            self.first_line += first
            lines, rest = lines[first:behind], lines[behind:]
            is_whole = not part and (is_terminated or bool(rest))
            if part:
                lines, rest = [lines[0][:part]], [lines[0][part:], *rest]
        hash_ = new_hash(self.source, self.start)
        end = self.start
        for index, line in enumerate(lines, 1):
            end += _hash_line(hash_, line, is_whole or index < len(lines))
        cut = Cut(
            batch_id_of(hash_), self.source, self.start, end, self.first_line, lines, is_whole
        )
        self.start = end
        self.first_line += len(lines) - (not is_whole)
        self._clear()
        for index, line in enumerate(rest, 1):
            self.add(line, is_terminated or index < len(rest))
        return cut

    def _find_known(self, is_terminated: bool) -> tuple[int, int, int] | None:
        """Find the longest batch of the ledger, or else a lost one, that these lines begin with.

        Returns its first line and the one behind it; and how many bytes it has of its only line,
        if it was a last one without a newline and only space has come behind it.
        """
        if self._landed is None:
            return None
        first = next((index for index, line in enumerate(self.lines) if not _is_blank(line)), 0)
        begin = self.start + sum(len(line) + 1 for line in self.lines[:first])
        entries = self._landed(self.start, begin, self.start + self.size)
        ends = {entry.end for entry in entries}
        last_end = max(ends, default=0)
        places: dict[str, tuple[int, int, int]] = {}
        hash_, end = new_hash(self.source, self.start), self.start
        for index, line in enumerate(self.lines, 1):
            if end >= last_end:
                break
            end += _hash_line(hash_, line, is_terminated or index < len(self.lines))
            if end in ends:
                places[batch_id_of(hash_)] = 0, index, 0
        line = self.lines[first]
        size_of_text = len(line.rstrip())
        for size in {entry.end - begin for entry in entries if entry.start == begin}:
            if size_of_text <= size <= len(line):
                hash_ = new_hash(self.source, begin)
                hash_.update(line[:size])
                places[batch_id_of(hash_)] = first, first + 1, size
        known = [entry for entry in entries if entry.batch_id in places]
        if not known:
            return None
        return places[max(known, key=lambda entry: (not entry.is_lost, entry.end)).batch_id]

    def take_giant(self, pieces: list[bytes], stream: Stream | None) -> Cut:
        """Give a line that is too long to be kept as a batch of its own.

        The line is what the pieces hold, and what a stream still has of it, which is not kept.
        """
        batch_hash = new_hash(self.source, self.start)
        line_hash = hashlib.sha256()
        head = b"".join(pieces)[:KEPT_HEAD_BYTES]
        length = 0
        is_terminated = False

        def take_in(piece: bytes) -> None:
            nonlocal length, is_terminated
            batch_hash.update(piece)
            is_terminated = piece.endswith(b"\n")
            part = piece[:-1] if is_terminated else piece
            line_hash.update(part)
            length += len(part)

        for piece in pieces:
            take_in(piece)
        while stream is not None and not is_terminated and (piece := stream.read_line_part()):
            take_in(piece)
        end = self.start + length + is_terminated
        cut = Cut(
            batch_id_of(batch_hash),
            self.source,
            self.start,
            end,
            self.first_line,
            [head],
            is_terminated,
            length,
            line_hash.hexdigest(),
        )
        self.start = end
        self.first_line += 1
        return cut


def encode_batch(
    cut: Cut,
    framer: Framer,
    settings: Settings,
    kept_out: Collection[int] = (),
    positions: Sequence[int] | None = None,
) -> Batch:
    """Frame every line of a cut and encode the rows for the store.

    Parameters
    ----------
    cut : Cut
        The lines; blank ones are passed over.
    framer : Framer
        Says what is a record.
    settings : Settings
        The record limit.
    kept_out : collection of int
        Positions of lines that are no records, whatever they are framed as.
    positions : sequence of int, optional
        What each line that is not blank has for a position; by default they are counted from 0.
    """
    landed_at = encode_milliseconds(datetime.now(UTC))
    batch_id = encode_string(cut.batch_id.encode())
    source = encode_string(cut.source.encode())
    traces: list[Buffer] = []
    rejected: list[Buffer] = []
    rejected_at: list[int] = []
    reasons: Counter[str] = Counter()
    rows = without_id = repaired = redacted = lines = 0
    offset, line_number = cut.start, cut.first_line
    formats = {entry.name: encode_string(entry.name.encode()) for entry in framer.formats}
    tail = encode_strings(()) + landed_at
    append = traces.append
    last = len(cut.lines) - 1
    redactor = load_redactor(settings.redaction)
    for index, line in enumerate(cut.lines):
        if _is_blank(line) and not cut.full_length:
            offset += len(line) + 1
            line_number += 1
            continue
        position = lines if positions is None else positions[lines]
        lines += 1
        kept, is_redacted = (line, False) if redactor is None else redactor.redact(line)
        if cut.full_length or len(line) > settings.max_record_bytes:
            framed: Record | Rejection = _too_large(cut, line, settings)
        else:
            # What the spool refused says so by its type, which a copy has not.
            framed = framer.frame(kept if type(line) is bytes else line)
            if is_redacted and is_withheld(kept):
                # Of no record is the reason taken from what is not stored.
                came_as = framer.frame(line)
                framed = came_as if isinstance(came_as, Rejection) else framed
            if position in kept_out and isinstance(framed, Record):
                framed = _REPLAYED
        if isinstance(framed, Rejection):
            if index == last and not cut.is_terminated and _may_go_on(framed.reason, line):
                framed = _UNFINISHED
            reasons[framed.reason] += 1
            rejected_at.append(position)
            rejected += (
                batch_id,
                encode_uint32(position),
                source,
                encode_uint64(line_number),
                encode_uint64(offset),
                encode_string(framed.reason.encode()),
                encode_string(framed.detail.encode()),
                varint(len(kept)),
                kept,
                landed_at,
            )
        else:
            request, response, envelope = framed.request, framed.response, framed.envelope
            position_bytes = position.to_bytes(4, "little")
            append(batch_id + position_bytes + formats[framed.format] + varint(len(request)))
            append(request)
            append(varint(len(response)))
            append(response)
            append(varint(len(envelope)))
            append(envelope)
            repairs = (*framed.repairs, REDACTED) if is_redacted else framed.repairs
            append(encode_strings(repairs) + landed_at if repairs else tail)
            repaired += bool(framed.repairs)
            redacted += is_redacted
            rows += 1
            without_id += not framed.has_id
        offset += len(line) + 1
        line_number += 1
    return Batch(
        batch_id=cut.batch_id,
        source=cut.source,
        start=cut.start,
        end=cut.end,
        first_line=cut.first_line,
        lines=lines,
        rows=rows,
        rejects=lines - rows,
        traces=traces,
        rejected=rejected,
        positions=range(lines) if positions is None else positions,
        rejected_at=frozenset(rejected_at),
        without_id=without_id,
        repaired=repaired,
        redacted=redacted,
        reasons=reasons,
        by_rules=redactor is not None,
    )


def follow_chain(source: Source, entries: Sequence[LedgerEntry], settings: Settings) -> Chain:
    """Find how much of a file the ledger already covers, by the bytes and not by trust.

    Each batch of the chain begins where the one before ends, and the file's bytes there must hash
    to its id. The chain ends where no batch fits: what is new begins there, or what was rewritten.
    Blank lines between two batches are passed over. A lost batch is part of it, to be landed again.

    Parameters
    ----------
    source : Source
        A file.
    entries : sequence of LedgerEntry
        The ledger's rows of this source, in any order.
    settings : Settings
        For opening it.

    Raises
    ------
    SourceError
        If the file cannot be read, or breaks off (compressed) within what a batch of the ledger
        may hold.
    """
    by_start: dict[int, dict[str, LedgerEntry]] = {}
    for entry in entries:
        by_start.setdefault(entry.start, {})[entry.batch_id] = entry
    held = sorted({entry.start for entry in entries if not entry.is_lost})
    starts = sorted(by_start)
    chain: list[LedgerEntry] = []
    offset, line = 0, 1
    lost_until = 0
    stream = source.open(settings)
    try:
        while True:
            candidates = list(by_start.get(offset, {}).values())
            # The ledger's next within what was lost, if the file has it still.
            lost_ends = [entry.end for entry in candidates if entry.is_lost]
            within = _between(held, offset, max(lost_until, *lost_ends, offset))
            next_held = next(
                (start for start in within if _is_there(source, by_start[start], settings)),
                _NOWHERE,
            )
            found, matched_until, begun = _match(stream, source.name, offset, candidates, next_held)
            lost_until = max(lost_until, matched_until)
            if found is not None:
                chain.append(_with_begun(found.entry, begun))
                offset, line = found.entry.end, line + found.newlines
            if stream.offset != offset:
                stream.close()
                stream = source.open(settings, offset)
            if found is not None:
                continue
            # Of a lost batch the beginning was landed since, cut otherwise: the rest is new.
            is_lost = lost_until > offset
            until = min(lost_until, next_held) if is_lost else _next(starts, offset)
            if not candidates and until == _NOWHERE:
                break  # nothing was read here, and the stream may be cut where it stands
            newlines = _read_to(stream, until, is_blank=not is_lost)
            if newlines is None:
                if stream.offset != offset:
                    stream.close()
                    stream = source.open(settings, offset)
                break  # one at its end stays there: what is added now is not seen by halves
            if is_lost:
                rest = LedgerEntry("", offset, until, line, 0, 0, is_lost=True, continues=begun)
                chain.append(rest)
            offset, line = until, line + newlines
    except BaseException:
        stream.close()
        raise
    return Chain(offset, line, chain, begun, stream)


@dataclass(frozen=True, slots=True)
class _Match:
    """A batch whose bytes a stream has, and the line ends among them."""

    entry: LedgerEntry
    newlines: int


def _with_begun(entry: LedgerEntry, begun: list[str]) -> LedgerEntry:
    """Note what a batch goes on with, which may have been landed after it.

    A file that is copied over itself may be looked at halfway.
    """
    more = set(begun) - set(entry.continues)
    if not more:
        return entry
    return dataclasses.replace(
        entry, continues=sorted({*entry.continues, *more}), has_more=not entry.is_lost
    )


def _match(
    stream: Stream, source: str, start: int, candidates: list[LedgerEntry], next_held: int
) -> tuple[_Match | None, int, list[str]]:
    """Find the longest of the batches beginning here whose bytes are the stream's.

    One of the ledger goes before a lost one, whose bytes it may have taken over; a lost one that
    reaches beyond where the ledger's next begins is none. Beside it are said how far the longest of
    all goes, and which of them end in a line that goes on now. The stream is read on; it stands
    behind the longest candidate, or at its end, or where it broke.
    """
    hash_ = new_hash(source, start)
    newlines = 0
    last = b""
    found: _Match | None = None
    matched_until = start
    begun: list[str] = []
    for entry in sorted(candidates, key=lambda candidate: candidate.end):
        try:
            while stream.offset < entry.end:
                chunk = stream.read(entry.end - stream.offset)
                if not chunk:
                    return found, matched_until, begun
                hash_.update(chunk)
                newlines += chunk.count(b"\n")
                last = chunk[-1:]
            if batch_id_of(hash_) != entry.batch_id:
                continue
            if not _is_settled(entry, last, stream):
                begun.append(entry.batch_id)
            else:
                matched_until = entry.end
                if not entry.is_lost or (
                    entry.end <= next_held and (found is None or found.entry.is_lost)
                ):
                    found = _Match(entry, newlines)
        except BrokenError:
            if found is None and not entry.is_lost:
                raise SourceError(
                    f"{source}: breaks off within what may have been landed of it before. Nothing "
                    f"behind byte {start:,} was landed now: run it again when the file is whole; "
                    "a file that stays so, and is another one, land under another name."
                ) from None
            # A broken stream ends the chain; it is met again, and reported, while cutting.
            return found, matched_until, begun
    return found, matched_until, begun


def _is_settled(entry: LedgerEntry, last: bytes, stream: Stream) -> bool:
    """Say whether a batch's last line is still the line that was landed.

    A line that had no newline then may have grown since. Behind a whole record only space can
    follow; behind a rejected one anything else makes it another line. Where the stream breaks off,
    it has not grown yet.
    """
    if last == b"\n":
        return True
    try:
        if entry.rows:
            return stream.peek() in (b"", b"\n", b" ", b"\t", b"\r")
        return stream.peek_past_blank() in (b"", b"\n")
    except BrokenError:
        return True


def _is_there(source: Source, entries: dict[str, LedgerEntry], settings: Settings) -> bool:
    """Say whether a file has one of the ledger's batches, of those that begin at one place.

    If not, they are of a file that stood there before.
    """
    known = [entry for entry in entries.values() if not entry.is_lost]
    try:
        stream = source.open(settings, known[0].start)
    except BrokenError:
        return False  # not so long
    try:
        return _match(stream, source.name, known[0].start, known, _NOWHERE)[0] is not None
    finally:
        stream.close()


def _between(starts: Sequence[int], offset: int, until: int) -> Sequence[int]:
    """Give where batches begin behind an offset, and before another."""
    return starts[bisect.bisect_right(starts, offset) : bisect.bisect_left(starts, until)]


def _next(starts: Sequence[int], offset: int) -> int:
    """Where the next batch begins behind an offset; beyond all files where there is none."""
    index = bisect.bisect_right(starts, offset)
    return starts[index] if index < len(starts) else _NOWHERE


def _read_to(stream: Stream, until: int, *, is_blank: bool) -> int | None:
    """Read on, and count line ends; None if there is nothing to read, or more than space."""
    if until == _NOWHERE:
        return None
    newlines = 0
    try:
        while stream.offset < until:
            chunk = stream.read(until - stream.offset)
            if not chunk or (is_blank and not chunk.isspace()):
                return None
            newlines += chunk.count(b"\n")
    except BrokenError:
        return None
    return newlines


_UNFINISHED = Rejection(
    "unfinished", "the last line has no newline and is no whole JSON document yet"
)


_REPLAYED = Rejection(REPLAYED, "rejected when it was first landed, and replayed since")


def _may_go_on(reason: str, line: bytes) -> bool:
    """Say whether a rejected line may be the beginning of a record."""
    if reason != "not_utf8":
        return reason == "not_json"
    try:
        # Not final: passes over a character that is not whole yet.
        codecs.getincrementaldecoder("utf-8")().decode(line)
    except UnicodeDecodeError:
        return False
    return True


def _too_large(cut: Cut, line: bytes, settings: Settings) -> Rejection:
    length = cut.full_length or len(line)
    detail = f"{length} bytes, more than the limit of {settings.max_record_bytes}"
    if cut.full_length:
        detail += f"; the first {len(line)} are kept; sha256 of all {cut.full_hash}"
    return Rejection("too_large", detail)


def _hash_line(hash_: hashlib._Hash, line: bytes, is_terminated: bool) -> int:
    """Add a line to a batch's hash, and say how many bytes it has there."""
    hash_.update(line)
    if is_terminated:
        hash_.update(b"\n")
    return len(line) + is_terminated


def _is_blank(line: bytes) -> bool:
    # What the spool refused (see `encode_batch`) is kept, whatever it is.
    return type(line) is bytes and (not line or line.isspace())
