{{
    config(
        materialized='incremental',
        incremental_strategy='insert_overwrite',
        partition_by='toYYYYMM(usage_date)',
        order_by=['organization_id', 'usage_date', 'provider', 'model', 'error_class'],
        query_settings={'throw_on_max_partitions_per_insert_block': 0},
        pre_hook="{{ drop_empty_months(reporting_time_zone()) }}",
    )
}}
{# one row per day, organization, project, agent, call type, provider, model and error #}

{#- Calls without an error are rows too, with an empty class: a share needs its whole. -#}

with

{{ changed_days(reporting_time_zone()) }},

traces as (
    select * from {{ ref('llm_traces') }}
    where
        {{ in_changed_days(reporting_time_zone()) }}
),

named as (
    select
        toDate32(created_at, '{{ reporting_time_zone() }}') as usage_date,
        organization_id,
        project_id,
        agent_id,
        call_type,
        provider,
        model,
        is_error,
        if(is_error, coalesce(nullIf(error_class, ''), 'unknown'), '') as error_class_or_none,
        if(is_error, coalesce(error_type, ''), '') as error_type_or_none,
        prompt_tokens,
        latency_ms,
        created_at
    from traces
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

        -- what happened
        is_error,
        error_class_or_none::LowCardinality(String) as error_class,
        error_type_or_none as error_type,

        -- how often, and how long it took
        count() as calls,
        sum(named.prompt_tokens) as prompt_tokens,
        countIf(latency_ms > 0) as timed_calls,
        sum(latency_ms) as total_latency_ms,
        min(created_at) as first_at,
        max(created_at) as last_at
    from named
    group by all
),

{{ rolled_up('llm_errors_daily', 'grouped') }}
