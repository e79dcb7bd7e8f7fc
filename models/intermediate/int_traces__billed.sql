{# one row per landed record: the parsed trace with the billing context it is charged under #}

with

traces as (
    select * from {{ ref('int_traces__parsed') }}
),

subscriptions as (
    {{ subscriptions_as_of() }}
),

-- The small side on the right is held in memory, the traces stream past it, and a filter on them
-- goes down to the raw rows.
matched as (
    select
        traces.*,
        subscriptions.* except (subscribed_organization_id, subscribed_from)
    from traces
    asof left join subscriptions
        on
            traces.organization_id = subscriptions.subscribed_organization_id
            and traces.created_at >= subscriptions.subscribed_from
),

billed as (
    select
        * except (subscribed_plan_type, subscribed_cost_source, subscribed_customer_id),
        {{ billing_columns(
            'trace_plan_type', 'trace_cost_source', 'trace_customer_id',
            'coalesce(trace_plan_type, trace_cost_source, trace_customer_id) is not null'
        ) }}
    from matched
)

select * from billed
