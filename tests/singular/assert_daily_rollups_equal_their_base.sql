{#- A roll-up is its base, no more and no less: an insert-triggered view held 3,996 for 999 rows
    (NangoHQ/nango PR 6122), and a roll-up was 3.5 times its base table (future-agi#2839). -#}

with

traces as (
    select
        count() as calls,
        countIf(is_error) as errors,
        sum(prompt_tokens) as prompt,
        sum(completion_tokens) as completion,
        sum(cached_input_tokens) as cached
    from {{ ref('llm_traces') }}
),

costs as (
    select
        sum(total_cost_usd) as list_cost,
        sum(billable_cost_usd) as billable_cost,
        countIf(total_cost_usd is null) as unknown
    from {{ ref('llm_trace_costs') }}
    where id in (select id from {{ ref('llm_traces') }})
),

costs_daily as (
    select
        sum(calls) as rolled_calls,
        sum(errors) as rolled_errors,
        sum(prompt_tokens) as rolled_prompt,
        sum(uncached_input_tokens + cached_input_tokens + cache_write_tokens) as bucketed_prompt,
        sum(completion_tokens) as rolled_completion,
        sum(cached_input_tokens) as rolled_cached,
        sum(
            priced_calls + partly_priced_calls + provider_reported_calls + unpriced_calls
            + no_usage_calls
        ) as calls_by_status,
        sum(total_cost_usd) as rolled_list_cost,
        sum(billable_cost_usd) as rolled_billable_cost
    from {{ ref('llm_costs_daily') }}
),

errors_daily as (
    select
        sum(calls) as rolled_calls,
        sumIf(calls, is_error) as rolled_errors
    from {{ ref('llm_errors_daily') }}
),

savings_daily as (
    select
        sum(calls) as rolled_calls,
        sum(cached_input_tokens) as rolled_cached
    from {{ ref('llm_cache_savings_daily') }}
),

laws as (
    select
        arrayJoin([
            ('calls in llm_costs_daily', costs_daily.rolled_calls = traces.calls),
            ('calls in llm_errors_daily', errors_daily.rolled_calls = traces.calls),
            ('calls in llm_cache_savings_daily', savings_daily.rolled_calls = traces.calls),
            ('errors in llm_costs_daily', costs_daily.rolled_errors = traces.errors),
            ('errors in llm_errors_daily', errors_daily.rolled_errors = traces.errors),
            ('prompt tokens', costs_daily.rolled_prompt = traces.prompt),
            ('prompt tokens by bucket', costs_daily.bucketed_prompt = traces.prompt),
            ('completion tokens', costs_daily.rolled_completion = traces.completion),
            ('cached tokens', costs_daily.rolled_cached = coalesce(traces.cached, 0)),
            ('cached tokens saved on', savings_daily.rolled_cached = coalesce(traces.cached, 0)),
            ('calls by cost status', costs_daily.calls_by_status = traces.calls),
            (
                'list cost',
                coalesce(costs_daily.rolled_list_cost, 0) = coalesce(costs.list_cost, 0)
            ),
            (
                'billable cost',
                coalesce(costs_daily.rolled_billable_cost, 0) = coalesce(costs.billable_cost, 0)
            )
        ]) as law
    from traces
    cross join costs
    cross join costs_daily
    cross join errors_daily
    cross join savings_daily
),

final as (
    select law.1 as broken_law from laws
    where not law.2
)

select * from final
