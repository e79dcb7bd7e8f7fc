{# one row per batch that was landed whole and is not yet recorded as transformed #}

{#- transformed_batches is written last, after llm_traces, which reads this view: a ref would be a
    cycle. The table is there from the start of the first run. -#}

with

ledger as (
    select
        batch_id,
        landed_at,
        lines,
        `rows`
    from {{ source('raw', 'raw_batches') }}
),

{# What is left of a batch that mend took out of the ledger: nobody may have its source any more. #}

lost as (
    select
        batch_id,
        lost_at,
        `rows`,
        rejects
    from {{ source('raw', 'raw_lost_batches') }}
    where
        batch_id not in (
            select batch_id from ledger
            where batch_id in (select batch_id from {{ source('raw', 'raw_lost_batches') }})
        )
),

batches as (
    select
        *,
        false as is_lost
    from ledger

    union all

    select
        batch_id,
        lost_at as landed_at,
        `rows` + rejects as lines,
        `rows`,
        true as is_lost
    from lost
),

pending as (
    select
        batch_id,
        min(batches.landed_at) as landed_at,
        any(batches.lines) as lines,
        any(batches.`rows`) as `rows`,
        max(batches.is_lost)::Bool as is_lost
    from batches
    where
        batch_id not in (
            select batch_id
            from {{ this.incorporate(path={'identifier': 'transformed_batches'}) }}
        )
    group by batch_id
)

select * from pending
