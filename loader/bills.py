"""Land what providers charge: their cost exports as JSON, or a plain CSV.

Owns reading bills by the descriptions in loader/bills.yml, amounts as exact decimals beside the
text they were written as, and that the same bill is landed once. Refuses to know a provider, to
land a part of a file (a part of a bill is a wrong bill) or a page of it twice, and to change what
is there: of a period that is billed again, the last known holds, which is SQL's to say. A period
that a bill lists without a line takes the place of lines that are there, as a row that says so.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation, localcontext
from pathlib import Path
from typing import Any

from loader.billing import TABLES
from loader.documents import (
    Statements,
    add_file_arguments,
    aware,
    csv_rows,
    find_documents,
    insert_statements,
    json_documents,
    read_text,
    shown,
    take_turn,
    utc_moment,
)
from loader.errors import SourceError
from loader.settings import Settings
from loader.sources import Source
from loader.store import Store, open_store

__all__ = ["BillFormat", "BillLine", "Period", "Summary", "land_periods", "read_bill"]

EXAMPLES = """\
examples:
  python -m loader bills september.json october.json
  python -m loader bills other.csv                 date, amount_usd, provider, model, line_item, …
  python -m loader bills costs.json --account eu   one of several accounts at that provider
"""

_FORMATS = Path(__file__).with_name("bills.yml")
_PLACES = Decimal("0.000000000001")
_DIGITS = 38
_COLUMNS = (
    *("provider", "account", "starts_at", "ends_at", "content_hash", "position", "format"),
    *("project", "model", "line_item", "unit", "service_tier", "amount_text", "amount_usd"),
    *("known_at", "source"),
)
_TEXTS = ("project", "model", "line_item", "unit", "service_tier")


@dataclass(frozen=True)
class BillFormat:
    """A description in loader/bills.yml; what the keys mean is said there."""

    name: str
    kind: str
    fields: Mapping[str, str]
    divisor: int
    provider: str = ""
    has: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    match: Mapping[str, str] = field(default_factory=dict)
    first_bucket: tuple[str, ...] = ()
    first_row: tuple[str, ...] = ()
    buckets: str = ""
    rows: str = ""

    def fits(self, document: Mapping[str, Any]) -> bool:
        """Say whether a document (or a CSV header, as a mapping) is of this format."""
        if any(key not in document for key in self.has) or any(
            key in document for key in self.lacks
        ):
            return False
        if any(document.get(key) != value for key, value in self.match.items()):
            return False
        buckets = _objects(document.get(self.buckets) or []) if self.buckets else []
        rows = [row for bucket in buckets for row in _objects(bucket.get(self.rows) or [])]
        return all(key in bucket for bucket in buckets[:1] for key in self.first_bucket) and all(
            key in row for row in rows[:1] for key in self.first_row
        )


@dataclass(frozen=True)
class BillLine:
    """One amount of a bill, for a period.

    Attributes
    ----------
    provider : str
    starts_at, ends_at : datetime.datetime
        UTC.
    texts : tuple of str
        project, model, line_item, unit, service_tier; '' where the bill does not say.
    amount_text : str
        As it was written; '' where the bill lists the period and charges nothing for it.
    amount_usd : decimal.Decimal
        To twelve decimals.
    """

    provider: str
    starts_at: datetime
    ends_at: datetime
    texts: tuple[str, ...]
    amount_text: str
    amount_usd: Decimal


@dataclass(frozen=True)
class Period:
    """All lines of a provider for one period, as one file has them: they stand or fall together."""

    format: str
    lines: tuple[BillLine, ...]

    @property
    def is_empty(self) -> bool:
        """Whether the bill has no line for the period; one row says so."""
        return not self.lines[0].amount_text

    @property
    def content_hash(self) -> str:
        """SHA-256 of what the lines say, hexadecimal."""
        said = [
            [line.ends_at.isoformat(), *line.texts, line.amount_text, str(line.amount_usd)]
            for line in self.lines
        ]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()


@dataclass
class Summary:
    """What a run did."""

    periods: int = 0
    lines: int = 0
    periods_already_there: int = 0
    periods_emptied: int = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_file_arguments(
        parser,
        formats="JSON or CSV",
        restate="land what was known before, too, where another bill of that period came since",
    )
    parser.add_argument(
        "--provider", metavar="NAME", help="whose bill it is, as traces name the provider"
    )
    parser.add_argument(
        "--account", default="", metavar="NAME", help="which of several accounts there"
    )


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Land the files and print the summary."""
    formats = read_formats()
    sources = find_documents(args.files)
    # All files are read before the first is landed: a bill that is broken lands nothing.
    bills = [
        (source.name, read_bill(source, settings, formats, args.provider)) for source in sources
    ]
    summary = Summary()
    with open_store(settings, lambda text: print(text, file=sys.stderr)) as store:
        store.ensure_tables("landing/billing_tables.sql", "billing_tables_ddl", TABLES)
        with take_turn(store, __file__):
            for name, periods in bills:
                landed = land_periods(store, name, periods, args.account, restate=args.restate)
                filled = [period for period in landed if not period.is_empty]
                charged = [period for period in periods if not period.is_empty]
                summary.periods += len(filled)
                summary.lines += sum(len(period.lines) for period in filled)
                summary.periods_already_there += len(charged) - len(filled)
                summary.periods_emptied += len(landed) - len(filled)
    if args.json:
        print(json.dumps(asdict(summary)))
    else:
        print(
            f"landed {summary.lines:,} lines of {summary.periods:,} days; "
            f"{summary.periods_already_there:,} days already there; in "
            f"{settings.database}.raw_provider_bills at {settings.store_name}"
        )
        if summary.periods_emptied:
            print(f"{summary.periods_emptied:,} days that were charged are listed without a charge")
    return 0


