"""Land subscriptions: who is billed how, and from when on.

A record is `{organization_id, plan_type, cost_source, customer_id, valid_from}`, a line of NDJSON
or a row of CSV, optionally with `known_at`. Owns checking, times in UTC, and that the same record
is landed once. Refuses to change what is there: a correction is a row more, and SQL decides which
of two holds.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from loader.documents import (
    Statements,
    add_file_arguments,
    aware,
    csv_rows,
    find_documents,
    insert_statements,
    object_of,
    read_text,
    shown,
    take_turn,
    utc_moment,
)
from loader.errors import SourceError
from loader.settings import Settings
from loader.sources import Source
from loader.store import Store, open_store

__all__ = ["TABLES", "Subscription", "Summary", "land_subscriptions", "read_subscriptions"]

EXAMPLES = """\
examples:
  python -m loader billing examples/subscriptions.csv
  python -m loader billing subscriptions.ndjson    again: only what is new in it
  python -m loader billing old.csv --restate       what it says holds again, over later corrections
"""

TABLES = ("raw_billing_accounts", "raw_provider_bills")

_REQUIRED = ("organization_id", "valid_from")
# Names of others, taken as they are: with a blank more it is somebody else.
_IDS = ("organization_id", "customer_id")
_OPTIONAL = ("plan_type", "cost_source", "customer_id", "known_at")
_COLUMNS = (
    *("organization_id", "plan_type", "cost_source", "customer_id", "valid_from", "known_at"),
    *("content_hash", "source", "line", "landed_at"),
)
_SHOWN_PROBLEMS = 20


@dataclass(frozen=True)
class Subscription:
    """One statement of how an organization is billed from a time on.

    Attributes
    ----------
    organization_id : str
    plan_type, cost_source, customer_id : str or None
        All None: from then on there is no subscription.
    valid_from : datetime.datetime
        UTC; from this instant on, itself included.
    known_at : datetime.datetime or None
        UTC; when it was known, where the record says so.
    line : int
        Where it stood in its source, from 1.
    """

    organization_id: str
    plan_type: str | None
    cost_source: str | None
    customer_id: str | None
    valid_from: datetime
    known_at: datetime | None
    line: int

    @property
    def terms(self) -> tuple[str | None, str | None, str | None]:
        """What is billed, without when."""
        return (self.plan_type, self.cost_source, self.customer_id)

    @property
    def content_hash(self) -> str:
        """SHA-256 of what the record says, hexadecimal."""
        said = [self.organization_id, *self.terms, self.valid_from.isoformat()]
        said += [self.known_at.isoformat()] if self.known_at else []
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()


@dataclass
class Summary:
    """What a run did: records landed, already there, and rejected."""

    landed: int = 0
    already_there: int = 0
    rejected: int = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_file_arguments(
        parser,
        formats="NDJSON or CSV",
        restate="land what was known before, too, where something else holds since",
    )


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Land the files, print the summary, and return 0, or 1 if records were rejected."""
    sources = find_documents(args.files)
    summary = Summary()
    with open_store(settings, lambda text: print(text, file=sys.stderr)) as store:
        store.ensure_tables("landing/billing_tables.sql", "billing_tables_ddl", TABLES)
        for source in sources:
            problems: list[str] = []
            found = list(read_subscriptions(source, settings, problems))
            with take_turn(store, __file__):  # not while it reads: standard input may be long
                landed = land_subscriptions(store, source.name, found, restate=args.restate)
            summary.landed += landed
            summary.already_there += len(found) - landed
            summary.rejected += len(problems)
            for problem in problems[:_SHOWN_PROBLEMS]:
                print(problem, file=sys.stderr)
            if len(problems) > _SHOWN_PROBLEMS:
                print(f"… and {len(problems) - _SHOWN_PROBLEMS:,} more", file=sys.stderr)
    if args.json:
        print(json.dumps(asdict(summary)))
    else:
        print(
            f"landed {summary.landed:,} subscriptions; {summary.already_there:,} already there; "
            f"{summary.rejected:,} rejected; in {settings.database}.raw_billing_accounts at "
            f"{settings.store_name}"
        )
    return 1 if summary.rejected else 0


def read_subscriptions(
    source: Source, settings: Settings, problems: list[str]
) -> Iterator[Subscription]:
    """Read a source: NDJSON when it begins with a brace, else CSV with a header.

    Parameters
    ----------
    source : Source
    settings : Settings
    problems : list of str
        Gets a line for each record that is none: where, what, what to do.

    Raises
    ------
    SourceError
        If the source cannot be read or its header does not fit.
    """
    text = read_text(source, settings)
    reader = _ndjson_records if text.lstrip()[:1] == "{" else _csv_records
    for line, record in reader(source.name, text):
        try:
            yield _checked(record, line)
        except ValueError as error:
            problems.append(f"{source.name}:{line}: {error}. Mend it and run it again.")


