{# one row per price that wins over the book #}

with

source as (
    select * from {{ ref('model_price_overrides') }}
),

renamed as (
    select
        concat('override:', override_id) as price_id,

        -- for whom
        organization_id,
        lower(provider) as provider,
        model_operator,
        if(model_operator = 'regex', concat('(?i)', model), lower(model)) as model,
        {{ price_tier('service_tier') }} as service_tier,

        -- when
        toDateTime64(coalesce(valid_from, '1970-01-01'::Date), 6, 'UTC') as valid_from,
        if(
            valid_to is null,
            toDateTime64('2299-12-31 00:00:00', 6, 'UTC'),
            toDateTime64(valid_to, 6, 'UTC')
        ) as valid_to,
        window_start,
        window_end,
        arrayMap(
            day -> toUInt8OrZero(day),
            arrayFilter(day -> day != '', splitByChar(' ', weekdays))
        ) as weekdays,
        if(time_zone = '', 'UTC', time_zone) as time_zone,
        tier_start,
        is_tier_start_inclusive,

        -- what
        unit,
        (toDecimal256(price_usd, 48) / per)::Decimal(38, 24) as unit_price_usd,
        source
    from source
)

select * from renamed
