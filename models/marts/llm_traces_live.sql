{{ config(materialized='view') }}
{# one row per trace id: llm_traces, and what is landed but not transformed yet #}

{#- The columns and their types are those of llm_traces, taken from its contract. -#}

with

transformed as (
    select * from {{ ref('llm_traces') }}
),

pending as (
    select * from {{ ref('int_traces__pending') }}
),

waiting as (
    select
        *,
        landed_at as transformed_at,
        '{{ parser_version() }}' as parser_version
    from {{ ref('int_traces__billed') }}
    where id not in (select id from transformed where id in (select id from pending))
),

final as (
    select
        {{ contract_columns('llm_traces') }}
    from transformed

    union all

    select
        {{ contract_columns('llm_traces', cast=true) }}
    from waiting
)

select * from final
