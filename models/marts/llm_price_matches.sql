{{
    config(
        materialized='incremental',
        incremental_strategy='append',
        order_by=['price_book_version', 'provider', 'model', 'response_model'],
    )
}}
{# one row per price book version, provider, requested model and answering model #}

{#- Done once for each distinct pair seen, by the book's own rules:
    1. the provider: its aliases, else the first provider of the book whose rule fits its name (the
       model's, where the trace names no provider);
    2. the names to look for: the answering model, then the requested one, unless the requested one
       is the same name with more to it (a region, a path). Each as it is, with a compact date
       written out, and without the path before it;
    3. for each name the provider's models in the book's order, then those of its fallbacks.
    Pairs that were seen before are matched again when another version is chosen, so that history
    can be compared and priced by it. After a change of provider_aliases: --full-refresh. -#}
-- depends_on: {{ ref('int_costs__pending') }}

with

seen as (
    select distinct
        provider,
        model,
        response_model
    from
        (
            select
                provider::String as provider,
                model::String as model,
                coalesce(response_model, '') as response_model
            from {{ ref('int_costs__pending') if is_incremental() else ref('llm_traces') }}
            {%- if is_incremental() %}

            union all

            select
                provider::String as provider,
                model::String as model,
                response_model
            from {{ this }}
            {%- endif %}
        )
),

chosen as (
    select {{ chosen_price_book() }} as price_book_version
),

pairs as (
    select
        provider,
        model,
        response_model,
        lower(trim(provider)) as provider_name,
        lower(model) as requested_name,
        lower(response_model) as answering_name
    from seen
    {%- if is_incremental() %}
    where (provider, model, response_model) not in (
        select
            provider::String,
            model::String,
            response_model
        from {{ this }}
        where price_book_version = (select price_book_version from chosen)
    )
    {%- endif %}
),

named as (
    select
        provider,
        model,
        response_model,
        provider_name,
        if(
            answering_name = '' or position(requested_name, answering_name) > 0,
            [('model', requested_name), ('response_model', answering_name)],
            [('response_model', answering_name), ('model', requested_name)]
        ) as both_names
    from pairs
),

formed as (
    select
        provider,
        model,
        response_model,
        provider_name,
        arrayJoin(arrayFlatten(arrayMap(
            (given, number) -> arrayMap(
                (form, place) -> (number * 10 + place, given.1, form),
                {{ model_name_forms('given.2') }},
                [1, 2, 3, 4]
            ),
            both_names,
            [1, 2]
        ))) as candidate
    from named
),

names as (
    select
        provider,
        model,
        response_model,
        provider_name,
        candidate.1 as name_rank,
        candidate.2 as matched_on,
        candidate.3 as name
    from formed
    where candidate.3 != ''
),

aliases as (
    select
        provider as alias,
        toUInt32(rank) as alias_rank,
        price_provider
    from {{ ref('provider_aliases') }}
),

rules as (
    select * from {{ ref('stg_prices__rules') }}
),

provider_rules as (
    select
        provider as price_provider,
        rule_position,
        clause,
        operator,
        operand,
        is_negated
    from rules
    where rule_kind = 'provider'
),

provider_names as (
    select distinct provider_name
    from named
    where provider_name not in (select alias from aliases)
),

fitting_providers as (
    select
        provider_name,
        price_provider,
        rule_position,
        clause
    from provider_names
    cross join provider_rules
    group by
        provider_name,
        price_provider,
        rule_position,
        clause
    having min({{ price_rule_holds('provider_name', 'operator', 'operand') }} != is_negated)
),

providers_by_name as (
    select
        provider_name,
        argMin(price_provider, rule_position) as price_provider
    from fitting_providers
    group by provider_name
),

rules_by_model as (
    select
        provider as price_provider,
        rule_position,
        clause,
        operator,
        operand,
        is_negated
    from rules
    where rule_kind = 'provider_by_model'
),

nameless as (
    select
        provider,
        model,
        response_model,
        name_rank,
        name
    from names
    where provider_name in ('', 'unknown')
),

fitting_by_model as (
    select
        provider,
        model,
        response_model,
        name_rank,
        price_provider,
        rule_position,
        clause
    from nameless
    cross join rules_by_model
    group by
        provider,
        model,
        response_model,
        name_rank,
        price_provider,
        rule_position,
        clause
    having min({{ price_rule_holds('name', 'operator', 'operand') }} != is_negated)
),

providers_by_model as (
    select
        provider,
        model,
        response_model,
        argMin(price_provider, (name_rank, rule_position)) as price_provider
    from fitting_by_model
    group by
        provider,
        model,
        response_model
),

own_providers as (
    select
        named.provider as provider,
        named.model as model,
        named.response_model as response_model,
        aliases.alias_rank * 1000 as provider_rank,
        aliases.price_provider::String as price_provider
    from named
    inner join aliases on named.provider_name = aliases.alias
    where price_provider != ''

    union all

    select
        named.provider as provider,
        named.model as model,
        named.response_model as response_model,
        toUInt32(0) as provider_rank,
        providers_by_name.price_provider::String as price_provider
    from named
    inner join providers_by_name on named.provider_name = providers_by_name.provider_name

    union all

    select
        provider,
        model,
        response_model,
        toUInt32(0) as provider_rank,
        price_provider::String as price_provider
    from providers_by_model
),

fallbacks as (
    select * from rules
    where rule_kind = 'fallback'
),

all_providers as (
    select
        *,
        false as is_fallback
    from own_providers

    union all

    select
        own_providers.provider as provider,
        own_providers.model as model,
        own_providers.response_model as response_model,
        own_providers.provider_rank + fallbacks.rule_position as provider_rank,
        fallbacks.operand as price_provider,
        true as is_fallback
    from own_providers
    inner join fallbacks on own_providers.price_provider = fallbacks.provider
),

candidates as (
    select
        names.provider as provider,
        names.model as model,
        names.response_model as response_model,
        names.name_rank as name_rank,
        names.matched_on as matched_on,
        names.name as name,
        all_providers.provider_rank as provider_rank,
        all_providers.price_provider as price_provider,
        all_providers.is_fallback as is_fallback
    from names
    inner join all_providers
        on
            names.provider = all_providers.provider
            and names.model = all_providers.model
            and names.response_model = all_providers.response_model
),

model_rules as (
    select
        provider as rule_provider,
        model as price_model,
        rule_position,
        clause,
        operator,
        operand,
        is_negated
    from rules
    where rule_kind = 'model'
),

clauses as (
    select
        provider,
        model,
        response_model,
        name_rank,
        matched_on,
        name,
        provider_rank,
        price_provider,
        is_fallback,
        price_model,
        rule_position,
        clause,
        arrayStringConcat(
            groupArray(concat(if(is_negated, 'not ', ''), operator, ' ', operand)),
            ' and '
        ) as clause_text
    from candidates
    inner join model_rules on candidates.price_provider = model_rules.rule_provider
    group by
        provider,
        model,
        response_model,
        name_rank,
        matched_on,
        name,
        provider_rank,
        price_provider,
        is_fallback,
        price_model,
        rule_position,
        clause
    having min({{ price_rule_holds('name', 'operator', 'operand') }} != is_negated)
),

first_fits as (
    select
        provider,
        model,
        response_model,
        argMin(
            (price_provider, price_model, matched_on, name, clause_text, is_fallback),
            (name_rank, provider_rank, rule_position, clause)
        ) as fit
    from clauses
    group by
        provider,
        model,
        response_model
),

known_providers as (
    select
        provider,
        model,
        response_model,
        argMin(price_provider, provider_rank) as price_provider
    from own_providers
    group by
        provider,
        model,
        response_model
),

final as (
    select
        chosen.price_book_version::LowCardinality(String) as price_book_version,
        pairs.provider::LowCardinality(String) as provider,
        pairs.model::String as model,
        pairs.response_model::String as response_model,
        multiIf(
            first_fits.fit.2 != '', 'matched',
            known_providers.price_provider != '', 'no_model',
            'no_provider'
        )::LowCardinality(String) as match_status,
        if(
            first_fits.fit.2 != '',
            first_fits.fit.1,
            known_providers.price_provider
        )::LowCardinality(String) as price_provider,
        first_fits.fit.2::String as price_model,
        first_fits.fit.3::LowCardinality(String) as matched_on,
        first_fits.fit.4::String as matched_name,
        first_fits.fit.5::String as match_rule,
        first_fits.fit.6::Bool as is_fallback,
        now64(3, 'UTC') as matched_at
    from pairs
    cross join chosen
    left join first_fits
        on
            pairs.provider = first_fits.provider
            and pairs.model = first_fits.model
            and pairs.response_model = first_fits.response_model
    left join known_providers
        on
            pairs.provider = known_providers.provider
            and pairs.model = known_providers.model
            and pairs.response_model = known_providers.response_model
)

select * from final
