{#-
The tuple type that reads everything needed from a response body in one pass. JSONExtract leaves
NULL where a key is missing or null; an object read as text comes back as its JSON. An array fills a
tuple by position, so tuples are only named where arrays do not occur.
-#}
{% macro body_type() -%}
{%- set dialects = usage_dialects() -%}
Tuple(
    {{ text_elements(['id', 'object', 'type', 'error', 'Error', 'fault', 'error_type', 'code',
                      'status', 'status_details', 'last_error']) }},
    {{ text_elements(dialects.usage_names + dialects.mixed_names) }},
    {{ text_elements(['model', 'modelVersion', 'model_version', 'model_name', 'service_tier',
                      'serviceTier', 'stop_reason', 'stopReason', 'finish_reason', 'finishReason',
                      'done_reason', 'completionReason']) }},
    delta Tuple({{ text_elements(['stop_reason', 'finish_reason']) }}),
    incomplete_details Tuple(reason Nullable(String)),
    base_resp Tuple({{ text_elements(['status_code', 'status_msg']) }}),
    messageStop Tuple(stopReason Nullable(String)),
    promptFeedback Tuple(blockReason Nullable(String)),
    prompt_feedback Tuple(block_reason Nullable(String)),
    tool_usage Tuple(
        web_search Tuple(num_requests Nullable(String)),
        image_gen Tuple(input_tokens Int64, output_tokens Int64)
    ),
    choices Array(Tuple({{ text_elements(['finish_reason', 'error']) }})),
    candidates Array(Tuple(
        {{ text_elements(['finishReason', 'finish_reason']) }},
        groundingMetadata Tuple(webSearchQueries Array(String)),
        grounding_metadata Tuple(web_search_queries Array(String)))),
    output Array(Tuple(type Nullable(String))),
    results Array(Tuple({{ text_elements(['completionReason', 'stop_reason']) }})))
{%- endmacro %}


{#- What the sums below are read from. -#}
{% macro sums_type() -%}
Tuple(
    results Array(Tuple({{ text_elements(['tokenCount', 'input_token_count', 'generated_token_count']) }})),
    predictions Array(Tuple(embeddings Tuple(statistics Tuple(token_count Nullable(String))))),
    embeddings Array(Tuple(statistics Tuple(token_count Nullable(String)))))
{%- endmacro %}


{#-
Sums over arrays of results, and the length of the prompt that TGI lists token by token (`prefill`,
a member of its details), as terms like those of a usage object; '' where nothing is reported.
-#}
{% macro summed_terms(sums) -%}
{%- set lists = {
    'results_token_count': sums ~ '.results.tokenCount',
    'results_input_token_count': sums ~ '.results.input_token_count',
    'results_generated_token_count': sums ~ '.results.generated_token_count',
    'predictions_token_count': 'arrayConcat(' ~ sums ~ '.predictions.embeddings.statistics.token_count, ' ~ sums ~ '.embeddings.statistics.token_count)',
} -%}
arrayFilter(term -> term.2 != '', [
    {%- for term, list in lists.items() %}
    ('{{ term }}', if(
        arrayExists(text -> text is not null, {{ list }}),
        toString(toDecimal128OrNull(toString(arraySum(text -> ifNull(toFloat64OrNull(text), 0), {{ list }})), 0)), ''
    )),
    {%- endfor %}
    ('prefill_token_count', arrayFirst(text -> text != '0', [toString(length(
        JSONExtractArrayRaw(arrayFirst(member -> member.1 = 'prefill', parse_members).2)
    ))]))
])
{%- endmacro %}


{#- Those of a body's members, best first, that are objects with something in them, as their JSON. -#}
{% macro objects_of(top, names) -%}
arrayFilter(text -> startsWith(text, '{"'), [
    {%- for name in names %}
    ifNull({{ top }}.`{{ name }}`, ''){{ ',' if not loop.last }}
    {%- endfor %}
])
{%- endmacro %}


{#-
A text of SQL in which `tuple.a.b` is written tupleElement(tupleElement(tuple, 'a'), 'b').
The two mean the same. But the engine reads a dot as a subcolumn, for which it lists all streams of
the tuple, for each dot, step and block anew: it took two thirds of the parsing.
-#}
{% macro with_tuple_elements(sql, tuples) -%}
{%- set state = namespace(sql=sql) -%}
{%- set path = "((?:tupleElement\\()*\\b(?:" ~ tuples | join('|') ~ ")\\b(?:, '[^']+'\\))*)\\.`?([A-Za-z_][\\w-]*)`?" -%}
{%- for _ in range(4) -%}
    {%- set state.sql = modules.re.sub(path, "tupleElement(\\1, '\\2')", state.sql) -%}
{%- endfor -%}
{{ state.sql }}
{%- endmacro %}