def read_formats(path: Path = _FORMATS) -> tuple[BillFormat, ...]:
    """Read the descriptions of bills."""
    import yaml

    formats = []
    for name, entry in yaml.safe_load(path.read_text())["formats"].items():
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
        }
        formats.append(BillFormat(name=name, **values))
    return tuple(formats)


def read_bill(
    source: Source,
    settings: Settings,
    formats: Iterable[BillFormat],
    provider: str | None = None,
) -> list[Period]:
    """Read a file to its end, or not at all.

    Parameters
    ----------
    source : Source
    settings : Settings
    formats : iterable of BillFormat
        The first that fits is the one.
    provider : str, optional
        Whose bill it is; overrides the format's own and a CSV's column.

    Raises
    ------
    SourceError
        If it is no such bill, or a line cannot be read; the message says which.
    """
    text = read_text(source, settings)
    formats = tuple(formats)
    try:
        if text.lstrip()[:1] in ("{", "["):
            found = _json_lines(text, formats, provider)
        else:
            found = _csv_lines(text, formats, provider)
        # Who, and from when: the lines of all pages for that period.
        places: dict[tuple[str, datetime], list[tuple[str, BillLine]]] = {}
        for bill_format, line in found:
            places.setdefault((line.provider, line.starts_at), []).append((bill_format, line))
        return [_period(lines) for lines in places.values()]
    except (ValueError, csv.Error) as error:
        raise SourceError(f"{source.name}: {error}. Nothing of it was landed.") from None


def _period(found: list[tuple[str, BillLine]]) -> Period:
    """Make a period of its lines; what one page lists without a line may have lines on another."""
    charged = [(bill_format, line) for bill_format, line in found if line.amount_text]
    formats = sorted({bill_format for bill_format, _ in charged})
    if len(formats) > 1:
        line = charged[0][1]
        raise ValueError(
            f"{line.provider} charges for {line.starts_at:%Y-%m-%d} in two formats, "
            f"{' and '.join(formats)}: land each from a file of its own, as an --account of its own"
        )
    lines = charged or found[:1]
    return Period(lines[0][0], tuple(line for _, line in lines))


def land_periods(
    store: Store,
    source_name: str,
    periods: Iterable[Period],
    account: str = "",
    *,
    restate: bool = False,
) -> list[Period]:
    """Insert the periods that are new, as one part; return them.

    A period without a line is new where there are lines that it takes the place of.

    Parameters
    ----------
    store : Store
        With the tables there.
    source_name : str
        For the record of where they came from.
    periods : iterable of Period
    account : str
        Which of several accounts at that provider.
    restate : bool
        Land those too that were known before and do not hold any more.
    """
    table = store.table("raw_provider_bills")
    now = store.now()
    found = store.query(
        "select provider, starts_at, max(known_at) as last_known_at,"
        " argMax(content_hash, (known_at, content_hash)), groupUniqArray(content_hash)"
        f" from {table} where account = {{account:String}} group by provider, starts_at",
        {"account": account},
    )
    places = [
        (place, known_at, said, [(*place, content_hash) for content_hash in hashes])
        for provider, starts_at, known_at, said, hashes in found
        for place in [(provider, aware(starts_at))]
    ]
    statements = Statements(now, places)
    known = {place for place, *_ in places}
    landed, rows = [], []
    for period in periods:
        first, content_hash = period.lines[0], period.content_hash
        place = (first.provider, first.starts_at)
        if period.is_empty and place not in known:
            continue
        known_at = statements.admit((*place, content_hash), place, content_hash, restate=restate)
        if known_at is None:
            continue
        landed.append(period)
        for position, line in enumerate(period.lines):
            rows.append(
                [
                    *(line.provider, account, line.starts_at, line.ends_at),
                    *(content_hash, position, period.format, *line.texts),
                    *(line.amount_text, line.amount_usd, known_at, source_name),
                ]
            )
    insert_statements(store, "raw_provider_bills", _COLUMNS, rows)
    return landed


