"""The price book: flattened exactly, landed once, versions kept and compared."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import re
from datetime import date, time
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest

from loader import prices
from loader.errors import StoreError, UsageError
from loader.prices import PriceBook, PriceBookError, diff_books, land_book, read_book
from loader.store import Store

UNITS = {
    "input_tokens": {"per": 1_000_000, "price_key": "input_mtok"},
    "audio_seconds": {"per": 3600, "price_key": "audio_hours"},
}


def rule(**parts: Any) -> SimpleNamespace:
    return SimpleNamespace(**parts)


def book(*models: SimpleNamespace, **changes: Any) -> PriceBook:
    provider = SimpleNamespace(
        id="p",
        api_pattern="https://p",
        pricing_urls=["https://p/prices"],
        provider_match=None,
        model_match=None,
        fallback_model_providers=None,
        models=list(models),
        **changes,
    )
    return read_book([provider], UNITS)


def model(prices: Any, match: Any = None, variants: Any = None) -> SimpleNamespace:
    match = match or rule(equals="m")
    return SimpleNamespace(id="m", match=match, prices=prices, price_variants=variants)


def price(**values: Any) -> SimpleNamespace:
    return SimpleNamespace(**values)


def tiered(base: str, *tiers: tuple[int, str]) -> SimpleNamespace:
    steps = [SimpleNamespace(start=start, price=Decimal(text)) for start, text in tiers]
    return SimpleNamespace(base=Decimal(base), tiers=steps)


@pytest.fixture
def store(opened_store: Store) -> Store:
    opened_store.ensure_tables("landing/price_tables.sql", "price_tables_ddl", prices.TABLES)
    return opened_store


@pytest.fixture(autouse=True)
def empty_tables(request: pytest.FixtureRequest) -> None:
    if "store" in request.fixturenames:
        store = request.getfixturevalue("store")
        for table in prices.TABLES:
            store.command(f"truncate table {store.table(table)}")


def test_the_installed_book_is_read_whole_and_exactly() -> None:
    from genai_prices.data import providers

    found = read_book()
    assert found.providers == len(providers)
    assert found.models == sum(len(provider.models) for provider in providers)
    assert all(type(row["unit_price_usd"]) is Decimal for row in found.prices)
    assert [row["price_row"] for row in found.prices] == list(range(1, len(found.prices) + 1))
    assert found.version == read_book().version


def test_every_price_of_the_installed_book_is_what_the_package_says() -> None:
    """Flattened prices, put together again, are the package's own, to the last decimal."""
    from genai_prices.data import providers
    from genai_prices.data_units import unit_data

    pers = {unit["price_key"]: unit["per"] for unit in unit_data.values()}
    said = []
    for provider in providers:
        for one in provider.models:
            dated = (
                one.prices if isinstance(one.prices, list) else [SimpleNamespace(prices=one.prices)]
            )
            for entry in [*dated, *(one.price_variants or [])]:
                for key, value in vars(entry.prices).items():
                    tiers = [tier.price for tier in getattr(value, "tiers", [])]
                    said += [(key, amount) for amount in [getattr(value, "base", value), *tiers]]
    names = {name: unit["price_key"] for name, unit in unit_data.items()}
    kept = []
    for row in read_book().prices:
        key = names.get(row["unit"], row["unit"])
        per = pers[key] if row["unit"] in names else 1
        kept.append((key, row["unit_price_usd"] * per))
    assert sorted(kept) == sorted(said)


def test_the_patterns_of_the_installed_book_are_within_what_the_engine_can() -> None:
    patterns = [row["operand"] for row in read_book().rules if row["operator"] == "regex"]
    assert patterns
    assert not [pattern for pattern in patterns if re.search(r"\(\?[=!<]", pattern)]


def test_dates_end_where_the_next_begins_and_windows_are_kept() -> None:
    dated = [
        SimpleNamespace(constraint=None, prices=price(input_mtok=Decimal("1"))),
        SimpleNamespace(
            constraint=SimpleNamespace(start_date=date(2026, 8, 17)),
            prices=price(input_mtok=Decimal("2")),
        ),
        SimpleNamespace(
            constraint=SimpleNamespace(start_time=time(1), end_time=time(4)),
            prices=price(input_mtok=Decimal("3")),
        ),
    ]
    first, second, window = book(model(dated)).prices
    assert (first["valid_from"], first["valid_to"]) == (None, date(2026, 8, 17))
    assert (second["valid_from"], second["valid_to"]) == (date(2026, 8, 17), None)
    assert (window["window_start"], window["window_end"]) == ("01:00:00", "04:00:00")
    assert window["precedence"] < second["precedence"] < first["precedence"]


