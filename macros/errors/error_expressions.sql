{#- Whether a JSON value read as text is truthy: present, and not null, false, 0, "", [] or {}. -#}
{% macro is_truthy(text) -%}
(ifNull({{ text }}, '') not in ('', 'false', 'null', '0', '0.0', '-0', '[]', '{}'))
{%- endmacro %}


{#- The error a parsed body carries, as text: an object, or the message itself; null when none. -#}
{% macro fault_in(top) -%}
multiIf(
    {{ is_truthy(top ~ '.error') }}, {{ top }}.error,
    {{ top }}.status = 'failed' and startsWith(ifNull({{ top }}.status_details, ''), '{'),
        nullIf(JSONExtractRaw(ifNull({{ top }}.status_details, ''), 'error'), ''),
    {{ top }}.status = 'failed' and {{ is_truthy(top ~ '.last_error') }}, {{ top }}.last_error,
    arrayExists(fault -> {{ is_truthy('fault') }}, {{ top }}.choices.error),
        arrayFirst(fault -> {{ is_truthy('fault') }}, {{ top }}.choices.error),
    null
)
{%- endmacro %}


{#-
The class of an error by error_classes(), from the text "| type | code | message ".
One function reads the text for all classes: a chain of conditions would be evaluated lazily, and
what its links share once for each link.
-#}
{% macro error_class_of(text) -%}
ifNull(nullIf(arrayElement(
    [{% for rule in error_classes() %}'{{ rule.class }}'{{ ', ' if not loop.last }}{% endfor %}],
    arrayMin(multiMatchAllIndices(lower({{ text }}), [
        {%- for rule in error_classes() %}
        {{ sql_text(rule.pattern) }}{{ ',' if not loop.last }}
        {%- endfor %}
    ]))
), ''), 'unknown')
{%- endmacro %}


{#- A raw finish reason by finish_reasons(). -#}
{% macro finish_reason_of(raw) -%}
{%- set reasons = [] -%}
{%- set meanings = [] -%}
{%- for meaning, names in finish_reasons().items() -%}
    {%- for name in names %}{% do reasons.append(name) %}{% do meanings.append(meaning) %}{% endfor -%}
{%- endfor -%}
if(
    {{ raw }} is null, null,
    transform(lower(ifNull({{ raw }}, '')), [{{ sql_texts(reasons) }}], [{{ sql_texts(meanings) }}], 'other')
)
{%- endmacro %}
