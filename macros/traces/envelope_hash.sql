{#- What a record says beside its payloads, as one number to compare arrivals by. Arguments: the billing
    context that came with the record. A record without a time has that of its landing, each time another. -#}
{%- macro envelope_hash(plan_type, cost_source, customer_id) -%}
sipHash64(
            organization_id,
            project_id,
            agent_id,
            agent_tags::Array(String),
            run_id,
            step_id,
            trace_id,
            call_type,
            provider,
            model,
            is_byok,
            latency_ms,
            if(created_at = landed_at, toDateTime64(0, 6, 'UTC'), created_at),
            coalesce({{ plan_type }}, ''),
            coalesce({{ cost_source }}, ''),
            coalesce({{ customer_id }}, '')
        )
{%- endmacro -%}
