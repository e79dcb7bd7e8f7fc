{#- A model's name without the date of its snapshot, in lower case: bills, requests and responses name
    the same model with and without. -#}
{%- macro undated_model(name) -%}
replaceRegexpOne(lower({{ name }}), '[-@](20[0-9]{2}-[0-9]{2}-[0-9]{2}|20[0-9]{6})$', '')
{%- endmacro -%}

{#- A variable that is a decimal number, as an exact one; text or number in YAML, never a float in SQL. -#}
{%- macro decimal_variable(name, default) -%}
    {%- set value = var(name, default) | string -%}
    {%- if execute and (value | length > 20 or not (value | replace('.', '', 1)).isdigit()) -%}
        {{ exceptions.raise_compiler_error(
            name ~ ' is ' ~ value ~ ': it has to be a decimal number such as "0.01", in quotes.'
        ) }}
    {%- endif -%}
toDecimal128('{{ value }}', 12)
{%- endmacro -%}

{#- The time at which budgets are asked about: now, or the variable budgets_at, in UTC. -#}
{%- macro asking_time() -%}
    {%- if var('budgets_at', none) -%}
toDateTime64('{{ var('budgets_at') | string | select('in', '0123456789 :.-') | join }}', 0, 'UTC')
    {%- else -%}
now64(0, 'UTC')
    {%- endif -%}
{%- endmacro -%}
