{#- A text as a SQL string literal. -#}
{% macro sql_text(text) -%}
'{{ text | string | replace("\\", "\\\\") | replace("'", "\\'") }}'
{%- endmacro %}


{#- Texts as string literals, separated by commas. -#}
{% macro sql_texts(texts) -%}
{% for text in texts %}{{ sql_text(text) }}{{ ', ' if not loop.last }}{% endfor %}
{%- endmacro %}


{#- `key` Nullable(String), … : keys as elements of a typed JSONExtract tuple. -#}
{% macro text_elements(keys) -%}
{% for key in keys %}`{{ key }}` Nullable(String){{ ', ' if not loop.last }}{% endfor %}
{%- endmacro %}


{#- transform(expression, …): a name looked up in {name: meaning or [names]}; '' when not listed. -#}
{% macro looked_up(expression, meanings) -%}
{%- set names = [] -%}
{%- set values = [] -%}
{%- for meaning, listed in meanings.items() -%}
    {%- for name in listed %}{% do names.append(name) %}{% do values.append(meaning) %}{% endfor -%}
{%- endfor -%}
transform({{ expression }}, [{{ sql_texts(names) }}], [{{ sql_texts(values) }}], '')
{%- endmacro %}


{#- Of members (key, raw value) those that are parts of a usage object: their members, as `part.key`. -#}
{% macro part_terms(members) -%}
{%- set parts = usage_dialects().parts -%}
arrayFlatten(arrayMap(
    member -> arrayMap(
        inner -> (concat({{ looked_up('member.1', parts) }}, '.', inner.1), inner.2),
        JSONExtractKeysAndValuesRaw(member.2)
    ),
    arrayFilter(
        member -> startsWith(member.2, '{') and member.1 in ({{ sql_texts(listed_keys(parts)) }}),
        {{ members }}
    )
))
{%- endmacro %}


{#- All keys of a {name: [keys]} table, in order. -#}
{% macro listed_keys(table) %}
{%- set keys = [] -%}
{%- for listed in table.values() -%}
    {%- for key in listed if key not in keys %}{% do keys.append(key) %}{% endfor -%}
{%- endfor -%}
{{ return(keys) }}
{% endmacro %}


{#- Names of the dialects that have a property, e.g. cache: outside. -#}
{% macro dialects_with(property, value) %}
{%- set names = [] -%}
{%- for dialect in usage_dialects().dialects if dialect.get(property) == value and dialect.name not in names -%}
    {%- do names.append(dialect.name) -%}
{%- endfor -%}
{{ return(names) }}
{% endmacro %}


{#- Whether a dialect of usage_dialects() fits, by the terms that a usage object reports. -#}
{% macro dialect_fits(dialect, terms) -%}
hasAny({{ terms }}, [{{ sql_texts(dialect.any) }}])
{%- if 'with' in dialect %} and hasAny({{ terms }}, [{{ sql_texts(dialect['with']) }}]){% endif -%}
{%- if 'without' in dialect %} and not hasAny({{ terms }}, [{{ sql_texts(dialect.without) }}]){% endif -%}
{%- if 'provider' in dialect %} and provider in ({{ sql_texts(dialect.provider) }}){% endif -%}
{%- endmacro %}


{#- A double as a count, Nullable(Int64): whole, from 0 to 2^53; else null. -#}
{% macro as_count(number) -%}
if({{ number }} >= 0 and {{ number }} < 9007199254740992 and {{ number }} = floor({{ number }}), toInt64({{ number }}), null)
{%- endmacro %}


{#-
A text as dollars, Nullable(Decimal(18, 12)), without passing a float: rounded at 12 places; null
when it is no number, negative, or a million dollars and more.
-#}
{% macro as_usd(text) -%}
{#- A null carries a value too, and a cast casts it: what is out of range becomes 0 before, not only null. -#}
{%- set in_range = "ifNull(toDecimal128OrNull(" ~ text ~ ", 20) >= 0 and toDecimal128OrNull(" ~ text ~ ", 20) < 999999, false)" -%}
if(
    {{ in_range }},
    toDecimal64(
        if({{ in_range }}, round(ifNull(toDecimal128OrNull({{ text }}, 20), toDecimal128(0, 20)), 12), toDecimal128(0, 20)),
        12
    ),
    null
)
{%- endmacro %}


{#- The first of several texts that is not ''; '' when all are. All are computed: see parse_responses. -#}
{% macro first_text(texts) -%}
arrayFirst(text -> text != '', [
    {%- for text in texts %}
    {{ text | indent(4) }}{{ ',' if not loop.last }}
    {%- endfor %}
])
{%- endmacro %}
