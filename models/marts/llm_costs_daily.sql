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
{# one row per day, organization, project, agent, call type, provider, model, BYOK and billing #}

with

{{ changed_days(reporting_time_zone()) }},

traces as (
    select * from {{ ref('int_traces__rebilled') }}
    where
        {{ in_changed_days(reporting_time_zone()) }}
),

costs as (
    select * from {{ ref('llm_trace_costs') }}
    where
        {{ in_changed_days(reporting_time_zone()) }}
),

costed as (
    select
        toDate32(traces.created_at, '{{ reporting_time_zone() }}') as usage_date,
        traces.organization_id as organization_id,
        traces.project_id as project_id,
        traces.agent_id as agent_id,
        traces.call_type as call_type,
        traces.provider as provider,
        traces.model as model,
        traces.is_byok as is_byok,
        traces.billing_plan_type as billing_plan_type,
        traces.billing_cost_source as billing_cost_source,
        traces.billing_customer_id as billing_customer_id,
        traces.billing_source as billing_source,
        traces.is_error as is_error,
        traces.prompt_tokens as prompt,
        coalesce(traces.cached_input_tokens, 0) as cached,
        coalesce(traces.cache_write_tokens, 0) as written,
        coalesce(traces.cache_write_5m_tokens, 0) as written_5m,
        coalesce(traces.cache_write_1h_tokens, 0) as written_1h,
        traces.completion_tokens as completion,
        coalesce(traces.reasoning_tokens, 0) as reasoning,
        traces.total_tokens as total,
        coalesce(traces.web_search_requests, 0) as searches,
        costs.cost_status as cost_status,
        costs.total_cost_usd as list_cost,
        costs.billable_cost_usd as billable_cost,
        costs.provider_reported_cost_usd as reported_cost,
        -- What the operator pays: what the provider says, else the list price, nothing for BYOK.
        -- A 0 beside a list price is no statement: another one bills it, a cloud.
        {{ cost_told('reported_cost', 'traces.provider_upstream_cost_usd') }} as told_cost,
        if(is_byok, billable_cost, coalesce(nullIf(told_cost, 0), list_cost)) as provider_cost
    from traces
    left join costs on traces.id = costs.id
),

grouped as (
    select
        -- day and who
        usage_date,
        organization_id,
        project_id,
        agent_id,
        call_type,
        provider,
        model,
        is_byok,
        billing_plan_type,
        billing_cost_source,
        billing_customer_id,
        billing_source::LowCardinality(String) as billing_source,

        -- calls
        count() as calls,
        countIf(is_error) as errors,
        countIf(cost_status = 'priced') as priced_calls,
        countIf(cost_status = 'partly_priced') as partly_priced_calls,
        countIf(cost_status = 'provider_reported') as provider_reported_calls,
        -- Without a price, or without a word of what was used: unknown is never zero.
        countIf(list_cost is null) as unpriced_calls,
        countIf(cost_status = 'no_usage' and list_cost is not null) as no_usage_calls,

        -- tokens
        sum(prompt) as prompt_tokens,
        sum(prompt - cached - written) as uncached_input_tokens,
        sum(cached) as cached_input_tokens,
        sum(written) as cache_write_tokens,
        sum(written_5m) as cache_write_5m_tokens,
        sum(written_1h) as cache_write_1h_tokens,
        sum(completion) as completion_tokens,
        sum(reasoning) as reasoning_tokens,
        sum(total) as total_tokens,
        sum(searches) as web_search_requests,

        -- money
        sum(list_cost) as total_cost_usd,
        sum(billable_cost) as billable_cost_usd,
        sum(reported_cost) as provider_reported_cost_usd,
        sum(provider_cost) as provider_cost_usd
    from costed
    group by all
),

{{ rolled_up('llm_costs_daily', 'grouped') }}
