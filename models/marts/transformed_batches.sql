{{
    config(
        materialized='incremental',
        incremental_strategy='append',
        order_by=['batch_id'],
        full_refresh=false,
    )
}}
{# one row per batch of which every id was read back from llm_traces #}

{#- Written after llm_traces and all that looks at pending batches: from here on a batch is done.
    A batch that was not read back whole stays pending, and the next run completes it; one that is lost
    (mend) is done when all that is left of it was, and has 0 rows, so that it is looked at again. -#}
-- depends_on: {{ ref('trace_conflicts') }}

with

pending as (
    select * from {{ ref('int_batches__pending') }}
    where batch_id in (select batch_id from {{ ref('int_batches__due') }})
),

{# Rows that retention or an erasure took away on purpose are not waited for. #}

retired as (
    select
        batch_id,
        groupUniqArrayIf(position, not is_whole_batch) as positions_retired,
        max(is_whole_batch) as is_whole
    from (
        select
            batch_id,
            position,
            false as is_whole_batch
        from ({{ erased_positions('raw_traces') | indent(12) }})

        union all

        select
            batch_id,
            0 as position,
            true as is_whole_batch
        from ({{ whole_retired('raw_traces') | indent(12) }})
    )
    where batch_id in (select batch_id from pending)
    group by batch_id
),

arrived as (
    select
        id,
        batch_id,
        position
    from {{ ref('int_traces__unioned') }}
    where
        batch_id in (select batch_id from pending)
        and (batch_id, position) not in (
            select
                batch_id,
                arrayJoin(positions_retired) as position
            from retired
        )
),

stored as (
    select
        id,
        batch_id,
        landed_at
    from {{ ref('llm_traces') }}
    where id in (select id from arrived)
),

read_back as (
    select
        arrived.batch_id as batch_id,
        uniqExact(arrived.position) as rows_found,
        uniqExact(arrived.id) as ids_found,
        uniqExactIf(arrived.id, stored.batch_id = arrived.batch_id) as new_traces,
        minIf(stored.landed_at, stored.batch_id = arrived.batch_id) as first_landed_at,
        countIf(coalesce(stored.id, '') = '') as ids_missing
    from arrived
    left join stored on arrived.id = stored.id
    group by arrived.batch_id
),

{# The traces of a batch whose raw rows are retired or lost are known by nothing but the batch. #}

without_rows as (
    select batch_id from retired
    where is_whole

    union all

    select batch_id from pending
    where is_lost
),

kept as (
    select
        batch_id,
        uniqExact(id) as new_traces,
        min(landed_at) as first_landed_at
    from {{ ref('llm_traces') }}
    where
        (select count() from without_rows) > 0
        and batch_id in (select batch_id from without_rows)
    group by batch_id
),

final as (
    select
        pending.batch_id as batch_id,
        if(pending.is_lost, 0, pending.`rows`)::UInt32 as `rows`,
        read_back.ids_found as ids,
        if(
            retired.is_whole or pending.is_lost,
            kept.new_traces,
            read_back.new_traces
        ) as new_traces,
        if(
            retired.is_whole or pending.is_lost,
            kept.first_landed_at,
            read_back.first_landed_at
        ) as first_landed_at,
        '{{ parser_version() }}'::LowCardinality(String) as parser_version,
        now64(3, 'UTC') as transformed_at
    from pending
    left join read_back on pending.batch_id = read_back.batch_id
    left join kept on pending.batch_id = kept.batch_id
    left join retired on pending.batch_id = retired.batch_id
    where
        read_back.ids_missing = 0
        and (
            retired.is_whole
            or pending.is_lost
            or read_back.rows_found + length(retired.positions_retired) = pending.`rows`
        )
)

select * from final
