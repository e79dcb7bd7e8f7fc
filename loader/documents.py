"""Small files read whole: text, CSV rows, JSON documents, times.

Owns what billing and bills share: reading with a limit, exact numbers (a JSON number stays the text
it was written as), and times turned to UTC. Refuses to know what the documents are about.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

from loader.errors import SourceError
from loader.settings import MEBIBYTE, Settings
from loader.sources import Source

__all__ = ["MAX_BYTES", "JsonNumber", "csv_rows", "json_documents", "read_text", "utc_moment"]

MAX_BYTES = 256 * MEBIBYTE


class JsonNumber(str):
    """A JSON number, as the text it was written as: no float ever stands between."""


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
            yield reader.line_num, [cell.strip() for cell in row]


def json_documents(text: str) -> Iterator[Any]:
    """Give the JSON documents of a text, one after the other, numbers as `JsonNumber`.

    An array at the top counts as its elements, so that a list of pages is the same as the pages.

    Raises
    ------
    ValueError
        If the text is no JSON; the message says where.
    """
    decoder = json.JSONDecoder(parse_float=JsonNumber, parse_int=JsonNumber)
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


def utc_moment(value: str) -> datetime:
    """Turn a time to UTC: ISO 8601 (UTC where it names no zone), a date, or Unix seconds.

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
        raise ValueError(f"{value!r} is no time: write it like 2026-11-01T00:00:00Z")
    return moment


def _skip_space(text: str, start: int) -> int:
    while start < len(text) and text[start] in " \t\r\n":
        start += 1
    return start
