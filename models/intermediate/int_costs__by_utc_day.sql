{{
    config(
        materialized='incremental',
        incremental_strategy='insert_overwrite',
        partition_by='toYYYYMM(usage_date)',
        order_by=['usage_date', 'provider', 'model', 'response_model', 'unit'],
        query_settings={'throw_on_max_partitions_per_insert_block': 0},
        pre_hook="{{ drop_empty_months('UTC', ref('llm_traces') ~ ' where not is_byok') }}",
    )
}}
{# one row per UTC day, provider, requested model, answering model and unit, without BYOK #}

{#- Bills are cut in UTC days, whatever the reports are cut in. The row of the empty unit counts the
    calls, those of the other units hold the charges: each sums up on its own. A cost that waits for
    its trace (mend) counts nowhere. -#}

with

{{ changed_days('UTC') }},

traces as (
    select
        id,
        response_model
    from {{ ref('llm_traces') }}
    where
        {{ in_changed_days('UTC') }}
),

costs as (
    select * from {{ ref('llm_trace_costs') }}
    where
        {{ in_changed_days('UTC') }}
        and not is_byok
),

charged as (
    select
        toDate32(costs.created_at, 'UTC') as usage_date,
        costs.provider as provider,
        costs.model as model,
        coalesce(traces.response_model, '') as response_model,
        {{ lacks_price('costs') }} as lacks_price,
        arrayJoin(
            arrayPushFront(
                arrayMap(
                    charge -> (charge.unit, charge.quantity, charge.amount_usd), costs.charges
                ),
                ('', 0, toDecimal64(0, 12))
            )
        ) as charge
    from costs
    inner join traces on costs.id = traces.id
),

grouped as (
    select
        usage_date,
        provider,
        model,
        response_model,
        charge.1::LowCardinality(String) as unit,
        countIf(unit = '') as calls,
        countIf(unit = '' and lacks_price) as unpriced_calls,
        sum(charge.2) as quantity,
        sum(charge.3) as amount_usd
    from charged
    group by all
),

{{ rolled_up('int_costs__by_utc_day', 'grouped') }}