def test_tiers_start_above_their_number() -> None:
    low, high = book(model(price(input_mtok=tiered("1.25", (200_000, "2.5"))))).prices
    assert (low["tier_start"], low["is_tier_start_inclusive"]) == (0, True)
    assert (high["tier_start"], high["is_tier_start_inclusive"]) == (200_000, False)
    assert high["unit_price_usd"] == Decimal("0.0000025")


@pytest.mark.parametrize(
    ("when", "columns"),
    [
        ({"service_tier": "flex"}, ("flex", "", "")),
        ({"processing": "batch"}, ("batch", "", "")),
        ({"route": "eu"}, ("", "eu", "")),
        ({"search_type": "web"}, ("", "", '{"search_type": "web"}')),
    ],
)
def test_variants_go_before_the_standard_price(
    when: dict[str, str], columns: tuple[str, str, str]
) -> None:
    variant = SimpleNamespace(when=when, prices=price(input_mtok=Decimal("1")), constraint=None)
    standard, found = book(model(price(input_mtok=Decimal("2")), variants=[variant])).prices
    assert tuple(found[name] for name in ("service_tier", "region", "condition")) == columns
    assert found["precedence"] < standard["precedence"]


def test_a_price_by_the_hour_without_an_exact_second_stays_by_the_hour() -> None:
    found = book(model(price(audio_hours=Decimal("0.04")))).prices[0]
    assert (found["unit"], found["unit_price_usd"]) == ("audio_hours", Decimal("0.04"))


def test_a_price_that_does_not_fit_is_refused() -> None:
    with pytest.raises(PriceBookError, match="more than 24 decimals"):
        book(model(price(input_mtok=Decimal("1E-30"))))


def test_rules_become_alternatives_of_conditions() -> None:
    either = rule(or_=[rule(equals="A"), rule(and_=[rule(contains="b"), rule(starts_with="C")])])
    rows = [row for row in book(model(price(), either)).rules if row["rule_kind"] == "model"]
    assert [(row["clause"], row["operator"], row["operand"]) for row in rows] == [
        (0, "equals", "a"),
        (1, "contains", "b"),
        (1, "starts_with", "c"),
    ]


def test_a_leading_look_ahead_becomes_a_negated_condition() -> None:
    rows = book(model(price(), rule(regex=r"^(?!.*-tts(?:$|-))gem"))).rules
    found = [(row["operand"], row["is_negated"]) for row in rows if row["rule_kind"] == "model"]
    assert found == [(r"^(?:.*-tts(?:$|-))", True), ("^gem", False)]


def test_a_look_around_elsewhere_is_refused() -> None:
    with pytest.raises(PriceBookError, match="looks around"):
        book(model(price(), rule(regex=r"gem(?=ini)")))


def test_landing_again_lands_nothing(store: Store) -> None:
    found = book(model(price(input_mtok=Decimal("1"))))
    assert land_book(store, found) is True
    before = store.query(f"select * from {store.table('raw_prices')}")
    assert land_book(store, found) is False
    assert store.query(f"select * from {store.table('raw_prices')}") == before


def test_what_a_killed_run_left_is_begun_anew(store: Store) -> None:
    found = book(model(price(input_mtok=tiered("1", (5, "2")))))
    land_book(store, found)
    store.command(f"truncate table {store.table('raw_price_books')}")
    store.command(f"truncate table {store.table('raw_price_rules')}")
    assert land_book(store, found) is True
    for table, rows in (("raw_prices", found.prices), ("raw_price_rules", found.rules)):
        assert store.query(f"select count() from {store.table(table)}") == [(len(rows),)]