def _json_lines(
    text: str, formats: tuple[BillFormat, ...], provider: str | None
) -> Iterator[tuple[str, BillLine]]:
    # Which line of what period: the bucket that has it.
    charged: dict[tuple[str, datetime, tuple[str, ...]], str] = {}
    for page, document in enumerate(json_documents(text), start=1):
        bill = _recognised(document, [one for one in formats if one.kind == "json"], f"page {page}")
        for number, bucket in enumerate(_objects(document[bill.buckets])):
            where = f"page {page}, {bill.buckets}[{number}]"
            if not isinstance(bucket.get(bill.rows), list):
                raise ValueError(f"{where}: {bill.rows}, the list of what was charged, is missing")
            for index, row in enumerate(_objects(bucket.get(bill.rows))):
                place = f"{where}.{bill.rows}[{index}]"
                line = _line(bill, {"bucket": bucket, **row}, provider, place)
                # Other lines of the period may stand there: it may be exported in parts.
                same = charged.setdefault((line.provider, line.starts_at, line.texts), where)
                if same != where:
                    raise ValueError(
                        f"{place} is a line of {line.starts_at:%Y-%m-%d} that {same} has too, and "
                        "would be charged twice: remove the older page; parts of a day whose lines "
                        "do not differ land as an --account each"
                    )
                yield bill.name, line
            if bucket.get(bill.rows) == [] and bill.fields["starts_at"].startswith("bucket."):
                yield bill.name, _line(bill, {"bucket": bucket}, provider, where, is_empty=True)


def _csv_lines(
    text: str, formats: tuple[BillFormat, ...], provider: str | None
) -> Iterator[tuple[str, BillLine]]:
    rows = csv_rows(text)
    number, names = next(rows, (1, [""]))
    header = [name.strip() for name in names]
    columns = dict.fromkeys(header, "")
    bill = _recognised(columns, [one for one in formats if one.kind == "csv"], f"line {number}")
    wrong = [name for name in header if name not in bill.fields.values()]
    if wrong or len(columns) < len(header):
        allowed = ", ".join(bill.fields.values())
        raise ValueError(f"line {number}: the columns may be {allowed}, each once")
    for number, row in rows:
        if len(row) != len(header):
            raise ValueError(f"line {number}: {len(row)} cells instead of {len(header)}")
        yield (
            bill.name,
            _line(bill, dict(zip(header, row, strict=True)), provider, f"line {number}"),
        )


def _recognised(document: Any, formats: list[BillFormat], where: str) -> BillFormat:
    if isinstance(document, dict):
        for one in formats:
            if one.fits(document):
                return one
    names = ", ".join(one.name for one in formats)
    raise ValueError(f"{where}: no bill of a known format ({names}; see loader/bills.yml)")


def _line(
    bill: BillFormat,
    row: Mapping[str, Any],
    provider: str | None,
    where: str,
    *,
    is_empty: bool = False,
) -> BillLine:
    values = {name: _at(row, path) for name, path in bill.fields.items()}
    for name, value in values.items():
        if not (value is None or isinstance(value, str)):
            raise ValueError(f"{where}: {bill.fields[name]} is no text and no number")
    texts = {name: str(value).strip() for name, value in values.items() if value is not None}
    owner = provider or texts.get("provider") or bill.provider
    if not owner:
        raise ValueError(f"{where}: no provider is named: add the column, or say --provider NAME")
    currency = texts.get("currency", "usd")
    if currency.lower() != "usd":
        raise ValueError(f"{where}: the currency is {shown(currency)}: only USD can be compared")
    for name in ("starts_at",) if is_empty else ("starts_at", "amount"):
        if not texts.get(name):
            raise ValueError(f"{where}: {bill.fields[name]} is missing")
    starts_name, ends_name = bill.fields["starts_at"], bill.fields.get("ends_at", "")
    try:
        starts_at = utc_moment(texts["starts_at"], starts_name)
        ends_at = utc_moment(texts["ends_at"], ends_name) if texts.get("ends_at") else None
        amount_usd = Decimal(0) if is_empty else _amount(texts["amount"], bill)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return BillLine(
        provider=owner,
        starts_at=starts_at,
        ends_at=ends_at or starts_at + timedelta(days=1),
        texts=tuple(texts.get(name, "") for name in _TEXTS),
        amount_text="" if is_empty else texts["amount"],
        amount_usd=amount_usd,
    )


def _amount(text: str, bill: BillFormat) -> Decimal:
    """Read an amount exactly, in whole currency units, to twelve decimals."""
    wrong = f"{bill.fields['amount']} is no amount: write it like 12.34"
    if "_" in text:  # which Python allows between digits
        raise ValueError(wrong)
    try:
        with localcontext(prec=2 * _DIGITS, rounding=ROUND_HALF_EVEN):
            value = Decimal(text) / bill.divisor
            amount = value.quantize(_PLACES)
    except (InvalidOperation, ValueError):
        raise ValueError(wrong) from None
    if not amount.is_finite() or len(amount.as_tuple().digits) > _DIGITS:
        raise ValueError(wrong)
    return amount


def _at(row: Mapping[str, Any], path: str) -> Any:
    value: Any = row
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _objects(value: Any) -> list[dict[str, Any]]:
    """Give a list's objects."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError("the list of periods or lines is no list of objects")
    return value
