{# one row per trace id: llm_traces without payloads, with the billing context known now #}

{#- llm_traces keeps what was known when a trace was transformed. Money follows what is known now: a
    subscription that is corrected later, or comes later, counts from its valid_from on. What a
    trace brought itself stays. -#}

with

traces as (
    select
        * except (
            request_json,
            response_json,
            llm_config_json,
            billing_plan_type,
            billing_cost_source,
            billing_customer_id,
            billing_source
        ),
        billing_plan_type as known_plan_type,
        billing_cost_source as known_cost_source,
        billing_customer_id as known_customer_id,
        billing_source = 'trace' as is_own_context
    from {{ ref('llm_traces') }}
),

{{ matched_with_subscriptions('traces') }},

final as (
    select
        * except (
            known_plan_type,
            known_cost_source,
            known_customer_id,
            is_own_context,
            subscribed_plan_type,
            subscribed_cost_source,
            subscribed_customer_id
        ),
        {{ billing_columns(
            'known_plan_type', 'known_cost_source', 'known_customer_id', 'is_own_context'
        ) }}
    from matched
)

select * from final