@pytest.mark.parametrize("table", ["raw_prices", "raw_price_rules"])
@pytest.mark.parametrize("state", ["gone", "in part", "twice"])
def test_a_book_that_is_not_whole_is_landed_anew(store: Store, table: str, state: str) -> None:
    """A damaged part was set aside, or two runs landed it at once: the ledger has it still."""
    found = book(model(price(input_mtok=tiered("1", (5, "2")))))
    land_book(store, found)
    name = store.table(table)
    before = {each: held(store, each) for each in prices.TABLES}
    if state == "gone":
        store.command(f"truncate table {name}")
    elif state == "in part":
        key = "price_row = 1" if table == "raw_prices" else "rule_kind = 'model'"
        store.command(f"alter table {name} delete where {key} settings mutations_sync = 2")
    else:
        store.command(f"insert into {name} select * from {name}")
    assert held(store, table) != before[table]
    assert land_book(store, found) is True
    assert {each: held(store, each) for each in prices.TABLES} == before
    assert land_book(store, found) is False


@pytest.mark.parametrize("moment", prices.TABLES)
def test_what_another_machine_lands_meanwhile_is_not_in_the_ledger_twice_or_wrong(
    store: Store, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Their locks do not meet: another one lands the book just before an insert of this one."""
    found = book(model(price(input_mtok=tiered("1", (5, "2")))))
    insert, query = store.insert_rows, store.query
    elsewhere: list[bool] = []

    def land_elsewhere() -> None:
        elsewhere.append(True)
        with contextlib.suppress(StoreError):
            land_book(store, found)

    def overtaken(table: str, *rest: Any) -> None:
        if table == moment and not elsewhere:
            land_elsewhere()
        insert(table, *rest)

    def asked(sql: str, parameters: Any = None) -> Any:
        done = "raw_price_books" in sql and query(sql, parameters)[0][:2] != (0, 0)
        if moment == "raw_price_books" and done and not elsewhere:
            land_elsewhere()
        return query(sql, parameters)

    monkeypatch.setattr(store, "insert_rows", overtaken)
    monkeypatch.setattr(store, "query", asked)
    if moment == "raw_price_books":
        assert land_book(store, found) is True
    else:
        with pytest.raises(StoreError, match="Run it again") as raised:
            land_book(store, found)
        assert raised.value.exit_code == 3
        assert land_book(store, found) is True
    assert [len(held(store, table)) for table in prices.TABLES] == [
        len(found.prices),
        len(found.rules),
        1,
    ]


def held(store: Store, table: str) -> list[tuple[Any, ...]]:
    """All that a table holds, but for when it was landed."""
    return store.query(f"select * except (landed_at) from {store.table(table)} order by all")


def test_versions_are_kept_and_compared(store: Store) -> None:
    old = book(model(price(input_mtok=Decimal("1"))))
    new = book(model(price(input_mtok=Decimal("2"), audio_hours=Decimal("36"))))
    new = dataclasses.replace(new, package_version="9.9.9")
    land_book(store, old)
    land_book(store, new)
    changes = diff_books(store, old.version, "9.9")
    assert [(one["change"], one["unit"], one["old_usd"], one["new_usd"]) for one in changes] == [
        ("added", "audio_seconds", None, Decimal("0.01")),
        ("changed", "input_tokens", Decimal("0.000001"), Decimal("0.000002")),
    ]
    assert diff_books(store, old.version, old.version) == []
    with pytest.raises(UsageError, match="not landed"):
        diff_books(store, "1.0", "9.9")


def test_the_verb_says_what_it_did(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prices, "open_store", lambda settings: _kept_open(store))
    monkeypatch.setattr(prices, "read_book", lambda: book(model(price(input_mtok=Decimal("1")))))
    parser = argparse.ArgumentParser()
    prices.add_arguments(parser)
    assert prices.run(parser.parse_args(["--json"]), store.settings) == 0
    assert json.loads(capsys.readouterr().out)["landed"] is True
    prices.run(parser.parse_args([]), store.settings)
    assert capsys.readouterr().out.startswith("already there: price book")
    prices.run(parser.parse_args(["--list"]), store.settings)
    assert "1 prices of 1 models" in capsys.readouterr().out


class _kept_open:
    def __init__(self, store: Store) -> None:
        self.store = store

    def __enter__(self) -> Store:
        return self.store

    def __exit__(self, *_: object) -> None:
        return None
