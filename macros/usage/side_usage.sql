{#-
What a call used beside its prompt and its completion, as Map(column, tokens); what is not there is 0. Steps of Anthropic's `iterations` that are no message (a compaction, an advisor) count
where those that are one add up to the input of the whole, which shows that it leaves the others out.
What another model used, and pictures that a tool of OpenAI's made (it does not say by what model), is
`other_model_tokens`.
-#}
{% macro side_usage(steps, own_names, tops) -%}
arrayMap(
    (own, others) -> mapFilter(
        (name, tokens) -> tokens > 0,
        map(
            'side_prompt_tokens', arraySum(step -> step.3 + step.4 + step.5, own),
            'side_completion_tokens', arraySum(step -> step.6, own),
            'side_cached_input_tokens', arraySum(step -> step.4, own),
            'side_cache_write_tokens', arraySum(step -> step.5, own),
            'side_cache_write_1h_tokens', arraySum(step -> step.7, own),
            'other_model_tokens', arraySum(step -> step.3 + step.4 + step.5 + step.6, others)
                {%- for top in tops %}
                + {{ step_count(top ~ '.tool_usage.image_gen.input_tokens') }}
                + {{ step_count(top ~ '.tool_usage.image_gen.output_tokens') }}
                {%- endfor %}
        )
    ),
    {%- for which in ['in', 'not in'] %}
    [arrayMap(
        step -> (
            step.type,
            step.model,
            {{ step_count('step.input_tokens') }},
            {{ step_count('step.cache_read_input_tokens') }},
            {{ step_count('step.cache_creation_input_tokens') }},
            {{ step_count('step.output_tokens') }},
            {{ step_count("tupleElement(step.cache_creation, 'ephemeral_1h_input_tokens')") }}
        ),
        arrayFilter(
            step -> step.type != 'message'
                and step.model {{ which }} ('', {{ own_names | join(', ') }})
                and arraySum(other -> if(other.type = 'message', other.input_tokens, 0), {{ steps }})
                    = ifNull(parse_counts['prompt'], 0),
            {{ steps }}
        )
    )]{{ ',' if not loop.last }}
    {%- endfor %}
)[1]
{%- endmacro %}


{#- A count of a step, Int64, 0 where it is none. -#}
{% macro step_count(count) -%}
if({{ count }} > 0 and {{ count }} < 9007199254740992, {{ count }}, 0)
{%- endmacro %}


{#- An element of `iterations`, as far as it is read. -#}
{% macro step_type() -%}
Tuple(type String, model String, input_tokens Int64, output_tokens Int64, cache_read_input_tokens Int64, cache_creation_input_tokens Int64, cache_creation Tuple(ephemeral_1h_input_tokens Int64))
{%- endmacro %}
