{{ config(materialized='view') }}
{# one row per provider and set of key paths that look like token counts and no dialect reads #}

with

unrecognised as (
    select * from {{ ref('llm_traces') }}
    where usage_status = 'unrecognised'
),

shaped as (
    select
        provider,
        unrecognised_keys as key_paths,
        count() as traces,
        argMin(id, (created_at, id)) as example_id,
        min(created_at) as first_seen_at,
        max(created_at) as last_seen_at
    from unrecognised
    group by
        provider,
        key_paths
)

select * from shaped
