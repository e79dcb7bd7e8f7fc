{# one row per landed record of the format provider_trace #}

{%- set envelope_type -%}
Tuple(
        id Nullable(String),
        org_id Nullable(String),
        project_id Nullable(String),
        agent_id Nullable(String),
        agent_tags Array(String),
        run_id Nullable(String),
        step_id Nullable(String),
        trace_id Nullable(String),
        call_type Nullable(String),
        llm_config Nullable(String),
        billing_context Tuple(
            plan_type Nullable(String),
            cost_source Nullable(String),
            customer_id Nullable(String)
        ),
        latency_ms Nullable(Float64),
        created_at Nullable(String)
    )
{%- endset %}

with

source as (
    select * from {{ source('raw', 'raw_traces') }}
    where `format` = 'provider_trace'
),

parsed as (
    select
        *,
        JSONExtract({{ readable_envelope('envelope_json') }}, '{{ envelope_type }}') as envelope
    from source
),

renamed as (
    select
        -- ids
        envelope.id as trace_key,
        envelope.org_id as organization_id,
        envelope.project_id as project_id,
        envelope.agent_id as agent_id,
        envelope.agent_tags as agent_tags,
        envelope.run_id as run_id,
        envelope.step_id as step_id,
        envelope.trace_id as trace_id,

        -- the call
        envelope.call_type as call_type,
        envelope.llm_config as llm_config_json,
        envelope.latency_ms as latency_ms,
        request_json,
        response_json,

        -- billing
        envelope.billing_context.plan_type as trace_plan_type,
        envelope.billing_context.cost_source as trace_cost_source,
        envelope.billing_context.customer_id as trace_customer_id,

        -- times
        {{ utc_time('envelope.created_at') }} as created_at,

        -- landing
        `format`,
        batch_id,
        position,
        landed_at
    from parsed
)

select * from renamed
