{#- The text of a raw JSON value: a string without its quotes, anything else as written; null for ''. -#}
{% macro text_of_raw(raw) -%}
nullIf(if(startsWith({{ raw }}, '"'), JSONExtractString({{ raw }}), {{ raw }}), '')
{%- endmacro %}


{#-
CTEs that give `parse_body`, the one object that stands for a row: the response itself, or of an
array of events the last with a usage (counts are cumulative), else the last with an error, else the
last. An error among the events is kept beside the usage, and so is the finish reason of another
event. Anthropic splits the usage of a stream over its first and its last event: both are merged.
-#}
{% macro event_ctes(source, name) -%}
{%- set ending = '"(?:finish_reason|finishReason|stop_reason|stopReason|done_reason)"\\\\s*:\\\\s*"([A-Za-z_-]+)"' -%}
{# Events that are kept as strings, with or without their `data:`. #}
sifted as (

    select
        * except (
            parse_events
        ),
        if(
            startsWith(arrayElement(parse_events, 1), '"'),
            arrayFlatten(arrayMap(
                event -> extractAll(JSONExtractString(event), '(?:^|\\n)[ \\t]*(?:data:)?[ \\t]*(\\{[^\\n]*\\})'),
                parse_events
            )),
            parse_events
        ) as parse_lines
    from {{ source }}

),

picked as (

    select
        *,
        arrayElement(parse_lines, multiIf(
            arrayLastIndex(event -> {{ shows_usage('event') }}, parse_lines) as usage_place > 0,
            usage_place,
            arrayLastIndex(event -> {{ shows_usage('event', quote='\\\\\\\\"') }}, parse_lines) as quoted_place > 0,
            quoted_place,
            arrayLastIndex(event -> match(event, '"error"\\s*:\\s*["{]'), parse_lines) as error_place > 0,
            error_place,
            toUInt64(length(parse_lines))
        )) as parse_last,
        JSONExtractRaw(
            arrayFirst(event -> JSONExtractRaw(event, 'error') not in ('', 'null'), parse_lines), 'error'
        ) as parse_event_fault,
        arrayLast(
            reason -> reason != '', arrayMap(event -> extract(event, '{{ ending }}'), parse_lines)
        ) as parse_event_finish,
        arrayFirst(event -> JSONExtractString(event, 'type') = 'message_start', parse_lines) as parse_start,
        arrayLast(event -> JSONExtractString(event, 'type') = 'message_delta', parse_lines) as parse_delta,
        JSONExtractRaw(parse_start, 'message', 'usage') as parse_start_usage,
        JSONExtractRaw(parse_delta, 'usage') as parse_delta_usage
    from sifted

),

merged as (

    select
        *,
        if(
            parse_start = '', parse_last,
            concat(
                '{"type":"message","model":', ifNull(nullIf(JSONExtractRaw(parse_start, 'message', 'model'), ''), 'null'),
                ',"delta":', ifNull(nullIf(JSONExtractRaw(parse_delta, 'delta'), ''), '{}'),
                ',"usage":{',
                arrayStringConcat(arrayMap(
                    usage -> substring(usage, 2, toInt64(length(usage)) - 2),
                    arrayFilter(
                        usage -> startsWith(usage, '{') and usage != '{}',
                        [parse_delta_usage, parse_start_usage]
                    )
                ), ','),
                '}}'
            )
        ) as parse_event,
        {# An error at the top would keep a usage further down from being looked for. #}
        arrayFirst(usage -> startsWith(usage, '{'), [
            {%- for envelope in ['response', 'metadata', 'delta', 'interaction', 'x_groq'] %}
            JSONExtractRaw(if(parse_event_fault = '', '', parse_last), '{{ envelope }}', 'usage'){{ ',' if not loop.last }}
            {%- endfor %}
        ]) as parse_event_usage
    from picked

),

{{ name }} as (

    select
        * except (
            parse_trimmed, parse_unquoted, parse_lines, parse_last, parse_event, parse_event_fault,
            parse_event_finish, parse_event_usage, parse_start, parse_start_usage, parse_delta, parse_delta_usage
        ),
        multiIf(
            startsWith(response_json, '{'), response_json,
            empty(parse_lines), parse_unquoted,
            startsWith(parse_event, '{') and parse_event != '{}',
            concat(
                '{',
                if(parse_event_fault = '', '', concat('"error":', parse_event_fault, ',')),
                if(startsWith(parse_event_usage, '{'), concat('"usage":', parse_event_usage, ','), ''),
                if(
                    parse_event_finish = '' or match(parse_event, '{{ ending }}'), '',
                    concat('"finish_reason":"', parse_event_finish, '",')
                ),
                substring(parse_event, 2)
            ),
            parse_event
        ) as parse_body
    from merged

),
{%- endmacro %}
