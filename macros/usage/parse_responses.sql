{#-
Everything a provider's response says, as columns beside all columns of `relation`.

Reads `response_json` and `provider` of the relation, and never the request. Any text is accepted:
what cannot be read gives `usage_status = 'unparsable'`, never an error.

Almost every response is an object with its usage at the top: it is parsed once, by one typed
extraction. The others (arrays, event streams, envelopes, counts in the body itself, broken JSON)
are told apart by what that extraction shows, and only they are looked into further; the texts that
the further steps work on are empty for all other rows, so that those steps cost nothing there.

Each step costs the engine time to plan, so a step does as much as it can; but a value that many
others use ends its step: an alias used again in its own select is written out again each time. Late
steps keep `and` and `or` few: planning compares the operands of each with everything below. What is
dear to compute never stands in a branch of `if` alone: the engine puts off such a value, and then
computes it anew for each of its uses. first_text() chooses without branches.
-#}
{% macro parse_responses(relation) %}
{%- set dialects = usage_dialects() -%}
{%- set count_pattern = '(?i)"[a-z_]*(?:' ~ dialects.count_words | join('|') ~ ')[a-z_]*"\\\\s*:\\\\s*(?:"?[0-9]|\\\\{)' -%}
{%- set telling = dialects.count_words + dialects.count_words | map('capitalize') | list + ['"usage', '"error', '"Error"', '"failed"'] -%}
{%- set bare = bare_error_keys() -%}
{%- set fault_elements = text_elements(['type', 'status', 'code', 'message', 'error', 'msg', 'detail', 'reason', 'description']) -%}

{%- set sql %}
with

traces as (

    select * from {{ relation }}

),

{# What was stored, where it is not simply an object: without a byte order mark, out of its quotes,
   and the elements of an array, or the events of an event stream. #}
split as (

    select
        *,
        if(
            startsWith(response_json, '{'), '',
            replaceRegexpOne(response_json, '^[\\s\\x{feff}]+', '')
        ) as parse_trimmed,
        if(
            startsWith(parse_trimmed, '"'),
            replaceRegexpOne(JSONExtractString(parse_trimmed), '^[\\s\\x{feff}]+', ''),
            parse_trimmed
        ) as parse_unquoted,
        multiIf(
            startsWith(parse_unquoted, '['), JSONExtractArrayRaw(parse_unquoted),
            parse_unquoted = '' or isValidJSON(parse_unquoted), [],
            extractAll(parse_unquoted, '(?:^|\\n)[ \\t]*(?:data:)?[ \\t]*(\\{[^\\n]*\\})')
        ) as parse_events
    from traces

),

{{ event_ctes('split', 'bodies') }}

{# The one typed extraction. #}
read as (

    select
        *,
        JSONExtract(parse_body, '{{ body_type() }}') as parse_first
    from bodies

),

{# Rows that showed nothing: is it JSON at all? #}
found as (

    select
        *,
        {{ objects_of('parse_first', dialects.usage_names + dialects.mixed_names) | indent(8) }} as parse_candidates,
        {{ fault_in('parse_first') | indent(8) }} as parse_first_fault,
        arrayFirst(text -> match(text, '{{ count_pattern }}'), parse_candidates) as parse_counting,
        arrayElement(parse_candidates, 1) as parse_first_countless,
        parse_counting != '' or parse_first_fault is not null as parse_is_found,
        if(parse_is_found, '', parse_body) as parse_unread,
        isValidJSON(parse_unread) as parse_is_valid
    from read

),

{# And if not, can a copy be made readable? #}
readable as (

    select
        * except (
            parse_unread
        ),
        if(parse_is_found or parse_is_valid, parse_unread, {{ repaired_json('parse_unread') | indent(12) }})
            as parse_mended,
        if(parse_is_valid or isValidJSON(parse_mended), parse_mended, '') as parse_readable
    from found

),

{# Their objects, four levels down, and the one that has a usage: the body to read instead. #}
walked as (

    select
        *,
        {{ walked_objects("if(multiSearchAny(parse_readable, [" ~ sql_texts(telling) ~ "]), parse_readable, '')") | indent(8) }} as parse_objects
    from readable

),

chosen as (

    select
        *,
        arrayMap(object -> {{ offer_of('object', count_pattern) | indent(12) }}, parse_objects) as parse_offers,
        arrayMax(parse_offers) as parse_offer,
        arrayElement(parse_objects, indexOf(parse_offers, arrayMax(parse_offers))).2 as parse_inner,
        multiIf(parse_offer > 0, parse_inner, parse_is_valid, '', parse_readable) as parse_second_text,
        JSONExtract(parse_second_text, '{{ body_type() }}') as parse_second
    from walked

),

located as (

    select
        *,
        {{ objects_of('parse_second', dialects.usage_names + dialects.mixed_names) | indent(8) }} as parse_second_candidates,
        coalesce(parse_first_fault, {{ fault_in('parse_second') | indent(8) }}) as parse_fault,
        {{ first_text(['parse_second_text', 'parse_readable', 'parse_body']) | indent(8) }} as parse_text,
        {{ first_text([
            'parse_counting',
            "arrayFirst(text -> match(text, '" ~ count_pattern ~ "'), parse_second_candidates)",
            "if(parse_offer = 2, parse_text, '')",
        ]) | indent(8) }} as parse_counts_text,
        {{ first_text([
            'parse_first_countless',
            "arrayElement(parse_second_candidates, 1)",
        ]) | indent(8) }} as parse_countless_text
    from chosen

),

{# The members of the usage object, those of its parts as `part.key`, of its lists as `part.label`. #}
termed as (

    select
        *,
        JSONExtractKeysAndValuesRaw(
            {{ first_text(['parse_counts_text', 'parse_countless_text']) | indent(12) }}
        ) as parse_members,
        JSONExtract(
            if(parse_offer = 2, parse_counts_text, ''), '{{ sums_type() }}'
        ) as parse_sums,
        arrayConcat(
            parse_members,
            arrayFlatten(arrayMap(
                inner -> arrayConcat(inner, {{ part_terms('inner') | indent(16) }}),
                [{{ part_terms('parse_members') | indent(16) }}]
            )),
            arrayFlatten(arrayMap(
                member -> arrayMap(
                    inner -> (
                        concat(
                            {{ looked_up('member.1', dialects.lists) }}, '.',
                            coalesce(inner.modality, inner.ttl, '')
                        ),
                        coalesce(
                            inner.tokenCount, inner.token_count, inner.tokens, inner.inputTokens, ''
                        )
                    ),
                    JSONExtract(
                        member.2,
                        'Array(Tuple({{ text_elements(['modality', 'ttl', 'tokenCount', 'token_count', 'tokens', 'inputTokens']) }}))'
                    )
                ),
                arrayFilter(
                    member -> startsWith(member.2, '[{')
                        and member.1 in ({{ sql_texts(listed_keys(dialects.lists)) }}),
                    parse_members
                )
            )),
            {{ summed_terms('parse_sums') | indent(12) }}
        ) as parse_terms
    from located

),

{# Terms become counts: by what they count, the positive, the better names and the earlier places
   first. The place is told, since the engine keeps the order of equals in short arrays alone. #}
counted as (

    select
        *,
        arrayMap(term -> term.1, arrayFilter(term -> term.2 not in ('', 'null'), parse_terms))
            as parse_reported,
        CAST(parse_terms, 'Map(String, String)') as parse_texts,
        arrayMap(term -> toFloat64OrNull(trimBoth(term.2, '"')), parse_terms) as parse_numbers,
        arraySort(
            count -> (count.1, ifNull(count.3, 0) = 0, count.2, count.4),
            arrayFilter(
                count -> count.1 != '' and count.3 is not null,
                arrayMap(
                    (term, number, place) -> (
                        {{ looked_up('term.1', dialects.counts) }},
                        indexOf([{{ sql_texts(listed_keys(dialects.counts)) }}], term.1),
                        {{ as_count('number') }},
                        place
                    ),
                    parse_terms, parse_numbers, arrayEnumerate(parse_terms)
                )
            )
        ) as parse_ranked,
        CAST(
            arrayMap(count -> (count.1, count.3), parse_ranked), 'Map(String, Nullable(Int64))'
        ) as parse_counts
    from termed

),

recognised as (

    select
        *,
        multiIf(
            parse_counts_text = '', 'none',
            {% for dialect in dialects.dialects -%}
            {{ dialect_fits(dialect, 'parse_reported') }}, '{{ dialect.name }}',
            {% endfor -%}
            'none'
        ) as parse_dialect,
        if(
            provider = 'anthropic', true,
            parse_dialect in ({{ sql_texts(dialects_with('zero_cache', 'unknown')) }})
        ) as parse_zero_is_unknown,
        {# What is billed stands for what was used where nothing else does; pictures lie outside it. #}
        coalesce(
            parse_counts['billed_input'] + parse_counts['billed_image'],
            parse_counts['billed_input'], parse_counts['billed_image']
        ) as parse_n_billed_input,
        coalesce(nullIf(parse_counts['prompt'], 0), parse_n_billed_input, parse_counts['prompt'])
            as parse_n_prompt,
        coalesce(
            nullIf(parse_counts['completion'], 0), parse_counts['billed_output'],
            parse_counts['completion']
        ) as parse_n_completion,
        parse_counts['cached'] as parse_n_cached,
        {# Where only how long it is kept is told, what was written is the sum of that. #}
        if(
            ifNull(parse_counts['written'], 0) = 0,
            coalesce(
                parse_counts['written_5m'] + parse_counts['written_1h'],
                parse_counts['written_5m'], parse_counts['written_1h'], parse_counts['written']
            ),
            parse_counts['written']
        ) as parse_n_written,
        parse_counts['reasoning'] as parse_n_reasoning,
        parse_counts['input_audio'] as parse_n_audio,
        ifNull(parse_counts['total'], 0) as parse_total,
        ifNull(parse_counts['tool_prompt'], 0) as parse_tool_prompt,
        ifNull(parse_n_prompt, 0) + parse_tool_prompt as parse_prompt,
        ifNull(parse_n_completion, 0) as parse_completion,
        ifNull(parse_n_cached, 0) + ifNull(parse_n_written, 0) as parse_cache,
        ifNull(parse_n_reasoning, 0) as parse_reasoning,
        ifNull(parse_n_audio, 0) as parse_audio
    from counted

),

{# What lies outside what: by the provider's own total where it settles it, else by the dialect. #}
summed as (

    select
        *,
        multiIf(
            parse_cache = 0, false,
            parse_total = parse_prompt + parse_completion + parse_cache
                and parse_cache != parse_reasoning, true,
            parse_total = parse_prompt + parse_completion and parse_cache <= parse_prompt, false,
            parse_dialect in ({{ sql_texts(dialects_with('cache', 'outside')) }})
        ) as parse_cache_is_outside,
        multiIf(
            parse_reasoning = 0, false,
            parse_dialect in ({{ sql_texts(dialects_with('reasoning', 'outside')) }}), true,
            parse_total = parse_prompt + parse_completion + parse_reasoning
        ) as parse_reasoning_is_outside,
        parse_dialect = 'openai_chat' and parse_audio > 0
            and parse_total = parse_prompt + parse_completion + parse_audio as parse_audio_is_outside,
        multiIf(
            parse_dialect = 'none', 0,
            parse_n_prompt is null and parse_n_completion is null, parse_total,
            parse_prompt + if(parse_cache_is_outside, parse_cache, 0)
                + if(parse_audio_is_outside, parse_audio, 0)
        ) as parse_input,
        if(
            parse_dialect = 'none', 0,
            parse_completion + if(parse_reasoning_is_outside, parse_reasoning, 0)
        ) as parse_output
    from recognised

),

{# Where no dialect fits: the members that look like counts all the same. #}
listed as (

    select
        *,
        if(
            parse_dialect != 'none', [],
            arrayConcat(
                parse_objects,
                {# Beside an error nothing is walked: the body's own members, and those of its objects. #}
                if(
                    empty(parse_objects[1].2) and parse_first_fault is not null,
                    arrayConcat(
                        [('', parse_body)],
                        arrayFilter(
                            member -> startsWith(member.2, '{')
                                and member.1 not in ('error', 'metadata', 'quota', 'rate_limit', {{ sql_texts(dialects.not_walked) }}),
                            JSONExtractKeysAndValuesRaw(parse_body)
                        )
                    ),
                    []
                ),
                if(parse_counts_text = '', [], [('usage', parse_counts_text)]),
                arrayMap(
                    member -> (concat('usage.', member.1), member.2),
                    arrayFilter(
                        member -> startsWith(member.2, '{'),
                        JSONExtractKeysAndValuesRaw(parse_counts_text)
                    )
                )
            )
        ) as parse_suspects,
        arraySort(arrayDistinct(arrayFlatten(arrayMap(
            object -> arrayMap(
                member -> if(object.1 = '', member.1, concat(object.1, '.', member.1)),
                arrayFilter(
                    member -> match(concat(object.1, '.', member.1), '(?i)token')
                        and not match(member.1, '(?i)^max|^trained|max_|maximum|limit|_ids?$|tokenid|logprob|per_?sec|per_?min|price|cost|_ms$|_time|rate|budget|remaining|accept|draft')
                        and match(member.2, '^"?[1-9][0-9]*(\\.0+)?"?$'),
                    JSONExtractKeysAndValuesRaw(object.2)
                )
            ),
            parse_suspects
        )))) as parse_unknown_keys,
        JSONExtractKeys(
            if(parse_counts_text = '' and parse_fault is null, parse_text, '')
        ) as parse_keys
    from summed

),

{# Bodies that are nothing but an error, without an `error` key. #}
worded as (

    select
        *,
        if(
            {{ is_bare_error('parse_keys', 'parse_text') | indent(12) }},
            parse_text, ''
        ) as parse_bare,
        arrayExists(
            object -> arrayExists(
                member -> member.1 in ({{ sql_texts(dialects.generated) }})
                    and match(member.2, '^(?:"[^"]|\\[[^\\]])'),
                JSONExtractKeysAndValuesRaw(object.2)
            ),
            parse_suspects
        ) as parse_is_generated,
        arrayFirst(key -> match(key, '^[a-z][A-Za-z]+Exception$'), parse_keys) as parse_exception,
        arrayFirst(
            text -> text not in ('', 'null', '""', '[]', '{}'),
            arrayMap(
                key -> JSONExtractRaw(parse_bare, key), [{{ sql_texts(bare.message) }}]
            )
        ) as parse_bare_message,
        arrayFirst(
            text -> text not in ('', 'null', '""'),
            arrayMap(
                key -> JSONExtractRaw(parse_bare, key), [{{ sql_texts(bare.type) }}]
            )
        ) as parse_bare_type,
        JSONExtractRaw(parse_bare, 'errors', 1) as parse_bare_listed,
        startsWith(ifNull(parse_fault, ''), '{') and (
            coalesce(parse_first.error, parse_second.error, '') != parse_fault
            or JSONType(parse_text, 'error') != 'String'
        ) as parse_fault_is_object,
        {{ is_truthy('parse_first.error_type') }} as parse_has_error_type,
        ifNull(parse_first.base_resp.status_code, '0') not in ('0', '') as parse_has_failed_base,
        'failed' in (ifNull(parse_first.status, ''), ifNull(parse_second.status, '')) as parse_has_failed
    from listed

),

{# The error as an object, and the one that some gateways wrap in it. #}
opened as (

    select
        *,
        JSONExtract(
            multiIf(
                parse_fault_is_object, ifNull(parse_fault, ''),
                parse_fault is null and parse_bare_message = '', parse_bare_listed,
                ''
            ),
            'Tuple({{ fault_elements }})'
        ) as parse_fault_outer,
        JSONExtract(
            if(
                parse_fault_outer.message is null, ifNull(parse_fault_outer.error, ''), ''
            ),
            'Tuple({{ fault_elements }})'
        ) as parse_fault_inner
    from worded

),

judged as (

    select
        *,
        parse_fault is not null or parse_has_error_type or parse_has_failed_base or parse_has_failed
            or parse_bare_message != '' or parse_exception != '' or length(parse_bare_listed) > 2
            as parse_is_error,
        coalesce(
            if(parse_has_error_type, parse_first.error_type, null),
            nullIf(parse_fault_inner.type, ''), nullIf(parse_fault_outer.type, ''),
            if(match(ifNull(parse_fault_outer.status, ''), '^[0-9.]*$'), null, parse_fault_outer.status),
            nullIf(parse_fault_inner.code, ''), nullIf(parse_fault_outer.code, ''),
            if(parse_first.error is null, null, nullIf(parse_first.code, '')),
            nullIf(parse_exception, ''),
            if(
                parse_bare_message = '' or ifNull(parse_first.type, 'error') in ('error', ''), null,
                parse_first.type
            ),
            {{ text_of_raw('parse_bare_type') }},
            if(parse_has_failed_base, parse_first.base_resp.status_code, null)
        ) as parse_error_type,
        coalesce(
            parse_fault_inner.message, parse_fault_outer.message, parse_fault_outer.msg,
            parse_fault_outer.detail, parse_fault_outer.error, parse_fault_outer.description,
            parse_fault_outer.reason, parse_fault,
            {{ text_of_raw('parse_bare_message') }},
            if(startsWith(parse_bare_listed, '"'), {{ text_of_raw('parse_bare_listed') }}, null),
            nullIf(JSONExtractString(if(parse_exception = '', '', parse_text), parse_exception, 'message'), ''),
            if(parse_has_failed_base, parse_first.base_resp.status_msg, null),
            nullIf(JSONExtractString(if(parse_has_error_type, parse_text, ''), 'message'), '')
        ) as parse_error_message,
        nullIf(coalesce(
            {% for top in ['parse_first', 'parse_second'] -%}
            arrayLast(reason -> ifNull(reason, '') != '', {{ top }}.choices.finish_reason),
            nullIf({{ top }}.stop_reason, ''), nullIf({{ top }}.stopReason, ''),
            arrayLast(reason -> ifNull(reason, '') != '', {{ top }}.candidates.finishReason),
            arrayLast(reason -> ifNull(reason, '') != '', {{ top }}.candidates.finish_reason),
            nullIf({{ top }}.finish_reason, ''), nullIf({{ top }}.finishReason, ''),
            nullIf({{ top }}.done_reason, ''), nullIf({{ top }}.completionReason, ''),
            {{ top }}.messageStop.stopReason, {{ top }}.delta.stop_reason, {{ top }}.delta.finish_reason,
            arrayLast(reason -> ifNull(reason, '') != '', {{ top }}.results.completionReason),
            arrayLast(reason -> ifNull(reason, '') != '', {{ top }}.results.stop_reason),
            {{ top }}.promptFeedback.blockReason, {{ top }}.prompt_feedback.block_reason,
            {{ top }}.incomplete_details.reason,
            if(
                ifNull({{ top }}.object, '') in ('response', 'realtime.response', 'interaction', 'thread.run'),
                {{ top }}.status, null
            ){{ ',' if not loop.last }}
            {% endfor %}
        ), '') as parse_finish,
        arrayMap(
            type -> ifNull(type, ''), arrayConcat(parse_first.output.type, parse_second.output.type)
        ) as parse_items,
        parse_texts['cost_in_usd_ticks'] as parse_ticks,
        arrayFirst(
            text -> text != '' and toFloat64OrNull(text) is not null,
            arrayMap(key -> trimBoth(parse_texts[key], '"'), [
                'gateway.cost_estimate', 'cost', 'cost.total_cost', 'total_cost', 'estimated_cost', 'cost_usd'
            ])
        ) as parse_cost,
        arrayFirst(
            text -> toFloat64OrNull(text) >= 0 and toFloat64OrNull(text) < 1e15,
            [trimBoth(parse_ticks, '"')]
        ) as parse_safe_ticks,
        if(parse_offer > 0, parse_body, '') as parse_envelope,
        JSONExtract(parse_texts['iterations'], 'Array({{ step_type() }})') as parse_steps,
        {{ side_usage('parse_steps', ["ifNull(parse_first.model, '')", "ifNull(parse_second.model, '')"], ['parse_first', 'parse_second']) | indent(8) }} as parse_side_usage
    from opened

)

select
    * except ('^parse_'),
    {% for column, expression in response_columns().items() -%}
    {{ expression }} as {{ column }}{{ ',' if not loop.last }}
    {% endfor %}
from judged
{%- endset %}

{{ with_tuple_elements(sql, ['parse_first', 'parse_second', 'parse_fault_outer', 'parse_fault_inner', 'parse_sums']) }}
{% endmacro %}
