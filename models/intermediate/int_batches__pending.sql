{# one row per batch that is in the ledger and not yet recorded as transformed #}

{#- transformed_batches is written last, after llm_traces, which reads this view: a ref would be a
    cycle. The table is there from the start of the first run. -#}

with

batches as (
    select * from {{ source('raw', 'raw_batches') }}
),

pending as (
    select
        batch_id,
        min(batches.landed_at) as landed_at,
        any(batches.lines) as lines,
        any(batches.`rows`) as `rows`
    from batches
    where
        batch_id not in (
            select batch_id
            from {{ this.incorporate(path={'identifier': 'transformed_batches'}) }}
        )
    group by batch_id
)

select * from pending
