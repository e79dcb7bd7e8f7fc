{{ config(pre_hook="{{ create_price_tables() }}") }}
{# one row per version and price of the book, with the days and hours it holds #}

{#- Three things the book cannot say are mended here, each by what it does say:
    - a rule of the book holds a date or a time window: a window holds from the last date that stands
      before it in the model's list, since that is the price it belongs to;
    - it knows no weekdays: seeds/price_windows.csv says on which days a model's windows hold;
    - batch, flex and priority prices were recorded later than they began: the first of a model holds
      from the beginning of the standard price that held when it was recorded.
    All versions: which one is chosen is for the run that prices to say, not for the one that made
    this view. -#}

with

prices as (
    select
        *,
        precedence >= 1000 as is_standard
    from {{ source('prices', 'raw_prices') }}
),

standard_starts as (
    select
        price_book_version,
        provider,
        model,
        groupUniqArray(valid_from) as starts
    from prices
    where
        is_standard
        and window_start = ''
    group by
        price_book_version,
        provider,
        model
),

dated as (
    select
        prices.*,
        max(valid_from) over (
            partition by price_book_version, provider, model, is_standard
            order by precedence desc
            range between unbounded preceding and current row
        ) as last_start,
        min(valid_from) over (
            partition by
                price_book_version, provider, model, is_standard, service_tier, region, condition,
                unit
        ) as first_start,
        standard_starts.starts as starts
    from prices
    left join standard_starts using (price_book_version, provider, model)
),

mended as (
    select
        * except (valid_from, valid_to),
        toDateTime64(
            multiIf(
                window_start != '' and is_standard, coalesce(last_start, '1970-01-01'::Date),
                valid_from is null, '1970-01-01'::Date,
                is_standard or valid_from != first_start, valid_from,
                arrayMax(
                    arrayPushBack(
                        arrayFilter(start -> start <= assumeNotNull(valid_from), starts),
                        '1970-01-01'::Date
                    )
                )
            ),
            6, 'UTC'
        ) as holds_from,
        if(
            valid_to is null,
            toDateTime64('2299-12-31 00:00:00', 6, 'UTC'),
            toDateTime64(valid_to, 6, 'UTC')
        ) as holds_to
    from dated
),

windows as (
    select * from {{ ref('price_windows') }}
),

-- A window holds on all days until it is known to hold on some.
on_all_days as (
    select
        mended.*,
        windows.weekdays as window_weekdays,
        toDateTime64(windows.weekdays_from, 6, 'UTC') as weekdays_from,
        windows.source as window_source
    from mended
    left join windows
        on
            mended.provider = windows.provider
            and mended.model = windows.model
            and mended.window_start != ''
),

split as (
    select
        * except (holds_from, holds_to, weekdays),
        holds_from as starts_at,
        if(window_source = '', holds_to, least(holds_to, weekdays_from)) as ends_at,
        weekdays as days
    from on_all_days

    union all

    select
        * except (holds_from, holds_to, weekdays),
        greatest(holds_from, weekdays_from) as starts_at,
        holds_to as ends_at,
        arrayMap(day -> toUInt8OrZero(day), splitByChar(' ', window_weekdays)) as days
    from on_all_days
    where window_source != ''
),

final as (
    select
        price_book_version,
        toString(price_row) as price_id,
        provider,
        model,
        starts_at as valid_from,
        ends_at as valid_to,
        window_start,
        window_end,
        days as weekdays,
        time_zone,
        tier_start,
        is_tier_start_inclusive,
        service_tier,
        region,
        condition,
        unit,
        unit_price_usd,
        precedence,
        source
    from split
    where starts_at < ends_at
)

select * from final