def land_subscriptions(
    store: Store, source_name: str, subscriptions: list[Subscription], *, restate: bool = False
) -> int:
    """Insert those that are new, as one part; return how many.

    Parameters
    ----------
    store : Store
        With the tables there.
    source_name : str
        For the record of where they came from.
    subscriptions : list of Subscription
        In the order of their source: of two for one instant, the later one holds.
    restate : bool
        Land those too that were known before and do not hold any more.

    Notes
    -----
    What a record without `known_at` says is known from its landing on, and later than all that was
    known of that organization and instant before, whatever the clock says.
    """
    table = store.table("raw_billing_accounts")
    now = store.now()
    places = [
        ((organization, aware(valid_from)), known_at, tuple(terms), hashes)
        for organization, valid_from, known_at, terms, hashes in store.query(
            "select organization_id, valid_from, max(known_at) as last_known_at,"
            " argMax((plan_type, cost_source, customer_id),"
            " (known_at, landed_at, line, content_hash)), groupUniqArray(content_hash)"
            f" from {table} group by organization_id, valid_from"
        )
    ]
    statements = Statements(now, places)
    # Of one instant, the last in the source is what it says in the end.
    last = {(one.organization_id, one.valid_from): one for one in subscriptions}
    changed = set()
    rows = []
    for one in subscriptions:
        place = (one.organization_id, one.valid_from)
        is_restated = one.content_hash in statements
        is_to_hold = last[place] is one and (restate or place in changed)
        known_at = statements.admit(one.content_hash, place, one.terms, restate=is_to_hold)
        if known_at is None:
            continue
        if one.known_at is not None and not is_restated:
            known_at = one.known_at
        else:
            changed.add(place)
        rows.append(
            [
                *(one.organization_id, *one.terms, one.valid_from, known_at),
                *(one.content_hash, source_name, one.line, statements.now),
            ]
        )
    insert_statements(store, "raw_billing_accounts", _COLUMNS, rows)
    return len(rows)


def _ndjson_records(name: str, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                record = json.loads(line, object_pairs_hook=object_of)
            except (ValueError, RecursionError) as error:
                record = {"": f"no JSON: {error}"}
            yield number, record if isinstance(record, dict) else {"": "no JSON object"}


def _csv_records(name: str, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        rows = list(csv_rows(text))
    except csv.Error as error:
        raise SourceError(f"{name}: no CSV: {error}. Nothing of it was landed.") from None
    if not rows:
        return
    header = [name.strip() for name in rows[0][1]]
    wrong = [column for column in header if column not in _REQUIRED + _OPTIONAL]
    missing = [column for column in _REQUIRED if column not in header]
    if wrong or missing or len(set(header)) < len(header):
        raise SourceError(
            f"{name}:{rows[0][0]}: the header is {','.join(map(shown, header))}; it needs "
            f"{', '.join(_REQUIRED)} and may have {', '.join(_OPTIONAL)}, each once. Nothing of "
            "it was landed."
        )
    for line, row in rows[1:]:
        record = dict(zip(header, row, strict=False))
        padded = [name for name in _IDS if record.get(name, "") != record.get(name, "").strip()]
        if len(row) != len(header):
            yield line, {"": f"{len(row)} cells instead of {len(header)}"}
        elif padded:
            yield line, {"": f"{padded[0]} has blanks around it: if they belong to it, use NDJSON"}
        else:
            yield line, record


def _checked(record: Mapping[str, Any], line: int) -> Subscription:
    if "" in record:
        raise ValueError(record[""])
    wrong = sorted(set(record) - {*_REQUIRED, *_OPTIONAL})
    if wrong:
        allowed = ", ".join(_REQUIRED + _OPTIONAL)
        raise ValueError(f"unknown key {shown(wrong[0])}: the keys are {allowed}")
    values = {name: _text(name, record.get(name)) for name in _REQUIRED + _OPTIONAL}
    organization_id, valid_from = values["organization_id"], values["valid_from"]
    if organization_id is None or valid_from is None:
        raise ValueError("organization_id and valid_from are both needed")
    known_at = utc_moment(values["known_at"], "known_at") if values["known_at"] else None
    if known_at is not None and known_at > datetime.now(UTC):
        raise ValueError(f"known_at {values['known_at']} lies in the future")
    return Subscription(
        organization_id=organization_id,
        plan_type=values["plan_type"],
        cost_source=values["cost_source"],
        customer_id=values["customer_id"],
        valid_from=utc_moment(valid_from, "valid_from"),
        known_at=known_at,
        line=line,
    )


def _text(name: str, value: Any) -> str | None:
    """Give a value as text; null and the empty text are none."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f"{name} is no text")
    try:
        str(value).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} holds half of a surrogate pair") from None
    text = str(value) if name in _IDS else str(value).strip()
    return text if text.strip() else None
