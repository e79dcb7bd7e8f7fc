{{
    config(
        materialized='table',
        order_by=['time_zone', 'usage_date'],
    )
}}
{# one row per time zone that days are cut in and day that has traces #}

{#- What the roll-ups by day compare themselves with: a day whose fingerprint differs from the one
    it was built from is built again, and no other. No watermark: whatever happens to a trace changes
    the fingerprint of its day (it comes, late or not; it is parsed again, priced again, erased; a
    subscription begins to hold for it), and a run that is killed leaves the old one behind.
    Reads four narrow columns of all traces. -#}

{%- set time_zones = [reporting_time_zone(), 'UTC'] | unique | list -%}

with

{%- for time_zone in time_zones %}

{% set number = loop.index -%}
organizations_{{ number }} as (
    select
        toDate32(created_at, '{{ time_zone }}') as usage_date,
        organization_id,
        count() as traces,
        sum(cityHash64(created_at, transformed_at)) as trace_state,
        min(created_at) as first_created_at,
        max(created_at) as last_created_at,
        max(billing_source != 'trace') as follows_subscription
    from {{ ref('llm_traces') }}
    group by
        usage_date,
        organization_id
),

subscribed_{{ number }} as (
    select
        organizations.usage_date as usage_date,
        sum(
            cityHash64(
                organizations.organization_id,
                subscriptions.valid_from,
                subscriptions.known_at,
                coalesce(subscriptions.plan_type, ''),
                coalesce(subscriptions.cost_source, ''),
                coalesce(subscriptions.customer_id, '')
            )
        ) as subscription_state
    from organizations_{{ number }} as organizations
    inner join {{ ref('stg_billing__accounts') }} as subscriptions
        on organizations.organization_id = subscriptions.organization_id
    where
        organizations.follows_subscription
        and subscriptions.valid_from <= organizations.last_created_at
    group by usage_date
),

costs_{{ number }} as (
    select
        toDate32(created_at, '{{ time_zone }}') as usage_date,
        sum(cityHash64(created_at, priced_at)) as cost_state
    from {{ ref('llm_trace_costs') }}
    group by usage_date
),

days_{{ number }} as (
    select
        usage_date,
        sum(organizations.traces) as traces,
        sum(organizations.trace_state) as trace_state,
        min(organizations.first_created_at) as first_created_at,
        max(organizations.last_created_at) as last_created_at
    from organizations_{{ number }} as organizations
    group by usage_date
),
{%- endfor %}

final as (
    {%- for time_zone in time_zones %}
    {%- set number = loop.index %}
    select
        '{{ time_zone }}' as time_zone,
        days.usage_date as usage_date,
        days.traces as traces,
        days.first_created_at as first_created_at,
        days.last_created_at as last_created_at,
        cityHash64(
            '{{ time_zone }}',
            days.traces,
            days.trace_state,
            costs.cost_state,
            subscribed.subscription_state
        ) as fingerprint
    from days_{{ number }} as days
    left join costs_{{ number }} as costs on days.usage_date = costs.usage_date
    left join subscribed_{{ number }} as subscribed on days.usage_date = subscribed.usage_date
    {%- if not loop.last %}

    union all
    {% endif %}
    {%- endfor %}
)

select * from final
