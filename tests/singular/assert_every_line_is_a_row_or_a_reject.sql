{#- Conservation, landing: each line of a batch is a row or a reject, and the ledger says how many.
    Batches whose raw rows have been retired by the retention are past counting. -#}

with

batches as (
    select * from {{ source('raw', 'raw_batches') }}
),

row_counts as (
    select
        batch_id,
        uniqExact(position) as found
    from {{ source('raw', 'raw_traces') }}
    group by batch_id
),

reject_counts as (
    select
        batch_id,
        uniqExact(position) as found
    from {{ source('raw', 'raw_rejects') }}
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
        or batches.`rows` != row_counts.found
        or batches.rejects != reject_counts.found
)

select * from final
