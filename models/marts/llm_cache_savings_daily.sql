{{
    config(
        materialized='incremental',
        incremental_strategy='insert_overwrite',
        partition_by='toYYYYMM(usage_date)',
        order_by=['organization_id', 'usage_date', 'provider', 'model', 'agent_id'],
        query_settings={'throw_on_max_partitions_per_insert_block': 0},
        pre_hook="{{ drop_empty_months(reporting_time_zone()) }}",
    )
}}
{# one row per day, organization, project, agent, provider, model and BYOK #}

{#- What a cached or written token would have cost is the price of an uncached one in the same call:
    the call's own where it was charged any, else the one that stands beside the charged price in its
    book (same model, tier and period). A call without either has no known saving, and is counted. -#}

with

{{ changed_days(reporting_time_zone()) }},

traces as (
    select * from {{ ref('llm_traces') }}
    where
        {{ in_changed_days(reporting_time_zone()) }}
),

costs as (
    select
        id,
        price_book_version,
        arrayFirst(charge -> charge.unit = 'input_tokens', charges) as uncached_charge,
        arrayFilter(
            charge -> match(charge.unit, '^(cached|cache_write)_'),
            charges
        ) as cache_charges,
        arraySum(
            charge -> if(startsWith(charge.unit, 'cached_'), charge.amount_usd, 0), charges
        ) as read_cost,
        arraySum(
            charge -> if(startsWith(charge.unit, 'cache_write_'), charge.amount_usd, 0), charges
        ) as write_cost,
        arraySum(charge -> charge.quantity, cache_charges) as charged_tokens,
        arrayFirst(
            (price, charge) -> match(charge.unit, '^(cached|cache_write)_'),
            price_ids,
            charges
        ) as cache_price_id
    from {{ ref('llm_trace_costs') }}
    where
        {{ in_changed_days(reporting_time_zone()) }}
),

book as (
    select
        price_book_version,
        toString(price_row) as price_id,
        unit,
        unit_price_usd,
        (
            provider,
            model,
            precedence,
            service_tier,
            region,
            condition,
            tier_start
        ) as entry
    from {{ source('prices', 'raw_prices') }}
),

uncached_rows as (
    select * from book
    where unit = 'input_tokens'
),

uncached_prices as (
    select
        book.price_book_version::String as book_version,
        book.price_id as price_id,
        any(uncached.unit_price_usd) as unit_price_usd
    from book
    inner join uncached_rows as uncached
        on
            book.price_book_version = uncached.price_book_version
            and book.entry = uncached.entry
    where startsWith(book.unit, 'cache_')
    group by
        book_version,
        price_id
),

costed as (
    select
        toDate32(traces.created_at, '{{ reporting_time_zone() }}') as usage_date,
        traces.organization_id as organization_id,
        traces.project_id as project_id,
        traces.agent_id as agent_id,
        traces.provider as provider,
        traces.model as model,
        traces.is_byok as is_byok,
        traces.prompt_tokens as prompt,
        coalesce(traces.cached_input_tokens, 0) as cached,
        coalesce(traces.cache_write_tokens, 0) as written,
        coalesce(traces.side_cached_input_tokens, 0) + coalesce(traces.side_cache_write_tokens, 0)
            as side,
        cached + written + side > 0 as uses_cache,
        costs.read_cost as read_cost,
        costs.write_cost as write_cost,
        costs.charged_tokens as charged_tokens,
        multiIf(
            costs.uncached_charge.quantity > 0,
            costs.uncached_charge.unit_price_usd::Nullable(Decimal(38, 24)),
            uncached_prices.price_id != '',
            uncached_prices.unit_price_usd::Nullable(Decimal(38, 24)),
            null
        ) as uncached_price,
        -- Only what was charged as cached can have been saved on, and all of it has to be.
        uses_cache and uncached_price is not null and charged_tokens >= cached + written + side
            as has_known_saving,
        if(
            has_known_saving,
            round(
                toDecimal256(uncached_price, 24) * charged_tokens, 12
            )::Nullable(Decimal(38, 12)),
            null
        ) as uncached_cost
    from traces
    left join costs on traces.id = costs.id
    left join uncached_prices
        on
            costs.price_book_version::String = uncached_prices.book_version
            and costs.cache_price_id = uncached_prices.price_id
),

grouped as (
    select
        -- day and who
        usage_date,
        organization_id,
        project_id,
        agent_id,
        provider,
        model,
        is_byok,

        -- calls
        count() as calls,
        countIf(uses_cache) as cache_calls,
        countIf(uses_cache and not has_known_saving) as unknown_saving_calls,

        -- tokens
        sum(prompt) as prompt_tokens,
        sum(cached) as cached_input_tokens,
        sum(written) as cache_write_tokens,

        -- money, of the calls whose saving is known
        sumOrNullIf(read_cost::Decimal(38, 12), has_known_saving) as cache_read_cost_usd,
        sumOrNullIf(write_cost::Decimal(38, 12), has_known_saving) as cache_write_cost_usd,
        sum(uncached_cost)::Nullable(Decimal(38, 12)) as uncached_cost_usd,
        sum(uncached_cost - read_cost - write_cost)::Nullable(Decimal(38, 12)) as saved_usd
    from costed
    group by all
),

{{ rolled_up('llm_cache_savings_daily', 'grouped') }}
