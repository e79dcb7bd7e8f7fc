{{ config(materialized='view') }}
{# one row per level (day, provider, model, line_item) and what it names, on days with bills #}

with

lines as (
    select * from {{ ref('stg_bills__lines') }}
),

billed_days as (
    select
        min(usage_date) as first_day,
        max(usage_date) as last_day
    from lines
),

-- A bill may name models and kinds of tokens, or neither: what it does not name is not compared.
bill_details as (
    select
        provider,
        usage_date,
        max(model != '') as names_models,
        max(unit != '') as names_units,
        max(unit = 'web_searches' and model = '') as lists_searches_apart
    from lines
    group by
        provider,
        usage_date
),

named_models as (
    select distinct
        provider,
        {{ undated_model('model') }} as billed_model
    from lines
),

costs as (
    select
        usage_date,
        provider::String as provider,
        {{ undated_model('model') }} as requested_model,
        {{ undated_model('response_model') }} as answering_model,
        multiIf(
            unit = 'reasoning_tokens', 'output_tokens',
            unit = 'cache_write_tokens', 'cache_write_5m_tokens',
            unit::String
        ) as compared_unit,
        calls,
        unpriced_calls,
        amount_usd
    from {{ ref('int_costs__by_utc_day') }}
    where
        usage_date >= (select first_day from billed_days)
        and usage_date <= (select last_day from billed_days)
),

-- A bill names the model that answered; where it names none such, the one that was asked for.
ours as (
    select
        costs.usage_date as usage_date,
        costs.provider as provider,
        multiIf(
            details.provider != '' and not details.names_models, '',
            costs.compared_unit = 'web_searches' and details.lists_searches_apart, '',
            (costs.provider, costs.answering_model) in (select * from named_models)
            and costs.answering_model != '', costs.answering_model,
            (costs.provider, costs.requested_model) in (select * from named_models),
            costs.requested_model,
            costs.answering_model != '', costs.answering_model,
            costs.requested_model
        ) as model,
        if(details.names_units, costs.compared_unit, '') as unit,
        costs.calls as calls,
        costs.unpriced_calls as unpriced_calls,
        costs.amount_usd as our_amount,
        0 as bill_lines,
        toDecimal128(0, 12) as their_amount,
        '' as line_item
    from costs
    left join bill_details as details
        on
            costs.provider = details.provider
            and costs.usage_date = details.usage_date
),

theirs as (
    select
        usage_date,
        provider::String as provider,
        {{ undated_model('model') }} as model,
        unit,
        0 as calls,
        0 as unpriced_calls,
        toDecimal128(0, 12) as our_amount,
        1 as bill_lines,
        amount_usd as their_amount,
        line_item
    from lines
),

sides as (
    select
        usage_date,
        provider,
        model,
        unit,
        sum(calls) as side_calls,
        sum(unpriced_calls) as side_unpriced_calls,
        sum(our_amount) as our_usd,
        sum(bill_lines) as side_bill_lines,
        sum(their_amount) as their_usd,
        max(line_item) as bill_line_item
    from
        (
            select * from ours
            union all
            select * from theirs
        ) as both_sides
    group by
        usage_date,
        provider,
        model,
        unit
),

-- Calls are counted by model; a line item of theirs has traces if its model has.
models as (
    select
        'model' as level,
        usage_date,
        provider,
        model,
        '' as unit,
        '' as line_item,
        sum(side_calls) as calls,
        sum(side_unpriced_calls) as unpriced_calls,
        sum(side_bill_lines) as bill_lines,
        sum(our_usd) as ours_usd,
        sum(their_usd) as theirs_usd
    from sides
    group by
        usage_date,
        provider,
        model
),

line_items as (
    select
        'line_item' as level,
        sides.usage_date as usage_date,
        sides.provider as provider,
        sides.model as model,
        sides.unit as unit,
        sides.bill_line_item as line_item,
        models.calls as calls,
        models.unpriced_calls as unpriced_calls,
        sides.side_bill_lines as bill_lines,
        sides.our_usd as ours_usd,
        sides.their_usd as theirs_usd
    from sides
    inner join models
        on
            sides.usage_date = models.usage_date
            and sides.provider = models.provider
            and sides.model = models.model
    where
        sides.unit != ''
        or sides.bill_line_item != ''
),

judged as (
    select
        *,
        theirs_usd - ours_usd as difference_usd,
        greatest(
            {{ decimal_variable('bill_tolerance_usd', '0.0001') }},
            abs(theirs_usd) * {{ decimal_variable('bill_tolerance_share', '0.01') }}
        ) as tolerance,
        multiIf(
            bill_lines = 0 and unpriced_calls > 0, 'no_bill',
            abs(difference_usd) <= tolerance, 'within_tolerance',
            bill_lines = 0, 'no_bill',
            calls = 0 and ours_usd = 0, 'no_traces',
            unpriced_calls > 0, 'unpriced',
            'price'
        ) as class
    from
        (
            select * from models
            union all
            select * from line_items
        ) as compared
),

-- Of several models, the class is that of the one that makes the most of the difference. A day is
-- summed over the providers that send bills at all: of the others every day would be wrong.
summed as (
    select
        arrayJoin(['day', 'provider']) as sum_level,
        usage_date,
        if(sum_level = 'day', '', provider) as sum_provider,
        sum(judged.calls) as sum_calls,
        sum(judged.unpriced_calls) as sum_unpriced_calls,
        sum(judged.bill_lines) as sum_bill_lines,
        sum(judged.ours_usd) as sum_ours,
        sum(judged.theirs_usd) as sum_theirs,
        argMax(
            judged.class,
            (judged.class != 'within_tolerance', abs(difference_usd), provider, model)
        ) as worst_class
    from judged
    where
        level = 'model'
        and (sum_level = 'provider' or provider in (select provider from lines))
    group by
        sum_level,
        usage_date,
        sum_provider
),

levels as (
    select
        level,
        usage_date,
        provider,
        model,
        unit,
        line_item,
        calls,
        unpriced_calls,
        bill_lines,
        ours_usd,
        theirs_usd,
        class
    from judged

    union all

    select
        sum_level as level,
        usage_date,
        sum_provider as provider,
        '' as model,
        '' as unit,
        '' as line_item,
        sum_calls as calls,
        sum_unpriced_calls as unpriced_calls,
        sum_bill_lines as bill_lines,
        sum_ours as ours_usd,
        sum_theirs as theirs_usd,
        multiIf(
            worst_class != 'no_bill'
            and abs(sum_theirs - sum_ours) <= greatest(
                {{ decimal_variable('bill_tolerance_usd', '0.0001') }},
                abs(sum_theirs) * {{ decimal_variable('bill_tolerance_share', '0.01') }}
            ), 'within_tolerance',
            worst_class = 'within_tolerance', 'price',
            worst_class
        ) as class
    from summed
),

final as (
    select
        -- what is compared
        level::LowCardinality(String) as level,
        usage_date,
        provider::LowCardinality(String) as provider,
        model,
        unit::LowCardinality(String) as unit,
        line_item,

        -- what there is of it
        calls::UInt64 as calls,
        unpriced_calls::UInt64 as unpriced_calls,
        bill_lines::UInt64 as bill_lines,

        -- money
        if(
            calls > 0 and calls = unpriced_calls and ours_usd = 0,
            null,
            ours_usd
        )::Nullable(Decimal(38, 12)) as ours_usd,
        if(bill_lines = 0, null, theirs_usd)::Nullable(Decimal(38, 12)) as theirs_usd,
        (levels.theirs_usd - levels.ours_usd)::Decimal(38, 12) as difference_usd,
        if(
            levels.theirs_usd = 0,
            null,
            toDecimal256(levels.theirs_usd - levels.ours_usd, 12) / abs(levels.theirs_usd)
        )::Nullable(Decimal(38, 12)) as difference_share,
        class::LowCardinality(String) as class
    from levels
)

select * from final
