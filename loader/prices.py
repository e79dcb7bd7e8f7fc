"""Land the price book: the prices and matching rules of the installed genai-prices package.

Owns flattening the package's data into rows, exactly: versions are kept, landing one again changes
nothing, and two can be compared. Refuses to know a provider, to choose a price, or to reckon with
one: that is SQL's. A price that has no exact decimal is an error, never rounded.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal, localcontext
from importlib.metadata import version
from typing import Any

from loader.documents import as_json_value, take_turn
from loader.errors import LoaderError, StoreError, UsageError
from loader.settings import Settings
from loader.store import Store, open_store

__all__ = ["PriceBook", "add_arguments", "diff_books", "land_book", "read_book", "run"]

EXAMPLES = """\
examples:
  python -m loader prices                 land the installed package's prices; again: nothing new
  python -m loader prices --list          the versions that are landed
  python -m loader prices --diff V1 V2    what changed from one version to another
  python -m loader prices --diff V1 V2 --json
"""

PACKAGE = "genai-prices"
TABLES = ("raw_prices", "raw_price_rules", "raw_price_books")

PRICE_COLUMNS = (
    *("price_row", "provider", "model", "match_rule", "valid_from", "valid_to"),
    *("window_start", "window_end", "weekdays", "time_zone"),
    *("tier_start", "is_tier_start_inclusive", "service_tier", "region", "condition"),
    *("unit", "unit_price_usd", "precedence", "source"),
)
RULE_COLUMNS = (
    *("rule_kind", "provider", "model", "rule_position", "clause"),
    *("operator", "operand", "is_negated"),
)

# Prices a unit are kept to this many decimals: a twelfth of a dollar a million tokens takes 22.
_DECIMALS = 24
# The package lists dated prices with the last one winning, and variants (of a service tier, for
# example) with the first one winning, before any of those.
_BASE_PRECEDENCE = 1_000_000

# What the package calls a condition, and the column that holds it here.
_CONDITION_COLUMNS = {
    "service_tier": "service_tier",
    "processing": "service_tier",
    "speed": "service_tier",
    "route": "region",
}

_OPERATORS = ("equals", "starts_with", "ends_with", "contains", "regex")
_LEADING_LOOKAHEAD = re.compile(r"\^\(\?!((?:[^()\\]|\\.|\((?:[^()\\]|\\.)*\))*)\)(.*)", re.DOTALL)
_LOOKAROUND = re.compile(r"\(\?(?:[=!]|<[=!])|\\[1-9]")

# operator, operand, whether it is negated
Condition = tuple[str, str, bool]


class PriceBookError(LoaderError):
    """The installed package's data does not fit the tables of prices."""


