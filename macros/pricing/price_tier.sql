{#- What a served service tier is called in the price book; '' is the standard tier. A tier that is
    not listed keeps its name: where the book has no price for it, the call is unpriced. -#}
{%- macro price_tier(service_tier) -%}
transform(
    lower(coalesce({{ service_tier }}, '')),
    [
        'default', 'standard', 'standard_only', 'on_demand', 'auto', 'none',
        'on_demand_priority', 'on_demand_flex'
    ],
    ['', '', '', '', '', '', 'priority', 'flex'],
    lower(coalesce({{ service_tier }}, ''))
)
{%- endmacro -%}
