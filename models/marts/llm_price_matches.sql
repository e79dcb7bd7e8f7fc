{{
    config(
        materialized='incremental',
        incremental_strategy='append',
        order_by=['price_book_version', 'provider', 'model', 'response_model'],
        pre_hook="{{ forget_matches_by_other_aliases() }}",
        post_hook="{{ note_aliases() }}",
    )
}}
{# one row per price book version, provider, requested model and answering model #}

{#- Done once for each distinct pair seen, by the book's own rules:
    1. the provider: its aliases, else the first provider of the book whose rule fits its name (the
       model's, where the trace names no provider);
    2. the names to look for: the answering model, then the requested one, unless the requested one
       is the same name with more to it (is_fuller_name()), or names another maker (a router that
       fell back). Each as it is, with a compact date written out, and without the path before it;
    3. for each name the provider's models in the book's order, then those of its fallbacks.
    Pairs that were seen before are matched again when another version is chosen, so that history
    can be compared and priced by it, and all that llm_traces has when other provider_aliases are
    loaded. -#}
-- depends_on: {{ ref('int_costs__pending') }}
{%- set adds_pairs = is_incremental() and not has_other_aliases() %}

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
            from {{ ref('int_costs__pending') if adds_pairs else ref('llm_traces') }}
            {%- if adds_pairs %}

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

rules as (
    select
        rule_kind,
        provider,
        model,
        rule_position,
        clause,
        groupArray((operator, operand, is_negated)) as conditions,
        arrayStringConcat(
            arraySort(groupArray(concat(if(is_negated, 'not ', ''), operator, ' ', operand))),
            ' and '
        ) as clause_text
    from {{ ref('stg_prices__rules') }}
    where price_book_version = (select price_book_version from chosen)
    group by
        rule_kind,
        provider,
        model,
        rule_position,
        clause
),

provider_clauses as (
    select arraySort(groupArray((rule_position, provider::String, conditions))) as clauses
    from rules
    where rule_kind = 'provider'
),

model_clauses as (
    select arraySort(groupArray((rule_position, provider::String, conditions))) as clauses
    from rules
    where rule_kind = 'provider_by_model'
),

fallbacks as (
    select
        arraySort(groupArray(
            (provider::String, (rule_position, tupleElement(conditions[1], 2)))
        )) as offers
    from rules
    where rule_kind = 'fallback'
),

aliases as (
    select arraySort(groupArray((provider, (toUInt32(rank), price_provider)))) as targets
    from {{ ref('provider_aliases') }}
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
    {%- if adds_pairs %}
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
        *,
        multiIf(
            answering_name = '',
            [('model', requested_name)],
            {{ is_fuller_name('requested_name', 'answering_name') }},
            [('model', requested_name), ('response_model', answering_name)],
            {{ model_maker('requested_name') }} != {{ model_maker('answering_name') }}
            and {{ model_maker('requested_name') }} != ''
            and {{ model_maker('answering_name') }} != '',
            [('response_model', answering_name)],
            [('response_model', answering_name), ('model', requested_name)]
        ) as given_names,
        arrayFilter(name -> name.3 != '', arrayFlatten(arrayMap(
            (given, number) -> arrayMap(
                (form, place) -> (number * 10 + place, given.1, form),
                {{ model_name_forms('given.2') }},
                [1, 2, 3, 4]
            ),
            given_names,
            arrayEnumerate(given_names)
        ))) as names
    from pairs
),

-- Whose prices to look into: the aliases', else the first provider's whose rule fits.
placed as (
    select
        provider,
        model,
        response_model,
        names,
        arrayMap(
            target -> target.2,
            arrayFilter(target -> target.1 = provider_name, (select targets from aliases))
        ) as alias_targets,
        arrayFirst(
            rule -> {{ price_clause_holds('provider_name', 'rule.3') }},
            (select clauses from provider_clauses)
        ) as rule_by_name,
        rule_by_name.2 as provider_by_name,
        arrayFirst(
            found -> found != '',
            arrayMap(
                name -> tupleElement(
                    arrayFirst(
                        rule -> {{ price_clause_holds('name.3', 'rule.3') }},
                        (select clauses from model_clauses)
                    ),
                    2
                ),
                if(provider_name in ('', 'unknown'), names, [])
            )
        ) as provider_by_model,
        multiIf(
            notEmpty(alias_targets), arrayFilter(target -> target.2 != '', alias_targets),
            provider_by_name != '', [(toUInt32(0), provider_by_name)],
            provider_by_model != '', [(toUInt32(0), provider_by_model)],
            []
        ) as own_providers
    from named
),

spread as (
    select
        provider,
        model,
        response_model,
        names,
        tupleElement(own_providers[1], 2) as first_provider,
        arrayConcat(
            arrayMap(own -> (own.1 * 1000, own.2, false), own_providers),
            arrayFlatten(arrayMap(
                own -> arrayMap(
                    other -> (
                        own.1 * 1000 + tupleElement(other.2, 1), tupleElement(other.2, 2), true
                    ),
                    arrayFilter(other -> other.1 = own.2, (select offers from fallbacks))
                ),
                own_providers
            ))
        ) as all_providers
    from placed
),

candidates as (
    select
        provider,
        model,
        response_model,
        arrayJoin(all_providers) as candidate,
        candidate.1 as provider_rank,
        candidate.2 as price_provider,
        candidate.3 as is_fallback,
        names
    from spread
),

model_rules as (
    select
        provider::String as rule_provider,
        model as price_model,
        rule_position,
        clause,
        conditions,
        clause_text
    from rules
    where rule_kind = 'model'
),

-- The first of a pair's names that a clause fits.
fits as (
    select
        provider,
        model,
        response_model,
        provider_rank,
        price_provider,
        is_fallback,
        price_model,
        rule_position,
        clause,
        clause_text,
        arrayFirst(name -> {{ price_clause_holds('name.3', 'conditions') }}, names) as fit_name
    from candidates
    inner join model_rules on candidates.price_provider = model_rules.rule_provider
    where fit_name.3 != ''
),

first_fits as (
    select
        provider,
        model,
        response_model,
        argMin(
            (
                price_provider,
                price_model,
                fit_name.2,
                fit_name.3,
                clause_text,
                is_fallback
            ),
            (fit_name.1, provider_rank, rule_position, clause)
        ) as fit
    from fits
    group by
        provider,
        model,
        response_model
),

final as (
    select
        (select price_book_version from chosen)::LowCardinality(String) as price_book_version,
        spread.provider::LowCardinality(String) as provider,
        spread.model::String as model,
        spread.response_model::String as response_model,
        multiIf(
            first_fits.fit.2 != '', 'matched',
            spread.first_provider != '', 'no_model',
            'no_provider'
        )::LowCardinality(String) as match_status,
        if(
            first_fits.fit.2 != '', first_fits.fit.1, spread.first_provider
        )::LowCardinality(String) as price_provider,
        first_fits.fit.2::String as price_model,
        first_fits.fit.3::LowCardinality(String) as matched_on,
        first_fits.fit.4::String as matched_name,
        first_fits.fit.5::String as match_rule,
        first_fits.fit.6::Bool as is_fallback,
        now64(3, 'UTC') as matched_at
    from spread
    left join first_fits
        on
            spread.provider = first_fits.provider
            and spread.model = first_fits.model
            and spread.response_model = first_fits.response_model
)

select * from final
