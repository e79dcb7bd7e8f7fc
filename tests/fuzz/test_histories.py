"""Histories of files, streams, rejects and what is lost of them: each line in one place at the end.

A history is a list of steps, drawn at random: one of two files grows, at times by a part of a line,
or gives its place to another, or an older one is put back; streams are sent, and sent again with
more behind them; all is landed, and rejects are replayed, by other formats and limits each time,
and some of it is killed before the ledger row; rows of some batches are lost, and mended at once or
later. Then all that ever stood anywhere is landed again, and replayed, by the newest formats.
`FUZZ_HISTORIES` says how many (default 10; `make fuzz` runs 1,000), `FUZZ_SEED` repeats a run. The
seed of a history that fails is in its message, with its steps.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import loader.landing
import loader.replay
from loader.errors import SourceError, StoreError
from loader.formats import Format, Framer
from loader.landing import Summary, land_source, place_batch
from loader.replay import LINE, replay_rejects
from loader.settings import Settings
from loader.sources import Source, find_sources
from loader.store import Store
from loader.verbs.rejects import list_rejects
from tests.support.losses import take_out_of_ledger

HISTORIES = int(os.environ.get("FUZZ_HISTORIES", "10"))
SEED = int(os.environ.get("FUZZ_SEED", "0")) or random.randrange(1, 2**31)
FORMATS = [
    Format("parrot", {}, ("squawk",), "id", "squawk", "answer"),
    Format("snake", {}, ("hiss",), None, "hiss", "answer"),
]
KEYS = ("request_json", "squawk", "hiss")
TABLES = ("raw_traces", "raw_rejects", "raw_batches", "raw_lost_batches")


class Killed(Exception):
    """The loader is gone."""


@dataclass
class File:
    """What stood at a path, one after the other; the last one stands there, but for its end."""

    path: Path
    generations: list[bytes]
    unwritten: int = 0

    def write(self, generation: int = -1) -> None:
        """Put what is written of one of them in its place."""
        text = self.generations[generation]
        written = len(text) - (self.unwritten if generation == -1 else 0)
        self.path.write_bytes(text[:written])


class History:
    """One history: the files and streams, what they hold, and the store they are landed in."""

    batch_bytes: tuple[int, ...] = (60, 200, 10**7)
    record_bytes: tuple[int, ...] = (25, 50, 10**6)

    def __init__(self, store: Store, folder: Path, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.store = store
        self.files = [File(folder / name, [b""]) for name in ("a.ndjson", "b.ndjson")]
        self.pipe = folder / "pipe"
        self.streams: list[bytes] = []
        self.lines: list[bytes] = []
        self.steps: list[object] = []
        builtin = Framer.from_file().formats
        self.framers = [Framer([*builtin, *FORMATS[:count]]) for count in range(3)]
        self.newest = 0
        self.is_mended = True
        for file in self.files:
            file.write()

    def go(self, count_name: str) -> None:
        """Live and check; an error says how to do it again, and what was done."""
        try:
            self.live()
            self.check()
        except Exception as error:
            steps = "\n".join(map(str, self.steps))
            raise AssertionError(
                f"the history of FUZZ_SEED={self.seed} {count_name}=1:\n{steps}"
            ) from error

    def live(self) -> None:
        """Go through a few steps, and then bring back what can be brought back."""
        self.wander(4, 18)
        self.mend()
        self.steps.append("at last")
        for _ in range(2):
            self.land_all()
            self.mend()

    def wander(self, fewest: int, most: int) -> None:
        """Go through so many steps; now and then there is a format more."""
        for _ in range(self.random.randint(fewest, most)):
            self.random.choice(self.all_steps())()
            if self.random.random() < 0.2:
                self.newest = min(self.newest + 1, len(self.framers) - 1)

    def all_steps(self) -> list[Callable[[], None]]:
        often = [self.grow, self.land, self.replay, self.lose]
        return [*often, *often, self.mend, self.replace, self.put_back, self.send]

    def land_all(self) -> None:
        """Land all that ever stood anywhere, and replay."""
        for file in self.files:
            file.unwritten = 0
            for generation in range(len(file.generations)):
                file.write(generation)
                self.land_by(self.source_of(file), self.framers[-1], Settings())
        for stream in self.streams:
            self.land_by(self.source_of(stream), self.framers[-1], Settings())
        replay_rejects(self.store, self.framers[-1], Settings())

    def some_lines(self) -> bytes:
        """Make lines that are in no other place, of each kind some."""
        text = b""
        for _ in range(self.random.randint(1, 4)):
            number = len(self.lines)
            self.lines.append(self.line(number))
            text += self.lines[-1] + b"\n" * self.random.choice((1, 1, 1, 2))
        return text

    def line(self, number: int) -> bytes:
        key = self.random.choice((*KEYS, ""))
        if not key:
            return b"no json %06d." % number
        return json.dumps({key: number, "pad": "y" * self.random.choice((0, 40))}).encode()

    def grow(self) -> None:
        file = self.random.choice(self.files)
        file.generations[-1] += self.some_lines()
        file.unwritten = self.random.choice((0, 0, 0, self.random.randint(1, 30)))
        file.write()
        self.steps.append(("grow", file.path.name, len(self.lines), file.unwritten))

    def replace(self) -> None:
        """Another file takes the place; what was not written of the old one is kept."""
        file = self.random.choice(self.files)
        file.generations.append(b"")
        file.unwritten = 0
        self.grow() if self.random.random() < 0.5 else file.write()
        self.steps.append(("replace", file.path.name))

    def put_back(self) -> None:
        """An older file stands in the place for a while, and is landed, or not."""
        file = self.random.choice(self.files)
        generation = self.random.randrange(len(file.generations))
        file.write(generation - len(file.generations))
        self.steps.append(("put back", file.path.name, generation))
        if self.random.random() < 0.7:
            self.land_some(self.source_of(file))
        file.write()

    def send(self) -> None:
        """A stream: a new one, or one of before from its first byte, with more behind it or not."""
        if not self.streams or self.random.random() < 0.3:
            self.streams.append(self.some_lines())
        index = self.random.randrange(len(self.streams))
        if self.random.random() < 0.3:
            self.streams[index] += self.some_lines()
        self.steps.append(("send", index, len(self.lines)))
        self.land_some(self.source_of(self.streams[index]))

    def source_of(self, what: File | bytes) -> Source:
        if isinstance(what, File):
            (source,), _ = find_sources([str(what.path)])
            return source
        self.pipe.write_bytes(what)
        return Source("stdin", str(self.pipe), is_file=False)

    def land(self) -> None:
        self.land_some(self.source_of(self.random.choice(self.files)))

    def land_some(self, source: Source) -> None:
        # A stream is to be sent again by the same limits or higher ones.
        draw = self.random if source.is_file else random.Random(self.seed)
        settings = Settings(
            batch_lines=draw.choice((1, 2, 3, 5000)),
            batch_bytes=draw.choice(self.batch_bytes),
            max_record_bytes=self.random.choice(self.record_bytes),
        )
        survives = self.random.choice((0, 1, 2, 99, 99, 99))
        self.steps.append(
            ("land", source.name[-8:], self.newest, settings.max_record_bytes, survives)
        )
        records, landed = loader.landing.record_batch, 0

        def record(*given: Any, **options: Any) -> None:
            nonlocal landed
            if landed == survives:
                raise Killed
            landed += 1
            records(*given, **options)

        # It may say that lines would be hidden by these limits, and land nothing.
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed, SourceError):
            patch.setattr(loader.landing, "record_batch", record)
            try:
                self.land_by(source, self.framers[self.newest], settings)
            except StoreError as error:
                # What is lost, and in the ledger still, is not taken for landed.
                if self.is_mended or "run dbt run-operation mend" not in str(error):
                    raise

    def land_by(self, source: Source, framer: Framer, settings: Settings) -> None:
        land_source(self.store, source, framer, settings, Summary())

    def replay(self) -> None:
        settings = Settings(max_record_bytes=self.random.choice(self.record_bytes))
        is_killed = self.random.random() < 0.25
        self.steps.append(("replay", self.newest, settings.max_record_bytes, is_killed))

        def leave(store: Store, batch: Any, **options: Any) -> bool:
            place_batch(store, batch)
            raise Killed

        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
            if is_killed:
                patch.setattr(loader.replay, "land_batch", leave)
            replay_rejects(self.store, self.framers[self.newest], settings)

    def lose(self) -> None:
        ledger = self.store.table("raw_batches")
        batches = [
            row[0] for row in self.store.query(f"select batch_id from {ledger} order by all")
        ]
        lost = self.random.sample(
            batches, min(len(batches), self.random.choice((1, 1, 2, 3, len(batches))))
        )
        self.delete(lost, *self.random.choice((TABLES[:1], TABLES[1:2], TABLES[:2])))
        if self.random.random() < 0.7:
            self.mend()

    def delete(self, lost: list[str], *tables: str) -> None:
        """Let the rows of these batches be lost from tables."""
        self.is_mended = False
        self.steps.append(("lose", [batch_id[:6] + batch_id[32:39] for batch_id in lost], tables))
        for table in tables:
            self.store.command(
                f"alter table {self.store.table(table)} delete"
                " where batch_id in {lost:Array(String)} settings mutations_sync = 2",
                {"lost": lost},
            )

    def mend(self) -> None:
        """Take what is not whole out of the ledger, as the operation does."""
        self.is_mended = True
        ledger = self.store.table("raw_batches")
        short = []
        for table, counted in (("raw_traces", "rows"), ("raw_rejects", "rejects")):
            held = f"select batch_id, uniqExact(position) from {self.store.table(table)}"
            short += [
                batch_id
                for (batch_id,) in self.store.query(
                    f"select batch_id from {ledger} where {counted} > 0 and"
                    f" (batch_id, toUInt64({counted})) not in ({held} group by batch_id)"
                )
            ]
        self.steps.append(("mend", len(short)))
        take_out_of_ledger(self.store, "batch_id in {short:Array(String)}", {"short": short})

    def check(self) -> None:
        """Each record is a row under one name, and each other line is listed once."""
        ledger, lost = self.store.table("raw_batches"), self.store.table("raw_lost_batches")
        names: dict[bytes, set[tuple[str, int]]] = {}
        in_ledger = set()
        for first, position, request, is_there in self.store.query(
            f"select {LINE}, request_json, batch_id in (select batch_id from {ledger})"
            f" from {self.store.table('raw_traces')} where batch_id in"
            f" (select batch_id from {ledger} union all select batch_id from {lost})"
        ):
            names.setdefault(request, set()).add((first, position))
            if is_there:
                in_ledger.add(int(request))
        records = {number for number, line in enumerate(self.lines) if line[:1] == b"{"}
        assert in_ledger == records
        assert {int(request) for request, at in names.items() if len(at) > 1} == set()
        listed = Counter(each["head"] for each in list_rejects(self.store, 10**6, True))
        assert listed == Counter(line.decode() for line in self.lines if line[:1] != b"{")


def test_each_line_is_in_one_place_whatever_happened(opened_store: Store, tmp_path: Path) -> None:
    if not opened_store.is_embedded:
        pytest.skip("the same statements, more slowly; tests/loader/test_replay.py runs on both")
    opened_store.ensure_raw_tables()
    print(f"FUZZ_SEED={SEED} FUZZ_HISTORIES={HISTORIES}")
    for seed in range(SEED, SEED + HISTORIES):
        for table in TABLES:
            opened_store.command(f"truncate table {opened_store.table(table)}")
        history = History(opened_store, tmp_path, seed)
        history.go("FUZZ_HISTORIES")
