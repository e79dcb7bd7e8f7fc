{# Conservation, transforming: each id of a transformed batch is in llm_traces. What was erased, and
    landed again within the run, is there until the next one. #}

with

arrived as (
    select
        id,
        batch_id,
        position
    from {{ ref('int_traces__unioned') }}
    where
        batch_id in (select batch_id from {{ ref('transformed_batches') }})
        and (batch_id, position) not in (
            {{ erased_positions() | indent(12) }}
        )
),

final as (
    select * from arrived
    where id not in (select id from {{ ref('llm_traces') }})
)

select * from final
