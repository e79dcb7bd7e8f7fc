"""Small files read whole, and landed as statements of which the last known holds.

Owns what billing and bills share: reading with a limit, exact numbers (a JSON number stays the text
it was written as), times turned to UTC, that a statement is landed once, and that runs take turns.
Refuses to know what the documents are about, and to change what is landed: a correction is a
statement more.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from loader.errors import (
    BrokenError,
    ExpansionError,
    SourceError,
    SourceTakenError,
    StoreError,
    UsageError,
)
from loader.settings import MEBIBYTE, Settings
from loader.sources import STDIN, Source, find_sources, hold
from loader.store import Store

__all__ = [
    *("MAX_BYTES", "JsonNumber", "Statements", "add_file_arguments"),
    *("as_json_value", "aware"),
    *("csv_rows", "insert_statements", "json_documents", "object_of", "read_text", "shown"),
    *("take_turn", "utc_moment"),
]

MAX_BYTES = 256 * MEBIBYTE


class Statements:
    """What a table of statements holds already, and which of those to come are new.

    A statement is about a place: an organization and an instant, a provider's period. What is
    landed stays; of a place, the statement that was known last holds.

    Parameters
    ----------
    now : datetime.datetime
        The store's time, asked before the rest was: what landed too late to be found, and what
        corrects that, is later. So a run that looked before a correction came does not undo it,
        however late its insert takes effect.
    places : iterable of (place, datetime.datetime, hashable, collection of hashable)
        Of each place, when its last statement was known, what it says, and the keys of all that are
        landed. Of one query: a correction is not seen without what it corrects.
    """

    def __init__(
        self,
        now: datetime,
        places: Iterable[tuple[Hashable, datetime, Hashable, Collection[Hashable]]],
    ) -> None:
        self.now = now
        self._there: set[Hashable] = set()
        self._last: dict[Hashable, tuple[datetime, Hashable]] = {}
        for place, known_at, said, keys in places:
            self._there.update(keys)
            self._last[place] = aware(known_at), said

    def __contains__(self, key: Hashable) -> bool:
        return key in self._there

    def admit(
        self, key: Hashable, place: Hashable, said: Hashable, *, restate: bool = False
    ) -> datetime | None:
        """Take a statement in, unless it is there.

        Parameters
        ----------
        key : hashable
            Which statement it is.
        place : hashable
            What it is about.
        said : hashable
            What it says of that.
        restate : bool
            Take it in again where something else holds since.

        Returns
        -------
        datetime.datetime or None
            From when on it counts as known: from now on, and later than all that was known of its
            place, whatever the clock says. None: it is there, and not to be landed.
        """
        before = self._last.get(place)
        if key in self._there and not (restate and before is not None and before[1] != said):
            return None
        known_at = (
            self.now if before is None else max(self.now, before[0] + timedelta(microseconds=1))
        )
        self._there.add(key)
        self._last[place] = known_at, said
        return known_at


def insert_statements(
    store: Store, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
) -> None:
    """Insert statements as one part, and read back that they are there.

    Parameters
    ----------
    store : Store
    table : str
        It has the columns `content_hash`, `known_at` and `source`.
    columns : sequence of str
    rows : sequence of sequences
        Of one source.

    Raises
    ------
    StoreError
        If the insert failed, or said that it worked and they are not there.
    """
    if not rows:
        return
    store.insert_rows(table, columns, rows)
    hash_at, known_at, source_at = map(columns.index, ("content_hash", "known_at", "source"))
    found = store.query(
        f"select distinct content_hash, known_at from {store.table(table)}"
        " where source = {source:String}",
        {"source": rows[0][source_at]},
    )
    there = {(content_hash, aware(moment)) for content_hash, moment in found}
    missing = {(row[hash_at], row[known_at]) for row in rows} - there
    if missing:
        raise StoreError(
            f"the store {store.settings.store_name} does not hold {len(missing):,} of what was "
            f"inserted into {table}. Run it again: what is there is not landed twice."
        )


@contextlib.contextmanager
def take_turn(store: Store, path: str | None) -> Iterator[None]:
    """Let the runs of this machine look at what is landed, and land what is new, one by one.

    A run that is killed ends its turn. Runs of other machines, and inserts that go on in a server
    after their run has ended, are not waited for: what lands has to be right with them, too.

    Parameters
    ----------
    store : Store
        An embedded one is this process's own: no turns are needed.
    path : str or None
        A file of the package that has what is to land, or reads it: it is held for the turn.

    Raises
    ------
    SourceTakenError
        If another process holds the file for longer than the limit.
    """
    if store.is_embedded or path is None:
        yield
        return
    path = os.path.realpath(path)  # links are how some installers place files
    seconds = store.settings.lock_timeout
    with contextlib.ExitStack() as turn:
        try:
            turn.enter_context(
                hold(
                    Source(path, path, True),
                    seconds,
                    lambda text: print(f"another run lands too: {text}", file=sys.stderr),
                )
            )
        except SourceTakenError:
            raise SourceTakenError(
                "another run of this verb is landing: run it again when that is done, or wait "
                f"longer (TOKENLEDGER_LOCK_TIMEOUT, now {seconds:g} s)."
            ) from None
        yield


def add_file_arguments(parser: argparse.ArgumentParser, formats: str, restate: str) -> None:
    """Declare the arguments of a verb that lands documents.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    formats : str
        What the files may be.
    restate : str
        What `--restate` does.
    """
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help=f"{formats}; - or nothing: standard input"
    )
    parser.add_argument("--restate", action="store_true", help=restate)
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def as_json_value(value: Any) -> str:
    """Write what JSON has no type for: a decimal exactly, in digits and as text, never a float."""
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


def aware(moment: datetime) -> datetime:
    """Give a time that the store returned its time zone, UTC, where it has none."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class JsonNumber(str):
    """A JSON number, as the text it was written as: no float ever stands between."""


