{# one row per landed record of the format provider_trace_socket_v3 #}

{%- set envelope_type -%}
Tuple(
        provider_trace_id Nullable(String),
        org_id Nullable(String),
        project_id Nullable(String),
        agent_id Nullable(String),
        tags Array(String),
        run_id Nullable(String),
        step_id Nullable(String),
        trace_id Nullable(String),
        type Nullable(String),
        llm_config Nullable(String),
        billing_context Tuple(
            plan_type Nullable(String),
            cost_source Nullable(String),
            customer_id Nullable(String)
        ),
        error Nullable(String),
        error_type Nullable(String),
        latency_ms Nullable(Float64),
        timestamp Nullable(String)
    )
{%- endset %}

with

source as (
    select * from {{ source('raw', 'raw_traces') }}
    where `format` = 'provider_trace_socket_v3'
),

parsed as (
    select
        *,
        JSONExtract({{ readable_envelope('envelope_json') }}, '{{ envelope_type }}') as envelope
    from source
),

{# The protocol sends a failed call as response null with the error beside it. The backend it was
    made for stores such a call as an object of the two, and so does this one. #}

answered as (
    select
        *,
        if(
            response_json in ('', 'null')
            and coalesce(envelope.error, envelope.error_type) is not null,
            toJSONString(map('error', envelope.error, 'error_type', envelope.error_type)),
            response_json
        ) as response_or_error_json
    from parsed
),

renamed as (
    select
        -- ids
        envelope.provider_trace_id as trace_key,
        envelope.org_id as organization_id,
        envelope.project_id as project_id,
        envelope.agent_id as agent_id,
        envelope.tags as agent_tags,
        envelope.run_id as run_id,
        envelope.step_id as step_id,
        envelope.trace_id as trace_id,

        -- the call
        envelope.type as call_type,
        envelope.llm_config as llm_config_json,
        envelope.latency_ms as latency_ms,
        request_json,
        response_or_error_json as response_json,

        -- billing
        envelope.billing_context.plan_type as trace_plan_type,
        envelope.billing_context.cost_source as trace_cost_source,
        envelope.billing_context.customer_id as trace_customer_id,

        -- times
        {{ utc_time('envelope.timestamp') }} as created_at,

        -- landing
        `format`,
        batch_id,
        position,
        landed_at
    from answered
)

select * from renamed
