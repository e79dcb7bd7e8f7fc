{{ config(materialized='view') }}
{# one row per UTC day, provider and requested model that pricing again would change #}

{#- Prices all of history by the chosen book while it is read, and writes nothing: what a full
    refresh of llm_trace_costs would publish. Only narrow columns of llm_traces are read. -#}

with

everything as (
    select
        {{ costed_columns() }}
    from {{ ref('llm_traces') }}
),

{{ price_traces('everything', ref('llm_price_matches')) }},

published as (
    select
        id,
        total_cost_usd as old_cost,
        cost_status as old_status,
        price_book_version as old_version
    from {{ ref('llm_trace_costs') }}
),

compared as (
    select
        toDate32(costed.created_at, 'UTC') as usage_date,
        costed.provider as provider,
        costed.model as model,
        published.old_version as old_version,
        costed.price_book_version as new_version,
        published.old_cost as old_cost,
        costed.total_cost_usd as new_cost,
        (
            published.old_cost is distinct from costed.total_cost_usd
            or published.old_status != costed.cost_status
        ) as is_changed
    from costed
    inner join published on costed.id = published.id
),

final as (
    select
        usage_date,
        provider,
        model,
        groupUniqArray(old_version)::Array(String) as old_price_book_versions,
        any(new_version)::String as new_price_book_version,
        count() as calls,
        countIf(is_changed) as calls_changed,
        countIf(old_cost is null and new_cost is not null) as calls_newly_priced,
        countIf(old_cost is not null and new_cost is null) as calls_no_longer_priced,
        sum(old_cost)::Nullable(Decimal(38, 12)) as old_cost_usd,
        sum(new_cost)::Nullable(Decimal(38, 12)) as new_cost_usd,
        (sum(coalesce(new_cost, 0)) - sum(coalesce(old_cost, 0)))::Decimal(38, 12)
            as difference_usd
    from compared
    group by
        usage_date,
        provider,
        model
    having countIf(is_changed) > 0
)

select * from final
