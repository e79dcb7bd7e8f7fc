{#- A model's name without the date of its snapshot, in lower case: bills, requests and responses name
    the same model with and without. -#}
{%- macro undated_model(name) -%}
replaceRegexpOne(lower({{ name }}), '[-@](20[0-9]{2}-[0-9]{2}-[0-9]{2}|20[0-9]{6})$', '')
{%- endmacro -%}

{#- A variable that is a decimal number, as an exact one; text or number in YAML, never a float in SQL. -#}
{%- macro decimal_variable(name, default) -%}
    {%- set value = var(name, default) | string -%}
    {%- if not modules.re.match('^[0-9]{1,20}([.][0-9]{1,12})?$', value) -%}
        {{ exceptions.raise_compiler_error(
            name ~ ' is ' ~ value ~ ': it has to be a decimal number such as "0.01", in quotes.'
        ) }}
    {%- endif -%}
toDecimal128('{{ value }}', 12)
{%- endmacro -%}
