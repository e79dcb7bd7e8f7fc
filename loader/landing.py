"""Landing: the protocol that makes a batch be in the store once, whenever the loader is killed.

For each batch: what a killed loader left running of it in the store is waited for. Is it in the
ledger, then it is there, and the counts have to say so too. Else count what the raw tables hold of
it, by distinct position: nothing, insert; all, go on; a part, what other formats made rows and
rejects of, or what another run left where records are redacted, remove it and insert. Read the
counts back, and only then write the ledger row. A lost answer is looked for before it is tried
again. A file is landed by one loader at a time: on this machine it is held, and what another one
has landed of it meanwhile is looked for with each batch. Refuses to lean on the engine's insert
deduplication, and to parse anything.
"""

from __future__ import annotations

import contextlib
import hashlib
import queue
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TypeVar

from loader import __version__
from loader.batches import (
    FIRST_BATCH,
    REJECT_COLUMNS,
    REPLAY_PREFIX,
    TRACE_COLUMNS,
    Batch,
    Cut,
    Landed,
    LedgerEntry,
    cut_again,
    cut_stream,
    encode_batch,
    follow_chain,
)
from loader.errors import DamagedError, SourceError, SourceTakenError, StoreError
from loader.formats import Framer
from loader.rowbinary import (
    encode_milliseconds,
    encode_string,
    encode_strings,
    encode_uint32,
    encode_uint64,
)
from loader.settings import Settings
from loader.sources import Source, hold, keep
from loader.store import ACCESS_DENIED, Store

__all__ = [
    "Summary",
    "erased_places",
    "land_batch",
    "land_source",
    "place_batch",
    "record_batch",
]

_Result = TypeVar("_Result")

_LANDERS = 2
_ATTEMPTS = 6
_FIRST_WAIT_SECONDS = 0.25
_LONGEST_WAIT_SECONDS = 10.0

# ClickHouse's numbers for what a second try cannot mend: syntax, missing names, rights.
_PERMANENT_CODES = frozenset(
    {16, 36, 43, 46, 47, 53, 60, 62, 81, 115, 164, 192, 193, 194, 497, 516}
)

# So many batches that begin at one offset of a stream are looked at.
_MOST_STREAMS = 10_000

_ENTRY_COLUMNS = "batch_id, start_offset, end_offset, first_line, rows, rejects"
_LEDGER_COLUMNS = (
    "batch_id",
    "source",
    "start_offset",
    "end_offset",
    "first_line",
    "lines",
    "rows",
    "rejects",
    "bytes",
    "loader_version",
    "landed_at",
    "continues",
)


@dataclass
class Summary:
    """What landing did, summed over batches.

    Attributes
    ----------
    batches, rows, rejects, bytes : int
        Landed now.
    batches_already, rows_already, rejects_already : int
        Found landed before.
    without_id, repaired, redacted : int
        Of the rows landed now: without an id of their own; changed to be accepted; changed by rules
        of redaction.
    reasons : Counter
        Rejected now, by reason.
    """

    batches: int = 0
    rows: int = 0
    rejects: int = 0
    bytes: int = 0
    batches_already: int = 0
    rows_already: int = 0
    rejects_already: int = 0
    without_id: int = 0
    repaired: int = 0
    redacted: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def add_landed(self, batch: Batch) -> None:
        """Count a batch that was landed now."""
        self.batches += 1
        self.rows += batch.rows
        self.rejects += batch.rejects
        self.bytes += batch.end - batch.start
        self.without_id += batch.without_id
        self.repaired += batch.repaired
        self.redacted += batch.redacted
        self.reasons.update(batch.reasons)

    def add_already(self, rows: int, rejects: int) -> None:
        """Count a batch that had been landed before."""
        self.batches_already += 1
        self.rows_already += rows
        self.rejects_already += rejects


@dataclass(frozen=True)
class _Found:
    """What the store holds of a batch.

    `ledger` are the rows and rejects that the ledger says, None where it has no row of it; `others`
    are batches that hold bytes of it too.
    """

    traces: int
    rejects: int
    ledger: tuple[int, int] | None
    others: list[str]

    @property
    def is_short(self) -> bool:
        """Whether the ledger says more than there is."""
        return self.ledger is not None and (
            self.traces < self.ledger[0] or self.rejects < self.ledger[1]
        )


