{#- What customers are charged for is what was used: the same calls and money, quota and credits
    apart. -#}

with

customers as (
    select
        sum(calls) as charged_calls,
        sum(billable_cost_usd) as charged_usd,
        countIf(quota_cost_usd is not null and credits_cost_usd is not null) as mixed
    from {{ ref('billing_usage_by_customer') }}
),

days as (
    select
        sum(calls) as used_calls,
        sum(billable_cost_usd) as used_usd
    from {{ ref('llm_costs_daily') }}
),

final as (
    select * from customers
    cross join days
    where
        charged_calls != used_calls
        or coalesce(charged_usd, 0) != coalesce(used_usd, 0)
        or mixed > 0
)

select * from final
