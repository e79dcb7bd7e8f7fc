{# one row per id among the pending batches: the record of it that landed first #}

{#- What is left to do is chosen here, before any response is read: a filter further up would be
    written through every step of the parsing, which takes the engine longer than the parsing.
    Ids that llm_traces already has (a run was killed, or a record came again) are still here;
    llm_traces and llm_traces_live leave them out. What was erased and landed again, with a batch that
    had been lost, is not: the next run erases it once more. -#}

with

pending as (
    select batch_id from {{ ref('int_batches__pending') }}
),

erased as (
    select * from ({{ erased_positions() | indent(8) }})
    where batch_id in (select batch_id from pending)
),

arrived as (
    select
        id,
        batch_id,
        position,
        landed_at
    from {{ ref('int_traces__unioned') }}
    where
        batch_id in (select batch_id from pending)
        and (batch_id, position) not in (
            select
                batch_id,
                position
            from erased
        )
),

first_arrivals as (
    select
        id,
        argMin((batch_id, position, landed_at), (landed_at, batch_id, position)) as place
    from arrived
    group by id
),

final as (
    select * from {{ ref('int_traces__unioned') }}
    where
        batch_id in (select batch_id from pending)
        and (batch_id, position, landed_at) in (select place from first_arrivals)
)

select * from final
