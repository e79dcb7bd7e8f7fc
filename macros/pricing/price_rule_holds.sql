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

{#- Whether all conditions of a clause, an array of (operator, operand, is_negated), hold of a name. -#}
{%- macro price_clause_holds(name, conditions) -%}
arrayAll(
    condition ->
        {{ price_rule_holds(name, 'condition.1', 'condition.2') }} != condition.3,
    {{ conditions }}
)
{%- endmacro -%}
