{# one row per price book version, provider, model and service tier, with all its prices #}

{#- Prices of a service tier go before the standard ones of the model, which it falls back to unit
    by unit. The order in the array is the order in which a price is looked for: the first that holds
    at a call's time, for its prompt, wins. Prices with a region or a further condition need what a
    trace does not say, and are left out. Those of seeds/uncertain_prices.csv are kept under another
    name: nothing is charged by them, but that there is such a price is known. A tier that is
    not sold for a model (seeds/unsold_service_tiers.csv) has the standard prices alone. -#}

with

prices as (
    select
        * except (unit),
        if(
            (provider, unit) in (
                select
                    price_provider,
                    unit
                from {{ ref('uncertain_prices') }}
            ),
            concat('uncertain ', unit),
            unit
        ) as unit
    from {{ ref('stg_prices__book') }}
    where
        region = ''
        and condition = ''
),

tiers as (
    select
        price_book_version,
        provider,
        model,
        service_tier as price_tier
    from prices

    union distinct

    select
        price_book_version,
        provider,
        model,
        '' as price_tier
    from prices

    union distinct

    select
        prices.price_book_version,
        prices.provider,
        prices.model,
        unsold.service_tier as price_tier
    from prices
    inner join {{ ref('unsold_service_tiers') }} as unsold
        on
            prices.provider = unsold.price_provider
            and prices.model = unsold.model
),

priced as (
    select
        tiers.price_book_version::String as price_book_version,
        tiers.provider::String as price_provider,
        tiers.model::String as price_model,
        tiers.price_tier::String as price_tier,
        arraySort(
            rate -> (rate.layer, rate.precedence, -toInt64(rate.tier_start)),
            groupArray({{ price_tuple("if(service_tier = '', 3, 2)", 'precedence') }})
        ) as rates
    from tiers
    inner join prices
        on
            tiers.price_book_version = prices.price_book_version
            and tiers.provider = prices.provider
            and tiers.model = prices.model
    where
        prices.service_tier = ''
        or prices.service_tier = tiers.price_tier
    group by
        price_book_version,
        price_provider,
        price_model,
        price_tier
),

-- The book lists models that are free without a price.
free as (
    select distinct
        price_book_version::String as price_book_version,
        provider::String as price_provider,
        model::String as price_model,
        '' as price_tier,
        arrayMap(
            free_unit -> (
                3, 0, 0, free_unit, 0, true,
                toDateTime64('1970-01-01 00:00:00', 6, 'UTC'),
                toDateTime64('2299-12-31 00:00:00', 6, 'UTC'),
                0, 0, [], 'UTC', 'free'
            )::{{ price_tuple_type() }},
            ['input_tokens', 'output_tokens']
        ) as rates
    from {{ ref('stg_prices__rules') }}
    where
        rule_kind = 'model'
        and (price_book_version, provider, model) not in (
            select
                price_book_version,
                provider,
                model
            from {{ ref('stg_prices__book') }}
        )
),

final as (
    select * from priced

    union all

    select * from free
)

select * from final
