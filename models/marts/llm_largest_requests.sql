{{ config(materialized='view') }}
{# one row per trace that is among the largest of its organization and month #}

with

months as (
    select
        id,
        organization_id,
        created_at,
        total_tokens,
        request_size_bytes,
        toYYYYMM(created_at, '{{ reporting_time_zone() }}') as usage_month
    from {{ ref('llm_traces') }}
),

ranked as (
    select
        id,
        organization_id,
        created_at
    from months
    order by
        total_tokens desc,
        request_size_bytes desc,
        created_at asc,
        id asc
    limit {{ var('largest_requests', 100) | int }} by organization_id, usage_month
),

traces as (
    select * from {{ ref('llm_traces') }}
    where (organization_id, created_at, id) in (
        select
            organization_id,
            created_at,
            id
        from ranked
    )
),

costs as (
    select * from {{ ref('llm_trace_costs') }}
    where (organization_id, created_at, id) in (
        select
            organization_id,
            created_at,
            id
        from ranked
    )
),

final as (
    select
        -- which, and whose
        traces.id as id,
        traces.organization_id as organization_id,
        traces.project_id as project_id,
        traces.agent_id as agent_id,
        traces.run_id as run_id,
        traces.step_id as step_id,
        traces.call_type as call_type,
        traces.provider as provider,
        traces.model as model,
        traces.created_at as created_at,

        -- how large
        traces.total_tokens as total_tokens,
        traces.prompt_tokens as prompt_tokens,
        traces.cached_input_tokens as cached_input_tokens,
        traces.completion_tokens as completion_tokens,
        traces.request_size_bytes as request_size_bytes,
        traces.response_size_bytes as response_size_bytes,
        traces.latency_ms as latency_ms,
        traces.is_error as is_error,

        -- money
        costs.cost_status as cost_status,
        costs.total_cost_usd as total_cost_usd
    from traces
    left join costs on traces.id = costs.id
)

select * from final
