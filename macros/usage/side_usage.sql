{#-
What a call used beside its prompt and its completion, as Map(column, tokens); what is not there is 0.
Anthropic's `iterations` are read where those of type message add up to the input of the whole, which
shows that it leaves the others out (a compaction, an advisor); where the cache adds up too, they tell the
longest prompt. What another model used, and pictures that a tool of OpenAI's made (it does not say by what
model), is `other_model_tokens`.
-#}
{% macro side_usage(steps, own_names, tops) -%}
arrayMap(
    told -> mapFilter(
        (name, tokens) -> tokens > 0,
        map(
            'longest_prompt_tokens', if(
                arraySum(step -> if(step.1 = 'message', step.2, 0), told) = parse_input,
                arrayMax(step -> if(step.1 = 'other', 0, step.2), told), 0
            ),
            {%- for name, count in {
                'side_prompt_tokens': 'step.2', 'side_completion_tokens': 'step.3',
                'side_cached_input_tokens': 'step.4', 'side_cache_write_tokens': 'step.5',
                'side_cache_write_1h_tokens': 'step.6',
            }.items() %}
            '{{ name }}', arraySum(step -> if(step.1 = 'own', {{ count }}, 0), told),
            {%- endfor %}
            'other_model_tokens', arraySum(step -> if(step.1 = 'other', step.2 + step.3, 0), told)
                {%- for top in tops %}
                + {{ step_count(top ~ '.tool_usage.image_gen.input_tokens') }}
                + {{ step_count(top ~ '.tool_usage.image_gen.output_tokens') }}
                {%- endfor %}
        )
    ),
    [arrayMap(
        step -> (
            multiIf(
                step.type = 'message', 'message',
                step.model in ('', {{ own_names | join(', ') }}), 'own',
                'other'
            ),
            {{ step_count('step.input_tokens') }} + {{ step_count('step.cache_read_input_tokens') }}
                + {{ step_count('step.cache_creation_input_tokens') }},
            {{ step_count('step.output_tokens') }},
            {{ step_count('step.cache_read_input_tokens') }},
            {{ step_count('step.cache_creation_input_tokens') }},
            {{ step_count("tupleElement(step.cache_creation, 'ephemeral_1h_input_tokens')") }}
        ),
        if(
            arraySum(step -> if(step.type = 'message', step.input_tokens, 0), {{ steps }})
                = ifNull(parse_counts['prompt'], 0),
            {{ steps }}, []
        )
    )]
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
