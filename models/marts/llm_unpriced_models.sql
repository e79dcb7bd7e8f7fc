{{ config(materialized='view') }}
{# one row per provider, requested model, service tier and kind of lack #}

{#- A cost that waits for its trace (mend) counts nowhere. -#}

with

costs as (
    select * from {{ ref('llm_trace_costs') }}
    where
        cost_status in ('partly_priced', 'provider_reported')
        or total_cost_usd is null
),

orphaned as (
    select batch_id from {{ source('operations', 'orphaned_costs') }}
),

traces as (
    select id from {{ ref('llm_traces') }}
    where id in (select id from costs where batch_id in (select batch_id from orphaned))
),

lacking as (
    select
        provider,
        model,
        price_tier,
        cost_status,
        multiIf(
            cost_status = 'no_usage', 'no usage in the response',
            price_book_version = '', 'no price book',
            match_status = 'no_provider', 'provider not in the book',
            match_status = 'no_model', 'model not in the book',
            price_tier != '' and cost_status != 'partly_priced', 'service tier not in the book',
            'unit not in the book'
        ) as lack,
        unpriced_units,
        provider_reported_cost_usd,
        created_at,
        id
    from costs
    where
        batch_id not in (select batch_id from orphaned)
        or id in (select id from traces)
),

counted as (
    select
        provider,
        model,
        price_tier,
        cost_status,
        lack,
        count() as calls,
        sumMap(
            arrayMap(used -> used.1, unpriced_units),
            arrayMap(used -> used.2, unpriced_units)
        ) as quantities,
        sum(provider_reported_cost_usd) as reported_cost,
        min(created_at) as first_seen_at,
        max(created_at) as last_seen_at,
        argMax(id, created_at) as example_id
    from lacking
    group by all
),

final as (
    select
        provider,
        model,
        price_tier,
        cost_status,
        cast(lack, 'LowCardinality(String)') as lack,
        calls,
        cast(
            arrayZip(quantities.1, quantities.2), 'Array(Tuple(unit String, quantity Int64))'
        ) as unpriced_units,
        cast(reported_cost, 'Nullable(Decimal(38, 12))') as provider_reported_cost_usd,
        first_seen_at,
        last_seen_at,
        example_id
    from counted
)

select * from final
