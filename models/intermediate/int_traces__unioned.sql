{# one row per landed record, whatever its format, with the defaults of a trace filled in #}

{#- A new format is one line here, a staging model, and its entry in loader/formats.yml. -#}
{%- set formats = [
    'stg_provider_trace__traces',
    'stg_provider_trace_socket_v3__traces',
] -%}

{%- set llm_config_type -%}
Tuple(model Nullable(String), model_endpoint_type Nullable(String), provider_category Nullable(String))
{%- endset %}

with

unioned as (
    {%- for format in formats %}
    select * from {{ ref(format) }}
    {%- if not loop.last %}

    union all
    {% endif %}
    {%- endfor %}
),

configured as (
    select
        *,
        JSONExtract(coalesce(llm_config_json, ''), '{{ llm_config_type }}') as llm_config,
        replaceRegexpOne(coalesce(trace_key, ''), '^provider_trace-', '') as own_id
    from unioned
),

defaulted as (
    select
        -- ids: an absent one is ''
        if(own_id = '', concat({{ first_batch() }}, '-', toString(position)), own_id) as id,
        coalesce(organization_id, '') as organization_id,
        coalesce(project_id, '') as project_id,
        coalesce(agent_id, '') as agent_id,
        agent_tags,
        coalesce(run_id, '') as run_id,
        coalesce(step_id, '') as step_id,
        coalesce(trace_id, '') as trace_id,

        -- the call
        coalesce(nullIf(call_type, ''), 'unknown') as call_type,
        coalesce(nullIf(llm_config.model_endpoint_type, ''), 'unknown') as provider,
        coalesce(nullIf(llm_config.model, ''), 'unknown') as model,
        coalesce(llm_config.provider_category = 'byok', false)::Bool as is_byok,
        length(request_json) as request_size_bytes,
        length(response_json) as response_size_bytes,
        if(latency_ms between 0 and 1e15, toUInt64(coalesce(latency_ms, 0)), 0) as latency_ms,
        request_json,
        response_json,
        coalesce(llm_config_json, '') as llm_config_json,

        -- billing context that came with the trace
        nullIf(trace_plan_type, '') as trace_plan_type,
        nullIf(trace_cost_source, '') as trace_cost_source,
        nullIf(trace_customer_id, '') as trace_customer_id,

        -- times: a record that does not say when it was made was made when it landed
        coalesce(created_at, toDateTime64(landed_at, 6, 'UTC')) as created_at,

        -- landing
        `format`,
        (own_id = '')::Bool as has_derived_id,
        batch_id,
        position,
        landed_at
    from configured
)

select * from defaulted