@dataclass
class _Ours:
    """What this run did of a batch, over its attempts.

    Attributes
    ----------
    tokens : dict
        The tables that held nothing of it before this run, or nothing any more, and the token of
        their insert.
    has_removed : bool
        Whether it removed something: the ledger alone does not say any more that it is there.
    unseen : StoreError, optional
        Why the store does not say what of it still runs.
    """

    tokens: dict[str, str | None] = field(default_factory=dict)
    has_removed: bool = False
    unseen: StoreError | None = None


def land_batch(
    store: Store,
    batch: Batch,
    sleep: Callable[[float], None] = time.sleep,
    known: Collection[str] | None = None,
) -> bool:
    """Land one batch exactly once.

    Parameters
    ----------
    store : Store
        With the raw tables made.
    batch : Batch
        The encoded rows.
    sleep : callable
        Waits between tries, in seconds.
    known : collection of str, optional
        The batches that the ledger had of this source when it was cut. None: nobody else can cut
        it another way.

    Returns
    -------
    bool
        True if it was landed now, False if the ledger had it.

    Raises
    ------
    SourceTakenError
        If a batch that is not known holds bytes of this one.
    StoreError
        If the store failed for good, or more often than the limit. Running it again finishes.
    """
    is_new = place_batch(store, batch, sleep, known)
    if is_new:
        record_batch(store, batch, sleep, known)
    return is_new


def place_batch(
    store: Store,
    batch: Batch,
    sleep: Callable[[float], None] = time.sleep,
    known: Collection[str] | None = None,
) -> bool:
    """Do all of landing but the ledger row: the raw tables hold the batch, and were asked.

    Parameters, return value and errors are those of `land_batch`.
    """
    ours = _Ours()

    def attempt(number: int) -> bool:
        if number == 1:
            # Also for what replays the same rejects: its id begins alike.
            name = batch.batch_id.partition("-")[0]
            ours.unseen = store.wait_where_seen(name, f"batch {batch.batch_id}", sleep)
        found = _look(store, batch, known)
        if found.ledger is not None and not ours.has_removed:
            if found.is_short:
                _refuse_lost(store, batch, found)
            return False
        _refuse_twice(batch, found.others, known)
        _finish(store, batch, found, number, known, ours)
        found = replace(found, traces=batch.rows, rejects=batch.rejects)
        if found.is_short:
            _refuse_lost(store, batch, found)
        return found.ledger is None

    return _patiently(attempt, store, batch.batch_id, sleep)


def record_batch(
    store: Store,
    batch: Batch,
    sleep: Callable[[float], None] = time.sleep,
    known: Collection[str] | None = None,
) -> None:
    """Write the ledger row of a batch that was placed; parameters are those of `place_batch`."""

    def attempt(number: int) -> None:
        if number > 1 and _is_in_ledger(store, batch):
            return
        if known is not None and not store.is_embedded:
            # It may have waited for the batches before it, and others could land meanwhile.
            _refuse_twice(batch, _look_for_others(store, batch), known)
        if batch.by_rules and not store.is_embedded:
            # And one that landed the same bytes may have removed what is here: see _finish.
            _refuse_other_counts(store, batch, _look(store, batch, None))
        query_id = f"{batch.batch_id}-ledger-{number}-of-{_name_of(batch.source)}"
        store.insert_binary("raw_batches", _LEDGER_COLUMNS, [_ledger_row(batch)], query_id)
        if not _is_in_ledger(store, batch):
            raise StoreError(
                f"the store {store.settings.store_name} has no ledger row of batch "
                f"{batch.batch_id} after inserting it. Nothing is lost: run it again."
            )

    _patiently(attempt, store, batch.batch_id, sleep)


def _record_more(store: Store, source: Source, entry: LedgerEntry) -> None:
    """Write a ledger row more of a batch, which says what else it goes on with."""
    batch = Batch(
        batch_id=entry.batch_id,
        source=source.name,
        start=entry.start,
        end=entry.end,
        first_line=entry.first_line,
        lines=entry.rows + entry.rejects,
        rows=entry.rows,
        rejects=entry.rejects,
        traces=[],
        rejected=[],
        positions=(),
        rejected_at=frozenset(),
        continues=entry.continues,
    )
    record_batch(store, batch)


