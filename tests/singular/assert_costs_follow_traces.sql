{#- Conservation: every trace of a batch that counts as costed has one cost, and no cost is of a
    trace that is not there. -#}

with

costs as (
    select id from {{ ref('llm_trace_costs') }}
),

missing as (
    select
        id,
        'no cost' as problem
    from {{ ref('llm_traces') }}
    where
        batch_id in (select batch_id from {{ ref('costed_batches') }})
        and id not in (select id from costs)
),

orphaned as (
    select
        id,
        'no trace' as problem
    from costs
    where id not in (select id from {{ ref('llm_traces') }})
),

final as (
    select * from missing

    union all

    select * from orphaned
)

select * from final
