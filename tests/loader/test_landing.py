"""The protocol of landing, on a store whose state is set up for each case."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import io
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import loader.landing
from loader.batches import REJECT_COLUMNS, TRACE_COLUMNS, Batch, cut_stream, encode_batch
from loader.errors import SourceError, SourceTakenError, StoreError
from loader.formats import Buffer, Format, Framer
from loader.landing import Summary, land_batch, land_source, place_batch, record_batch
from loader.settings import Settings
from loader.sources import Source, Stream
from loader.store import Store

FRAMER = Framer.from_file()
LINES = b'{"request_json":1}\n{"request_json":2,"id":"a"}\nx\n[]\n{"request_json":3}\n'


@pytest.fixture
def store(opened_store: Store) -> Store:
    opened_store.ensure_raw_tables()
    return opened_store


@pytest.fixture(autouse=True)
def empty_tables(store: Store) -> None:
    for table in ("raw_traces", "raw_rejects", "raw_batches"):
        store.command(f"truncate table {store.table(table)}")


def make(data: bytes = LINES, source: str = "s", redaction: str | None = None) -> Batch:
    settings = Settings(redaction=redaction)
    (cut,) = cut_stream(Stream(io.BytesIO(data), source, settings), source, settings)
    return encode_batch(cut, FRAMER, settings)


def counts(store: Store) -> tuple[int, ...]:
    """Physical rows of raw_traces, raw_rejects and raw_batches."""
    return tuple(
        store.query(f"select count() from {store.table(table)}")[0][0]
        for table in ("raw_traces", "raw_rejects", "raw_batches")
    )


def part_of(batch: Batch, rows: int, rejects: int) -> tuple[list[Buffer], list[Buffer]]:
    """The first so many rows and rejects of a batch, as the store wants them."""
    settings = Settings()
    (cut,) = cut_stream(Stream(io.BytesIO(LINES), "s", settings), "s", settings)
    traces: list[Buffer] = []
    rejected: list[Buffer] = []
    for line in cut.lines:
        one = encode_batch(dataclasses.replace(cut, lines=[line]), FRAMER, settings)
        if one.rows and rows:
            traces += one.traces
            rows -= 1
        elif one.rejects and rejects:
            rejected += one.rejected
            rejects -= 1
    return traces, rejected


def test_lands_rows_rejects_and_ledger(store: Store) -> None:
    batch = make()
    assert land_batch(store, batch) is True
    assert counts(store) == (3, 2, 1)
    rows = store.query(
        f"select position, request_json from {store.table('raw_traces')} order by position"
    )
    assert rows == [(0, "1"), (1, "2"), (4, "3")]
    rejects = store.query(
        "select position, source, line, byte_offset, reason, raw"
        f" from {store.table('raw_rejects')} order by position"
    )
    assert rejects == [(2, "s", 3, 47, "not_json", "x"), (3, "s", 4, 49, "not_an_object", "[]")]
    ledger = store.query(
        "select batch_id, source, start_offset, end_offset, first_line, lines, `rows`, rejects,"
        f" bytes from {store.table('raw_batches')}"
    )
    assert ledger == [(batch.batch_id, "s", 0, len(LINES), 1, 5, 3, 2, len(LINES))]


def test_lands_again_nothing(store: Store) -> None:
    land_batch(store, make())
    assert land_batch(store, make()) is False
    assert counts(store) == (3, 2, 1)


@pytest.mark.parametrize(
    ("rows", "rejects"), [(3, 0), (0, 2), (3, 2), (1, 0), (2, 1), (0, 1), (3, 1)]
)
def test_finishes_what_a_killed_run_left(store: Store, rows: int, rejects: int) -> None:
    batch = make()
    traces, rejected = part_of(batch, rows, rejects)
    if rows == 3:
        traces = batch.traces
    if rejects == 2:
        rejected = batch.rejected
    if traces:
        store.insert_binary("raw_traces", TRACE_COLUMNS, traces)
    if rejected:
        store.insert_binary("raw_rejects", REJECT_COLUMNS, rejected)
    assert land_batch(store, batch) is True
    assert counts(store) == (3, 2, 1)
    positions = store.query(
        f"select groupArray(position) from (select position from {store.table('raw_traces')}"
        f" union all select position from {store.table('raw_rejects')} order by position)"
    )
    assert sorted(positions[0][0]) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("left", ["raw_traces", "raw_rejects", "both"])
def test_finishes_what_was_killed_while_other_formats_were_known(store: Store, left: str) -> None:
    """It left as many rows and rejects as there are to be, but of other lines."""
    data = b'{"request_json":1}\n{"mine":2}\nx\n'
    (cut,) = cut_stream(Stream(io.BytesIO(data), "s", Settings()), "s", Settings())
    others = Framer([Format("other", {}, ("mine",), None, "mine", "response_json")])
    batch, other = (encode_batch(cut, framer, Settings()) for framer in (FRAMER, others))
    assert (batch.rows, batch.rejects) == (other.rows, other.rejects) == (1, 2)
    if left != "raw_rejects":
        store.insert_binary("raw_traces", TRACE_COLUMNS, other.traces)
    if left != "raw_traces":
        kept = batch if left == "both" else other
        store.insert_binary("raw_rejects", REJECT_COLUMNS, kept.rejected)
    assert land_batch(store, batch) is True
    assert counts(store) == (1, 2, 1)
    positions = [
        store.query(f"select position from {store.table(table)} order by position")
        for table in ("raw_traces", "raw_rejects")
    ]
    assert positions == [[(0,)], [(1,), (2,)]]


def test_what_a_killed_run_was_removing_is_not_trusted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its delete goes on in the store, and takes what was found before it gets there."""
    batch = make()
    store.insert_binary("raw_traces", TRACE_COLUMNS, batch.traces)
    store.insert_binary("raw_rejects", REJECT_COLUMNS, batch.rejected)
    table = store.table("raw_traces")
    store.command(f"system stop merges {table}")
    store.command(
        f"alter table {table} delete where batch_id = {{batch_id:String}}"
        " settings mutations_sync = 0",
        {"batch_id": batch.batch_id},
    )
    command = store.command

    def started(sql: str, parameters: Any = None, query_id: str | None = None) -> None:
        command(f"system start merges {table}")
        command(sql, parameters, query_id)

    monkeypatch.setattr(store, "command", started)
    assert land_batch(store, batch) is True
    command(f"system start merges {table}")
    while store.query("select 1 from system.mutations where not is_done"):
        time.sleep(0.05)
    assert counts(store) == (3, 2, 1)