def find_documents(files: Sequence[str]) -> list[Source]:
    """Give the files, or standard input where none is named.

    Raises
    ------
    UsageError
        If one is a folder: of that only what traces are in would be read.
    SourceError
        If one is missing.
    """
    for name in files:
        if Path(name).is_dir():
            raise UsageError(f"{name}: is a folder: name its files, as in {name.rstrip('/')}/*.")
    sources, _ = find_sources(files or [STDIN])
    return sources


def read_text(source: Source, settings: Settings) -> str:
    """Read a source to its end, decompressed.

    Raises
    ------
    SourceError
        If it cannot be read, is no UTF-8, or is larger than 256 MiB.
    """
    stream = source.open(settings)
    parts: list[bytes] = []
    try:
        while part := stream.read():
            parts.append(part)
            if stream.offset > MAX_BYTES:
                raise SourceError(
                    f"{source.name}: larger than {MAX_BYTES // MEBIBYTE} MiB. Nothing of it was "
                    "landed; split it."
                )
    except ExpansionError:
        raise
    except BrokenError:
        raise SourceError(
            f"{source.name}: ends early, or is damaged. Nothing of it was landed."
        ) from None
    finally:
        stream.close()
    try:
        return b"".join(parts).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{source.name}: no UTF-8 at byte {error.start}. Nothing of it was landed."
        ) from None


def csv_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """Give the rows of a CSV text that are not blank, each with the number of its last line.

    Raises
    ------
    csv.Error
        If a quote does not end or a cell is larger than the csv module's limit.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    for row in reader:
        if any(cell.strip() for cell in row):
            yield reader.line_num, row


def json_documents(text: str) -> Iterator[Any]:
    """Give the JSON documents of a text, one after the other, numbers as `JsonNumber`.

    An array at the top counts as its elements, so that a list of pages is the same as the pages.

    Raises
    ------
    ValueError
        If the text is no JSON; the message says where.
    """
    decoder = json.JSONDecoder(
        parse_float=JsonNumber, parse_int=JsonNumber, object_pairs_hook=object_of
    )
    end = _skip_space(text, 0)
    while end < len(text):
        try:
            document, end = decoder.raw_decode(text, end)
        except RecursionError:
            raise ValueError("nested too deep") from None
        end = _skip_space(text, end)
        if isinstance(document, list):
            yield from document
        else:
            yield document


def object_of(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object of its keys and values, for the `json` module.

    Raises
    ------
    ValueError
        If a key stands twice: who is charged would depend on the reader.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"the key {shown(twice)} stands twice")
    return found


def shown(name: str) -> str:
    """Give a key, or a column's name, to be named in a message; anything longer may be a payload.

    A file may be another than was meant.
    """
    return name if re.fullmatch("[a-z_]{1,20}", name) else "(not shown)"


def utc_moment(value: str, name: str) -> datetime:
    """Turn a time to UTC: ISO 8601 (UTC where it names no zone), a date, or Unix seconds.

    Parameters
    ----------
    value : str
        The time.
    name : str
        What it stands under, for the message.

    Raises
    ------
    ValueError
        If it is none of these, or lies outside 1970 to 2262.
    """
    text = value.strip()
    try:
        if text.isascii() and text.isdigit() and len(text) > 8:
            # Not fromtimestamp: its range is the platform's.
            moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=int(text))
        elif len(text) == 10:
            day = date.fromisoformat(text)
            moment = datetime(day.year, day.month, day.day, tzinfo=UTC)
        else:
            moment = datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        moment = datetime(1, 1, 1, tzinfo=UTC)
    if not 1970 <= moment.year < 2262:
        raise ValueError(f"{name} is no time: write it like 2026-11-01T00:00:00Z")
    return moment


def _skip_space(text: str, start: int) -> int:
    while start < len(text) and text[start] in " \t\r\n":
        start += 1
    return start