def _patiently(
    attempt: Callable[[int], _Result],
    store: Store,
    name: str,
    sleep: Callable[[float], None],
) -> _Result:
    """Try, and try again after a while: a server may be away, or its answer lost.

    Each attempt looks at what is there before it does anything, as the one before may have taken
    effect, or may be about to: without an answer to whether it still runs, nothing is tried. The
    embedded engine loses no answers: it is tried once.
    """
    wait = _FIRST_WAIT_SECONDS
    for number in range(1, _ATTEMPTS + 1):
        try:
            if number > 1:
                # An insert of ours that still runs is not to be overtaken by another.
                store.wait_for_inserts(name, f"batch {name}", sleep)
            return attempt(number)
        except SourceTakenError:
            raise
        except StoreError as error:
            if number == _ATTEMPTS or store.is_embedded or error.code in _PERMANENT_CODES:
                raise
        sleep(wait * random.uniform(0.5, 1.5))
        wait = min(wait * 2, _LONGEST_WAIT_SECONDS)
    raise AssertionError("unreachable")


def land_source(
    store: Store,
    source: Source,
    framer: Framer,
    settings: Settings,
    summary: Summary,
    on_progress: Callable[[Summary], None] | None = None,
    on_wait: Callable[[str], None] | None = None,
) -> None:
    """Land what is new in a source, two batches being inserted while the next is read.

    Parameters
    ----------
    store : Store
        With the raw tables made.
    source : Source
        A file is taken up where the ledger's chain of it ends; a stream from its first byte, where
        what was landed of it is found by its bytes.
    framer, settings
        How lines are framed; the limits.
    summary : Summary
        Added to, batch by batch, so that it holds when an error ends the run.
    on_progress : callable, optional
        Called with the summary after each batch.
    on_wait : callable, optional
        Called once with a line of text when waiting for another process begins.

    Raises
    ------
    SourceError
        If the source breaks off; what came before is landed.
    SourceTakenError
        If another process holds the file for longer than the limit, or lands it meanwhile.
    StoreError
        If the store fails; what is in the ledger stays, and a run again does the rest.
    """
    known: set[str] | None = None
    broken: SourceError | None = None
    with contextlib.ExitStack() as stack:
        if source.is_file:
            # An embedded store is this process's own.
            held = (
                keep(source) if store.is_embedded else hold(source, settings.lock_timeout, on_wait)
            )
            source = stack.enter_context(held)
        entries = _patiently(lambda number: _settled_ledger(store, source), store, "", time.sleep)
        if source.is_file:
            known = {entry.batch_id for entry in entries}
        landers = stack.enter_context(_Landers(store, known))
        try:
            landed = None if source.is_file else _ask_landed(store, source, entries)
            for item in _read(source, entries, framer, settings, landed):
                if isinstance(item, LedgerEntry):
                    if item.has_more:
                        _record_more(store, source, item)
                    summary.add_already(item.rows, item.rejects)
                    continue
                landers.give(item)
                while landers.are_full:
                    landers.take(summary)
                    if on_progress is not None:
                        on_progress(summary)
        except SourceError as error:
            broken = error
        while landers.are_busy:
            landers.take(summary)
            if on_progress is not None:
                on_progress(summary)
    if broken is not None:
        raise broken


class _Landers:
    """Two threads that place batches, while the caller makes the next and writes the ledger.

    Placing is mostly compressing, which the engine does with one processor a batch. The ledger is
    written in the order of the batches, so that its chain of a file has no gap. A single batch is
    placed by the caller: threads and a second client would only cost time.
    """

    def __init__(self, store: Store, known: Collection[str] | None) -> None:
        self._store = store
        self._known = known
        self._pool: ThreadPoolExecutor | None = None
        self._stores: queue.SimpleQueue[Store] = queue.SimpleQueue()
        self._first: Batch | None = None
        self._waiting: deque[tuple[Batch, Future[bool]]] = deque()

    def __enter__(self) -> _Landers:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is None:
            return
        self._pool.shutdown(cancel_futures=True)
        while not self._stores.empty():
            self._stores.get().close()

    @property
    def are_full(self) -> bool:
        """Whether one is to be taken before another is made."""
        return len(self._waiting) >= _LANDERS

    @property
    def are_busy(self) -> bool:
        """Whether there is something left to be taken."""
        return self._first is not None or bool(self._waiting)

    def give(self, batch: Batch) -> None:
        """Hand over a batch."""
        if self._pool is None:
            if self._first is None:
                self._first = batch
                return
            for _ in range(_LANDERS):
                self._stores.put(self._store.open_another())
            self._pool = ThreadPoolExecutor(_LANDERS, "loader-lander")
            self._submit(self._first)
            self._first = None
        self._submit(batch)

    def take(self, summary: Summary) -> None:
        """Wait for the oldest batch, write its ledger row, and count it."""
        if self._first is not None:
            batch, self._first = self._first, None
            is_new = place_batch(self._store, batch, known=self._known)
        else:
            batch, future = self._waiting.popleft()
            is_new = future.result()
        if is_new:
            record_batch(self._store, batch, known=self._known)
            summary.add_landed(batch)
        else:
            summary.add_already(batch.rows, batch.rejects)

    def _submit(self, batch: Batch) -> None:
        assert self._pool is not None
        self._waiting.append((batch, self._pool.submit(self._place, batch)))

    def _place(self, batch: Batch) -> bool:
        store = self._stores.get()
        try:
            return place_batch(store, batch, known=self._known)
        finally:
            self._stores.put(store)


