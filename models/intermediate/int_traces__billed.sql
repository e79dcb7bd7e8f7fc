{# one row per id among the pending batches: the parsed trace with the billing context it is charged
   under #}

with

traces as (
    select * from {{ ref('int_traces__parsed') }}
),

{{ matched_with_subscriptions('traces') }},

billed as (
    select
        * except (subscribed_plan_type, subscribed_cost_source, subscribed_customer_id),
        {{ billing_columns() }}
    from matched
),

{# Two loaders that raced on one batch leave each of its rows twice. #}

final as (
    select * from billed
    limit 1 by id
)

select * from final
