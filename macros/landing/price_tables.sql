{#
The tables that `python -m loader prices` writes, and nothing else. Plain Jinja on purpose: the
loader renders this file without dbt when a table is missing, and dbt runs the same statements at
the start of a run.

price_tables_ddl(database, cluster=none) gives the statements, separated by `;;`. All are idempotent.

- raw_prices:      one row a price of a book: a unit of a model, from a date, in a window, above a
                   prompt size, in a service tier.
- raw_price_rules: one row a condition of a rule by which a provider or a model is recognised.
- raw_price_books: the ledger, one row a version of the book, written last.
#}
{% macro price_tables_ddl(database, cluster=none) %}
{%- set on_cluster = (" on cluster `" ~ cluster ~ "`") if cluster else "" -%}
{%- set durable = "fsync_after_insert = 1, fsync_part_directory = 1" -%}
{%- set engine = "ReplicatedMergeTree" if cluster else "MergeTree" -%}
create database if not exists `{{ database }}`{{ on_cluster }}
;;
create table if not exists `{{ database }}`.raw_prices{{ on_cluster }}
(
    price_book_version LowCardinality(String) comment 'The version of the book it stands in',
    price_row UInt32 comment 'Its number in the book, from 1',
    provider LowCardinality(String) comment 'Provider, as the book names it',
    model String comment 'Model, as the book names it',
    match_rule String comment 'The rule by which the model is recognised, as JSON' codec(ZSTD(1)),
    valid_from Nullable(Date) comment 'First day, UTC; null: always was',
    valid_to Nullable(Date) comment 'Day it ends before, UTC; null: still holds',
    window_start LowCardinality(String) comment 'Time of day it begins, HH:MM:SS; empty: all day',
    window_end LowCardinality(String) comment 'Time of day it ends before; may be past midnight',
    weekdays Array(UInt8) comment 'Days of the week it holds on, 1 is Monday; empty: all',
    time_zone LowCardinality(String) comment 'Time zone of window and weekdays',
    tier_start UInt64 comment 'Prompt tokens above which it holds; 0: any prompt',
    is_tier_start_inclusive Bool comment 'Whether a prompt of exactly tier_start tokens counts',
    service_tier LowCardinality(String) comment 'Service tier it holds in; empty: the standard one',
    region LowCardinality(String) comment 'Region or route it holds in; empty: any',
    condition String comment 'Further conditions as JSON; empty: none',
    unit LowCardinality(String) comment 'What is counted',
    unit_price_usd Decimal(38, 24) comment 'USD for one unit, exactly',
    precedence UInt32 comment 'Of the prices that hold at a time, the lowest wins',
    source String comment 'Where the book has it from',
    landed_at DateTime64(3, 'UTC') comment 'When it was landed'
)
engine = {{ engine }}
order by (price_book_version, provider, model, price_row)
settings {{ durable }}
;;
create table if not exists `{{ database }}`.raw_price_rules{{ on_cluster }}
(
    price_book_version LowCardinality(String) comment 'The version of the book it stands in',
    rule_kind LowCardinality(String) comment 'provider, provider_by_model, fallback, api, model',
    provider LowCardinality(String) comment 'The provider it leads to, or whose model it leads to',
    model String comment 'The model it leads to; empty for rules about providers',
    rule_position UInt32 comment 'Order of the rules of a kind: the first that fits wins',
    clause UInt32 comment 'Conditions with the same number must all hold; any number will do',
    operator LowCardinality(String) comment 'equals, starts_with, ends_with, contains, regex',
    operand String comment 'What the name is compared with, in lower case but for a regex',
    is_negated Bool comment 'Whether the condition must not hold',
    landed_at DateTime64(3, 'UTC') comment 'When it was landed'
)
engine = {{ engine }}
order by (price_book_version, rule_kind, provider, rule_position, clause)
settings {{ durable }}
;;
create table if not exists `{{ database }}`.raw_price_books{{ on_cluster }}
(
    price_book_version String comment 'Version of the package and a hash of what it says',
    package LowCardinality(String) comment 'The package it was taken from',
    package_version LowCardinality(String) comment 'Version of that package',
    content_hash String comment 'Hash over all prices and rules',
    providers UInt32 comment 'Number of providers',
    models UInt32 comment 'Number of models',
    prices UInt32 comment 'Number of rows in raw_prices',
    rules UInt32 comment 'Number of rows in raw_price_rules',
    landed_at DateTime64(3, 'UTC') comment 'When it was complete'
)
engine = {{ engine }}
order by price_book_version
settings {{ durable }}
{% endmacro %}
