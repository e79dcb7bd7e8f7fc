{#-
Who pays for a call, and how: decided here for the traces as they are transformed
(int_traces__billed), and again for the money, as it is known now (int_traces__rebilled).

| the trace brought              | a subscription holds then | billing columns    | billing_source |
|--------------------------------|---------------------------|--------------------|----------------|
| any of plan, source, customer  | either                    | all the trace's    | trace          |
| none                           | yes                       | the subscription's | subscription   |
| none                           | no, not yet, or it ended  | null               | none           |

A context is taken as a whole: the plan of one and the customer of another would be a contract that
nobody has.
-#}

{#- CTEs that end in `matched`: a relation's rows with the subscription that holds at their time.

    An as-of join would say the same. But the settings under which responses are planned
    (query_plan_merge_expressions = 0) let no filter through a join of any kind: every landed response
    would be read and parsed to find one trace. So an organization's subscriptions are looked up as a
    value: `transform` hashes the organizations once, and a filter goes by. Of each subscription there
    are its microsecond, plan, cost source and customer, in order of time; none is ''. -#}
{%- macro matched_with_subscriptions(traces) -%}
histories as (
    select
        organization_id,
        toString(
            arraySort(
                groupArray(
                    (
                        toUnixTimestamp64Micro(valid_from),
                        coalesce(plan_type, ''),
                        coalesce(cost_source, ''),
                        coalesce(customer_id, '')
                    )
                )
            )
        ) as history
    from {{ ref('stg_billing__accounts') }}
    group by organization_id
),

-- The empty organization has none, and keeps the lists from being empty. Both are one value: asked for
-- one by one they would be read twice, in an order each, and give an organization another's history.
subscriptions as (
    select
        arraySort(groupArray((organization_id, history))) as pairs,
        (arrayPushBack(pairs.1, ''), arrayPushBack(pairs.2, '[]')) as lists
    from histories
),

subscribed as (
    select
        *,
        arrayLast(
            subscription -> subscription.1 <= toUnixTimestamp64Micro(created_at),
            transform(
                organization_id::String,
                tupleElement((select lists from subscriptions), 1),
                tupleElement((select lists from subscriptions), 2),
                '[]'
            )::Array(Tuple(Int64, String, String, String))
        ) as subscription
    from {{ traces }}
),

matched as (
    select
        * except (subscription),
        nullIf(subscription.2, '') as subscribed_plan_type,
        nullIf(subscription.3, '') as subscribed_cost_source,
        nullIf(subscription.4, '') as subscribed_customer_id
    from subscribed
)
{%- endmacro -%}

{#- The four billing columns. Arguments: the trace's own three values, and whether they are its own; as they
    landed, unless they are given. -#}
{%- macro billing_columns(
    plan_type='trace_plan_type',
    cost_source='trace_cost_source',
    customer_id='trace_customer_id',
    is_own='coalesce(trace_plan_type, trace_cost_source, trace_customer_id) is not null'
) -%}
if({{ is_own }}, {{ plan_type }}, subscribed_plan_type) as billing_plan_type,
        if({{ is_own }}, {{ cost_source }}, subscribed_cost_source) as billing_cost_source,
        if({{ is_own }}, {{ customer_id }}, subscribed_customer_id) as billing_customer_id,
        multiIf(
            {{ is_own }}, 'trace',
            coalesce(subscribed_plan_type, subscribed_cost_source, subscribed_customer_id)
            is not null, 'subscription',
            'none'
        ) as billing_source
{%- endmacro -%}
