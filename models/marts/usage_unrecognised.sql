{{ config(materialized='view') }}
{# one row per provider and set of key paths that look like token counts and that no dialect reads #}

with

unrecognised as (

    select
        id,
        provider,
        created_at,
        response_json
    from {{ ref('llm_traces') }}
    where usage_status = 'unrecognised'

),

parsed as (

    {{ parse_responses('unrecognised') | indent(4) }}

),

shaped as (

    select
        provider,
        unrecognised_keys as key_paths,
        count() as traces,
        argMin(id, (created_at, id)) as example_id,
        min(created_at) as first_seen_at,
        max(created_at) as last_seen_at
    from parsed
    group by
        provider,
        key_paths

)

select * from shaped