def _read(
    source: Source,
    entries: list[LedgerEntry],
    framer: Framer,
    settings: Settings,
    landed: Landed | None = None,
) -> Iterator[LedgerEntry | Batch]:
    """Give what the ledger covers already, then each new batch; of a stream, all batches."""
    lost = {entry.batch_id: entry for entry in entries if entry.is_lost}
    begun: list[str] = []
    damage: DamagedError | None = None
    if source.is_file:
        chain = follow_chain(source, entries, settings)
        stream, line, begun = chain.stream, chain.line, chain.begun
        if stream.has_more():
            damage = source.find_damage(settings)
        if damage is not None:
            stream.end_at(damage.intact_until)
        for entry in chain.entries:
            if entry.is_lost:
                for cut in cut_again(source, entry, settings):
                    yield _encode(cut, entry, framer, settings)
            else:
                yield entry
    else:
        stream, line = source.open(settings), 1
    try:
        for cut in cut_stream(stream, source.name, settings, line, landed):
            batch = _encode(cut, lost.get(cut.batch_id), framer, settings)
            # A file that breaks off in a line too long to be kept whole may be cut as before.
            begun = [batch_id for batch_id in begun if batch_id != batch.batch_id]
            yield replace(batch, continues=begun) if begun else batch
            begun = []
    finally:
        stream.close()
    if damage is not None:
        raise damage


def _encode(cut: Cut, lost: LedgerEntry | None, framer: Framer, settings: Settings) -> Batch:
    """Encode a batch. What was a row of a lost one is one again: traces were made of it.

    What a replay holds of it stays a reject, and nothing else is one. Its rejects are closed:
    another one would be seen by nobody.
    """
    if lost is None:
        return encode_batch(cut, framer, settings)
    kept_out = lost.rejected or frozenset()
    batch = encode_batch(cut, framer, settings, kept_out)
    if cut.start == lost.start:
        batch = replace(batch, continues=lost.continues)

    def refused(since: str, now: str) -> SourceError:
        return SourceError(
            f"{cut.source}: bytes {cut.start:,} to {cut.end:,} are to be landed again. They were "
            f"{lost.rows} rows and {lost.rejects} rejects{since}, and would be {batch.rows} rows "
            f"and {batch.rejects} rejects now{now}. Land it by the formats, limits and rules of "
            "then. What comes before is landed."
        )

    if batch.rows < lost.rows:
        raise refused("", f" ({', '.join(sorted(batch.reasons))})")
    if lost.rejected is None or batch.rejected_at <= lost.rejected:
        return batch
    are_known = len(lost.rejected) >= lost.rejects
    if not are_known and (batch.rows, batch.rejects) == (lost.rows, lost.rejects):
        return batch  # rows of the replay were retired
    raise refused(", which were replayed since", ", some of them in no replay")


def _name_of(source: str) -> str:
    """Name a source within query ids."""
    return hashlib.sha256(source.encode()).hexdigest()[:32]


def _settled_ledger(store: Store, source: Source) -> list[LedgerEntry]:
    """Give `_ledger_of` a source once no killed loader's row of it is on its way.

    What is cut otherwise (a file that grew, other limits) is another batch of the same bytes.
    """
    store.wait_where_seen(f"-of-{_name_of(source.name)}", f"the ledger of {source.name}")
    return _ledger_of(store, source)


