"""Replay: rejected lines landed again, where a format that was added or a limit makes them records.

Owns which rejects are still open, and the batch that takes a replayed one's place. Refuses what no
format can mend: bytes that were damaged on their way, and lines of which only the head was kept.

A batch is replayed whole, as the source `replay/<batch_id>`: its rejected lines that are records
now become rows, the others are rejects again, with the place they first came from. So each line is
in one open batch, and the ledger alone says which: a batch that was replayed is closed. Where no
line became a record nothing is landed, so that replaying again changes nothing.

A line keeps its position, and a replay's id begins with that of the batch which the line first
came with: these two name it wherever it is, and a record without an id of its own. So a replay
whose rows were lost is made again by whatever formats there are now, and what of it was built is no
second trace. Where records are redacted, what is landed again is redacted first. A line that was
erased, and is there again with a batch that had been lost, counts as gone.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from loader.batches import (
    FIRST_BATCH,
    REPLAY_PREFIX,
    REPLAYED,
    Batch,
    Cut,
    batch_id_of,
    encode_batch,
    new_hash,
)
from loader.errors import SourceError
from loader.formats import Buffer, Framer, Record
from loader.landing import Summary, erased_places, land_batch
from loader.redaction import load_redactor
from loader.rowbinary import (
    encode_milliseconds,
    encode_string,
    encode_uint32,
    encode_uint64,
    varint,
)
from loader.settings import Settings
from loader.store import RAW_TABLES, Store

__all__ = ["LINE", "closed_batches", "is_open", "lost_batches", "replay_rejects"]

# What names a line, of which more than one batch may have a reject where a replay was lost.
LINE = f"{FIRST_BATCH}, position"

# What framing decides. Other reasons say that the bytes are not those that were sent: a damaged
# record may be JSON still, and yet not what somebody wrote.
_REPLAYABLE = (
    *("not_utf8", "not_json", "not_an_object", "too_deep", "unknown_format", "too_large"),
    REPLAYED,
)
_HEAD_ONLY = " are kept"

_ORIGIN = f"substring(source, {len(REPLAY_PREFIX) + 1})"
_IS_REPLAY = f"startsWith(source, '{REPLAY_PREFIX}')"


def closed_batches(store: Store) -> str:
    """Write the select of batches whose rejects are settled.

    They were replayed: what stayed rejected is a reject of the replay. Or they are the beginning of
    a line that went on, and was landed again when it was whole.
    """
    ledger = store.table("raw_batches")
    return (
        f"select {_ORIGIN} as batch_id from {ledger} where {_IS_REPLAY}"
        f" union all select arrayJoin(continues) as batch_id from {ledger}"
    )


def lost_batches(store: Store) -> str:
    """Write the select of what the operation `mend` took out of the ledger and did not come again.

    A replay has come again where another one of the same rejects has been landed, or the batch that
    it was made of, by formats that left fewer rejects: some of its lines are rows there, and there
    may be none to be replayed.
    """
    if "raw_lost_batches" not in store.tables():
        return "select '' as batch_id, '' as source, 0 as rows, 0 as rejects where false"
    ledger, lost = store.table("raw_batches"), store.table("raw_lost_batches")
    return (
        f"select batch_id, source, rows, rejects from {lost}"
        f" where batch_id not in (select batch_id from {ledger}"
        f" where batch_id in (select batch_id from {lost}))"
        f" and source not in (select source from {ledger} where {_IS_REPLAY})"
        f" and batch_id not in ({closed_batches(store)})"
        f" and batch_id not in (select replays.batch_id from {lost} as replays"
        f" inner join {ledger} as origins on replays.source = '{REPLAY_PREFIX}' || origins.batch_id"
        " where replays.rows + replays.rejects > origins.rejects)"
        " order by lost_at desc limit 1 by batch_id"
    )


def is_open(store: Store) -> str:
    """Write the condition on a reject that is to be seen to: not erased, and in an open batch.

    Of a batch that is lost (the operation `mend`) rejects may be left; of a replay that is, its
    origin, which is open again, may have the same lines.
    """
    return (
        f"batch_id in (select batch_id from {store.table('raw_batches')} union all"
        f" select batch_id from ({lost_batches(store)}))"
        f" and batch_id not in ({closed_batches(store)})"
        f" and (batch_id, position) not in ({erased_places(store)})"
        f" and ({LINE}) not in (select batch_id, position from {store.table('raw_traces')}"
        f" where batch_id in (select {FIRST_BATCH} from ({lost_batches(store)})"
        f" where {_IS_REPLAY}))"
    )


def _is_whole(store: Store) -> str:
    """Write the condition that a batch is to be replayed: all its rejects, which are settled then.

    None may be missing, as the operation `mend` has not seen yet or seen already; and of a replay
    that is lost none be at its origin.
    """
    rejects = store.table("raw_rejects")
    held = (
        f"select batch_id, position from {rejects} union all {erased_places(store, 'raw_rejects')}"
    )
    return (
        "batch_id in (select batches.batch_id from (select batch_id, rejects"
        f" from {store.table('raw_batches')} union all select batch_id, rejects"
        f" from ({lost_batches(store)}) where {_ORIGIN} not in (select batch_id from {rejects}))"
        f" as batches inner join (select batch_id, uniqExact(position) as found from ({held})"
        " group by batch_id) as held on batches.batch_id = held.batch_id"
        " where held.found >= batches.rejects)"
    )


@dataclass(frozen=True, slots=True)
class _Reject:
    """A line that was rejected, what is kept of it now (redacted), and whether it is a record."""

    position: int
    source: str
    line: int
    byte_offset: int
    reason: str
    detail: str
    raw: bytes
    kept: bytes
    is_record: bool


def replay_rejects(
    store: Store,
    framer: Framer,
    settings: Settings,
    on_progress: Callable[[Summary], None] | None = None,
) -> Summary:
    """Land what was rejected and is a record now, exactly once.

    Parameters
    ----------
    store : Store
        The store; without raw tables nothing happens.
    framer, settings
        How lines are framed; the limits.
    on_progress : callable, optional
        Called with the summary after each batch.

    Returns
    -------
    Summary
        Of the batches landed now: `rows` are lines that became traces, `rejects` are those of the
        same batches that stay rejected.

    Raises
    ------
    SourceError
        If a replay is lost, and its lines would stay rejected that were rows in it. All others
        were replayed.
    StoreError
        If the store fails; running it again finishes.
    SourceTakenError
        If another replay landed the same rejects meanwhile; running it again does the rest.
    """
    summary = Summary()
    if not set(RAW_TABLES) <= store.tables():
        return summary
    store.ensure_raw_tables()
    batches = store.query(
        f"select batch_id from {store.table('raw_rejects')}"
        f" where reason in {{reasons:Array(String)}} and {is_open(store)} and {_is_whole(store)}"
        " group by batch_id order by min(landed_at), batch_id",
        {"reasons": list(_REPLAYABLE)},
    )
    erased = erased_places(store)
    lost = {
        source: (rows, rejects)
        for source, rows, rejects in store.query(
            f"select source, max(rows), min(rejects) from ({lost_batches(store)})"
            f" where {_IS_REPLAY} group by source"
        )
    }
    refused: list[str] = []
    for (batch_id,) in batches:
        rejects = _rejects_of(store, batch_id, framer, settings, erased)
        batch = _replayed(batch_id, rejects, framer, settings)
        # Traces were made of its rows, and whose they are these alone say.
        if batch is not None and batch.rejects > lost.get(batch.source, (0, batch.rejects))[1]:
            was_rows, was_rejects = lost[batch.source]
            refused.append(
                f"{batch.source}: is to be made again. It was {was_rows} rows and {was_rejects} "
                f"rejects, and would be {batch.rows} rows and {batch.rejects} rejects now"
            )
            continue
        # What another replay makes of it meanwhile, by other formats, is another batch.
        if batch is not None and land_batch(store, batch, known=()):
            summary.add_landed(batch)
            if on_progress is not None:
                on_progress(summary)
    if refused:
        others = f", and so are {len(refused) - 1:,} others" if refused[1:] else ""
        raise SourceError(
            f"{refused[0]}{others}. Replay by the formats, limits and rules of then. "
            f"{summary.rows:,} lines of other batches were landed."
        )
    return summary


def _replayed(
    replayed_id: str, rejects: list[_Reject], framer: Framer, settings: Settings
) -> Batch | None:
    """Make the batch that takes the place of another's rejects; None if all stay what they are."""
    records = [reject for reject in rejects if reject.is_record]
    others = [reject for reject in rejects if not reject.is_record]
    if not records:
        return None
    size = sum(len(reject.raw) + 1 for reject in rejects)
    cut = Cut(
        batch_id=_id_of(replayed_id, rejects),
        source=REPLAY_PREFIX + replayed_id,
        start=0,
        end=size,
        first_line=rejects[0].line,
        lines=[reject.raw for reject in records],
        is_terminated=True,
    )
    positions = [reject.position for reject in rejects]
    batch = encode_batch(cut, framer, settings, positions=[record.position for record in records])
    assert batch.rows == len(records), "framed twice, differently"
    batch.reasons.update(reject.reason for reject in others)
    return replace(
        batch,
        lines=len(rejects),
        rejects=len(others),
        rejected=_encoded(cut.batch_id, others),
        positions=positions,
        rejected_at=frozenset(reject.position for reject in others),
    )


