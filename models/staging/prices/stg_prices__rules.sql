{{ config(pre_hook="{{ create_price_tables() }}") }}
{# one row per condition of a matching rule of the chosen price book #}

with

rules as (
    select * from {{ source('prices', 'raw_price_rules') }}
    where price_book_version = {{ chosen_price_book() }}
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