def _ledger_of(store: Store, source: Source) -> list[LedgerEntry]:
    """Give a file's batches, and of whatever source those that were lost."""
    batches, lost_batches = store.table("raw_batches"), store.table("raw_lost_batches")
    landed_sql = (
        f"select {_ENTRY_COLUMNS}, false as is_lost, continues from {batches}"
        " where source = {source:String}"
    )
    lost_sql = (
        f"select {_ENTRY_COLUMNS}, true as is_lost, continues from {lost_batches}"
        " where source = {source:String}"
        f" and batch_id not in (select batch_id from {batches} where source = {{source:String}})"
        " order by lost_at desc, length(continues) desc limit 1 by batch_id"
    )
    rows = store.query(
        f"{landed_sql} union all ({lost_sql})" if source.is_file else lost_sql,
        {"source": source.name},
    )
    by_id: dict[str, LedgerEntry] = {}
    for entry in (LedgerEntry(*row) for row in rows):
        # A batch has a ledger row more where it was seen later that a line goes on.
        known = by_id.get(entry.batch_id, entry)
        continues = sorted({*known.continues, *entry.continues})
        by_id[entry.batch_id] = replace(entry, continues=continues)
    entries = list(by_id.values())
    lost = [entry.batch_id for entry in entries if entry.is_lost]
    if not lost:
        return entries
    replays = store.query(
        "select batch_id, any(source), max(is_landed)"
        f" from (select batch_id, source, true as is_landed from {batches}"
        f" union all select batch_id, source, false as is_landed from {lost_batches})"
        " where source in {sources:Array(String)} group by batch_id",
        {"sources": [REPLAY_PREFIX + batch_id for batch_id in lost]},
    )
    if not replays:
        return entries
    erased = ""
    if "retired_batches" in store.tables():
        erased = (
            " union all select batch_id, arrayJoin(positions) as position"
            f" from {store.table('retired_batches')} where reason = 'erasure'"
            " and (batch_id in {replays:Array(String)}"
            " or batch_id in {lost:Array(String)} and raw_table = 'raw_rejects')"
        )
    # A replay keeps the positions of the rejects that it was made of, and the head of their id.
    held = store.query(
        f"select {FIRST_BATCH} as first_id, groupUniqArray(position) from"
        f" (select batch_id, position from {store.table('raw_traces')}"
        " where batch_id in {replays:Array(String)}"
        f" union all select batch_id, position from {store.table('raw_rejects')}"
        " where batch_id in {replays:Array(String)} or batch_id in {lost:Array(String)}"
        f"{erased}) group by first_id",
        {"lost": lost, "replays": [batch_id for batch_id, _, _ in replays]},
    )
    rejected = {batch_id: frozenset(positions) for batch_id, positions in held}
    closed = {source for _, source, is_landed in replays if is_landed}
    for index, entry in enumerate(entries):
        positions = rejected.get(entry.batch_id, frozenset())
        is_closed = REPLAY_PREFIX + entry.batch_id in closed
        if entry.is_lost and (is_closed or (positions and len(positions) == entry.rejects)):
            entries[index] = replace(entry, rejected=positions)
    return entries


def _ask_landed(store: Store, source: Source, lost: Sequence[LedgerEntry]) -> Landed:
    """Give what asks for a stream's batches by their place; see `cut_stream`.

    Streams share a name, and each has a batch at offset 0: of those the newest are looked at.
    """

    def ask(start: int, other_start: int, end: int) -> list[LedgerEntry]:
        rows = _patiently(
            lambda number: store.query(
                f"select {_ENTRY_COLUMNS}, false from {store.table('raw_batches')}"
                " where source = {source:String}"
                " and start_offset in ({start:UInt64}, {other_start:UInt64})"
                " and end_offset <= {end:UInt64}"
                f" order by landed_at desc limit {_MOST_STREAMS}",
                {"source": source.name, "start": start, "other_start": other_start, "end": end},
            ),
            store,
            "",
            time.sleep,
        )
        entries = [LedgerEntry(*row) for row in rows]
        return entries + [entry for entry in lost if entry.start in (start, other_start)]

    return ask