def _id_of(replayed_id: str, rejects: Sequence[_Reject]) -> str:
    # The batch's id stands for its bytes; what became of each line belongs to the id too, so that
    # a run that was killed is not taken up by one that knows other formats or redacts.
    hash_ = new_hash(REPLAY_PREFIX + replayed_id, 0)
    for reject in rejects:
        hash_.update(b"%d:%d\n" % (reject.position, reject.is_record))
        if reject.kept != reject.raw:
            hash_.update(reject.kept)
    first_id = replayed_id.partition("-")[0]
    return f"{first_id}-{batch_id_of(hash_)}"


def _rejects_of(
    store: Store, batch_id: str, framer: Framer, settings: Settings, erased: str
) -> list[_Reject]:
    rows = store.query(
        "select position, source, line, byte_offset, reason, detail, base64Encode(raw)"
        f" from {store.table('raw_rejects')} where batch_id = {{batch_id:String}}"
        f" and (batch_id, position) not in ({erased})"
        " order by position limit 1 by position",
        {"batch_id": batch_id},
    )
    redactor = load_redactor(settings.redaction)

    found = []
    for position, source, line, byte_offset, reason, detail, text in rows:
        raw = base64.b64decode(text)
        kept = raw if redactor is None else redactor.redact(raw)[0]
        is_record = (
            reason in _REPLAYABLE
            and _HEAD_ONLY not in detail
            and len(raw) <= settings.max_record_bytes
            and isinstance(framer.frame(kept), Record)
        )
        found.append(
            _Reject(position, source, line, byte_offset, reason, detail, raw, kept, is_record)
        )
    return found


def _encoded(batch_id: str, rejects: Sequence[_Reject]) -> list[Buffer]:
    """Encode what stays rejected, with the place it first came from."""
    landed_at = encode_milliseconds(datetime.now(UTC))
    pieces: list[Any] = []
    for reject in rejects:
        pieces += (
            encode_string(batch_id.encode()),
            encode_uint32(reject.position),
            encode_string(reject.source.encode()),
            encode_uint64(reject.line),
            encode_uint64(reject.byte_offset),
            encode_string(reject.reason.encode()),
            encode_string(reject.detail.encode()),
            varint(len(reject.kept)),
            reject.kept,
            landed_at,
        )
    return pieces
