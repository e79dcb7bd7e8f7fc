{#- Whether a JSON value read as text is truthy: present, and not null, false, 0, "", [] or {}. -#}
{% macro is_truthy(text) -%}
(ifNull({{ text }}, '') not in ('', 'false', 'null', '0', '0.0', '-0', '[]', '{}'))
{%- endmacro %}


{#-
The error a parsed body carries, as text: an object, or the message itself; null when none. Of a
list of errors the first. `Error` is AWS's and Tencent's, `fault` a gateway's, `errorCode` a batch's:
their keys become those of the others.
-#}
{% macro fault_in(top) -%}
multiIf(
    startsWith(ifNull({{ top }}.error, ''), '{"errorCode"'),
        replaceAll(replaceAll(ifNull({{ top }}.error, ''), '"errorCode"', '"code"'), '"errorMessage"', '"message"'),
    {{ is_truthy(top ~ '.error') }},
        if(startsWith(ifNull({{ top }}.error, ''), '[{'), JSONExtractRaw(ifNull({{ top }}.error, ''), 1), {{ top }}.error),
    startsWith(ifNull({{ top }}.Error, ''), '{"'),
        replaceAll(replaceAll(ifNull({{ top }}.Error, ''), '"Code":', '"code":'), '"Message":', '"message":'),
    startsWith(ifNull({{ top }}.fault, ''), '{"faultstring"'),
        replaceOne(ifNull({{ top }}.fault, ''), '"faultstring"', '"message"'),
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


{#-
Whether a body is nothing but an error by bare_error_keys(). `keys` are its keys, none where the
body has counts or an `error`. Members that are null or empty do not count, and what reports success
is no error: a good status, code or message, `success: true`, a message that has a role.
-#}
{% macro is_bare_error(keys, text) -%}
{%- set bare = bare_error_keys() -%}
{%- set telling = bare.message | reject('equalto', 'title') | list + ['errors'] -%}
{#- Of each member: 0 not that of an error, 1 beside one, 2 an error. -#}
has([[2], [1, 2]], arraySort(arrayDistinct(arrayMap(
    member -> multiIf(
        member.1 not in ({{ sql_texts(bare.message + bare.type + bare.beside) }}), 0,
        member.1 in ({{ sql_texts(bare.outcome) }}) and match(lower(trimBoth(member.2, '"')), '^(?:{{ bare.good | join('|') }})$'), 0,
        member.1 = 'message' and startsWith(member.2, '{') and (JSONHas(member.2, 'role') or JSONHas(member.2, 'content')), 0,
        member.1 in ({{ sql_texts(telling) }}), 2,
        member.1 = 'status' and match(member.2, '^"?[45][0-9]{2}"?$'), 2,
        1
    ),
    arrayFilter(
        member -> member.2 not in ('', 'null', '""', '[]', '{}'),
        JSONExtractKeysAndValuesRaw(if(hasAny({{ keys }}, [{{ sql_texts(telling + ['title']) }}]), {{ text }}, ''))
    )
))))
{%- endmacro %}