def _look(store: Store, batch: Batch, known: Collection[str] | None) -> _Found:
    """Ask what the store holds of a batch; for others only where somebody else may cut it."""
    others_sql = "select emptyArrayString()" if known is None else _others(store)
    rows = store.query(
        "select"
        f" (select uniqExact(position) from {store.table('raw_traces')}"
        " where batch_id = {batch_id:String}),"
        f" (select uniqExact(position) from {store.table('raw_rejects')}"
        " where batch_id = {batch_id:String}),"
        f" (select groupArray((`rows`, rejects)) from {store.table('raw_batches')}"
        " where batch_id = {batch_id:String}),"
        f" ({others_sql})",
        _place_of(batch),
    )
    traces, rejects, ledger, others = rows[0]
    return _Found(int(traces), int(rejects), tuple(max(ledger)) if ledger else None, others)


def _is_in_ledger(store: Store, batch: Batch) -> bool:
    """Say whether the ledger has a batch, and in its rows all that it goes on with."""
    ((is_there,),) = store.query(
        "select count() > 0 and hasAll(groupArrayArray(continues), {continues:Array(String)})"
        f" from {store.table('raw_batches')} where batch_id = {{batch_id:String}}",
        {"batch_id": batch.batch_id, "continues": list(batch.continues)},
    )
    return bool(is_there)


def _look_for_others(store: Store, batch: Batch) -> list[str]:
    return list(store.query(_others(store), _place_of(batch))[0][0])


def _others(store: Store) -> str:
    """Write the select of the other batches that hold bytes of a batch."""
    return (
        f"select groupUniqArray(batch_id) from {store.table('raw_batches')}"
        " where source = {source:String} and batch_id != {batch_id:String}"
        " and start_offset < {end:UInt64} and end_offset > {start:UInt64}"
    )


def _place_of(batch: Batch) -> dict[str, str | int]:
    return {
        "batch_id": batch.batch_id,
        "source": batch.source,
        "start": batch.start,
        "end": batch.end,
    }


def _refuse_twice(batch: Batch, others: Collection[str], known: Collection[str] | None) -> None:
    """Raise if another loader has landed bytes of a batch since the ledger was read."""
    if known is not None and any(other not in known for other in others):
        raise SourceTakenError(
            f"{batch.source}: another loader has landed the same file meanwhile, and bytes "
            f"{batch.start:,} to {batch.end:,} of it would be landed twice: run it again, which "
            "lands what is new."
        )


def _finish(
    store: Store,
    batch: Batch,
    found: _Found,
    attempt: int,
    known: Collection[str] | None,
    ours: _Ours,
) -> None:
    """Bring the raw tables to the whole batch, and read that back.

    Where records are redacted, only what is found in tables that are `ours`, which is added to, is
    trusted: a run without these rules may have left the rest.
    """
    query_id = f"{batch.batch_id}-{attempt}"
    is_changed = False
    for table, columns, rows, held, wanted in (
        ("raw_traces", TRACE_COLUMNS, batch.traces, found.traces, batch.rows),
        ("raw_rejects", REJECT_COLUMNS, batch.rejected, found.rejects, batch.rejects),
    ):
        is_whole = held == wanted and (not held or _holds_its_lines(store, batch, table))
        if is_whole and (not held or table in ours.tokens or not batch.by_rules):
            continue
        if ours.unseen is not None and (held or batch.by_rules):
            raise ours.unseen
        if held:
            try:
                ours.has_removed = True
                store.command(
                    f"alter table {store.table(table)} delete where batch_id = {{batch_id:String}}"
                    " settings mutations_sync = 2",
                    {"batch_id": batch.batch_id},
                    f"{query_id}-{table}-delete",
                )
                _refuse_kept(store, batch, table)
            except StoreError as error:
                if error.code != ACCESS_DENIED or not is_whole:
                    raise
                continue  # who may only insert has to trust what is whole
            ours.tokens[table] = None  # what was removed may have had the token
        is_changed = True
        token = ours.tokens.setdefault(table, f"{batch.batch_id}-{table}")
        if wanted:
            store.insert_binary(table, columns, rows, f"{query_id}-{table}", token)
    if is_changed:
        found = _look(store, batch, known)
        _refuse_twice(batch, found.others, known)
    if found.traces < batch.rows:
        ours.tokens["raw_traces"] = None  # the token is known of rows that were removed since
    if found.rejects < batch.rejects:
        ours.tokens["raw_rejects"] = None
    _refuse_other_counts(store, batch, found)


def _refuse_kept(store: Store, batch: Batch, table: str) -> None:
    """Raise if rows are there that were removed: beside new ones, nobody would see them again."""
    ((kept,),) = store.query(
        f"select count() from {store.table(table)} where batch_id = {{batch_id:String}}",
        {"batch_id": batch.batch_id},
    )
    if kept:
        raise StoreError(
            f"the store {store.settings.store_name} holds {kept} rows of batch {batch.batch_id} in "
            f"{table} after removing them. Nothing is lost: run it again."
        )


