{#- Conservation, landing: each line of a batch is a row or a reject, and the ledger says how many.
    What retention or an erasure took away on purpose is counted as it was recorded. -#}

with

batches as (
    select * from {{ source('raw', 'raw_batches') }}
),

{# Recorded first and deleted second: after a kill a position may be in both, and counts once. #}

row_counts as (
    select
        batch_id,
        uniqExact(position) as found
    from (
        select
            batch_id,
            position
        from {{ source('raw', 'raw_traces') }}

        union all

        {{ erased_positions('raw_traces') | indent(8) }}
    )
    group by batch_id
),

reject_counts as (
    select
        batch_id,
        uniqExact(position) as found
    from (
        select
            batch_id,
            position
        from {{ source('raw', 'raw_rejects') }}

        union all

        {{ erased_positions('raw_rejects') | indent(8) }}
    )
    group by batch_id
),

final as (
    select
        batches.batch_id,
        batches.lines,
        row_counts.found as rows_found,
        reject_counts.found as rejects_found
    from batches
    left join row_counts on batches.batch_id = row_counts.batch_id
    left join reject_counts on batches.batch_id = reject_counts.batch_id
    where
        batches.lines != batches.`rows` + batches.rejects
        or (
            batches.`rows` != row_counts.found
            and batches.batch_id not in (
                {{ whole_retired('raw_traces') | indent(16) }}
            )
        )
        or (
            batches.rejects != reject_counts.found
            and batches.batch_id not in (
                {{ whole_retired('raw_rejects') | indent(16) }}
            )
        )
)

select * from final
