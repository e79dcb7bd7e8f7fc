{#- Conservation: every trace of a batch that counts as costed has one cost, and no cost is of a
    trace that is not there, but for batches that wait for their source (mend). -#}

with

costs as (
    select
        id,
        batch_id
    from {{ ref('llm_trace_costs') }}
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
    where
        id not in (select id from {{ ref('llm_traces') }})
        and batch_id not in (
            {{ lost_batches() }}
        )
),

final as (
    select * from missing

    union all

    select * from orphaned
)

select * from final