def test_a_batch_that_cannot_be_handed_to_the_engine_is_the_store_s_failure(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not store.is_embedded:
        pytest.skip("to a server it is sent")

    def scarce(chunks: Any) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(store, "_hand_over", scarce)
    with pytest.raises(StoreError, match=r"insert into raw_traces: .*Too many open files"):
        land_batch(store, make(), lambda seconds: None)
    monkeypatch.undo()
    assert land_batch(store, make()) is True


@pytest.mark.parametrize("by_rules", [False, True])
def test_a_removal_that_did_not_take_effect_is_noticed(
    store: Store, monkeypatch: pytest.MonkeyPatch, by_rules: bool
) -> None:
    """Something on the way may answer for the server; the positions alone would be right."""
    batch, command = dataclasses.replace(make(), by_rules=by_rules), store.command

    def answered(sql: str, *rest: Any) -> Any:
        return None if " delete " in sql else command(sql, *rest)

    if by_rules:
        store.insert_binary("raw_traces", TRACE_COLUMNS, batch.traces)
    else:
        leave_a_part(store, batch)
    before = store.query("select count() from llm.raw_traces")
    monkeypatch.setattr(store, "command", answered)
    with pytest.raises(StoreError, match=r"of batch .* in raw_traces after removing them"):
        land_batch(store, batch, lambda seconds: None)
    assert store.query("select count() from llm.raw_traces") == before
    monkeypatch.undo()
    assert land_batch(store, batch) is True
    assert store.query("select count() from llm.raw_traces") == [(3,)]


@pytest.mark.parametrize("by_rules", [False, True])
def test_a_writer_that_may_only_insert_finishes_what_a_killed_run_left(
    store: Store, monkeypatch: pytest.MonkeyPatch, by_rules: bool
) -> None:
    batch, query = dataclasses.replace(make(), by_rules=by_rules), store.query

    def denied(sql: str, parameters: Any = None, query_id: str | None = None) -> Any:
        if "system.mutations" in sql or sql.startswith("alter"):
            raise StoreError("not yours", 497)
        return query(sql, parameters)

    store.insert_binary("raw_traces", TRACE_COLUMNS, batch.traces)
    monkeypatch.setattr(store, "command", denied)
    monkeypatch.setattr(store, "query", denied)
    assert land_batch(store, batch) is True
    assert counts(store) == (3, 2, 1)


def test_what_another_loader_removed_is_not_said_to_be_landed(store: Store) -> None:
    """Under rules another one, with the same bytes, does not trust what this one has placed."""
    if store.is_embedded:
        pytest.skip("a process has an embedded store to itself")
    batch = dataclasses.replace(make(), by_rules=True)
    assert place_batch(store, batch)
    delete = f"alter table {store.table('raw_traces')} delete where 1 settings mutations_sync = 2"
    store.command(delete)
    with pytest.raises(StoreError, match="holds 0 rows and 2 rejects"):
        record_batch(store, batch, lambda seconds: None)
    assert counts(store) == (0, 2, 0)
    assert land_batch(store, batch) is True
    assert counts(store) == (3, 2, 1)


def test_other_batches_stay_when_a_part_is_removed(store: Store) -> None:
    land_batch(store, make(source="other"))
    batch = make()
    traces, _ = part_of(batch, 1, 0)
    store.insert_binary("raw_traces", TRACE_COLUMNS, traces)
    land_batch(store, batch)
    assert counts(store) == (6, 4, 2)


def test_a_batch_is_one_part(store: Store) -> None:
    data = b"".join(b'{"request_json":"%s"}\n' % (b"a" * 4000) for _ in range(5000))
    land_batch(store, make(data))
    parts = store.query(
        "select table, sum(rows), count() from system.parts where active and level = 0"
        " and database = {database:String} and table = 'raw_traces' group by table",
        {"database": store.database},
    )
    assert parts == [("raw_traces", 5000, 1)]


class Flaky(Store):
    """A store like a server that loses answers: after the insert took effect, or before."""

    def __init__(self, store: Store, faults: Sequence[str], code: int | None = None) -> None:
        super().__init__(store._client, store.settings)
        self.is_really_embedded = self.is_embedded
        self.faults = list(faults)
        self.code = code
        self.inserts = 0

    def insert_binary(self, *args: Any, **kwargs: Any) -> None:
        self.inserts += 1
        fault = self.faults.pop(0) if self.faults else "none"
        if fault != "before":
            self.is_embedded = self.is_really_embedded
            super().insert_binary(*args, **kwargs)
        self.is_embedded = False
        if fault != "none":
            raise StoreError("the answer was lost", self.code)

    def is_running(self, name: str) -> bool:
        return False


def leave_a_part(store: Store, batch: Batch) -> None:
    store.insert_binary("raw_traces", TRACE_COLUMNS, part_of(batch, 1, 0)[0])


def test_what_a_killed_loader_left_running_is_waited_for_before_anything_is_removed(
    store: Store,
) -> None:
    """It may be the ledger's row: what it says is landed must not be removed."""
    batch = make()
    left = [lambda: None, lambda: land_batch(store, batch)]

    class Running(Flaky):
        def is_running(self, name: str) -> bool:
            if left:
                left.pop()()
            return bool(left)

    waits: list[float] = []
    running = Running(store, [])
    running.is_embedded = False
    assert land_batch(running, batch, waits.append) is False
    assert (running.inserts, len(waits)) == (0, 1)
    assert counts(store) == (3, 2, 1)


def test_what_may_not_be_seen_to_run_is_not_removed(store: Store) -> None:
    class Unseen(Flaky):
        def is_running(self, name: str) -> bool:
            raise StoreError("grant it", 497)

    batch = make()
    leave_a_part(store, batch)
    with pytest.raises(StoreError, match="grant it"):
        land_batch(Unseen(store, []), batch, lambda seconds: None)
    assert counts(store) == (1, 0, 0)
    store.command(f"truncate table {store.table('raw_traces')}")
    assert place_batch(store, batch)
    with pytest.raises(StoreError, match="grant it"):
        land_batch(Unseen(store, []), dataclasses.replace(batch, by_rules=True))
    assert counts(store) == (3, 2, 0), "what has no rules is not taken for what has"
    land_batch(store, batch)
    assert land_batch(Unseen(store, []), make(source="new"), lambda seconds: None) is True
    assert counts(store) == (6, 4, 2)
    # What comes late would be beside it, and hold what the rules withhold.
    by_rules = dataclasses.replace(make(source="by rules"), by_rules=True)
    with pytest.raises(StoreError, match="grant it"):
        land_batch(Unseen(store, []), by_rules)
    assert counts(store) == (6, 4, 2)


@pytest.mark.parametrize("by_other_limits", [False, True])
@pytest.mark.parametrize("fault", ["before", "after"])
def test_the_ledger_alone_is_not_believed_once_something_was_removed(
    store: Store, fault: str, by_other_limits: bool
) -> None:
    """Another loader's row of it comes in between, and this one's insert fails once."""
    batch = make()
    leave_a_part(store, batch)
    others = dataclasses.replace(batch, rows=4, rejects=1) if by_other_limits else batch

    class Overtaken(Flaky):
        def insert_binary(self, *args: Any, **kwargs: Any) -> None:
            if not self.inserts:
                record_batch(store, others)
            super().insert_binary(*args, **kwargs)

    if others is batch:
        assert land_batch(Overtaken(store, [fault]), batch, lambda seconds: None) is False
    else:
        with pytest.raises(StoreError, match="4 and 1 landed"):
            land_batch(Overtaken(store, [fault]), batch, lambda seconds: None)
    assert counts(store) == (3, 2, 1)


@pytest.mark.parametrize("table", ["raw_traces", "raw_rejects"])
def test_what_the_ledger_says_and_nobody_has_is_not_taken_for_landed(
    store: Store, table: str
) -> None:
    """Else a spool's files of it would be removed; but what went on purpose stays away."""
    batch = make()
    land_batch(store, batch)
    store.command(f"alter table {store.table(table)} delete where 1 settings mutations_sync = 2")
    left = counts(store)
    with pytest.raises(StoreError, match=r"3 and 2 landed.*dbt run-operation mend"):
        land_batch(store, batch, lambda seconds: None)
    retired = store.table("retired_batches")
    store.command(
        f"create table {retired} (batch_id String, raw_table String, reason String, is_whole Bool,"
        " positions Array(UInt32), retired_at DateTime64(3, 'UTC')) engine = MergeTree order by ()"
    )
    try:
        positions = [1, 3] if table == "raw_rejects" else [0, 1]
        insert = f"insert into {retired} values ({{batch:String}}, {{table:String}}, "
        names = {"batch": batch.batch_id, "table": table}
        store.command(f"{insert}'erasure', false, {positions}, now64())", names)
        if table == "raw_traces":
            with pytest.raises(StoreError, match="3 and 2 landed"):
                land_batch(store, batch, lambda seconds: None)
            # Not what was retired before it landed: it may have been lost since, and come again.
            for time in ("now64() - interval 9 day", "now64()"):
                store.command(f"{insert}'retention', true, [], {time})", names)
                with pytest.raises(StoreError, match="3 and 2 landed"):
                    land_batch(store, batch, lambda seconds: None)
            store.command(f"{insert}'retention', true, [], now64() + interval 1 day)", names)
        else:
            store.command(f"{insert}'erasure', false, [2], now64())", names)
        assert land_batch(store, batch) is False
    finally:
        store.command(f"drop table {retired}")
    assert counts(store) == left


@pytest.mark.parametrize(
    "faults",
    [
        ["after"],
        ["before"],
        ["none", "after"],
        ["none", "before"],
        ["none", "none", "after"],
        ["none", "none", "before"],
        ["after", "after", "after"],
        ["before", "after", "before", "after"],
    ],
)
def test_a_lost_answer_is_looked_for_before_trying_again(store: Store, faults: list[str]) -> None:
    waits: list[float] = []
    flaky = Flaky(store, faults)
    assert land_batch(flaky, make(), waits.append) is True
    assert counts(store) == (3, 2, 1)
    assert len(waits) == sum(fault != "none" for fault in faults)


@pytest.mark.parametrize("left", [("raw_traces",), ("raw_rejects",), ("raw_traces", "raw_rejects")])
@pytest.mark.parametrize("faults", [[], ["after"], ["before"], ["none", "after"], ["after"] * 3])
def test_what_a_killed_run_left_unredacted_is_not_trusted(
    store: Store, tmp_path: Path, left: tuple[str, ...], faults: list[str]
) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text("keys: ['**.api_key']")
    data = b'{"request_json":{"api_key":"s3cr3t"}}\nbad s3cr3t\n'
    plain, batch = make(data), make(data, redaction=str(rules))
    assert plain.batch_id == batch.batch_id
    if "raw_traces" in left:
        store.insert_binary("raw_traces", TRACE_COLUMNS, plain.traces)
    if "raw_rejects" in left:
        store.insert_binary("raw_rejects", REJECT_COLUMNS, plain.rejected)
    flaky = Flaky(store, faults)
    assert land_batch(flaky, batch, lambda seconds: None) is True
    assert counts(store) == (1, 1, 1)
    held = store.query(
        f"select request_json from {store.table('raw_traces')}"
        f" union all select raw from {store.table('raw_rejects')}"
    )
    assert sorted(text for (text,) in held) == [
        "[redacted: 10 bytes that are no JSON]",
        '{"api_key":"[redacted]"}',
    ]
    assert flaky.inserts == 3 + sum(fault == "before" for fault in faults), "then it is trusted"


def test_an_insert_behind_a_removal_has_not_the_token_of_what_was_removed(store: Store) -> None:
    """On a cluster it would be taken for the same again, however often it is tried."""
    tokens = []

    class Telling(Flaky):
        def insert_binary(self, *args: Any, **kwargs: Any) -> None:
            tokens.append((args[0], args[4] if len(args) > 4 else None))
            super().insert_binary(*args, **kwargs)

    batch = make()
    traces, _ = part_of(batch, 1, 0)
    store.insert_binary("raw_traces", TRACE_COLUMNS, traces)
    assert land_batch(Telling(store, ["before", "none", "before"]), batch, lambda seconds: None)
    rejects = ("raw_rejects", f"{batch.batch_id}-raw_rejects")
    assert tokens == [*[("raw_traces", None)] * 2, *[rejects] * 2, ("raw_batches", None)]


def test_an_insert_that_still_runs_is_not_sent_again(store: Store) -> None:
    """However long it takes, and if nobody waits any more: it is told, and the run ends."""

    class Running(Flaky):
        def is_running(self, name: str) -> bool:
            return self.inserts > 0

    flaky = Running(store, ["before"] * 100)
    with pytest.raises(StoreError, match="still runs a statement of batch"):
        land_batch(flaky, make(), lambda seconds: None)
    assert flaky.inserts == 1


def test_gives_up_after_a_few_tries_and_keeps_what_there_is(store: Store) -> None:
    flaky = Flaky(store, ["before"] * 100)
    with pytest.raises(StoreError):
        land_batch(flaky, make(), lambda seconds: None)
    assert 2 <= flaky.inserts <= 10
    assert counts(store) == (0, 0, 0)
    assert land_batch(store, make()) is True
    assert counts(store) == (3, 2, 1)


def test_does_not_retry_what_cannot_get_better(store: Store) -> None:
    flaky = Flaky(store, ["before"] * 100, code=497)
    with pytest.raises(StoreError):
        land_batch(flaky, make(), lambda seconds: None)
    assert flaky.inserts == 1


def test_does_not_write_the_ledger_when_the_counts_are_not_there(store: Store) -> None:
    class Forgetful(Store):
        def insert_binary(self, table: str, *args: Any, **kwargs: Any) -> None:
            if table == "raw_batches":
                super().insert_binary(table, *args, **kwargs)

    with pytest.raises(StoreError, match="run it again"):
        land_batch(Forgetful(store._client, store.settings), make())
    assert counts(store) == (0, 0, 0)


def test_the_landing_threads_end_with_an_error(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    path.write_bytes(LINES * 50)
    settings = dataclasses.replace(store.settings, batch_lines=5)
    source = Source(str(path), str(path), True)

    class Broken(Store):
        def insert_binary(self, *args: Any, **kwargs: Any) -> None:
            raise StoreError("gone", 497)

    with pytest.raises(StoreError):
        land_source(Broken(store._client, store.settings), source, FRAMER, settings, Summary())
    assert counts(store) == (0, 0, 0)
    for thread in threading.enumerate():
        if thread.name.startswith("loader-lander"):
            thread.join(timeout=10)
            assert not thread.is_alive()


def test_what_came_before_a_broken_end_is_landed(store: Store, tmp_path: Path) -> None:
    import gzip

    packed = gzip.compress(LINES * 1000, 0)
    path = tmp_path / "a.ndjson.gz"
    path.write_bytes(packed[: len(packed) // 2])
    source = Source(str(path), str(path), True)
    summary = Summary()
    with pytest.raises(SourceError, match="ends early"):
        land_source(store, source, FRAMER, store.settings, summary)
    assert summary.rows > 100
    path.write_bytes(packed)
    land_source(store, source, FRAMER, store.settings, summary)
    # The line that was cut off was rejected then, and is landed now.
    torn = store.query(
        f"select count() from {store.table('raw_rejects')} where reason = 'unfinished'"
    )[0][0]
    assert torn <= 1
    assert counts(store)[:2] == (3000, 2000 + torn)


def test_the_ledger_has_no_gap_when_a_batch_fails(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    path.write_bytes(b"".join(b'{"request_json":%d}\n' % number for number in range(40)))
    settings = dataclasses.replace(store.settings, batch_lines=5)
    source = Source(str(path), str(path), True)

    class FailsOnce(Store):
        def insert_binary(
            self, table: str, columns: Sequence[str], chunks: Sequence[Buffer], *rest: Any
        ) -> None:
            if b"12" in map(bytes, chunks):
                raise StoreError("no", 497)
            super().insert_binary(table, columns, chunks, *rest)

    with pytest.raises(StoreError):
        land_source(FailsOnce(store._client, store.settings), source, FRAMER, settings, Summary())
    landed = store.query(f"select start_offset from {store.table('raw_batches')} order by 1")
    assert len(landed) == 2
    summary = Summary()
    land_source(store, source, FRAMER, settings, summary)
    assert (summary.batches_already, summary.batches) == (2, 6)
    assert counts(store) == (40, 0, 8)


def add_lines(path: Path, count: int) -> None:
    """Let a file grow by records that do not name themselves."""
    with path.open("ab") as file:
        file.write(b"".join(b'{"request_json":%d}\n' % number for number in range(count)))


def visible(store: Store) -> int:
    """Rows of raw_traces whose batch is in the ledger: what dbt reads."""
    return int(
        store.query(
            f"select uniqExact(batch_id, position) from {store.table('raw_traces')}"
            f" where batch_id in (select batch_id from {store.table('raw_batches')})"
        )[0][0]
    )


def unlockable(*_: Any) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize("moment", ["place", "insert", "record"])
def test_what_another_host_lands_meanwhile_is_not_landed_twice(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The file grows and is landed elsewhere, while this loader has read its first lines."""
    if store.is_embedded and moment == "record":
        pytest.skip("a process has an embedded store to itself")
    path = tmp_path / "a.ndjson"
    add_lines(path, 10)
    source = Source(str(path), str(path), True)
    elsewhere: list[Summary] = []

    def overtaken(action: Callable[..., Any], applies: Callable[..., bool]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if not elsewhere and applies(*args):
                elsewhere.append(Summary())
                add_lines(path, 5)
                land_source(store, source, FRAMER, store.settings, elsewhere[0])
            return action(*args, **kwargs)

        return run

    monkeypatch.setattr(fcntl, "flock", unlockable)
    if moment == "insert":
        inserts = overtaken(store.insert_binary, lambda table, *_: table == "raw_traces")
        monkeypatch.setattr(store, "insert_binary", inserts)
    else:
        name = f"{moment}_batch"
        action = overtaken(getattr(loader.landing, name), lambda *_: True)
        monkeypatch.setattr(loader.landing, name, action)
    with pytest.raises(SourceTakenError, match="run it again") as raised:
        land_source(store, source, FRAMER, store.settings, Summary())
    assert str(path) in str(raised.value)
    assert raised.value.exit_code == 3
    assert elsewhere[0].rows == visible(store) == 15
    again = Summary()
    land_source(store, source, FRAMER, store.settings, again)
    assert (again.rows, again.rows_already, visible(store)) == (0, 15, 15)


def land_stdin(store: Store, monkeypatch: pytest.MonkeyPatch, data: bytes) -> Summary:
    """Land standard input, four lines a batch."""
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    summary = Summary()
    settings = dataclasses.replace(store.settings, batch_lines=4)
    land_source(store, Source("stdin", None, False), FRAMER, settings, summary)
    return summary


def test_a_stream_that_broke_off_and_is_sent_again_lands_each_line_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [b'{"request_json":%d}\n' % number for number in range(20)]
    whole = b"".join(lines)
    land_stdin(store, monkeypatch, b'{"request_json":"of another stream"}\n')
    land_stdin(store, monkeypatch, b"".join(lines[:6]) + lines[6][:9])
    again = land_stdin(store, monkeypatch, whole)
    assert (again.rows, again.rows_already, again.rejects) == (14, 6, 0)
    assert visible(store) == 21
    assert land_stdin(store, monkeypatch, whole).rows == 0


def test_a_stream_is_asked_for_until_it_is_new(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    query = store.query

    def counted(sql: str, parameters: Any = None) -> Any:
        asked.extend(["start"] if "{other_start:UInt64}" in sql else [])
        return query(sql, parameters)

    monkeypatch.setattr(store, "query", counted)
    whole = b"".join(b'{"request_json":%d}\n' % number for number in range(20))
    land_stdin(store, monkeypatch, whole)
    assert len(asked) == 1


def test_a_file_that_is_rewritten_or_goes_on_lands_beside_what_is_known(
    store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "a.ndjson"
    add_lines(path, 3)
    with path.open("ab") as file:
        file.write(b'{"request_json":')
    source = Source(str(path), str(path), True)
    for wanted in (3, 1, 2):
        summary = Summary()
        land_source(store, source, FRAMER, store.settings, summary)
        assert summary.rows == wanted
        if wanted == 3:
            with path.open("ab") as file:
                file.write(b"3}\n")
        else:
            path.write_bytes(b'{"request_json":"new"}\n{"request_json":"newer"}\n')
    assert visible(store) == 6


def test_a_file_that_is_replaced_while_it_is_followed_is_not_mixed_with_the_new_one(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, newer = tmp_path / "a.ndjson", tmp_path / "newer"
    path.write_bytes(b'{"request_json":1}\n{"request_json":')
    newer.write_bytes(b'{"request_json":"new"}\n' * 9)
    source = Source(str(path), str(path), True)
    settings = dataclasses.replace(store.settings, batch_lines=1)
    land_source(store, source, FRAMER, settings, Summary())
    with path.open("ab") as file:
        file.write(b"2}\n")
    openings: list[int] = []
    opened = Source.open

    def replaced(self: Source, settings: Settings, offset: int = 0) -> Stream:
        if openings:
            with contextlib.suppress(FileNotFoundError):
                newer.replace(path)
        openings.append(offset)
        return opened(self, settings, offset)

    monkeypatch.setattr(Source, "open", replaced)
    with pytest.raises(SourceError, match="was replaced while it was read; run it again"):
        land_source(store, source, FRAMER, settings, Summary())
    assert len(openings) > 1
    assert visible(store) == 1
    again = Summary()
    land_source(store, source, FRAMER, settings, again)
    assert (again.rows, visible(store)) == (9, 10)
