{#- Of a raw array the last element that shows a usage, else the last. -#}
{% macro telling_element(array) -%}
arrayElement(arrayMap(
    elements -> arrayElement(
        elements, toInt64(arrayLastIndex(
            element -> {{ shows_usage('element') }}, arrayConcat([''], elements)
        )) - 1
    ),
    [JSONExtractArrayRaw({{ array }})]
), 1)
{%- endmacro %}


{#-
The objects one level below `parents` (Array(Tuple(path, text))), as the same type: the members that
are objects, without those under `not_walked`, of `walked_arrays` the last element that shows a
usage, else the last, and of `walked_texts` the object in them. An agent's trace within its event
stands for both.
-#}
{% macro walked_level(parents) -%}
{%- set dialects = usage_dialects() -%}
arrayFlatten(arrayMap(
    parent -> arrayMap(
        member -> (
            if(parent.1 = '', member.1, concat(parent.1, '.', member.1)),
            multiIf(
                startsWith(member.2, '[['), arrayElement(JSONExtractArrayRaw(arrayElement(JSONExtractArrayRaw(member.2), -1)), -1),
                startsWith(member.2, '['), {{ telling_element('member.2') | indent(16) }},
                startsWith(member.2, '"'), JSONExtractString(member.2),
                member.1 = 'trace' and match(member.2, '"trace":\\s*\\{"[a-zA-Z]+Trace"'), JSONExtractRaw(member.2, 'trace'),
                member.2
            )
        ),
        arrayFilter(
            member -> (startsWith(member.2, '{') and member.1 not in ({{ sql_texts(dialects.not_walked) }}))
                or (match(member.2, '^\\[{1,2}\\{') and member.1 in ({{ sql_texts(dialects.walked_arrays) }}))
                or (startsWith(member.2, '"{') and member.1 in ({{ sql_texts(dialects.walked_texts) }})),
            JSONExtractKeysAndValuesRaw(parent.2)
        )
    ),
    {{ parents }}
))
{%- endmacro %}


{#-
The object and the objects in it, four levels down, breadth first, the object itself first under
the path ''. Every level parses its objects again: for the rows that show no usage at once.
-#}
{% macro walked_objects(text) -%}
{#- A level is named by a lambda over a list of one: written out, it would stand in each deeper one. -#}
arrayFlatten(arrayMap(
    first -> arrayConcat(first, arrayFlatten(arrayMap(
        second -> arrayConcat(second, arrayFlatten(arrayMap(
            third -> arrayConcat(third, arrayFlatten(arrayMap(
                fourth -> arrayConcat(fourth, {{ walked_level('fourth') | indent(16) }}),
                [{{ walked_level('third') | indent(16) }}]
            ))),
            [{{ walked_level('second') | indent(12) }}]
        ))),
        [{{ walked_level('first') | indent(8) }}]
    ))),
    [[('', {{ text }})]]
))
{%- endmacro %}


{#-
What a walked object has to offer: 3 a usage object with counts, 2 counts of its own, 1 an error,
0 nothing. Deeper than the body itself counts need an input and an output to be believed.
-#}
{% macro offer_of(object, count_pattern) -%}
{%- set dialects = usage_dialects() -%}
{%- set keys = "JSONExtractKeys(" ~ object ~ ".2)" -%}
multiIf(
    arrayExists(
        member -> member.1 in ({{ sql_texts(dialects.usage_names + dialects.mixed_names) }})
            and startsWith(member.2, '{') and match(member.2, '{{ count_pattern }}'),
        JSONExtractKeysAndValuesRaw({{ object }}.2)
    ), 3,
    hasAny({{ keys }}, [{{ sql_texts(dialects.flat) }}])
        and ({{ object }}.1 = '' or hasAny({{ keys }}, [{{ sql_texts(dialects.counts.prompt) }}])), 2,
    {{ object }}.1 = '' and (
        (has({{ keys }}, 'results') and position({{ object }}.2, '"generated_token_count"') > 0)
        or (hasAny({{ keys }}, ['predictions', 'embeddings']) and position({{ object }}.2, '"token_count"') > 0)
        or (hasAny({{ keys }}, [{{ sql_texts(dialects.flat_beside) }}]) and hasAny({{ keys }}, [{{ sql_texts(dialects.flat_in_pairs) }}]))
    ), 2,
    not match({{ object }}.1, '{{ no_fault_of_the_call() }}') and arrayExists(
        member -> (member.1 in ('error', 'Error') and length(member.2) > 2 and match(member.2, '^["{]'))
            or (member.1 = 'status' and member.2 = '"failed"'),
        JSONExtractKeysAndValuesRaw({{ object }}.2)
    ), 1,
    0
)
{%- endmacro %}


{#- Whether a text shows a usage object that holds a number; `quote` as written: escaped where the JSON is a string. -#}
{% macro shows_usage(text, quote='"') -%}
{%- set names = usage_dialects().usage_names + usage_dialects().mixed_names -%}
match({{ text }}, '"(?:{{ names | join('|') }}){{ quote }}\\s*:\\s*\\{(?:[^{}]|\\{[^{}]*\\})*[0-9]')
{%- endmacro %}
