{{ config(materialized='view') }}
{# one row per trace id: llm_traces, and what is landed but not transformed yet #}

{#- The columns and their types are those of llm_traces, taken from its contract. -#}

with

transformed as (
    select * from {{ ref('llm_traces') }}
),

pending as (
    select batch_id from {{ ref('int_batches__pending') }}
),

arrived as (
    select
        id,
        batch_id,
        position,
        landed_at
    from {{ ref('int_traces__unioned') }}
    where batch_id in (select batch_id from pending)
),

first_arrivals as (
    select
        id,
        argMin((batch_id, position, landed_at), (landed_at, batch_id, position)) as place
    from arrived
    where id not in (select id from transformed where id in (select id from arrived))
    group by id
),

waiting as (
    select
        *,
        landed_at as transformed_at,
        '{{ parser_version() }}' as parser_version
    from {{ ref('int_traces__billed') }}
    where
        batch_id in (select batch_id from pending)
        and (batch_id, position, landed_at) in (select place from first_arrivals)
    {# Never reached. It keeps a reader's filter out of the parsing below, where planning it would
       take gigabytes. #}
    limit 1000000000000
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
