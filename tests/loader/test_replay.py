"""Rejected lines landed again: each line in one place, however often and whenever it is killed."""

from __future__ import annotations

import io
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import loader.batches
import loader.replay
from loader.batches import REJECT_COLUMNS, TRACE_COLUMNS, Batch
from loader.errors import SourceError, SourceTakenError, StoreError
from loader.formats import Format, Framer
from loader.landing import Summary, erased_places, land_source, place_batch
from loader.replay import replay_rejects
from loader.settings import Settings
from loader.sources import Source, find_sources
from loader.store import Store
from loader.verbs.rejects import count_open, list_rejects
from loader.verbs.status import collect_status
from tests.support.losses import take_out_of_ledger
from tests.support.project import Project

OLD = Framer.from_file()
NEW = Framer([*OLD.formats, Format("parrot", {}, ("squawk",), "id", "squawk", "answer")])
SNAKE = Format("snake", {}, ("hiss",), None, "hiss", "answer")
NEWER = Framer([*NEW.formats, SNAKE])
TEXT = "\n".join(
    [
        '{"request_json":1,"id":"a"}',
        '{"squawk":1.0,"id":"b"}',
        "no json",
        "",
        '{"squawk":2,"answer":{"x": 1}}',
        "[]",
        '{"request_json":3}',
        "",
    ]
)


@pytest.fixture
def store(opened_store: Store) -> Store:
    opened_store.ensure_raw_tables()
    for table in ("raw_traces", "raw_rejects", "raw_batches", "raw_lost_batches"):
        opened_store.command(f"truncate table {opened_store.table(table)}")
    return opened_store


def land(store: Store, path: Path, text: str, framer: Framer = OLD) -> None:
    path.write_text(text)
    (source,), _ = find_sources([str(path)])
    land_source(store, source, framer, Settings(), Summary())


def replay(store: Store, framer: Framer = NEW) -> tuple[int, int]:
    """Replay, and say how many lines became rows now, and how many are listed then."""
    rows = replay_rejects(store, framer, Settings()).rows
    return rows, count_open(store)


def kill_replay(
    store: Store, monkeypatch: pytest.MonkeyPatch, leave: Callable[[Store, Batch], object]
) -> None:
    """Replay, and die with the first batch when so much of it is left in the store."""

    def killed(store: Store, batch: Batch, known: object) -> bool:
        leave(store, batch)
        raise StoreError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(loader.replay, "land_batch", killed)
        with pytest.raises(StoreError):
            replay(store)


def listed(store: Store) -> list[tuple[str, int]]:
    return sorted((each["reason"], each["line"]) for each in list_rejects(store, 100))


def batch_of(store: Store, source: str) -> str:
    """Give the id of the one batch whose source begins so."""
    ((batch_id,),) = store.query(
        f"select batch_id from {store.table('raw_batches')} where startsWith(source, {{s:String}})",
        {"s": source},
    )
    return str(batch_id)


def rows(store: Store) -> list[tuple[Any, ...]]:
    """Every record of a batch that is in the ledger; one that is there twice is named twice."""
    return sorted(
        store.query(
            "select `format`, request_json, response_json, envelope_json"
            f" from {store.table('raw_traces')}"
            f" where batch_id in (select batch_id from {store.table('raw_batches')})"
        )
    )


def test_a_format_that_was_added_reads_what_was_rejected(store: Store, tmp_path: Path) -> None:
    land(store, tmp_path / "a.ndjson", TEXT)
    before = list_rejects(store, 100)
    assert len(before) == 4
    assert replay(store) == (2, 2)
    assert rows(store) == [
        ("parrot", "1.0", "", '{"id":"b"}'),
        ("parrot", "2", '{"x": 1}', "{}"),
        ("provider_trace", "1", "", '{"id":"a"}'),
        ("provider_trace", "3", "", "{}"),
    ]
    assert listed(store) == [("not_an_object", 6), ("not_json", 3)]
    places = ("source", "line", "byte_offset", "reason", "detail")
    left = [{name: each[name] for name in places} for each in list_rejects(store, 100)]
    assert all(each in [{name: old[name] for name in places} for old in before] for each in left)
    assert len(list_rejects(store, 100, with_closed=True)) == 6, "nothing is removed"


def test_again_lands_nothing(store: Store, tmp_path: Path) -> None:
    land(store, tmp_path / "a.ndjson", TEXT)
    assert replay(store, OLD) == (0, 4)
    replay(store)
    held = rows(store), listed(store)
    assert replay(store) == (0, 2)
    assert replay(store, OLD) == (0, 2)
    assert (rows(store), listed(store)) == held


