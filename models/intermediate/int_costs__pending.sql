{{ config(pre_hook="{{ create_price_tables() }}") }}
{# one row per trace of a batch that is transformed and not yet recorded as costed, no payload #}

{#- costed_batches is written last, after llm_trace_costs, which reads this view: a ref would be a
    cycle. The traces' first time of landing bounds what is read of llm_traces: the view costs as much
    as what is new, however long the history. It is that of the traces themselves: the raw rows may
    be retired, or have been landed again. -#}

with

pending as (
    select
        batch_id,
        first_landed_at
    from {{ ref('transformed_batches') }}
    where
        new_traces > 0
        and batch_id not in (
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
        and landed_at >= (select min(first_landed_at) from pending)
)

select * from final
