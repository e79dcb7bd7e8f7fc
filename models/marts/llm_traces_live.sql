{{ config(materialized='view') }}
{# one row per trace id: llm_traces, and what is landed but not transformed yet #}

{#- The columns and their types are those of llm_traces, taken from its contract. -#}
{%- set columns = graph.nodes['model.tokenledger.llm_traces'].columns.values() if execute else [] -%}

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
),

final as (
    select
        {%- for column in columns %}
        {{ column.name }}{{ ',' if not loop.last }}
        {%- endfor %}
    from transformed

    union all

    select
        {%- for column in columns %}
        {{ column.name }}::{{ column.data_type }} as {{ column.name }}{{ ',' if not loop.last }}
        {%- endfor %}
    from waiting
)

select * from final