@dataclass(frozen=True)
class PriceBook:
    """All of one version: rows as mappings from column to value.

    Attributes
    ----------
    package_version : str
        Version of the package.
    content_hash : str
        SHA-256 over all rows, hexadecimal.
    prices, rules : tuple of dict
        Rows of raw_prices and raw_price_rules, without version and landing time.
    providers, models : int
        How many the book has.
    """

    package_version: str
    content_hash: str
    prices: tuple[dict[str, Any], ...] = field(repr=False)
    rules: tuple[dict[str, Any], ...] = field(repr=False)
    providers: int = 0
    models: int = 0

    @property
    def version(self) -> str:
        """The name of this version: the package's own and what it says."""
        return f"{self.package_version}+{self.content_hash[:12]}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--list", action="store_true", help="list the versions that are landed")
    choice.add_argument(
        "--diff", nargs=2, metavar=("V1", "V2"), help="print what changed between two versions"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Land the book, or list or compare those that are landed."""
    with open_store(settings) as store:
        store.ensure_tables("landing/price_tables.sql", "price_tables_ddl", TABLES)
        if args.list:
            _print_books(store, args.json)
        elif args.diff:
            _print_diff(diff_books(store, *args.diff), args.json)
        else:
            book = read_book()
            with take_turn(store, _package_file()):
                is_new = land_book(store, book)
            if args.json:
                summary = {"price_book_version": book.version, "landed": is_new}
                sizes = {"providers": book.providers, "models": book.models}
                counts = {"prices": len(book.prices), "rules": len(book.rules)}
                print(json.dumps(summary | sizes | counts))
            else:
                print(
                    f"{'landed' if is_new else 'already there:'} price book {book.version}: "
                    f"{len(book.prices):,} prices of {book.models:,} models at "
                    f"{book.providers:,} providers; in {settings.database}.raw_prices at "
                    f"{settings.store_name}"
                )
    return 0


def read_book(
    providers: Sequence[Any] | None = None, units: Mapping[str, Mapping[str, Any]] | None = None
) -> PriceBook:
    """Flatten the package's data.

    Parameters
    ----------
    providers : sequence of genai_prices.types.Provider, optional
        The data; the installed package's own by default.
    units : mapping, optional
        The package's definition of units, by usage key.

    Returns
    -------
    PriceBook
        The same data give the same rows in the same order, and so the same version.

    Raises
    ------
    PriceBookError
        If a price has no exact decimal of 24 places, or a rule cannot be expressed.
    """
    if providers is None:
        from genai_prices.data import providers as installed_providers

        providers = installed_providers
    if units is None:
        from genai_prices.data_units import unit_data

        units = unit_data
    per_price_key = {
        str(unit.get("price_key", name)): (name, int(unit["per"])) for name, unit in units.items()
    }
    prices: list[dict[str, Any]] = []
    rules: list[dict[str, Any]] = []
    for provider in providers:
        for model in provider.models:
            prices.extend(_model_prices(provider, model, per_price_key))
    for number, row in enumerate(prices, start=1):
        row["price_row"] = number
    rules.extend(_provider_rules(providers))
    rules.extend(_model_rules(providers))
    content = json.dumps([prices, rules], sort_keys=True, default=str).encode()
    return PriceBook(
        package_version=version(PACKAGE),
        content_hash=hashlib.sha256(content).hexdigest(),
        prices=tuple(prices),
        rules=tuple(rules),
        providers=len(providers),
        models=sum(len(provider.models) for provider in providers),
    )


def land_book(store: Store, book: PriceBook) -> bool:
    """Land a version, unless it is there whole: rows first, read back, then the ledger.

    What a killed run has left of it or was removing, a damaged disk, or two runs at once, is landed
    anew. A statement of it that a server still runs, since its answer was lost, is waited for.

    Returns
    -------
    bool
        Whether rows were landed now.

    Raises
    ------
    StoreError
        If the store refuses, or did not keep what was inserted. Run again, it begins anew.
    """
    query_id = f"prices-{book.version}-"
    store.wait_where_seen(query_id, f"price book {book.version}")
    # Each name is another: a server refuses one that it runs already.
    query_id += uuid.uuid4().hex
    *held, in_ledger = _held(store, book)
    wanted = [len(book.prices), len(book.rules)]
    removing = [store.is_removing(table, f"'{book.version}'") for table in TABLES[:2]]
    if in_ledger and held == wanted and not any(removing):
        return False
    landed_at = datetime.now(UTC)
    for table, columns, rows, count, is_removing in (
        ("raw_prices", PRICE_COLUMNS, book.prices, held[0], removing[0]),
        ("raw_price_rules", RULE_COLUMNS, book.rules, held[1], removing[1]),
    ):
        if count == len(rows) and not is_removing:
            continue
        if count:
            store.command(
                f"alter table {store.table(table)} delete"
                " where price_book_version = {version:String} settings mutations_sync = 2",
                {"version": book.version},
                f"{query_id}-{table}",
            )
        values = [[book.version, *(row[name] for name in columns), landed_at] for row in rows]
        store.insert_rows(table, ("price_book_version", *columns, "landed_at"), values, query_id)
    # Of both tables, as late as can be: another machine may land the same book at the same time.
    *held, in_ledger = _held(store, book)
    if held != wanted:
        raise StoreError(
            f"the store {store.settings.store_name} holds {held[0]:,} prices and {held[1]:,} rules "
            f"of price book {book.version} instead of {wanted[0]:,} and {wanted[1]:,}; another "
            "process lands it too, perhaps. Run it again when that is done: it lands them anew."
        )
    if not in_ledger:
        ledger = {
            "price_book_version": book.version,
            "package": PACKAGE,
            "package_version": book.package_version,
            "content_hash": book.content_hash,
            "providers": book.providers,
            "models": book.models,
            "prices": len(book.prices),
            "rules": len(book.rules),
            "landed_at": datetime.now(UTC),
        }
        store.insert_rows("raw_price_books", tuple(ledger), [tuple(ledger.values())], query_id)
        if not _held(store, book)[2]:
            raise StoreError(
                f"the store {store.settings.store_name} has no row of price book {book.version} in "
                "raw_price_books after inserting it. Run it again."
            )
    return True


def _held(store: Store, book: PriceBook) -> list[int]:
    """Count what each of the tables holds of a version: prices, rules, rows of the ledger."""
    counts = (
        f"(select count() from {store.table(table)} where price_book_version = {{version:String}})"
        for table in TABLES
    )
    return list(store.query(f"select {', '.join(counts)}", {"version": book.version})[0])


def _package_file() -> str | None:
    """Give the file that the book is read from: the runs of one machine hold it by turns."""
    from genai_prices import data

    return data.__file__


def diff_books(store: Store, old: str, new: str) -> list[dict[str, Any]]:
    """List the prices that two landed versions do not share.

    Parameters
    ----------
    store : Store
        Where both are landed.
    old, new : str
        Versions, or beginnings of one version's name each.

    Returns
    -------
    list of dict
        One a price: `change` (added, removed, changed), what it is the price of, `old_usd` and
        `new_usd` a unit as Decimal, None where there is none.
    """
    versions = {"old": _landed_version(store, old), "new": _landed_version(store, new)}
    key = (
        "provider, model, unit, valid_from, window_start, window_end, weekdays, time_zone,"
        " tier_start, is_tier_start_inclusive, service_tier, region, condition"
    )
    rows = store.query(
        f"select {key},"
        " anyIf(toString(unit_price_usd), price_book_version = {old:String}) as old_usd,"
        " anyIf(toString(unit_price_usd), price_book_version = {new:String}) as new_usd"
        f" from {store.table('raw_prices')}"
        " where price_book_version in ({old:String}, {new:String})"
        f" group by {key} having old_usd != new_usd order by {key}",
        versions,
    )
    names = [name.strip() for name in key.split(",")]
    changes = []
    for *parts, old_usd, new_usd in rows:
        change = "added" if not old_usd else "removed" if not new_usd else "changed"
        prices = {
            "old_usd": Decimal(old_usd) if old_usd else None,
            "new_usd": Decimal(new_usd) if new_usd else None,
        }
        changes.append({"change": change} | dict(zip(names, parts, strict=True)) | prices)
    return changes


def _landed_version(store: Store, text: str) -> str:
    found = store.query(
        f"select distinct price_book_version from {store.table('raw_price_books')}"
        " where startsWith(price_book_version, {text:String}) order by 1",
        {"text": text},
    )
    exact = [row for row in found if row[0] == text]
    if len(exact or found) != 1:
        which = "is not landed" if not found else "is the beginning of several versions"
        raise UsageError(
            f"price book {text!r} {which}: `python -m loader prices --list` names those there are."
        )
    return str((exact or found)[0][0])


def _model_prices(
    provider: Any, model: Any, per_price_key: Mapping[str, tuple[str, int]]
) -> Iterator[dict[str, Any]]:
    """Give the rows of a model: its dated prices, then its variants."""
    rule = json.dumps(_rule_as_json(model.match))
    source = (provider.pricing_urls or [""])[0]
    shared = {
        "provider": provider.id,
        "model": model.id,
        "match_rule": rule,
        "source": f"{PACKAGE}: {source}" if source else PACKAGE,
    }
    dated = model.prices if isinstance(model.prices, list) else [None]
    starts = [_start(getattr(entry, "constraint", None)) for entry in dated]
    for index, entry in enumerate(dated):
        period = _period(getattr(entry, "constraint", None))
        if not period["window_start"]:
            later = [start for start in starts[index + 1 :] if start is not None]
            period["valid_to"] = min(later, default=None)
        values = model.prices if entry is None else entry.prices
        yield from _unit_rows(
            shared | period | _when({}) | {"precedence": _BASE_PRECEDENCE - index},
            values,
            per_price_key,
        )
    for index, variant in enumerate(model.price_variants or []):
        yield from _unit_rows(
            shared | _period(variant.constraint) | _when(variant.when) | {"precedence": index + 1},
            variant.prices,
            per_price_key,
        )


def _start(constraint: Any) -> date | None:
    return getattr(constraint, "start_date", None)


def _period(constraint: Any) -> dict[str, Any]:
    period: dict[str, Any] = {
        "valid_from": _start(constraint),
        "valid_to": None,
        "window_start": "",
        "window_end": "",
        "weekdays": [],
        "time_zone": "UTC",
    }
    if hasattr(constraint, "start_time"):
        period |= {
            "window_start": _utc_time(constraint.start_time),
            "window_end": _utc_time(constraint.end_time),
        }
    elif constraint is not None and period["valid_from"] is None:
        raise PriceBookError(
            f"the installed {PACKAGE} has a condition that is no date and no time of day: "
            f"{constraint!r}. Install the version that this project pins."
        )
    return period


def _utc_time(moment: Any) -> str:
    if moment.tzinfo is None:
        return str(moment.strftime("%H:%M:%S"))
    return datetime.combine(date(1970, 1, 2), moment).astimezone(UTC).strftime("%H:%M:%S")


def _when(conditions: Mapping[str, str]) -> dict[str, str]:
    columns = {"service_tier": "", "region": "", "condition": ""}
    others: dict[str, str] = {}
    for name, value in conditions.items():
        column = _CONDITION_COLUMNS.get(name)
        if column is None or columns[column]:
            others[name] = value
        else:
            columns[column] = value
    if others:
        columns["condition"] = json.dumps(others, sort_keys=True)
    return columns


def _unit_rows(
    shared: Mapping[str, Any], values: Any, per_price_key: Mapping[str, tuple[str, int]]
) -> Iterator[dict[str, Any]]:
    for key, value in vars(values).items():
        if value is None:
            continue
        if key not in per_price_key:
            raise PriceBookError(f"the installed {PACKAGE} prices an unknown unit: {key}.")
        unit, per = per_price_key[key]
        steps = [(0, True, getattr(value, "base", value))]
        steps += [(tier.start, False, tier.price) for tier in getattr(value, "tiers", [])]
        amounts = [_exact(price, per) for _, _, price in steps]
        if None in amounts:
            # A price by the hour has no exact price by the second: it is kept by the hour.
            unit, amounts = key, [_exact(price, 1) for _, _, price in steps]
        for (start, is_inclusive, price), amount in zip(steps, amounts, strict=True):
            if amount is None:
                raise PriceBookError(
                    f"{shared['provider']} {shared['model']}: the price {price} for {key} has "
                    f"more than {_DECIMALS} decimals."
                )
            yield {
                **shared,
                "tier_start": start,
                "is_tier_start_inclusive": is_inclusive,
                "unit": unit,
                "unit_price_usd": amount,
            }


def _exact(price: Decimal, per: int) -> Decimal | None:
    """Divide, and give None where the quotient does not fit the decimals that are kept."""
    with localcontext() as context:
        context.prec = 50
        rounded = (price / per).quantize(Decimal(1).scaleb(-_DECIMALS))
        return rounded if rounded * per == price else None


def _provider_rules(providers: Sequence[Any]) -> Iterator[dict[str, Any]]:
    for position, provider in enumerate(providers):
        # A provider's own id goes before every rule.
        own = ("equals", provider.id.lower(), False)
        yield _rule_row("provider", provider.id, "", position, 0, own)
        for kind, rule, offset in (
            ("provider", provider.provider_match, len(providers)),
            ("provider_by_model", provider.model_match, 0),
        ):
            if rule is not None:
                yield from _rule_rows(kind, provider.id, "", position + offset, rule)
        for rank, other in enumerate(provider.fallback_model_providers or []):
            yield _rule_row("fallback", provider.id, "", rank + 1, 0, ("equals", other, False))
        pattern = ("regex", provider.api_pattern, False)
        yield _rule_row("api", provider.id, "", position, 0, pattern)


def _model_rules(providers: Sequence[Any]) -> Iterator[dict[str, Any]]:
    for provider in providers:
        for position, model in enumerate(provider.models):
            yield from _rule_rows("model", provider.id, model.id, position, model.match)


def _rule_rows(
    kind: str, provider: str, model: str, position: int, rule: Any
) -> Iterator[dict[str, Any]]:
    for number, conditions in enumerate(_alternatives(rule)):
        for condition in conditions:
            yield _rule_row(kind, provider, model, position, number, condition)


def _rule_row(
    kind: str, provider: str, model: str, position: int, clause: int, condition: Condition
) -> dict[str, Any]:
    return {
        "rule_kind": kind,
        "provider": provider,
        "model": model,
        "rule_position": position,
        "clause": clause,
        **dict(zip(("operator", "operand", "is_negated"), condition, strict=True)),
    }


def _alternatives(rule: Any) -> list[list[Condition]]:
    """Write a rule as alternatives, each a list of conditions that must all hold."""
    if hasattr(rule, "or_"):
        return [conditions for part in rule.or_ for conditions in _alternatives(part)]
    if hasattr(rule, "and_"):
        combined: list[list[Condition]] = [[]]
        for part in rule.and_:
            combined = [left + right for left in combined for right in _alternatives(part)]
        return combined
    operator = _operator(rule)
    operand = str(getattr(rule, operator))
    if operator == "regex":
        return [_regex_conditions(operand)]
    return [[(operator, operand.lower(), False)]]


def _regex_conditions(pattern: str) -> list[Condition]:
    """Write a regular expression without the look-ahead that the engine's RE2 lacks.

    `^(?!A)B` is the same as "not ^A, and ^B".
    """
    conditions: list[Condition] = []
    rest = pattern
    while found := _LEADING_LOOKAHEAD.fullmatch(rest):
        conditions.append(("regex", f"^(?:{found[1]})", True))
        rest = f"^{found[2]}"
    conditions.append(("regex", rest, False))
    if any(_LOOKAROUND.search(text) for _, text, _ in conditions):
        raise PriceBookError(
            f"the regular expression {pattern!r} of the installed {PACKAGE} looks around in a way "
            "that the engine cannot."
        )
    return conditions


def _operator(rule: Any) -> str:
    for name in _OPERATORS:
        if hasattr(rule, name):
            return name
    raise PriceBookError(f"the installed {PACKAGE} has a rule of an unknown kind: {rule!r}.")


def _rule_as_json(rule: Any) -> Any:
    for name in ("or_", "and_"):
        if hasattr(rule, name):
            return {name.rstrip("_"): [_rule_as_json(part) for part in getattr(rule, name)]}
    operator = _operator(rule)
    return {operator: getattr(rule, operator)}


def _print_books(store: Store, as_json: bool) -> None:
    names = ("price_book_version", "models", "prices", "rules", "landed_at")
    books = store.query(
        f"select {', '.join(names)} from {store.table('raw_price_books')} order by landed_at"
    )
    for book in books:
        row = dict(zip(names, book, strict=True))
        if as_json:
            print(json.dumps(row, default=str))
        else:
            print(
                f"{row['price_book_version']}  {row['prices']:,} prices of {row['models']:,} "
                f"models, landed {row['landed_at']:%Y-%m-%d %H:%M:%S} UTC"
            )
    if not books and not as_json:
        print("no price book is landed: run `python -m loader prices`")


def _print_diff(changes: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    for change in changes:
        if as_json:
            print(json.dumps(change, default=as_json_value))
        else:
            print(_diff_line(change))
    if not changes and not as_json:
        print("no price differs")


def _diff_line(change: Mapping[str, Any]) -> str:
    marks = {"added": "+", "removed": "-", "changed": "~"}
    conditions = [
        f"from {change['valid_from']}" if change["valid_from"] else "",
        f"{change['window_start']}-{change['window_end']}" if change["window_start"] else "",
        f"above {change['tier_start']:,} prompt tokens" if change["tier_start"] else "",
        change["service_tier"],
        change["region"],
        change["condition"],
    ]
    prices = [
        f"{price.normalize():f}" if price is not None else "none"
        for price in (change["old_usd"], change["new_usd"])
    ]
    where = ", ".join(text for text in conditions if text)
    return (
        f"{marks[change['change']]} {change['provider']} {change['model']} {change['unit']}"
        f"{f' ({where})' if where else ''}: {prices[0]} -> {prices[1]} USD"
    )
