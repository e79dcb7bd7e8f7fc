{{ config(materialized='view') }}
{# one row per month, customer, organization, plan, cost source, billing source and BYOK #}

with

costs as (
    select * from {{ ref('llm_costs_daily') }}
),

grouped as (
    select
        -- month and whom to charge
        makeDate32(toYear(usage_date), toMonth(usage_date), 1) as usage_month,
        billing_customer_id,
        organization_id,
        billing_plan_type,
        billing_cost_source,
        billing_source,
        is_byok,

        -- what was used
        sum(costs.calls) as calls,
        sum(costs.errors) as errors,
        sum(costs.partly_priced_calls) as partly_priced_calls,
        sum(costs.unpriced_calls) as unpriced_calls,
        sum(costs.no_usage_calls) as no_usage_calls,
        sum(costs.prompt_tokens) as prompt_tokens,
        sum(costs.cached_input_tokens) as cached_input_tokens,
        sum(costs.completion_tokens) as completion_tokens,

        -- money
        sum(costs.total_cost_usd) as total_cost_usd,
        sum(costs.billable_cost_usd) as billable_cost_usd,
        sumIf(costs.billable_cost_usd, billing_cost_source = 'quota') as quota_cost,
        sumIf(costs.billable_cost_usd, billing_cost_source = 'credits') as credits_cost,
        sum(costs.provider_reported_cost_usd) as provider_reported_cost_usd,
        sum(costs.provider_cost_usd) as provider_cost_usd
    from costs
    group by all
),

final as (
    select
        usage_month,
        billing_customer_id,
        organization_id,
        billing_plan_type,
        billing_cost_source,
        billing_source,
        is_byok,
        calls,
        errors,
        partly_priced_calls,
        unpriced_calls,
        no_usage_calls,
        prompt_tokens,
        cached_input_tokens,
        completion_tokens,
        total_cost_usd,
        billable_cost_usd,
        quota_cost::Nullable(Decimal(38, 12)) as quota_cost_usd,
        credits_cost::Nullable(Decimal(38, 12)) as credits_cost_usd,
        provider_reported_cost_usd,
        provider_cost_usd,
        billable_cost_usd - provider_cost_usd as margin_usd
    from grouped
)

select * from final
