{# one row per landed record: the parsed trace with the billing context it is charged under #}

with

traces as (
    select * from {{ ref('int_traces__parsed') }}
),

billed as (
    select
        *,
        trace_plan_type as billing_plan_type,
        trace_cost_source as billing_cost_source,
        trace_customer_id as billing_customer_id,
        if(
            coalesce(trace_plan_type, trace_cost_source, trace_customer_id) is null,
            'none',
            'trace'
        ) as billing_source
    from traces
)

select * from billed
