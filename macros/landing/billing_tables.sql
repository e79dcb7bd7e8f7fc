{#
The tables that `python -m loader billing` and `python -m loader bills` write, and nothing else.
Plain Jinja on purpose: the loader renders this file without dbt when a table is missing, and dbt
runs the same statements at the start of a run.

billing_tables_ddl(database, cluster=none) gives the statements, separated by `;;`. All are
idempotent.

- raw_billing_accounts: one row a statement "from then on this organization is billed so", with the
                        time it was known. Never changed: a correction is a row more.
- raw_provider_bills:   one row a line of a provider's bill, its amount as it was written and in
                        USD. A bill of the same period that comes later is rows more; one that lists
                        the period without a line is one row without an amount.
#}
{% macro billing_tables_ddl(database, cluster=none) %}
{%- set on_cluster = (" on cluster `" ~ cluster ~ "`") if cluster else "" -%}
{%- set durable = "fsync_after_insert = 1, fsync_part_directory = 1" -%}
{%- set engine = "ReplicatedMergeTree" if cluster else "MergeTree" -%}
create database if not exists `{{ database }}`{{ on_cluster }}
;;
create table if not exists `{{ database }}`.raw_billing_accounts{{ on_cluster }}
(
    organization_id String comment 'The organization that is billed',
    plan_type Nullable(String) comment 'Its plan; null with the other two: its subscription ends',
    cost_source Nullable(String) comment 'What pays: quota, credits, …',
    customer_id Nullable(String) comment 'The customer that is charged',
    valid_from DateTime64(6, 'UTC') comment 'From when on it holds',
    known_at DateTime64(6, 'UTC') comment 'When it was known: as the record says, else as it landed',
    content_hash String comment 'Hash of the record: what is there already is not landed again',
    source String comment 'The file (absolute path) or stream it came from',
    line UInt64 comment 'Line number in the source, from 1',
    landed_at DateTime64(3, 'UTC') comment 'When it was landed'
)
engine = {{ engine }}
order by (organization_id, valid_from, known_at, line)
settings {{ durable }}
;;
create table if not exists `{{ database }}`.raw_provider_bills{{ on_cluster }}
(
    provider LowCardinality(String) comment 'Who sent the bill, under the name that traces have',
    account String comment 'Which of several accounts there; empty: the only one',
    starts_at DateTime64(3, 'UTC') comment 'Begin of the period that the line is for',
    ends_at DateTime64(3, 'UTC') comment 'The end of that period',
    content_hash String comment 'Hash of all lines of the period: these lines belong together',
    position UInt32 comment 'Place among those lines, from 0',
    format LowCardinality(String) comment 'The bill format, as named in loader/bills.yml',
    project String comment 'Project or workspace; empty: not said',
    model String comment 'Model; empty: not said',
    line_item String comment 'What is charged, in words; empty: not said',
    unit String comment 'What is charged, as a code of the provider; empty: not said',
    service_tier String comment 'Service tier; empty: not said',
    amount_text String comment 'The amount, as it was written; empty: the period has no line any more',
    amount_usd Decimal(38, 12) comment 'The amount in USD',
    known_at DateTime64(6, 'UTC') comment 'When it was landed: of a period, the last known holds',
    source String comment 'The file (absolute path) or stream it came from'
)
engine = {{ engine }}
order by (provider, account, starts_at, known_at, position)
settings {{ durable }}
{% endmacro %}
