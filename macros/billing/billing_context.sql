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

{#- The subscriptions, under names that no trace has. -#}
{%- macro subscriptions_as_of() -%}
select
        organization_id as subscribed_organization_id,
        valid_from as subscribed_from,
        plan_type as subscribed_plan_type,
        cost_source as subscribed_cost_source,
        customer_id as subscribed_customer_id
    from {{ ref('stg_billing__accounts') }}
{%- endmacro -%}

{#- The four billing columns. Arguments: the trace's own three values, and whether they are its own. -#}
{%- macro billing_columns(plan_type, cost_source, customer_id, is_own) -%}
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