def _refuse_other_counts(store: Store, batch: Batch, found: _Found) -> None:
    if (found.traces, found.rejects) != (batch.rows, batch.rejects):
        raise StoreError(
            f"the store {store.settings.store_name} holds {found.traces} rows and {found.rejects} "
            f"rejects of batch {batch.batch_id} after inserting {batch.rows} and {batch.rejects}. "
            "Nothing is lost: run it again."
        )


def _refuse_lost(store: Store, batch: Batch, found: _Found) -> None:
    """Raise if a batch of the ledger is not in the raw tables, and nobody took it out on purpose.

    Another loader removed what is there of it, by other rules or limits, just as this or a third
    one wrote the ledger row; or it was lost since. What was retired before it landed again does not
    count, by the same rule as in whole_retired (macros/operations/retire.sql): change both.
    """
    assert found.ledger is not None
    gone = {"raw_traces": 0, "raw_rejects": 0}
    if "retired_batches" in store.tables():
        for table in gone:
            erased = erased_places(store, table)
            rows = store.query(
                "select (select count() from"
                f" {store.table('retired_batches')} where batch_id = {{batch_id:String}}"
                " and raw_table = {table:String} and is_whole and retired_at >"
                f" (select min(landed_at) + interval 12 hour from {store.table('raw_batches')}"
                " where batch_id = {batch_id:String})),"
                f" (select uniqExact(position) from ({erased})"
                " where batch_id = {batch_id:String} and (batch_id, position) not in"
                f" (select batch_id, position from {store.table(table)}"
                " where batch_id = {batch_id:String}))",
                {"batch_id": batch.batch_id, "table": table},
            )
            is_retired, erased_count = rows[0]
            gone[table] = max(found.ledger) if is_retired else erased_count
    if (
        found.traces + gone["raw_traces"] < found.ledger[0]
        or found.rejects + gone["raw_rejects"] < found.ledger[1]
    ):
        raise StoreError(
            f"the store {store.settings.store_name} holds {found.traces} rows and {found.rejects} "
            f"rejects of batch {batch.batch_id} of {batch.source}, and its ledger says that "
            f"{found.ledger[0]} and {found.ledger[1]} landed. Nothing is lost as long as the "
            "source is kept: run dbt run-operation mend, then land it again."
        )


def erased_places(store: Store, raw_table: str | None = None) -> str:
    """Write the select of what was erased; of what was erased last from one of the raw tables.

    The next `dbt run` deletes what of it is there again.
    """
    if "retired_batches" not in store.tables():
        return "select '' as batch_id, 0 as position where false"
    last = f" having argMax(raw_table, retired_at) = '{raw_table}'" if raw_table else ""
    return (
        "select batch_id, arrayJoin(positions) as position"
        f" from {store.table('retired_batches')} where reason = 'erasure'"
        f" group by batch_id, position{last}"
    )


def _holds_its_lines(store: Store, batch: Batch, table: str) -> bool:
    """Say whether what a table holds of a batch, as much as it should, is what it should hold.

    A run that was killed may have known other formats or limits, by which other lines are records.
    Or it was removing this: what it asked for is done by the store, late.
    """
    if store.is_removing(table, batch.batch_id):
        return False
    rows = store.query(
        f"select groupUniqArray(position) from {store.table(table)}"
        " where batch_id = {batch_id:String}",
        {"batch_id": batch.batch_id},
    )
    is_reject = table == "raw_rejects"
    return set(rows[0][0]) == {
        position for position in batch.positions if (position in batch.rejected_at) == is_reject
    }


def _ledger_row(batch: Batch) -> bytes:
    return b"".join(
        (
            encode_string(batch.batch_id.encode()),
            encode_string(batch.source.encode()),
            encode_uint64(batch.start),
            encode_uint64(batch.end),
            encode_uint64(batch.first_line),
            encode_uint32(batch.lines),
            encode_uint32(batch.rows),
            encode_uint32(batch.rejects),
            encode_uint64(batch.end - batch.start),
            encode_string(__version__.encode()),
            encode_milliseconds(datetime.now(UTC)),
            encode_strings(batch.continues),
        )
    )
