{#- Whether a condition of a price rule holds of a name in lower case. -#}
{%- macro price_rule_holds(name, operator, operand) -%}
multiIf(
    {{ operator }} = 'equals', {{ name }} = {{ operand }},
    {{ operator }} = 'starts_with', startsWith({{ name }}, {{ operand }}),
    {{ operator }} = 'ends_with', endsWith({{ name }}, {{ operand }}),
    {{ operator }} = 'contains', position({{ name }}, {{ operand }}) > 0,
    {{ operator }} = 'regex', match({{ name }}, {{ operand }}),
    false
)
{%- endmacro -%}
