{{
    config(
        materialized='incremental',
        incremental_strategy='append',
        order_by=['batch_id'],
        full_refresh=false,
    )
}}
{# one row per batch of which the cost of every trace was read back from llm_trace_costs #}

{#- A batch that has traces and shows none is not done, but where they were erased since. -#}

with

pending as (
    select
        id,
        batch_id,
        created_at
    from {{ ref('int_costs__pending') }}
),

found as (
    select
        id,
        price_book_version
    from {{ ref('llm_trace_costs') }}
    where
        created_at >= (select min(created_at) from pending)
        and created_at <= (select max(created_at) from pending)
        and id in (select id from pending)
),

read_back as (
    select
        pending.batch_id as batch_id,
        uniqExact(pending.id) as traces,
        uniqExactIf(pending.id, coalesce(found.id, '') = '') as missing,
        max(found.price_book_version) as price_book_version
    from pending
    left join found on pending.id = found.id
    group by pending.batch_id
),

transformed as (
    select distinct
        batch_id,
        new_traces
    from {{ ref('transformed_batches') }}
    where
        batch_id not in (
            select batch_id from {{ this.incorporate(path={'identifier': 'costed_batches'}) }}
        )
),

final as (
    select
        transformed.batch_id as batch_id,
        read_back.traces::UInt64 as traces,
        cast(
            if(read_back.traces > 0, read_back.price_book_version, {{ chosen_price_book() }}),
            'LowCardinality(String)'
        ) as price_book_version,
        now64(3, 'UTC') as costed_at
    from transformed
    left join read_back on transformed.batch_id = read_back.batch_id
    where
        read_back.missing = 0
        and (
            read_back.traces > 0
            or transformed.new_traces = 0
            or transformed.batch_id in (
                select batch_id from ({{ erased_positions() | indent(16) }})
            )
        )
)

select * from final
