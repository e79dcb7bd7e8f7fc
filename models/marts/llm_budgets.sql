{{ config(materialized='view') }}
{# one row per budget and period, from its first to the one that runs now #}

{#- Now is the time of asking; the variable `budgets_at` (a time in UTC) asks for another: what was
    spent before that instant. Of its own day, which was not over, calls are counted one by one. -#}
-- depends_on: {{ ref('int_traces__rebilled') }}
-- depends_on: {{ ref('llm_trace_costs') }}
{%- set time_zone = reporting_time_zone() -%}
{%- set now = asking_time() %}

with

budgets as (
    select
        *,
        toDate32({{ now }}, '{{ time_zone }}') as today
    from {{ ref('budgets') }}
),

periods as (
    select
        *,
        arrayJoin(
            range(
                toUInt64(
                    if(
                        starts_on > today,
                        0,
                        if(
                            period = 'month',
                            dateDiff('month', starts_on, today),
                            dateDiff('day', starts_on, today)
                        ) + 1
                    )
                )
            )
        ) as number,
        makeDate32(toYear(starts_on), toMonth(starts_on), 1) as first_month,
        if(period = 'month', addMonths(first_month, number), addDays(starts_on, number))
            as period_start,
        if(period = 'month', addMonths(period_start, 1), addDays(period_start, 1)) as period_end,
        greatest(period_start, starts_on) as counted_from
    from budgets
),

costs as (
    select
        usage_date,
        organization_id::String as organization_id,
        billing_customer_id,
        agent_id,
        calls,
        unpriced_calls + partly_priced_calls as calls_without_price,
        billable_cost_usd
    from {{ ref('llm_costs_daily') }}
    {%- if var('budgets_at', none) %}
    where usage_date < toDate32({{ now }}, '{{ time_zone }}')

    union all

    select
        toDate32(traces.created_at, '{{ time_zone }}') as usage_date,
        traces.organization_id::String as organization_id,
        traces.billing_customer_id as billing_customer_id,
        traces.agent_id as agent_id,
        1 as calls,
        {{ lacks_price('trace_costs') }} as calls_without_price,
        trace_costs.billable_cost_usd as billable_cost_usd
    from {{ ref('int_traces__rebilled') }} as traces
    left join {{ ref('llm_trace_costs') }} as trace_costs on traces.id = trace_costs.id
    where
        traces.created_at >= {{ now }} - interval 2 day
        and traces.created_at < {{ now }}
        and toDate32(traces.created_at, '{{ time_zone }}') = toDate32({{ now }}, '{{ time_zone }}')
    {%- endif %}
),

spending as (
    select
        scope,
        scope_id,
        usage_date,
        sum(calls) as calls,
        sum(calls_without_price) as unpriced_calls,
        sum(billable_cost_usd) as billable_cost
    from costs
    array join
        ['organization', 'customer', 'agent'] as scope,
        [organization_id, coalesce(billing_customer_id, ''), agent_id] as scope_id
    where (scope, scope_id) in (
        select
            scope,
            scope_id
        from budgets
    )
    group by
        scope,
        scope_id,
        usage_date
),

burned as (
    select
        periods.budget_id as budget_id,
        periods.period_start as period_start,
        sum(spending.calls) as calls,
        sum(spending.unpriced_calls) as unpriced_calls,
        sum(spending.billable_cost) as known_spending
    from periods
    inner join spending
        on
            periods.scope = spending.scope
            and periods.scope_id = spending.scope_id
    where
        spending.usage_date >= periods.counted_from
        and spending.usage_date < periods.period_end
    group by
        budget_id,
        period_start
),

-- Nothing known about calls that there were is null; no calls is zero.
measured as (
    select
        periods.budget_id as budget_id,
        periods.scope as scope,
        periods.scope_id as scope_id,
        periods.period as period,
        periods.period_start as period_start,
        periods.period_end as period_end,
        periods.limit_usd as limit_usd,
        burned.calls as calls,
        burned.unpriced_calls as unpriced_calls,
        if(burned.calls = 0, toDecimal128(0, 12), burned.known_spending) as spent,
        periods.today < periods.period_end as is_current,
        dateDiff('second', toDateTime64(counted_from, 0, '{{ time_zone }}'), {{ now }}) as elapsed,
        dateDiff(
            'second',
            toDateTime64(counted_from, 0, '{{ time_zone }}'),
            toDateTime64(periods.period_end, 0, '{{ time_zone }}')
        ) as duration
    from periods
    left join burned
        on
            periods.budget_id = burned.budget_id
            and periods.period_start = burned.period_start
),

forecast as (
    select
        *,
        if(
            is_current,
            (toDecimal256(spent, 12) * duration / greatest(elapsed, 1))::Nullable(Decimal(38, 12)),
            spent
        ) as expected
    from measured
),

final as (
    select
        -- which budget and period
        budget_id,
        scope,
        scope_id,
        period,
        period_start,
        period_end,
        is_current::Bool as is_current,

        -- burn
        limit_usd,
        calls::UInt64 as calls,
        unpriced_calls::UInt64 as unpriced_calls,
        spent::Nullable(Decimal(38, 12)) as spent_usd,
        (limit_usd - spent)::Nullable(Decimal(38, 12)) as remaining_usd,
        expected::Nullable(Decimal(38, 12)) as forecast_usd,

        -- over or not
        coalesce(spent > limit_usd, false)::Bool as is_over,
        multiIf(
            coalesce(spent > limit_usd, false), 'over',
            spent is null, 'unknown',
            is_current and expected > limit_usd, 'forecast_over',
            unpriced_calls > 0, 'within_what_is_priced',
            'within'
        )::LowCardinality(String) as budget_status
    from forecast
)

select * from final
