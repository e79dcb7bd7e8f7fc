{#-
A copy of a document that is not valid JSON, made parsable for reading counts only: lone surrogate
escapes are dropped (an escaped backslash and a proper pair are consumed first and kept), exponents
and digit runs beyond a double are cut, and Python's NaN and Infinity become null.
-#}
{% macro repaired_json(text) -%}
replaceRegexpAll(
    replaceRegexpAll(
        replaceRegexpAll(
            replaceRegexpAll(
                {{ text }},
                '(\\\\\\\\|\\\\u[dD][89abAB][0-9a-fA-F]{2}\\\\u[dD][c-fC-F][0-9a-fA-F]{2})|\\\\u[dD][89a-fA-F][0-9a-fA-F]{2}',
                '\\1'
            ),
            '([0-9][eE][+-]?)[0-9]{3,}',
            '\\199'
        ),
        '([0-9]{40})[0-9]{200,}',
        '\\1'
    ),
    '([:,\\[]\\s*)-?(?:NaN|Infinity)',
    '\\1null'
)
{%- endmacro %}


{#- The text of a raw JSON value: a string without its quotes, anything else as written; null for ''. -#}
{% macro text_of_raw(raw) -%}
nullIf(if(startsWith({{ raw }}, '"'), JSONExtractString({{ raw }}), {{ raw }}), '')
{%- endmacro %}


{#-
CTEs that give `parse_body`, the one object that stands for a row: the response itself, or of an
array of events the last with a usage (counts are cumulative), else the last with an error, else the
last. An error among the events is kept beside the usage. Anthropic splits the usage of a stream
over its first and its last event: both are merged.
-#}
{% macro event_ctes(source, name) -%}
{%- set names = usage_dialects().usage_names + usage_dialects().mixed_names -%}
picked as (

    select
        *,
        arrayElement(parse_events, multiIf(
            arrayLastIndex(event -> match(event, '"(?:{{ names | join('|') }})"\\s*:\\s*\\{'), parse_events) as usage_place > 0,
            usage_place,
            arrayLastIndex(event -> match(event, '"error"\\s*:\\s*["{]'), parse_events) as error_place > 0,
            error_place,
            toUInt64(length(parse_events))
        )) as parse_last,
        JSONExtractRaw(
            arrayFirst(event -> JSONExtractRaw(event, 'error') not in ('', 'null'), parse_events), 'error'
        ) as parse_event_fault,
        arrayFirst(event -> JSONExtractString(event, 'type') = 'message_start', parse_events) as parse_start,
        arrayLast(event -> JSONExtractString(event, 'type') = 'message_delta', parse_events) as parse_delta
    from {{ source }}

),

{{ name }} as (

    select
        * except (
            parse_trimmed, parse_unquoted, parse_events, parse_last, parse_event_fault,
            parse_start, parse_delta
        ),
        multiIf(
            startsWith(response_json, '{'), response_json,
            empty(parse_events), parse_unquoted,
            parse_start != '' and parse_event_fault = '', concat(
                '{"type":"message","model":', ifNull(nullIf(JSONExtractRaw(parse_start, 'message', 'model'), ''), 'null'),
                ',"delta":', ifNull(nullIf(JSONExtractRaw(parse_delta, 'delta'), ''), '{}'),
                ',"usage":{', trim(LEADING '{' FROM trim(TRAILING '}' FROM JSONExtractRaw(parse_delta, 'usage'))),
                if(length(JSONExtractRaw(parse_delta, 'usage')) > 2, ',', ''),
                substring(ifNull(nullIf(JSONExtractRaw(parse_start, 'message', 'usage'), ''), '{}'), 2), '}'
            ),
            parse_event_fault != '' and startsWith(parse_last, '{') and parse_last != '{}',
            concat('{"error":', parse_event_fault, ',', substring(parse_last, 2)),
            parse_last
        ) as parse_body
    from picked

),
{%- endmacro %}
