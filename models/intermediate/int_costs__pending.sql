{{ config(pre_hook="{{ create_price_tables() }}") }}
{# one row per trace of a batch that is transformed and not yet recorded as costed, no payload #}

{#- costed_batches is written last, after llm_trace_costs, which reads this view: a ref would be a
    cycle. The batches' time of landing is looked up first, so that only their part of llm_traces
    is read: the view costs as much as what is new, however long the history. -#}

with

pending as (
    select batch_id from {{ ref('transformed_batches') }}
    where
        batch_id not in (
            select batch_id
            from {{ this.incorporate(path={'identifier': 'costed_batches'}) }}
        )
),

final as (
    select
        {{ costed_columns() }}
    from {{ ref('llm_traces') }}
    where
        batch_id in (select batch_id from pending)
        and landed_at >= (
            select min(landed_at) from {{ source('raw', 'raw_traces') }}
            where batch_id in (select batch_id from pending)
        )
)

select * from final