def test_a_second_format_reads_what_the_first_left(store: Store, tmp_path: Path) -> None:
    land(store, tmp_path / "a.ndjson", '{"squawk":1}\n{"hiss":2}\nx\n')
    assert replay(store) == (1, 2)
    assert replay(store, NEWER) == (1, 1)
    assert [row[0] for row in rows(store)] == ["parrot", "snake"]
    assert listed(store) == [("not_json", 3)]


def test_two_replays_at_once_by_other_formats_land_each_line_once(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a server: the second one runs through between listing and landing of the first."""
    if store.is_embedded:
        pytest.skip("a process has an embedded store to itself")
    for name in ("a", "b"):
        land(store, tmp_path / f"{name}.ndjson", '{"squawk":1}\n{"hiss":2}\n')
    lands = loader.replay.land_batch

    def overtaken(*given: Any, **options: Any) -> bool:
        monkeypatch.setattr(loader.replay, "land_batch", lands)
        replay(store, NEWER)
        return lands(*given, **options)

    monkeypatch.setattr(loader.replay, "land_batch", overtaken)
    with pytest.raises(SourceTakenError):
        replay(store)
    assert [row[0] for row in rows(store)] == ["parrot", "parrot", "snake", "snake"]
    assert replay(store) == (0, 0)


def test_rejects_of_a_batch_that_lost_rows_are_replayed(store: Store, tmp_path: Path) -> None:
    """Its source may be gone. If it is not, what was replayed stays with the replay."""
    path = tmp_path / "a.ndjson"
    land(store, path, TEXT)
    lose(store, "/%", "raw_traces", where="position = 0")
    assert len(list_rejects(store, 100)) == 4
    assert replay(store) == (2, 2)
    land(store, path, TEXT, NEW)
    assert [row[0] for row in rows(store)] == ["parrot", "parrot", *["provider_trace"] * 2]
    assert listed(store) == [("not_an_object", 6), ("not_json", 3)]


def test_a_batch_that_lost_rejects_is_not_replayed_in_part(store: Store, tmp_path: Path) -> None:
    """A replay settles all rejects of a batch, and those that are lost may come back."""
    path = tmp_path / "a.ndjson"
    land(store, path, TEXT)
    lose(store, "/%", "raw_rejects", where="line = 2")
    assert replay(store) == (0, 3)
    land(store, path, TEXT)
    assert replay(store) == (2, 2)
    assert len(rows(store)) == 4


def test_the_ledger_and_the_status_count_each_line_once(store: Store, tmp_path: Path) -> None:
    land(store, tmp_path / "a.ndjson", TEXT)
    replay(store)
    status = collect_status(store)
    assert (status["landed"]["rows"], status["landed"]["rejects"]) == (4, 2)
    assert status["rejected_by_reason"] == {"not_an_object": 1, "not_json": 1}
    assert status["unfinished_batches"] == 0
    wrong = store.query(
        f"select batch_id from {store.table('raw_batches')} as ledger"
        " where lines != `rows` + rejects"
        f" or `rows` != (select uniqExact(position) from {store.table('raw_traces')} as t"
        " where t.batch_id = ledger.batch_id)"
        f" or rejects != (select uniqExact(position) from {store.table('raw_rejects')} as r"
        " where r.batch_id = ledger.batch_id)"
    )
    assert wrong == []


@pytest.mark.parametrize("kept", ["traces", "rejects", "both", "a part", "all but the ledger"])
def test_a_killed_replay_is_finished_by_the_next(
    store: Store, tmp_path: Path, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    land(store, tmp_path / "a.ndjson", TEXT)
    before = listed(store)

    def leave(store: Store, batch: Batch) -> None:
        if kept in ("traces", "both"):
            store.insert_binary("raw_traces", TRACE_COLUMNS, batch.traces)
        if kept in ("rejects", "both"):
            store.insert_binary("raw_rejects", REJECT_COLUMNS, batch.rejected)
        if kept == "a part":
            store.insert_binary("raw_rejects", REJECT_COLUMNS, batch.rejected[:10])
        if kept == "all but the ledger":
            place_batch(store, batch)

    kill_replay(store, monkeypatch, leave)
    assert listed(store) == before, "what is not in the ledger is not told twice"
    assert replay(store) == (2, 2)
    assert len(rows(store)) == 4
    assert collect_status(store)["unfinished_batches"] == 0


def test_a_killed_replay_is_not_taken_up_with_other_formats(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    land(store, tmp_path / "a.ndjson", '{"squawk":1}\n{"hiss":2}\n')

    def leave(store: Store, batch: Batch) -> None:
        store.insert_binary("raw_traces", TRACE_COLUMNS, batch.traces)

    kill_replay(store, monkeypatch, leave)
    snake = Framer([*OLD.formats, SNAKE])
    assert replay(store, snake) == (1, 1)
    assert [row[:2] for row in rows(store)] == [("snake", "2")]
    assert listed(store) == [("unknown_format", 1)]


def test_an_unfinished_line_waits_for_its_file(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    land(store, path, '{"request_json":1}\n{"squawk":')
    assert replay(store) == (0, 1)
    assert listed(store) == [("unfinished", 2)]
    land(store, path, '{"request_json":1}\n{"squawk":1}\n')
    assert listed(store) == [("unknown_format", 2)], "its beginning is settled"
    assert replay(store) == (1, 0)
    assert [row[:2] for row in rows(store)] == [("parrot", "1"), ("provider_trace", "1")]


def test_what_another_file_of_that_name_began_with_stays_open(store: Store, tmp_path: Path) -> None:
    """It is the only copy of a line whose writer died: the bytes say whether a line goes on."""
    path = tmp_path / "a.ndjson"
    land(store, path, '{"squawk":"torn')
    path.unlink()
    land(store, path, '{"squawk":"other"}\n')
    assert listed(store) == [("unfinished", 1), ("unknown_format", 1)]


def test_the_beginning_of_a_line_is_settled_whatever_it_was_rejected_for(
    store: Store, tmp_path: Path
) -> None:
    """Landed in three pieces: the first is above the limit of then, the second is not."""
    path = tmp_path / "a.ndjson"
    text = '{"squawk":"' + "x" * 100 + '","id":"a"}\n'
    for end, limit in ((50, 40), (80, 1000), (len(text), 1000)):
        path.write_text(text[:end])
        (source,), _ = find_sources([str(path)])
        land_source(store, source, OLD, Settings(max_record_bytes=limit), Summary())
    assert listed(store) == [("unknown_format", 1)]
    lose(store, "/%", "raw_rejects", where="reason = 'unknown_format'")
    assert [reason for reason, _ in listed(store)] == ["too_large", "unfinished"]
    land(store, path, text)
    assert listed(store) == [("unknown_format", 1)]
    assert collect_status(store)["lost_batches"] == 0


def lose(store: Store, source: str, *tables: str, where: str = "true") -> None:
    """Let rows of such sources' batches be lost, and take note of it as the operation mend does."""
    ledger = store.table("raw_batches")
    of_source = f"batch_id in (select batch_id from {ledger} where source like {{s:String}})"
    for table in tables:
        store.command(
            f"alter table {store.table(table)} delete where {where} and {of_source}"
            " settings mutations_sync = 2, allow_nondeterministic_mutations = 1",
            {"s": source},
        )
    take_out_of_ledger(store, "source like {s:String}", {"s": source})


def test_a_batch_that_was_replayed_lands_again_without_what_was_replayed(
    store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "a.ndjson"
    land(store, path, TEXT)
    assert replay(store) == (2, 2)
    before = rows(store), listed(store)
    lose(store, "/%", "raw_traces")
    land(store, path, TEXT, NEW)
    assert (rows(store), listed(store)) == before

    # The replay knows which lines were its rejects.
    lose(store, "/%", "raw_traces", "raw_rejects")
    land(store, path, TEXT, NEW)
    assert (rows(store), listed(store)) == before


def test_a_batch_that_was_replayed_gets_no_other_rejects(store: Store, tmp_path: Path) -> None:
    """They would count as replayed, and nobody would see them."""
    path = tmp_path / "a.ndjson"
    land(store, path, TEXT)
    replay(store)
    before = rows(store), listed(store)
    lose(store, "/%", "raw_traces")
    with pytest.raises(SourceError, match=r"They were 2 rows and 4 rejects.* 0 rows and 6 rejects"):
        land(store, path, TEXT, Framer(NEW.formats[-1:]))
    land(store, path, TEXT, OLD)
    assert (rows(store), listed(store)) == before


def test_a_batch_and_its_replay_that_are_lost_together_come_back(
    store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "a.ndjson"
    land(store, path, TEXT)
    assert replay(store) == (2, 2)
    places = (
        f"select batch_id, position, request_json from {store.table('raw_traces')} order by all"
    )
    before = store.query(places), listed(store)
    for source in ("/%", "replay/%"):
        lose(store, source, "raw_traces")
    land(store, path, TEXT, NEW)
    replay(store)
    assert (store.query(places), listed(store)) == before


def test_lost_standard_input_lands_again_without_what_was_replayed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def land_stdin(framer: Framer) -> None:
        data = io.BytesIO(TEXT.encode())
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=data))
        land_source(store, Source("stdin", None, False), framer, Settings(), Summary())

    land_stdin(OLD)
    assert replay(store) == (2, 2)
    before = rows(store), listed(store)
    lose(store, "stdin", "raw_traces")
    land_stdin(NEW)
    assert (rows(store), listed(store)) == before


def lines(store: Store) -> list[tuple[str, int, str]]:
    """Every line that a record of the ledger came from, by what names it; none twice."""
    return sorted(
        store.query(
            "select distinct substring(batch_id, 1, 32), position, `format`"
            f" from {store.table('raw_traces')}"
            f" where batch_id in (select batch_id from {store.table('raw_batches')})"
        )
    )


@pytest.mark.parametrize(
    "tables", [("raw_traces",), ("raw_rejects",), ("raw_traces", "raw_rejects")]
)
def test_a_replay_that_was_lost_is_made_again_by_what_there_is_now(
    store: Store, tmp_path: Path, tables: tuple[str, ...]
) -> None:
    land(store, tmp_path / "a.ndjson", '{"request_json":0}\nx\n{"squawk":1}\n{"hiss":2}\n')
    first = batch_of(store, "/")
    before = [(first, 0, "provider_trace"), (first, 2, "parrot")]
    assert replay(store) == (1, 2)
    assert lines(store) == before
    lose(store, f"replay/{first}", *tables)
    assert listed(store) == [("not_json", 2), ("unknown_format", 3), ("unknown_format", 4)]
    status = collect_status(store)
    assert (status["lost_batches"], status["unfinished_batches"]) == (1, 0)

    after = [*before, (first, 3, "snake")]
    for _ in range(2):
        replay(store, NEWER)
        assert lines(store) == after
        assert len(rows(store)) == len(after), (
            "what is left of the lost one is not replayed besides"
        )
        assert listed(store) == [("not_json", 2)]
        status = collect_status(store)
        assert (status["lost_batches"], status["unfinished_batches"]) == (0, 0)


def test_a_batch_and_its_replay_of_which_nothing_is_left_come_back(
    store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "a.ndjson"
    land(store, path, TEXT)
    assert replay(store) == (2, 2)
    before = lines(store), listed(store)
    for source in ("/%", "replay/%"):
        lose(store, source, "raw_traces", "raw_rejects")
    land(store, path, TEXT, NEW)
    assert (lines(store), listed(store)) == before
    assert replay(store) == (0, 2)


@pytest.mark.parametrize("lost", ["replay/{}", "replay/%"])
def test_replays_in_a_row_that_are_lost_come_back(store: Store, tmp_path: Path, lost: str) -> None:
    """Of two the first, or both: a third is made in its place."""
    land(store, tmp_path / "a.ndjson", '{"squawk":1}\nx\n{"hiss":2}\n')
    first = batch_of(store, "/")
    assert replay(store) == (1, 2)
    assert replay(store, NEWER) == (1, 1)
    before = [(first, 0, "parrot"), (first, 2, "snake")]
    assert lines(store) == before
    lose(store, lost.format(first), "raw_traces", "raw_rejects")
    replay(store, NEWER)
    assert lines(store) == before
    assert listed(store) == [("not_json", 2)]
    assert count_open(store) == sum(collect_status(store)["rejected_by_reason"].values()) == 1


def test_rejects_of_a_lost_replay_are_listed_where_their_origin_has_them_no_more(
    store: Store, tmp_path: Path
) -> None:
    """Retention took those of the batch that they first came with, which is older."""
    land(store, tmp_path / "a.ndjson", '{"squawk":1}\nx\n{"hiss":2}\n')
    assert replay(store) == (1, 2)
    first = batch_of(store, "/")
    lose(store, f"replay/{first}", "raw_traces")
    assert len(listed(store)) == 3
    store.command(
        f"alter table {store.table('raw_rejects')} delete where batch_id = {{first:String}}"
        " settings mutations_sync = 2",
        {"first": first},
    )
    assert listed(store) == [("not_json", 2), ("unknown_format", 3)]
    assert replay(store, NEWER) == (1, 1)
    assert lines(store) == [(first, 2, "snake")]


@pytest.mark.parametrize("first", ["land", "replay"])
@pytest.mark.parametrize("redacts", [False, True])
def test_what_is_lost_together_comes_back_in_any_order(
    store: Store, tmp_path: Path, redacting: Settings, redacts: bool, first: str
) -> None:
    """Of a batch and its replay. Where records are redacted, rejects are written anew."""
    settings = redacting if redacts else Settings()
    path = tmp_path / "a.ndjson"
    path.write_text(TEXT)
    (source,), _ = find_sources([str(path)])
    steps: dict[str, Callable[[], object]] = {
        "land": lambda: land_source(store, source, NEW, settings, Summary()),
        "replay": lambda: replay_rejects(store, NEW, settings),
    }
    land_source(store, source, OLD, settings, Summary())
    steps["replay"]()
    before = lines(store), listed(store)
    for lost in ("/%", "replay/%"):
        lose(store, lost, "raw_traces")
    steps[first]()
    for step in steps.values():
        step()
    assert (lines(store), listed(store)) == before


def test_a_replay_that_is_lost_after_its_batch_came_back_is_made_again(
    store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "a.ndjson"
    land(store, path, TEXT)
    replay(store)
    before = lines(store), listed(store)
    lose(store, "/%", "raw_rejects")
    land(store, path, TEXT, NEW)
    assert (lines(store), listed(store)) == before
    lose(store, "replay/%", "raw_traces", "raw_rejects")
    assert ("not_json", 3) in listed(store), "for what it is, and not for being replayed"
    replay(store)
    assert (lines(store), listed(store)) == before


def test_a_batch_that_was_lost_twice_is_compared_with_what_it_was_last(
    store: Store, tmp_path: Path
) -> None:
    path, text = tmp_path / "a.ndjson", '{"request_json":1}\n{"squawk":1}\n{"hiss":2}\nx\n'
    land(store, path, text)
    lose(store, "/%", "raw_traces", "raw_rejects")
    land(store, path, text, NEW)
    assert replay(store, NEWER) == (1, 1)
    lose(store, "/%", "raw_traces", "raw_rejects")
    # Whichever is read last: the older one stands there again, behind the newer.
    lost = store.table("raw_lost_batches")
    store.command(f"insert into {lost} select * from {lost} order by lost_at limit 1")
    with pytest.raises(SourceError, match="They were 2 rows and 2 rejects"):
        land(store, path, text)
    land(store, path, text, NEW)
    assert len(lines(store)) == 3


def test_a_batch_that_was_lost_twice_is_replayed_by_what_it_was_last(
    store: Store, tmp_path: Path
) -> None:
    path, text = tmp_path / "a.ndjson", '{"request_json":1}\n{"squawk":1}\n{"hiss":2}\nx\n'
    land(store, path, text)
    lose(store, "/%", "raw_traces", "raw_rejects")
    land(store, path, text, NEW)
    lose(store, "/%", "raw_traces")
    assert replay(store, NEWER) == (1, 1), "its two rejects are there, of three at first"


@pytest.mark.parametrize("why", ["format", "limit"])
def test_what_was_a_row_is_no_reject_of_a_lost_batch(
    store: Store, tmp_path: Path, why: str
) -> None:
    """Traces were made of it, and whose they are its row alone says."""
    path, text = tmp_path / "a.ndjson", '{"squawk":1}\nx\n{"request_json":"%s"}\n' % ("y" * 200)
    framer = OLD if why == "format" else NEW
    settings = Settings(max_record_bytes=100) if why == "limit" else Settings()
    land(store, path, text, NEW)
    lose(store, "/%", "raw_traces", "raw_rejects")
    (source,), _ = find_sources([str(path)])
    with pytest.raises(SourceError, match="were 2 rows and 1 rejects, and would be 1 rows and 2"):
        land_source(store, source, framer, settings, Summary())
    assert lines(store) == []
    land(store, path, text, NEW)
    assert len(lines(store)) == 2


@pytest.mark.parametrize("why", ["format", "limit"])
def test_what_was_a_row_is_no_reject_of_a_lost_replay(
    store: Store, tmp_path: Path, why: str
) -> None:
    path, text = tmp_path / "a.ndjson", '{"squawk":1}\n{"hiss":"%s"}\nx\n' % ("y" * 200)
    framer = NEW if why == "format" else NEWER
    settings = Settings(max_record_bytes=100) if why == "limit" else Settings()
    land(store, path, text)
    assert replay(store, NEWER) == (2, 1)
    lose(store, "replay/%", "raw_traces")
    land(store, tmp_path / "b.ndjson", '{"squawk":2}\n')
    said = r"was 2 rows and 1 rejects, and would be 1 rows and 2 rejects now\. .* 1 lines of other"
    with pytest.raises(SourceError, match=said):
        replay_rejects(store, framer, settings)
    assert replay(store, NEWER) == (2, 1), "the other one was replayed all the same"


def test_rejects_that_are_lost_before_a_replay_come_back_open(store: Store, tmp_path: Path) -> None:
    """Nobody has called the operation mend yet."""
    path = tmp_path / "a.ndjson"
    land(store, path, TEXT)
    rejects = store.table("raw_rejects")
    store.command(f"alter table {rejects} delete where line = 3 settings mutations_sync = 2")
    assert replay(store) == (0, 3)
    lose(store, "/%")
    land(store, path, TEXT)
    assert replay(store) == (2, 2)


@pytest.mark.parametrize(
    ("is_lost", "pieces"), [(False, (10,)), (True, (10,)), (True, (40,)), (True, (10, 20, 40))]
)
def test_what_is_looked_at_halfway_while_it_is_copied_leaves_no_beginning(
    store: Store, tmp_path: Path, is_lost: bool, pieces: tuple[int, ...]
) -> None:
    """Over itself, or back where its rows were lost: its lines are landed, before or since."""
    path = tmp_path / "a.ndjson"
    text = "".join(f'{{"request_json":{number},"id":"{number}"}}\n' for number in range(4))
    land(store, path, text)
    if is_lost:
        lose(store, "/%", "raw_traces")
    for piece in pieces:
        land(store, path, text[:piece])
    for _ in range(2):
        land(store, path, text)
        assert listed(store) == []
        assert {row[1] for row in rows(store)} == {"0", "1", "2", "3"}
    ledger = store.query(f"select batch_id, length(continues) from {store.table('raw_batches')}")
    assert len(ledger) == len(set(ledger)), "what goes on is written down once"


def test_a_line_that_is_finished_while_the_ledger_is_followed_lands_once(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path held a longer file before; the file is opened once more to look for that."""
    path = tmp_path / "a.ndjson"
    old = "".join(f'{{"request_json":{number}}}\n' for number in range(10))
    land(store, path, old[:80])
    land(store, path, old)
    path.unlink()
    whole = '{"request_json":"n1"}\n{"request_json":"n2"}\n'
    land(store, path, whole[:20])
    opens, opened = Source.open, 0

    def grow(source: Source, *given: Any) -> Any:
        nonlocal opened
        opened += 1
        if opened == 2:
            path.write_text(whole)
        return opens(source, *given)

    monkeypatch.setattr(Source, "open", grow)
    for _ in range(3):
        (source,), _ = find_sources([str(path)])
        land_source(store, source, OLD, Settings(), Summary())
    assert [row[1] for row in rows(store) if "n" in row[1]] == ['"n1"', '"n2"']
    assert listed(store) == []


def test_what_a_lost_replay_rejected_is_no_reject_where_its_batch_has_landed_it(
    store: Store, tmp_path: Path
) -> None:
    path, text = tmp_path / "a.ndjson", '{"request_json":1}\n{"squawk":1}\n{"hiss":2}\nx\n'
    land(store, path, text)
    assert replay(store) == (1, 2)
    lose(store, "/%", "raw_traces", "raw_rejects")
    lose(store, "replay/%", "raw_traces")
    assert collect_status(store)["lost_batches"] == 2
    land(store, path, text, NEWER)
    assert len(lines(store)) == 3
    assert listed(store) == [("not_json", 4)]
    assert collect_status(store)["lost_batches"] == 0


def test_a_batch_of_which_a_replayed_line_was_erased_gets_no_other_rejects(
    store: Store, tmp_path: Path, retired: Callable[[str, str, int], None]
) -> None:
    """A row that is too large now, and the erased line that is a row now, are as many as before."""
    path = tmp_path / "a.ndjson"
    land(store, path, f'{{"request_json":"{"y" * 200}"}}\n{{"squawk":1}}\nx\n')
    replay(store)
    retired("raw_traces", batch_of(store, "replay/"), 1)
    retired("raw_rejects", batch_of(store, "/"), 1)
    lose(store, "/%", "raw_traces")
    (source,), _ = find_sources([str(path)])
    with pytest.raises(SourceError, match="are to be landed again"):
        land_source(store, source, NEW, Settings(max_record_bytes=100), Summary())
    land_source(store, source, NEW, Settings(), Summary())
    assert (batch_of(store, "/"), 0, "provider_trace") in lines(store)


@pytest.fixture
def retired(store: Store) -> Iterator[Callable[[str, str, int], None]]:
    """Let a place be erased, as far as a replay asks for it."""
    table = store.table("retired_batches")
    store.command(
        f"create table {table} (batch_id String, raw_table String, reason String,"
        " positions Array(UInt32), retired_at DateTime64(3)) engine = MergeTree order by batch_id"
    )

    def erase(raw_table: str, batch_id: str, position: int) -> None:
        place = {"batch_id": batch_id, "raw_table": raw_table, "position": position}
        store.command(
            f"insert into {table} select {{batch_id:String}}, {{raw_table:String}}, 'erasure',"
            " [{position:UInt32}], now64(3)",
            place,
        )
        store.command(
            f"alter table {store.table(raw_table)} delete where batch_id = {{batch_id:String}}"
            " and position = {position:UInt32} settings mutations_sync = 2",
            place,
        )

    yield erase
    store.command(f"drop table {table} sync")


def test_a_lost_replay_is_made_again_without_what_was_erased(
    store: Store, tmp_path: Path, retired: Callable[[str, str, int], None]
) -> None:
    land(store, tmp_path / "a.ndjson", '{"squawk":1}\n{"squawk":2}\nx\n')
    assert replay(store) == (2, 1)
    first = batch_of(store, "/")
    retired("raw_traces", batch_of(store, "replay/"), 0)
    retired("raw_rejects", first, 0)
    lose(store, f"replay/{first}", "raw_traces")
    assert replay(store) == (1, 1)
    assert lines(store) == [(first, 1, "parrot")]


def test_rejects_of_a_lost_batch_are_replayed_though_one_was_erased(
    store: Store, tmp_path: Path, retired: Callable[[str, str, int], None]
) -> None:
    land(store, tmp_path / "a.ndjson", '{"request_json":1}\n{"squawk":1}\n{"squawk":2}\nx\n')
    first = batch_of(store, "/")
    retired("raw_rejects", first, 1)
    retired("raw_traces", first, 0)
    lose(store, "/%", "raw_rejects", where="position = 3")
    assert replay(store) == (0, 1), "one is lost, and a row that was erased stands for none"
    land(store, tmp_path / "a.ndjson", (tmp_path / "a.ndjson").read_text())
    lose(store, "/%", "raw_traces")
    retired("raw_rejects", first, 1)
    assert replay(store) == (1, 1)
    assert lines(store) == [(first, 2, "parrot")]


@pytest.mark.parametrize(
    ("reason", "detail"),
    [
        *((damage, "") for damage in ("torn", "corrupt", "half_record", "broken_connection")),
        *(("too_large", f"the first 9 are kept{rest}") for rest in ("", "; sha256 of all")),
    ],
)
def test_damaged_bytes_and_heads_are_never_made_a_trace(
    store: Store, tmp_path: Path, reason: str, detail: str
) -> None:
    land(store, tmp_path / "a.ndjson", '{"squawk":1}\n')
    store.command(
        f"alter table {store.table('raw_rejects')} update reason = {{reason:String}},"
        " detail = {detail:String} where true settings mutations_sync = 2",
        {"reason": reason, "detail": detail},
    )
    assert replay(store) == (0, 1)
    assert rows(store) == []


def test_bytes_that_are_no_text_are_kept(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    path.write_bytes(b'{"squawk":"\xc3\xa9"}\n\xff\x00bad\n')
    (source,), _ = find_sources([str(path)])
    land_source(store, source, OLD, Settings(), Summary())
    assert replay(store) == (1, 1)
    assert rows(store)[0][1] == '"é"'
    kept = store.query(
        f"select uniqExact(raw), any(hex(raw)) from {store.table('raw_rejects')}"
        " where reason = 'not_utf8'"
    )
    assert kept == [(1, "FF00626164")]


SECRET = "s3cr3t"


@pytest.fixture
def redacting(tmp_path: Path) -> Settings:
    path = tmp_path / "rules.yml"
    path.write_text("keys: ['**.api_key', kind]")
    return Settings(redaction=str(path))


def replayed(store: Store) -> list[str]:
    """Give what the store holds of replayed batches, rows and rejects."""
    where = (
        f"where batch_id in (select batch_id from {store.table('raw_batches')}"
        " where startsWith(source, 'replay/'))"
    )
    found = store.query(
        "select concat(request_json, response_json, envelope_json)"
        f" from {store.table('raw_traces')} {where}"
        f" union all select raw from {store.table('raw_rejects')} {where}"
    )
    return sorted(text for (text,) in found)


def test_what_is_replayed_is_redacted(store: Store, tmp_path: Path, redacting: Settings) -> None:
    lines = [
        f'{{"squawk":{{"api_key":"{SECRET}"}}}}',
        f'{{"hiss":{{"api_key":"{SECRET}"}}}}',
        f'{{"hiss": "{SECRET}',
        f'[{{"api_key":"{SECRET}"}}]',
    ]
    land(store, tmp_path / "a.ndjson", "\n".join(lines) + "\n")
    assert replay_rejects(store, NEW, redacting).rows == 1
    assert replayed(store) == [
        "[redacted: 16 bytes that are no JSON]",
        '[{"api_key":"[redacted]"}]',
        '{"api_key":"[redacted]"}{}',
        '{"hiss":{"api_key":"[redacted]"}}',
    ]
    assert count_open(store) == 3
    assert replay_rejects(store, NEW, redacting).batches == 0


def test_the_head_of_a_giant_is_withheld(
    store: Store, tmp_path: Path, redacting: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader.batches, "KEPT_WHOLE_BYTES", 100)
    monkeypatch.setattr(loader.batches, "KEPT_HEAD_BYTES", 50)
    path = tmp_path / "a.ndjson"
    path.write_text('{"squawk":"' + SECRET * 20 + '"}\n')
    (source,), _ = find_sources([str(path)])
    land_source(store, source, OLD, Settings(max_record_bytes=100), Summary())
    ((batch,),) = store.query(f"select batch_id from {store.table('raw_rejects')}")
    (giant,) = loader.replay._rejects_of(store, batch, NEW, redacting, erased_places(store))
    assert (giant.is_record, giant.kept) == (False, b"[redacted: 50 bytes that are no JSON]")


def test_an_unfinished_line_that_is_withheld_waits_for_its_file(
    store: Store, tmp_path: Path, redacting: Settings
) -> None:
    path = tmp_path / "a.ndjson"
    for begun in (f'{{"hiss":"{SECRET}', f'{{"hiss":"{SECRET}"}}\nbad {SECRET}'):
        path.write_text(begun)
        (source,), _ = find_sources([str(path)])
        land_source(store, source, OLD, redacting, Summary())
        line = begun.count("\n") + 1
        assert ("unfinished", line) in listed(store)
        assert replay_rejects(store, NEW, redacting).batches == 0
    path.write_text(f"{begun}ly\n")
    land_source(store, source, OLD, redacting, Summary())
    assert listed(store) == [("not_json", 2), ("unknown_format", 1)], "beginnings are settled"
    assert replay_rejects(store, NEW, redacting).batches == 0


def test_a_line_is_a_record_by_what_is_kept_of_it(
    store: Store, tmp_path: Path, redacting: Settings
) -> None:
    """A format may ask for a value that a rule takes: the line stays a reject then."""
    birds = Framer([*OLD.formats, Format("bird", {"kind": b'"bird"'}, (), None, "squawk", "")])
    land(store, tmp_path / "a.ndjson", '{"kind":"bird","squawk":1}\n')
    assert replay_rejects(store, birds, redacting).batches == 0
    assert listed(store) == [("unknown_format", 1)]
    assert replay(store, birds) == (1, 0)


def test_a_killed_replay_is_not_taken_up_unredacted(
    store: Store, tmp_path: Path, redacting: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = f'{{"squawk":{{"api_key":"{SECRET}"}}}}\n'
    land(store, tmp_path / "a.ndjson", line + line.replace("squawk", "hiss"))

    kill_replay(store, monkeypatch, place_batch)
    assert replay_rejects(store, NEW, redacting).rows == 1
    assert not any(SECRET in text for text in replayed(store))


def test_the_command_survives_kills(project: Project, tmp_path: Path) -> None:
    """Records above a limit, replayed without it, killed at moments of chance."""
    chance = random.Random(5)
    path = tmp_path / "a.ndjson"
    path.write_text(
        "".join(
            json.dumps({"id": f"{number}", "request_json": "x" * 200}) + "\n" + f"bad {number}\n"
            for number in range(120)
        )
    )
    small = {"TOKENLEDGER_MAX_RECORD_BYTES": "100", "TOKENLEDGER_BATCH_LINES": "10"}
    usual = dict(project.env)
    project.env |= small
    project.loader(str(path), expect=1)
    project.env = usual
    for _ in range(2):
        process = project.start_loader("rejects", "--replay")
        time.sleep(chance.uniform(0.4, 1.2))
        process.kill()
        process.communicate()
    project.loader("rejects", "--replay", expect=1)
    done = json.loads(project.loader("rejects", "--replay", "--json", expect=1).stdout)
    assert (done["rows"], done["rejects"]) == (0, 120)
    found = project.query(
        "select count() as found, uniqExact(envelope_json) as ids from raw_traces"
    )[0]
    assert (found["found"], found["ids"]) == (120, 120)
    lines = project.loader("rejects", "--limit", "1000").stdout.splitlines()
    assert len(lines) == len(set(lines)) == 120
    assert all(": not_json: " in line for line in lines)
    assert f"{path}:2: not_json" in "\n".join(lines)
