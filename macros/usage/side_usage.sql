{#-
What a call used beside its prompt and its completion, by steps, as Array(side usage): steps of
Anthropic's `iterations` that are no message (a compaction, an advisor), where those that are one add up
to the input of the whole, which shows that it leaves the others out; and pictures that a tool of
OpenAI's made, of which it does not say by what model.
-#}
{% macro side_usage(steps, tops) -%}
arrayConcat(
    arrayMap(
        step -> (
            step.type,
            step.model,
            {{ step_count('step.input_tokens') }} + {{ step_count('step.cache_read_input_tokens') }}
                + {{ step_count('step.cache_creation_input_tokens') }},
            {{ step_count('step.output_tokens') }},
            {{ step_count('step.cache_read_input_tokens') }},
            {{ step_count('step.cache_creation_input_tokens') }},
            {{ step_count("tupleElement(step.cache_creation, 'ephemeral_1h_input_tokens')") }}
        ),
        arrayFilter(
            step -> step.type != 'message'
                and arraySum(other -> if(other.type = 'message', other.input_tokens, 0), {{ steps }})
                    = ifNull(parse_counts['prompt'], 0),
            {{ steps }}
        )
    ),
    arrayFilter(
        step -> step.3 + step.4 > 0,
        [
            {%- for top in tops %}
            (
                'image_gen', 'unknown',
                {{ step_count(top ~ '.tool_usage.image_gen.input_tokens') }},
                {{ step_count(top ~ '.tool_usage.image_gen.output_tokens') }}, 0, 0, 0
            ){{ ',' if not loop.last }}
            {%- endfor %}
        ]
    )
)
{%- endmacro %}


{#- A count of a step, Int64, 0 where it is none. -#}
{% macro step_count(count) -%}
if({{ count }} > 0 and {{ count }} < 9007199254740992, {{ count }}, 0)
{%- endmacro %}


{#- An element of `iterations`, as far as it is read. -#}
{% macro step_type() -%}
Tuple(type String, model String, input_tokens Int64, output_tokens Int64, cache_read_input_tokens Int64, cache_creation_input_tokens Int64, cache_creation Tuple(ephemeral_1h_input_tokens Int64))
{%- endmacro %}


{% macro side_usage_type() -%}
Array(Tuple(kind String, model String, prompt_tokens Int64, completion_tokens Int64, cached_input_tokens Int64, cache_write_tokens Int64, cache_write_1h_tokens Int64))
{%- endmacro %}
