{#- What a charge comes to: quantity times price, exact but for what lies beyond twelve decimals. -#}
{%- macro charge_amount(charge) -%}
round(toDecimal256({{ charge }}.unit_price_usd, 24) * {{ charge }}.quantity, 12)
{%- endmacro -%}
