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
    select id from {{ ref('llm_trace_costs') }}
    where
        created_at >= (select min(created_at) from pending)
        and created_at <= (select max(created_at) from pending)
        and id in (select id from pending)
),

read_back as (
    select
        batch_id,
        uniqExact(id) as traces,
        uniqExactIf(id, id not in (select id from found)) as missing
    from pending
    group by batch_id
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
        ({{ chosen_price_book() }})::LowCardinality(String) as price_book_version,
        now64(3, 'UTC') as costed_at
    from transformed
    left join read_back on transformed.batch_id = read_back.batch_id
    where
        read_back.missing = 0
        and (
            read_back.traces > 0
            or transformed.new_traces = 0
            or transformed.batch_id in (
                select batch_id from ({{ erased_positions('raw_traces') | indent(16) }})
            )
        )
)

select * from final
