{#- One row per what the grain of llm_costs_daily says: a day that was built twice shows here. -#}

with

counted as (
    select
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
        billing_source,
        count() as found
    from {{ ref('llm_costs_daily') }}
    group by all
),

final as (
    select * from counted
    where found > 1
)

select * from final
