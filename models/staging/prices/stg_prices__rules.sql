{{ config(pre_hook="{{ create_price_tables() }}") }}
{# one row per version and condition of a matching rule of the price book #}

with

rules as (
    select * from {{ source('prices', 'raw_price_rules') }}
),

final as (
    select
        price_book_version,
        rule_kind,
        provider,
        model,
        rule_position,
        clause,
        operator,
        operand,
        is_negated
    from rules
)

select * from final
