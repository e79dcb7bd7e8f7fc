{{
    config(
        materialized='incremental',
        incremental_strategy='append',
        order_by=['organization_id', 'created_at', 'id'],
        partition_by='toYYYYMM(created_at)',
        query_settings={
            'throw_on_max_partitions_per_insert_block': 0,
            'max_block_size': 8192,
            'short_circuit_function_evaluation': 'disable',
        },
        pre_hook=[
            "{{ refuse_unmatched_book() }}",
            "{{ reopen_costed_batches() }}",
            "{{ drop_costs_of_other_arrivals() }}",
        ],
    )
}}
{# one row per trace id of llm_traces #}

{#- Follows llm_traces by batches, like it: the traces of the batches that are not recorded as
    costed, but for those that a killed run had appended. `--full-refresh` prices all of history
    again, from the narrow columns of llm_traces; the table is exchanged when it is whole.
    Small blocks, since each row carries its model's prices; no short circuits, which cost more here
    than what they save. -#}
-- depends_on: {{ ref('int_costs__pending') }}

with

{% if is_incremental() -%}
pending as (
    select * from {{ ref('int_costs__pending') }}
),

uncosted as (
    select * from pending
    where
        id not in (
            select id from {{ this }}
            where
                created_at >= (select min(created_at) from pending)
                and created_at <= (select max(created_at) from pending)
                and id in (select id from pending)
        )
    limit 1 by id
),
{%- else -%}
uncosted as (
    select
        {{ costed_columns() }}
    from {{ ref('llm_traces') }}
),
{%- endif %}

{{ price_traces('uncosted', ref('llm_price_matches')) }},

final as (
    select
        id,
        organization_id::LowCardinality(String) as organization_id,
        created_at,
        provider::LowCardinality(String) as provider,
        model::LowCardinality(String) as model,
        is_byok,
        cost_status::LowCardinality(String) as cost_status,

        -- money
        total_cost_usd,
        billable_cost_usd,
        provider_reported_cost_usd,
        charges,
        unpriced_units,

        -- why
        price_ids,
        price_book_version::LowCardinality(String) as price_book_version,
        match_status::LowCardinality(String) as match_status,
        price_provider::LowCardinality(String) as price_provider,
        price_model::LowCardinality(String) as price_model,
        price_tier::LowCardinality(String) as price_tier,
        tier_start,
        price_valid_from::Nullable(DateTime64(6, 'UTC')) as price_valid_from,

        -- where the row comes from
        batch_id,
        now64(3, 'UTC') as priced_at
    from costed
)

select * from final
